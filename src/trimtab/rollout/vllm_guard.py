"""vLLM's side: every route of a server asks for the key.

vLLM itself asks for it under /v1 and /inference only, not where weights are replaced or code is called
(/pause, /collective_rpc, /update_weights). Servers that we start get a copy of this file, so it imports
nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
OPEN = "/health"
"""The only route without a key: it says no more than that the server lives."""


class Guard:
    """ASGI middleware: 401 without ``Authorization: Bearer VLLM_API_KEY``; sockets are closed.

    Args:
        app: The server.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.digest = _digest(f"Bearer {os.environ['VLLM_API_KEY']}".encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan" or scope.get("path") == OPEN or self._has_key(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _has_key(self, scope: Scope) -> bool:
        keys = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        return len(keys) == 1 and hmac.compare_digest(_digest(keys[0]), self.digest)


def _digest(header: bytes) -> bytes:
    """Of equal length for any header, so that a comparison takes as long."""
    return hashlib.sha256(header).digest()

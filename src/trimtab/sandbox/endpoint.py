"""An OpenAI-compatible endpoint on the loopback interface that can inject faults."""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from trimtab.types import Row

FAULTS = ("429", "500", "reset", "stall", "cut", "empty", "prose")
"""Rate limit, server error, broken connection, reply that never ends, half a body, empty reply,
and a reply that is not in the requested form."""

TokenRow = dict[str, Any]
"""A token with its log-probs, as the chat-completion protocol has it."""
Responder = Callable[[Row], tuple[str, list[TokenRow]]]
"""From the body of a request to the reply's text and its tokens with log-probs (or none)."""


@dataclass(slots=True)
class Call:
    """One call, as the server received it."""

    body: str
    """Hash of the request."""
    outcome: str
    """ "ok" or one of ``FAULTS``; "ok" calls got a complete reply and would be billed."""


@dataclass(slots=True)
class Faults:
    """How often and how the server fails; the seed determines which calls."""

    rate: float = 0.0
    kinds: tuple[str, ...] = FAULTS
    seed: int = 0
    stall: float = 30.0
    """Duration of a stalled reply in seconds."""

    def draw(self, number: int) -> str:
        """ "ok" or the fault of the call of this number."""
        rng = np.random.default_rng((self.seed, number))
        if rng.random() >= self.rate:
            return "ok"
        return self.kinds[int(rng.integers(len(self.kinds)))]


@dataclass(slots=True)
class Endpoint:
    """A server that answers ``POST /v1/chat/completions`` with a ``responder``.

    It listens on 127.0.0.1, by default on a free port, and requires its own random ``key``.
    """

    responder: Responder
    faults: Faults = field(default_factory=Faults)
    calls: list[Call] = field(default_factory=list[Call])
    """Every call, in order of arrival."""
    billed: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """(prompt, completion) tokens of every reply that was started: what a provider would bill."""
    url: str = ""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0
    server: ThreadingHTTPServer | None = None

    def start(self) -> Endpoint:
        """Listen, in a background thread."""
        endpoint = self

        class Handler(_Handler):
            of = endpoint

        self.server = _Server(("127.0.0.1", self.port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def close(self) -> None:
        """Stop listening and end stalled replies."""
        self.closing.set()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()

    def outcome(self, raw: bytes) -> str:
        """Record a call and draw its outcome."""
        with self.lock:
            outcome = self.faults.draw(len(self.calls))
            self.calls.append(Call(hashlib.sha256(raw).hexdigest(), outcome))
        return outcome


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnected."""


class _Handler(BaseHTTPRequestHandler):
    of: Endpoint
    protocol_version = "HTTP/1.1"
    # Header and body are two writes; Nagle would delay the second until the client's ACK.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Do not print."""

    def do_GET(self) -> None:
        """``/v1/models``."""
        exists = self.path == "/v1/models"
        self._send(200 if exists else 404, json.dumps({"object": "list", "data": []}).encode())

    def do_POST(self) -> None:
        """``/v1/chat/completions``."""
        length = int(self.headers.get("Content-Length", 0))
        raw = self.rfile.read(length)
        if len(raw) < length:
            # The client died while sending: this is not a call.
            self.close_connection = True
            return None
        if self.headers.get("Authorization") != f"Bearer {self.of.key}":
            return self._error(401, "wrong key")
        if self.path != "/v1/chat/completions":
            return self._error(404, "no such path")
        outcome = self.of.outcome(raw)
        if outcome == "429":
            return self._error(429, "slow down", {"Retry-After": "0"})
        if outcome == "500":
            return self._error(500, "out of order")
        if outcome == "reset":
            return self._reset()
        if outcome == "stall":
            return self._stall()
        try:
            body: Row = json.loads(raw)
            text, tokens = self.of.responder(body)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return self._error(400, f"{type(error).__name__}: {error}")
        text = {"empty": "", "prose": "I find both answers quite good."}.get(outcome, text)
        reply = self._completion(body, text, tokens if outcome in ("ok", "cut") else [])
        if outcome == "cut":
            reply = reply[: len(reply) // 2]
        self._send(200, reply)

    def _completion(self, body: Row, text: str, tokens: list[TokenRow]) -> bytes:
        read = sum(len(m["content"]) for m in body["messages"]) // 4
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        if tokens:
            choice["logprobs"] = {"content": tokens}
        usage = {"prompt_tokens": read, "completion_tokens": max(1, len(text) // 4)}
        with self.of.lock:
            self.of.billed.append((usage["prompt_tokens"], usage["completion_tokens"]))
        completion = {"object": "chat.completion", "model": body["model"], "choices": [choice]}
        return json.dumps(completion | {"usage": usage}).encode()

    def _error(self, code: int, message: str, headers: dict[str, str] | None = None) -> None:
        self._send(code, json.dumps({"error": {"message": message}}).encode(), headers)

    def _send(self, code: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _reset(self) -> None:
        """Reset the connection."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def _stall(self) -> None:
        """Send a body byte by byte, so that no timeout on a single read is reached."""
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        for _ in range(int(self.of.faults.stall / 0.1)):
            self.wfile.write(b" ")
            self.wfile.flush()
            if self.of.closing.wait(0.1):
                break
        self.close_connection = True

"""An OpenAI-compatible endpoint on loopback, which can be told to misbehave."""

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

FAULTS = ("429", "500", "reset", "stall", "cut", "empty", "prose")
"""Too many requests, a server error, a connection that breaks, a reply that never ends, half a
body, a reply without words, and words that are no verdict."""

Mind = Callable[[dict[str, Any]], tuple[str, list[dict[str, Any]]]]
"""From the body of a request to the reply's text and its tokens with log-probs (or none)."""


@dataclass(slots=True)
class Call:
    """A call as the server saw it."""

    body: str
    """Hash of the request."""
    outcome: str
    """ "ok" or one of ``FAULTS``; "ok" calls were answered whole, and would be charged."""


@dataclass(slots=True)
class Faults:
    """How often, and in which ways, the server fails; which calls follows from the seed."""

    rate: float = 0.0
    kinds: tuple[str, ...] = FAULTS
    seed: int = 0
    stall: float = 30.0
    """Seconds for which a stalled reply drips."""

    def draw(self, number: int) -> str:
        """ "ok" or the fault of the call of this number."""
        rng = np.random.default_rng((self.seed, number))
        if rng.random() >= self.rate:
            return "ok"
        return self.kinds[int(rng.integers(len(self.kinds)))]


@dataclass(slots=True)
class Endpoint:
    """A server that answers ``POST /v1/chat/completions`` by a ``mind``.

    It listens on a free port of 127.0.0.1 and wants its own random ``key``.
    """

    mind: Mind
    faults: Faults = field(default_factory=Faults)
    calls: list[Call] = field(default_factory=list[Call])
    """Every call, in order of arrival."""
    billed: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Tokens in and out of every reply that was begun: what a provider would charge for."""
    url: str = ""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    server: ThreadingHTTPServer | None = None

    def start(self) -> Endpoint:
        """Listen, from a thread of its own."""
        endpoint = self

        class Handler(_Handler):
            of = endpoint

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def close(self) -> None:
        """Stop listening; stalled replies end."""
        self.closing.set()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()

    def outcome(self, raw: bytes) -> str:
        """Note a call and say how it goes."""
        with self.lock:
            found = self.faults.draw(len(self.calls))
            self.calls.append(Call(hashlib.sha256(raw).hexdigest(), found))
        return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hung up knows it."""


class _Handler(BaseHTTPRequestHandler):
    of: Endpoint
    protocol_version = "HTTP/1.1"
    # Head and body leave in two writes; Nagle would hold the second back for the client's ack.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on the terminal."""

    def do_GET(self) -> None:
        """``/v1/models``."""
        known = self.path == "/v1/models"
        self._send(200 if known else 404, json.dumps({"object": "list", "data": []}).encode())

    def do_POST(self) -> None:
        """``/v1/chat/completions``."""
        length = int(self.headers.get("Content-Length", 0))
        raw = self.rfile.read(length)
        if len(raw) < length:
            # Whoever asks died while asking: that is no call.
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
            body: dict[str, Any] = json.loads(raw)
            text, tokens = self.of.mind(body)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return self._error(400, f"{type(error).__name__}: {error}")
        text = {"empty": "", "prose": "I find both answers quite good."}.get(outcome, text)
        said = self._completion(body, text, tokens if outcome in ("ok", "cut") else [])
        if outcome == "cut":
            said = said[: len(said) // 2]
        self._send(200, said)

    def _completion(self, body: dict[str, Any], text: str, tokens: list[dict[str, Any]]) -> bytes:
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
        whole = {"object": "chat.completion", "model": body["model"], "choices": [choice]}
        return json.dumps(whole | {"usage": usage}).encode()

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
        """Break the connection without a goodbye."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def _stall(self) -> None:
        """Promise a body and drip it, so that no limit on a single read is ever met."""
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        for _ in range(int(self.of.faults.stall / 0.1)):
            self.wfile.write(b" ")
            self.wfile.flush()
            if self.of.closing.wait(0.1):
                break
        self.close_connection = True

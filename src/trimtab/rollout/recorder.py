"""An OpenAI-compatible endpoint that records the tokens of agents: messages in, sampled ids kept.

A request continues a thread if its first messages are the thread's messages and our last reply. The
tokens between two turns come from the chat template; nothing that was sampled is tokenised again. Any other
request (an edited context, a template that drops thoughts) begins a new thread of the same episode.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from trimtab.data.conversation import BadRowError, Message, content_text
from trimtab.data.render import Renderer
from trimtab.rollout.engine import Engine, EngineError
from trimtab.rollout.thread import Episode, Thread
from trimtab.rollout.tool_format import ToolFormat, normal_call
from trimtab.sample.sampler import Request, SamplingConfig
from trimtab.types import Row, Status

log = logging.getLogger(__name__)
_WINDOW = 0.01
"""Seconds in which requests are gathered, so that the engine samples them together."""
_OURS = ("temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty")
"""Parameters that a request may have and that have no effect: the policy is sampled as it is trained."""


class RefusedError(Exception):
    """Why a request is refused: an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True, eq=False)
class _Recorded:
    """A thread with the columns it was rendered with."""

    thread: Thread
    columns: Row
    busy: bool = False


@dataclass(slots=True, eq=False)
class Session:
    """One episode of an agent: its address, and what was recorded."""

    base_url: str
    """What the agent's client takes as ``base_url``; it ends in /v1 and holds the secret token."""
    token: str
    key: tuple[int, ...]
    """Start of the key of its random streams."""
    max_turns: int
    max_tokens: int
    recorded: list[_Recorded] = field(default_factory=list[_Recorded])
    turns: int = 0
    calls: int = 0
    status: Status = "ok"
    detail: str = ""

    def refuse(self, message: str) -> RefusedError:
        """Note that a limit was met; an agent that ends in good order has its reward all the same."""
        self.status, self.detail = "truncated", message
        return RefusedError(400, message)

    def episode(self) -> Episode:
        """What was recorded so far. A thread without a reply is none."""
        return Episode(
            [r.thread for r in self.recorded if r.thread.turns], self.status, self.detail
        )


class Recorder:
    """Serves ``POST {base}/s/<token>/v1/chat/completions``, with streaming and tools.

    Args:
        engine: Samples; awaited from the server's own thread, so nothing else may use it meanwhile.
        renderer: Of the policy.
        positions: The model's number of positions, if it has one.
        host: Interface to listen at. Whoever can reach it and knows a token can sample.
    """

    def __init__(
        self, engine: Engine, renderer: Renderer, positions: int | None, host: str = "127.0.0.1"
    ) -> None:
        self.engine, self.positions = engine, positions
        self.format = ToolFormat(renderer)
        self.sampling = SamplingConfig()
        """How tokens are drawn, whatever requests ask for, but for a lower limit and stop strings."""
        self.sessions: dict[str, Session] = {}
        self._warned: set[str] = set()
        self._window: asyncio.Future[None] | None = None
        routes = [
            Route("/s/{token}/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/s/{token}/v1/models", self._models),
        ]
        self._socket = socket.socket()
        self._socket.bind((host, 0))
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        app = Starlette(routes=routes)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), daemon=True, name="recorder"
        )
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise EngineError(f"{self.url}: the recording endpoint did not start")
            time.sleep(0.005)

    def open(self, key: tuple[int, ...], max_turns: int, max_tokens: int) -> Session:
        """A new episode with an address of its own."""
        token = secrets.token_urlsafe(24)
        session = Session(f"{self.url}/s/{token}/v1", token, key, max_turns, max_tokens)
        self.sessions[token] = session
        return session

    def close(self, session: Session) -> None:
        """Refuse further requests of an episode."""
        self.sessions.pop(session.token, None)

    def stop(self) -> None:
        """End the server."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()

    async def _models(self, request: HTTPRequest) -> Response:
        if request.path_params["token"] not in self.sessions:
            return _error(404, "no such session")
        return JSONResponse({"object": "list", "data": [{"id": "policy", "object": "model"}]})

    async def _chat(self, request: HTTPRequest) -> Response:
        session = self.sessions.get(request.path_params["token"])
        if session is None:
            return _error(404, "no such session: its episode has ended")
        try:
            body: Any = await request.json()
        except ValueError as error:
            return _error(400, f"the body is no JSON: {error}")
        if not isinstance(body, dict):
            return _error(400, "the body must be a JSON object")
        try:
            return await self._answer(session, cast(Row, body), request)
        except RefusedError as refusal:
            return _error(refusal.status, str(refusal))
        except BadRowError as error:
            return _error(400, str(error))
        except EngineError as error:
            return _error(503, str(error))

    async def _answer(self, session: Session, body: Row, request: HTTPRequest) -> Response:
        messages, columns, sampling = self._read(session, body)
        part, between = self._continued(session, messages, columns)
        thread = part.thread
        context = [*thread.context, *between]
        limit = self._limit(session, body, context, thread)
        number = (session.recorded.index(part), len(thread.turns))
        part.busy = True
        try:
            await self._gathered()
            job = Request(np.array(context, dtype=np.int64), (*session.key, *number), 1, limit)
            (sampled,) = await self.engine.generate(job, sampling)
            if await request.is_disconnected():
                # Nobody reads the reply, so it is no part of the episode.
                return Response(status_code=499)
            reply = self.format.reply(context, sampled.ids.tolist(), columns)
            for call in cast("list[Row]", reply.get("tool_calls", [])):
                call["id"], session.calls = f"call{session.calls:05d}", session.calls + 1
            if between:
                thread.extend(between, messages[len(thread.messages) :])
            thread.add_turn(sampled, reply)
            session.turns += 1
        finally:
            part.busy = False
        usage = {"prompt_tokens": len(context), "completion_tokens": len(sampled.ids)}
        usage["total_tokens"] = sum(usage.values())
        finish = "tool_calls" if reply.get("tool_calls") else sampled.finish
        return _response(body, _sent(reply), finish, usage)

    def _read(self, session: Session, body: Row) -> tuple[list[Message], Row, SamplingConfig]:
        """Messages, columns of the template, and sampling settings of a request."""
        raw = body.get("messages")
        if not isinstance(raw, list) or not raw:
            raise RefusedError(400, "messages must be a list of messages")
        if body.get("n", 1) != 1:
            raise RefusedError(400, "n must be 1: an episode has one reply per request")
        for name in _OURS:
            if body.get(name) is not None and name not in self._warned:
                self._warned.add(name)
                log.info(
                    "requests of agents set %s, which has no effect: the run's sampling has it",
                    name,
                )
        columns: Row = {k: body[k] for k in ("tools", "chat_template_kwargs") if body.get(k)}
        sampling, stop = self.sampling, body.get("stop")
        if stop:
            stops = (stop,) if isinstance(stop, str) else tuple(cast("list[str]", stop))
            sampling = sampling.model_copy(update={"stop": (*sampling.stop, *stops)})
        if session.turns >= session.max_turns:
            raise session.refuse(f"the episode has {session.max_turns} turns, its limit")
        return _normal(cast("list[Any]", raw)), columns, sampling

    def _continued(
        self, session: Session, messages: list[Message], columns: Row
    ) -> tuple[_Recorded, list[int]]:
        """The thread that a request continues and the ids in between; or a new one."""
        idle = [
            r for r in session.recorded if r.thread.turns and not r.busy and r.columns == columns
        ]
        for part in sorted(idle, key=lambda r: -len(r.thread.messages)):
            thread = part.thread
            count = len(thread.messages)
            if count >= len(messages) or not _same(thread.messages, messages[:count]):
                continue
            ended = thread.ids[-1] in self.format.renderer.stop_ids
            between = self.format.between(thread.messages, messages[count:], columns, ended)
            if between is not None:
                return part, between
        context = self.format.context(messages, columns)
        opening = len(messages)
        if session.recorded:
            first = (i for i, m in enumerate(messages) if m["role"] == "assistant")
            opening = min(session.recorded[0].thread.opening, next(first, opening))
        part = _Recorded(Thread(context, list(messages), opening), columns)
        session.recorded.append(part)
        return part, []

    def _limit(self, session: Session, body: Row, context: list[int], thread: Thread) -> int:
        """Tokens that the reply may have."""
        room = session.max_tokens - (len(context) - len(thread.prompt))
        if self.positions is not None:
            room = min(room, self.positions - len(context))
        if room <= 0:
            raise session.refuse(
                "the context is at the limit of tokens of the episode or the model"
            )
        wanted = body.get("max_completion_tokens") or body.get("max_tokens")
        return min(room, int(wanted)) if wanted else room

    async def _gathered(self) -> None:
        """Wait for other requests of this moment, so that they become one batch."""
        if self._window is None:
            loop = asyncio.get_running_loop()
            window = self._window = loop.create_future()

            def end() -> None:
                self._window = None
                window.set_result(None)

            loop.call_later(_WINDOW, end)
        await asyncio.shield(self._window)


def _normal(raw: Sequence[Any]) -> list[Message]:
    """Messages of a request as chat templates read them: arguments are objects, results are named."""
    messages: list[Message] = []
    names: dict[str, str] = {}
    for value in raw:
        if not isinstance(value, dict) or not isinstance(cast(Row, value).get("role"), str):
            raise RefusedError(400, "each message must be an object with a role")
        message: Message = {k: v for k, v in cast(Row, value).items() if v is not None}
        message["role"] = "system" if message["role"] == "developer" else message["role"]
        message["content"] = content_text(message.get("content"))
        calls = cast("list[Row]", message.pop("tool_calls", None) or [])
        if calls:
            read = [normal_call(call) for call in calls]
            if None in read:
                raise RefusedError(400, "a tool call has no name, or arguments that are no JSON")
            message["tool_calls"] = [
                {**call, "id": raw_call.get("id", "")}
                for call, raw_call in zip(cast("list[Row]", read), calls, strict=True)
            ]
            names |= {c["id"]: c["function"]["name"] for c in message["tool_calls"]}
        if message["role"] == "tool" and message.get("tool_call_id") in names:
            message.setdefault("name", names[message["tool_call_id"]])
        messages.append(message)
    return messages


def _same(ours: Sequence[Message], theirs: Sequence[Message]) -> bool:
    """Whether a client sends back the messages that it got and sent: roles, texts and calls."""

    def key(m: Message) -> tuple[Any, ...]:
        calls = [c["function"] for c in cast("list[Row]", m.get("tool_calls", []))]
        return m["role"], content_text(m.get("content")).strip(), calls

    return all(key(a) == key(b) for a, b in zip(ours, theirs, strict=True))


def _sent(reply: Message) -> Message:
    """A reply as the protocol has it: arguments are JSON text."""
    message = {k: v for k, v in reply.items() if k not in ("raw", "tool_calls")}
    calls = [
        {**c, "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"])}}
        for c in cast("list[Row]", reply.get("tool_calls", []))
    ]
    if calls:
        message |= {"content": message.get("content") or None, "tool_calls": calls}
    return message


def _error(status: int, message: str) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": None}}, status)


def _response(body: Row, message: Message, finish: str, usage: Row) -> Response:
    """A chat completion, whole or as a stream of events."""
    shared = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": body.get("model") or "policy",
    }
    if not body.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return JSONResponse(
            {**shared, "object": "chat.completion", "choices": [choice], "usage": usage}
        )
    shared["object"] = "chat.completion.chunk"
    calls = [{**c, "index": i} for i, c in enumerate(message.get("tool_calls", []))]
    delta = {**message, "tool_calls": calls} if calls else message
    options = cast(Row, body.get("stream_options") or {})

    async def events() -> AsyncIterator[str]:
        for part, reason in ((delta, None), ({}, finish)):
            choice = {"index": 0, "delta": part, "finish_reason": reason, "logprobs": None}
            yield f"data: {json.dumps({**shared, 'choices': [choice]})}\n\n"
        if options.get("include_usage"):
            yield f"data: {json.dumps({**shared, 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")

"""Questions to an OpenAI-compatible endpoint: retried, capped, cached, and never made up."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

import httpx2
from pydantic import BaseModel

from trimtab.config import import_function
from trimtab.errors import ConfigError, JudgeError
from trimtab.judges.cache import Cache
from trimtab.judges.judge_config import ClientSpec
from trimtab.runs.redact import HIDDEN, redact

T = TypeVar("T")
R = TypeVar("R")
Message = dict[str, str]

_AGAIN = frozenset((408, 409, 425, 429))
_LONGEST_WAIT = 30.0
_LARGEST_BODY = 8 << 20
_MARGIN = 64
"""Prompt tokens that a chat template may add to a message, at most."""

# Its lines name every request; a judge makes thousands.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class Served(Protocol):
    """A server that an ``endpoint`` function started."""

    url: str
    key: str

    def close(self) -> None:
        """Stop it."""


class UnreadableError(ValueError):
    """A reply that does not hold what was asked for; the question is put again."""


@dataclass(slots=True)
class Failure:
    """A question without an answer. It is no verdict, and no number."""

    status: str
    """ "error", "timeout", "invalid" (every reply was unreadable) or "cap" (not asked)."""
    detail: str


@dataclass(slots=True)
class Token:
    """A token of a reply with the likeliest ones in its place."""

    text: str
    top: list[tuple[str, float]]
    """(text, log-prob)."""


@dataclass(slots=True)
class Reply:
    """What came back, as it came."""

    content: str
    tokens: list[Token]
    """Empty without log-probs."""
    seconds: float
    at: str
    """When it came, ISO 8601 in UTC."""
    dollars: float
    """What it cost when it was asked for; 0 without prices."""
    tokens_in: int
    tokens_out: int


@dataclass(slots=True)
class Answer(Generic[T]):
    """A reply, read."""

    value: T
    reply: Reply


class _Fault(Exception):  # noqa: N818  not an error yet: the next try may do
    def __init__(self, status: str, detail: str, *, again: bool, wait: float = 0.0, paid: bool):
        super().__init__(detail)
        self.status, self.detail, self.again = status, detail, again
        self.wait, self.paid = wait, paid


class Client:
    """One endpoint.

    Args:
        spec: Where, what, how often, for how much.

    Raises:
        ConfigError: the cache cannot be used, or the function behind ``endpoint`` is not there.
    """

    def __init__(self, spec: ClientSpec) -> None:
        self.spec = spec
        self.cache = Cache(spec.cache)
        self.served: Served | None = None
        self.calls = 0
        """Made by this client."""
        self.cached = 0
        """Replies taken from the cache."""
        self._answered = False
        self._flying = 0
        self._landed = asyncio.Condition()
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._http: httpx2.AsyncClient | None = None
        if "://" in spec.endpoint:
            self.identity = self.url = spec.endpoint.rstrip("/")
            self._key = os.environ.get(spec.key_env, "")
        else:
            start = import_function(spec.endpoint, "endpoint")
            try:
                self.served = cast(Served, start(**spec.serve))
            except TypeError as error:
                raise ConfigError(f"serve: {spec.endpoint} cannot be started so: {error}") from None
            self.url, self._key = self.served.url.rstrip("/"), self.served.key
            # The port is another each time; what answers is the same.
            self.identity = f"{spec.endpoint}{json.dumps(spec.serve, sort_keys=True)}"

    def close(self) -> None:
        """Stop the server, if one was started, and close the cache."""
        if self.served is not None:
            self.served.close()
        self.cache.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def each(
        self,
        things: Sequence[R],
        work: Callable[[R], Awaitable[T]],
        on_done: Callable[[int, int], None] | None = None,
    ) -> list[T]:
        """``work`` of every thing, ``concurrency`` at a time, in the order of the things.

        Args:
            things: What to work on.
            work: Asks this client what it needs to.
            on_done: Told how many of how many are done.

        Raises:
            JudgeError: the endpoint cannot be used at all.
        """

        async def whole() -> list[T]:
            found: dict[int, T] = {}
            todo = iter(enumerate(things))

            async def worker() -> None:
                for i, thing in todo:
                    found[i] = await work(thing)
                    if on_done is not None:
                        on_done(len(found), len(things))

            here = self.url.split("://", 1)[1].split("/", 1)[0].rsplit(":", 1)[0]
            local = here in ("127.0.0.1", "localhost", "[::1]")
            self._landed = asyncio.Condition()
            # A proxy of the environment does not know this machine's loopback.
            async with httpx2.AsyncClient(timeout=None, trust_env=not local) as http:
                self._http = http
                failed: BaseException | None = None
                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(min(self.spec.concurrency, len(things))):
                            group.create_task(worker())
                except* JudgeError as errors:
                    # What is raised in here would come out in a group again.
                    failed = errors.exceptions[0]
                if failed is not None:
                    raise failed from None
            return [found[i] for i in range(len(things))]

        return _run(whole)

    async def ask(
        self, messages: Sequence[Message], answer: type[BaseModel], read: Callable[[Reply], T]
    ) -> Answer[T] | Failure:
        """The reply to ``messages``, read; asked again while it fails or cannot be read.

        Args:
            messages: The question.
            answer: The form the reply must have; sent as a schema where ``format`` says so.
            read: Makes a value of a reply, or raises ``UnreadableError``.

        Raises:
            JudgeError: nothing has been answered so far and the tries are spent.
        """
        fault = _Fault("error", "", again=False, paid=False)
        unread = 0
        for attempt in range(self.spec.tries):
            body = self._body(messages, answer, unread)
            key = self._name(body, unread)
            try:
                # Whoever asks the same at the same time waits, and finds the reply in the cache.
                async with self._asking.setdefault(key, asyncio.Lock()):
                    kept = self.cache.get(key)
                    if kept is not None:
                        self.cached += 1
                        reply = _reply(kept)
                    elif (worst := await self._book(body)) is None:
                        return Failure("cap", self._capped())
                    else:
                        reply = await self._paid_call(body, key, worst)
                self._answered = True
                return Answer(read(reply), reply)
            except UnreadableError as error:
                # The next try is another question, or the cache would give the same reply.
                unread += 1
                fault = _Fault("invalid", str(error), again=True, paid=True)
                continue
            except _Fault as error:
                fault = error
            if not fault.again:
                break
            if attempt + 1 < self.spec.tries:
                pause = min(self.spec.backoff * 2**attempt, _LONGEST_WAIT)
                pause *= random.uniform(0.5, 1.0)  # spreads the retries
                await asyncio.sleep(max(fault.wait, pause))
        if not self._answered and fault.status != "invalid":
            said = f"{self.url}, model {self.spec.model!r}: {fault.detail}"
            raise JudgeError(self._hide(said))
        return Failure(fault.status, self._hide(fault.detail))

    def _hide(self, text: str) -> str:
        """Without the key, whatever its variable is called, and without other secrets."""
        return str(redact(text.replace(self._key, HIDDEN) if self._key else text))

    def _body(
        self, messages: Sequence[Message], answer: type[BaseModel], unread: int
    ) -> dict[str, Any]:
        s = self.spec
        body: dict[str, Any] = {
            "model": s.model,
            "messages": list(messages),
            # What could not be read once would come again at 0.
            "temperature": s.temperature if not unread else max(s.temperature, 0.5),
            "max_tokens": s.max_tokens,
        }
        if s.seed is not None:
            body["seed"] = s.seed + unread
        if s.format == "object":
            body["response_format"] = {"type": "json_object"}
        elif s.format == "schema":
            schema = {"name": "answer", "strict": True, "schema": answer.model_json_schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if s.probabilities:
            body |= {"logprobs": True, "top_logprobs": 8}
        body |= s.extra
        return {k: v for k, v in body.items() if v is not None}

    def _name(self, body: dict[str, Any], unread: int) -> str:
        """Everything the reply depends on: who is asked, what, how, and for the how-manieth time."""
        text = json.dumps([self.identity, body, unread], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _price(self, tokens_in: float, tokens_out: float) -> float:
        s = self.spec
        return (tokens_in * (s.price_in or 0.0) + tokens_out * (s.price_out or 0.0)) / 1e6

    async def _book(self, body: dict[str, Any]) -> float | None:
        """Book a call at the most it can cost; None when a cap forbids it."""
        # A token is a byte or more, so bytes bound the tokens of a prompt from above.
        sent = len(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
        worst = self._price(sent + _MARGIN * len(body["messages"]), self.spec.max_tokens)
        s = self.spec
        async with self._landed:
            while not self.cache.book(worst, s.max_calls, s.max_spend):
                if not self._flying:
                    return None
                # What is under way may turn out cheaper than it was booked at.
                await self._landed.wait()
            self._flying += 1
        self.calls += 1
        return worst

    def _capped(self) -> str:
        calls, dollars = self.cache.account()
        return (
            f"not asked: {calls} calls and ${dollars:.4f} are used of max_calls "
            f"{self.spec.max_calls} and max_spend {self.spec.max_spend}"
        )

    async def _paid_call(self, body: dict[str, Any], key: str, worst: float) -> Reply:
        change: float = 0.0
        reply: dict[str, Any] | None = None
        try:
            kept = await self._call(body)
            known = kept["tokens_in"] is not None
            cost = self._price(kept["tokens_in"], kept["tokens_out"]) if known else worst
            reply = kept | {"dollars": cost, "tokens_in": kept["tokens_in"] or 0}
            change = cost - worst
            return _reply(reply)
        except _Fault as fault:
            # A call that was refused is free; one that broke may well be charged.
            change = 0.0 if fault.paid else -worst
            raise
        finally:
            self.cache.settle(change, key, reply)
            async with self._landed:
                self._flying -= 1
                self._landed.notify_all()

    async def _call(self, body: dict[str, Any]) -> dict[str, Any]:
        """One call, as a reply to be kept."""
        assert self._http is not None
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        begun = time.monotonic()
        data = b""
        try:
            # The limits of httpx are for each read: a server that drips would never meet them.
            async with (
                asyncio.timeout(self.spec.timeout),
                self._http.stream(
                    "POST", f"{self.url}/chat/completions", json=body, headers=headers
                ) as response,
            ):
                async for part in response.aiter_bytes():
                    data += part
                    if len(data) > _LARGEST_BODY:
                        raise _Fault("error", "the reply has no end", again=False, paid=True)
        except TimeoutError:
            why = f"no whole reply within {self.spec.timeout:g} s"
            raise _Fault("timeout", why, again=True, paid=True) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            why = f"cannot be reached ({error}); is the server running, is the URL right?"
            raise _Fault("error", why, again=True, paid=False) from None
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            why = f"is no URL that can be called ({error})"
            raise _Fault("error", why, again=False, paid=False) from None
        except httpx2.HTTPError as error:
            why = f"the connection broke: {type(error).__name__} {error}".rstrip()
            raise _Fault("error", why, again=True, paid=True) from None
        text = data.decode("utf-8", "replace")
        code = response.status_code
        if code != 200:
            raise _refused(code, text, response.headers.get("retry-after", ""), self.spec.key_env)
        kept = _kept(text)
        kept["seconds"] = round(time.monotonic() - begun, 4)
        kept["at"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        return kept


def _run(whole: Callable[[], Awaitable[T]]) -> T:
    """Run it here, or beside the loop that is already running (in a notebook)."""

    async def main() -> T:
        return await whole()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    found: list[T] = []
    failed: list[BaseException] = []

    def beside() -> None:
        try:
            found.append(asyncio.run(main()))
        except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=beside, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def _refused(code: int, text: str, after: str, key_env: str) -> _Fault:
    """What a status other than 200 means."""
    said = " ".join(text.split())[:300]
    if code in _AGAIN or code >= 500:
        return _Fault("error", f"status {code}: {said}", again=True, wait=_wait(after), paid=False)
    hint = {
        401: f"; is the key in ${key_env} the right one?",
        403: f"; may the key in ${key_env} do this?",
        404: "; is the model's name right, and does the endpoint end in /v1?",
        400: "; if it refuses a key of the request, say format: none, or extra: {KEY: null}",
        422: "; if it refuses a key of the request, say format: none, or extra: {KEY: null}",
    }.get(code, "")
    return _Fault("error", f"status {code}: {said}{hint}", again=False, paid=False)


def _wait(after: str) -> float:
    """Seconds of a Retry-After header, a number or a date."""
    try:
        seconds = float(after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT)


def _kept(text: str) -> dict[str, Any]:
    """The body of a chat completion as it is kept; a fault where it is none."""
    try:
        body: Any = json.loads(text)
        choice = body["choices"][0]
        content = choice["message"]["content"]
        usage: Any = body.get("usage") or {}
        spent = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        known = all(type(x) is int and x >= 0 for x in spent)
        listed: Any = (choice.get("logprobs") or {}).get("content") or []
        tokens = [
            [t["token"], [[x["token"], float(x["logprob"])] for x in t.get("top_logprobs") or []]]
            for t in listed
        ]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        why = f"status 200, but the body is no chat completion ({type(error).__name__}: {error})"
        raise _Fault("error", why, again=True, paid=True) from None
    if not isinstance(content, str) or not content.strip():
        raise _Fault("error", "the reply is empty", again=True, paid=True)
    return {
        "content": content,
        "tokens": tokens,
        "tokens_in": spent[0] if known else None,
        "tokens_out": spent[1] if known else 0,
    }


def _reply(kept: dict[str, Any]) -> Reply:
    tokens = [Token(t, [(a, p) for a, p in top]) for t, top in kept["tokens"]]
    rest: dict[str, Any] = {k: v for k, v in kept.items() if k != "tokens"}
    return Reply(tokens=tokens, **rest)

"""Questions to an OpenAI-compatible endpoint, with retries, spending caps and a cache."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Generic, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

from pydantic import BaseModel

from trimtab.background import background
from trimtab.config import import_function
from trimtab.errors import ConfigError, JudgeError
from trimtab.judges.cache import Cache
from trimtab.judges.call_error import MAX_WAIT, CallError, status_error
from trimtab.judges.chat_completion import InvalidReplyError, Reply, parse_completion
from trimtab.judges.judge_config import ClientSpec
from trimtab.judges.shared_cache import SharedCache
from trimtab.redact import HIDDEN, redact
from trimtab.types import Row

T = TypeVar("T")
R = TypeVar("R")
Message = dict[str, str]

_MAX_BODY = 8 << 20
_LOOP = "trimtab-judges"
"""The event loop of all clients: connections stay open between calls."""
_TEMPLATE_TOKENS = 64
"""Upper bound on the prompt tokens that a chat template adds per message."""


class JudgeServer(Protocol):
    """A server that an ``endpoint`` function started."""

    url: str
    key: str

    def close(self) -> None:
        """Stop the server."""


@dataclass(slots=True)
class Failure:
    """A question without a reply. It is never turned into a verdict or a number."""

    status: str
    """ "error", "timeout", "invalid" (no reply had the requested form) or "cap" (not asked)."""
    detail: str


@dataclass(slots=True)
class ParsedReply(Generic[T]):
    """A reply and the value that was read from it."""

    value: T
    reply: Reply


@cache
def _json_schema(model: type[BaseModel]) -> Row:
    return model.model_json_schema()


class Client:
    """One endpoint, called through the OpenAI SDK.

    The SDK's own retries are off: each attempt is booked in the account before it is sent, so that
    ``max_calls`` and ``max_spend`` hold for retries too.

    Args:
        cache: Replies and their cost; by default in the file that ``spec`` names.

    Raises:
        ConfigError: the SDK is not installed, the cache cannot be used, the URL is not valid, or
            the function behind ``endpoint`` cannot be imported or started.
    """

    def __init__(self, spec: ClientSpec, cache: Cache | SharedCache | None = None) -> None:
        try:
            import httpx2
            import openai
        except ImportError:
            raise ConfigError(
                "AI judges need the OpenAI SDK, which is not installed; run: "
                "pip install 'trimtab[judge]'"
            ) from None
        # One INFO record per request; a judge makes thousands.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        self.spec = spec
        self.cache = Cache(spec.cache) if cache is None else cache
        self.server: JudgeServer | None = None
        self.calls = 0
        """Calls made by this client."""
        self.cached = 0
        """Replies taken from the cache."""
        self._any_reply = False
        self._in_flight = 0
        self._call_done = asyncio.Condition()
        self._key_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        if "://" in spec.endpoint:
            self.identity = self.url = spec.endpoint.rstrip("/")
            self._key = os.environ.get(spec.key_env, "")
        else:
            start = import_function(spec.endpoint, "endpoint")
            try:
                self.server = cast(JudgeServer, start(**spec.serve))
            except TypeError as error:
                raise ConfigError(
                    f"serve: {spec.endpoint} cannot be called with these arguments: {error}"
                ) from None
            self.url, self._key = self.server.url.rstrip("/"), self.server.key
            # The port changes from start to start; the server behind it is the same.
            self.identity = f"{spec.endpoint}{json.dumps(spec.serve, sort_keys=True)}"
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"endpoint: {self.url!r} is not a valid URL: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"endpoint: {self.url!r} must begin with http:// or https://")
        # A proxy from the environment cannot reach the loopback interface of this machine.
        is_local = url.host in ("127.0.0.1", "localhost", "::1")
        self._sdk = openai.AsyncOpenAI(
            base_url=self.url,
            # The SDK insists on a key; without one it would send an admin key of the environment.
            api_key=self._key or "none",
            max_retries=0,
            timeout=None,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=None, follow_redirects=False, trust_env=not is_local
            ),
        )

    def close(self) -> None:
        """Close the connections and the cache, and stop the server if one was started."""
        background(_LOOP).run(self._sdk.close())
        if self.server is not None:
            self.server.close()
        self.cache.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(
        self,
        items: Sequence[R],
        work: Callable[[R], Awaitable[T]],
        on_done: Callable[[int, int], None] | None = None,
    ) -> list[T]:
        """``work(item)`` of every item, ``concurrency`` at a time, in the order of the items.

        Args:
            work: Coroutine function that calls ``ask`` of this client.
            on_done: Called with the number of finished items and of all items.

        Raises:
            JudgeError: the endpoint cannot be used at all.
        """

        async def run() -> list[T]:
            results: dict[int, T] = {}
            queue = iter(enumerate(items))

            async def worker() -> None:
                for i, item in queue:
                    results[i] = await work(item)
                    if on_done is not None:
                        on_done(len(results), len(items))

            error: BaseException | None = None
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.spec.concurrency, len(items))):
                        group.create_task(worker())
            except* JudgeError as errors:
                # Raised below: here it would be wrapped in an exception group again.
                error = errors.exceptions[0]
            if error is not None:
                raise error from None
            return [results[i] for i in range(len(items))]

        return background(_LOOP).run(run())

    async def ask(
        self, messages: Sequence[Message], schema: type[BaseModel], parse: Callable[[Reply], T]
    ) -> ParsedReply[T] | Failure:
        """The parsed reply to ``messages``; asked again while the call or ``parse`` fails.

        Args:
            schema: The form of the reply; sent along if ``format`` is "schema".
            parse: Reads a value from a reply, or raises ``InvalidReplyError``.

        Raises:
            JudgeError: every try failed, and this client has not had any reply so far.
        """
        failure = Failure("error", "")
        invalid = 0
        for attempt in range(self.spec.tries):
            body = self._body(messages, schema, invalid)
            key = self._cache_key(body, invalid)
            try:
                # Another task with the same question waits here and then hits the cache.
                async with self._key_locks.setdefault(key, asyncio.Lock()):
                    cached = self.cache.get(key)
                    if cached is not None:
                        self.cached += 1
                        reply = Reply.from_json(cached)
                    elif (max_price := await self._book(body)) is None:
                        return Failure("cap", self._cap_message())
                    else:
                        reply = await self._booked_call(body, key, max_price)
                self._any_reply = True
                return ParsedReply(parse(reply), reply)
            except InvalidReplyError as error:
                # The next try has another cache key; the same key would give the same reply.
                invalid += 1
                failure = Failure("invalid", str(error))
            except CallError as error:
                failure = Failure(error.status, str(error))
                if not error.retry:
                    break
                if attempt + 1 < self.spec.tries:
                    pause = min(self.spec.backoff * 2**attempt, MAX_WAIT)
                    pause *= random.uniform(0.5, 1.0)  # spreads the retries
                    await asyncio.sleep(max(error.retry_after, pause))
        if not self._any_reply and failure.status != "invalid":
            raise JudgeError(
                self._redact(f"{self.url}, model {self.spec.model!r}: {failure.detail}")
            )
        return Failure(failure.status, self._redact(failure.detail))

    def _redact(self, text: str) -> str:
        """Remove the key, whatever its variable is called, and other secrets."""
        return str(redact(text.replace(self._key, HIDDEN) if self._key else text))

    def _body(self, messages: Sequence[Message], schema: type[BaseModel], invalid: int) -> Row:
        """The request after ``invalid`` replies that did not have the requested form."""
        s = self.spec
        body: Row = {
            "model": s.model,
            "messages": list(messages),
            # At temperature 0 the same invalid reply would come again.
            "temperature": s.temperature if not invalid else max(s.temperature, 0.5),
            "max_tokens": s.max_tokens,
        }
        if s.seed is not None:
            body["seed"] = s.seed + invalid
        if s.format == "object":
            body["response_format"] = {"type": "json_object"}
        elif s.format == "schema":
            json_schema = {"name": "answer", "strict": True, "schema": _json_schema(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        if s.probabilities:
            body |= {"logprobs": True, "top_logprobs": 8}
        body |= s.extra
        return {k: v for k, v in body.items() if v is not None}

    def _cache_key(self, body: Row, invalid: int) -> str:
        """Hash of everything that the reply depends on."""
        text = json.dumps([self.identity, body, invalid], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _price(self, tokens_in: float, tokens_out: float) -> float:
        s = self.spec
        return (tokens_in * (s.price_in or 0.0) + tokens_out * (s.price_out or 0.0)) / 1e6

    async def _book(self, body: Row) -> float | None:
        """Book a call at the highest price it can have; None if a cap forbids the call."""
        # A token has at least one byte, so the bytes of a prompt bound its tokens from above.
        size = len(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
        s = self.spec
        max_price = self._price(size + _TEMPLATE_TOKENS * len(body["messages"]), s.max_tokens)
        async with self._call_done:
            while not self.cache.book(max_price, s.max_calls, s.max_spend):
                if not self._in_flight:
                    return None
                # A call in flight may turn out cheaper than it was booked at.
                await self._call_done.wait()
            self._in_flight += 1
        self.calls += 1
        return max_price

    def _cap_message(self) -> str:
        account = self.cache.account()
        return (
            f"not asked: {account.calls} calls were made (max_calls {self.spec.max_calls}) and "
            f"${account.dollars:.4f} spent (max_spend {self.spec.max_spend})"
        )

    async def _booked_call(self, body: Row, key: str, max_price: float) -> Reply:
        """Make a call that was booked at ``max_price``, correct its price, cache its reply."""
        price, reply = max_price, None
        try:
            reply = await self._call(body, max_price)
            price = reply.dollars
            return reply
        except CallError as error:
            if not error.billed:
                price = 0.0
            raise
        finally:
            self.cache.settle(price - max_price, key, reply.to_json() if reply else None)
            async with self._call_done:
                self._in_flight -= 1
                self._call_done.notify_all()

    async def _call(self, body: Row, max_price: float) -> Reply:
        """One request; ``max_price`` is its price if the endpoint does not count tokens."""
        import httpx2
        import openai

        start = time.monotonic()
        data = b""
        try:
            # A timeout of the SDK bounds each read; a server that drips bytes never reaches it.
            async with (
                asyncio.timeout(self.spec.timeout),
                self._sdk.chat.completions.with_streaming_response.create(
                    model=body["model"], messages=body["messages"], extra_body=body
                ) as response,
            ):
                async for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > _MAX_BODY:
                        raise CallError(
                            f"the reply is larger than {_MAX_BODY >> 20} MiB",
                            retry=False,
                            billed=True,
                        )
        except TimeoutError:
            message = f"no complete reply within {self.spec.timeout:g} s"
            raise CallError(message, status="timeout", billed=True) from None
        except openai.APIStatusError as error:
            raise status_error(error, self.spec.key_env) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
                message = f"cannot be reached ({cause}); is the server running, is the URL right?"
                raise CallError(message, billed=False) from None
            message = f"the connection broke: {type(cause).__name__} {cause}".rstrip()
            raise CallError(message, billed=True) from None
        try:
            content, tokens, usage = parse_completion(data)
        except ValueError as error:
            raise CallError(str(error), billed=True) from None
        tokens_in, tokens_out = usage or (0, 0)
        return Reply(
            content=content,
            tokens=tokens,
            seconds=round(time.monotonic() - start, 4),
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            dollars=max_price if usage is None else self._price(tokens_in, tokens_out),
            tokens_in=tokens_in,
            tokens_out=tokens_out,
        )

"""One vLLM server over HTTP: completions of token ids, and what is checked before it is used."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from trimtab.errors import ConfigError
from trimtab.rollout.engine import EngineError
from trimtab.sample.draw import SamplingConfig
from trimtab.sample.sampler import Request, Sampled
from trimtab.types import Floats, Ints, Row, Spans

OLDEST = (0, 32)
"""The oldest version of vLLM whose routes are known to fit."""
GENERATE = "/inference/v1/generate"
COMPLETIONS = "/v1/completions"
UNSYNCED = "default"
"""What a server calls the weights that it loaded when it started."""


class ServerError(EngineError):
    """A server gave no usable reply.

    Args:
        retry: Whether another server may do better.
    """

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the trainer needs of a server."""

    vocab_size: int
    """Number of token ids of the policy."""
    length: int
    """Tokens of the longest prompt with its completion."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server said of itself."""

    version: str
    model: str
    """The name under which it serves the model."""
    max_length: int
    """Tokens of a prompt with its completion."""
    spans: bool
    """Whether it says the weight version of every token."""


def stream_seed(key: tuple[int, ...], index: int) -> int:
    """The seed of one completion's random stream, from the request's key: 0 .. 2^63 - 1."""
    text = ",".join(map(str, (*key, index)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class VLLMServer:
    """A client of one server.

    Use it from one event loop. Every call raises ``ServerError`` where the server does not answer, or
    refuses.

    Args:
        url: ``http://host:port``.
        key: API key; empty for none.
        timeout: Seconds until a completion counts as failed.
        concurrency: Completions in flight.
    """

    def __init__(
        self, url: str, key: str = "", timeout: float = 600.0, concurrency: int = 256
    ) -> None:
        try:
            import httpx2
        except ImportError:
            raise ConfigError(
                "rollout.engine: vllm needs httpx2, which is not installed; run: "
                "pip install 'trimtab[vllm]'"
            ) from None
        # One INFO record per request; an iteration makes thousands.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        self._errors = httpx2.HTTPError
        self.url, self.timeout = url, timeout
        self.facts: ServerFacts | None = None
        self.running = 0
        """Completions in flight."""
        self._gate = asyncio.Semaphore(concurrency)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.AsyncClient(
            base_url=url,
            headers=headers,
            trust_env=False,
            # Servers close a connection that is idle for 5 s; one that they are closing fails.
            limits=httpx2.Limits(
                max_connections=None, max_keepalive_connections=concurrency, keepalive_expiry=2.0
            ),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(
        self, method: str, path: str, body: Row | None = None, timeout: float = 60.0, **query: str
    ) -> Any:
        """The JSON reply to a request; None where the reply is no JSON."""
        try:
            response = await self._http.request(
                method, path, json=body, params=query or None, timeout=timeout
            )
        except self._errors as error:
            raise ServerError(
                f"{self.url}{path}: no reply ({type(error).__name__}: {error})"
            ) from None
        if response.status_code >= 400:
            raise ServerError(
                f"{self.url}{path}: status {response.status_code}: {response.text[:500]}",
                retry=response.status_code >= 500 or response.status_code in (404, 408, 429),
            )
        try:
            return response.json()
        except ValueError:
            return None

    async def post(self, path: str, body: Row | None = None, **over: Any) -> Any:
        """``call`` with POST."""
        return await self.call("POST", path, body, **over)

    async def check(self, needs: Requirements) -> ServerFacts:
        """What the server is, if it fits the trainer.

        Raises:
            ConfigError: it cannot be reached, is no vLLM of a known version, has another vocabulary or
                too few positions, or reports logprobs of another distribution than it samples from.
        """
        url = self.url
        try:
            reply = await self.call("GET", "/version", timeout=20.0)
        except ServerError as error:
            raise ConfigError(
                f"rollout: no vLLM server at {url} ({error}); start one with 'vllm serve', or correct "
                "rollout.urls"
            ) from None
        version = str(cast(Row, reply or {}).get("version", "unknown"))
        numbers = re.match(r"(\d+)\.(\d+)", version)
        # A development build has no number and is trusted; what follows is checked either way.
        if numbers is None and "dev" not in version:
            raise ConfigError(f"rollout: {url} is no vLLM server: its version is {version!r}")
        if numbers is not None and (int(numbers[1]), int(numbers[2])) < OLDEST != (0, 0):
            raise ConfigError(
                f"rollout: {url} runs vLLM {version}; {OLDEST[0]}.{OLDEST[1]} or newer is needed"
            )
        card = (await self._ask("GET", "/v1/models"))["data"][0]
        spans = await self._has_route(GENERATE)
        facts = ServerFacts(version, card["id"], int(card["max_model_len"]), spans)
        self.facts = facts
        if facts.max_length < needs.length:
            raise ConfigError(
                f"rollout: {url} has --max-model-len {facts.max_length}, but a prompt and its completion "
                f"may have {needs.length} tokens; restart it with --max-model-len {needs.length}, or "
                "lower sampling.max_new_tokens"
            )
        last = Request(np.array([needs.vocab_size - 1]), (0,))
        one = SamplingConfig(max_new_tokens=1, top_k=1)
        try:
            (sampled,) = await self.generate(last, one, (), facts.model)
        except ServerError as error:
            raise ConfigError(
                f"rollout: {url} refuses token id {needs.vocab_size - 1} of the policy, so it serves a "
                f"model with another vocabulary ({error}); start it with the policy's model"
            ) from None
        # With one allowed token its logprob is 0, unless the server reports those before filters.
        if abs(float(sampled.logp[0])) > 1e-4:
            raise ConfigError(
                f"rollout: {url} reports logprobs before temperature and filters; the trainer needs "
                "those of the distribution that is sampled from: restart it with --logprobs-mode "
                "processed_logprobs"
            )
        beyond = Request(np.array([needs.vocab_size]), (0,))
        try:
            await self.generate(beyond, one, (), facts.model)
        except ServerError:
            return facts
        raise ConfigError(
            f"rollout: {url} serves a model with more than the policy's {needs.vocab_size} token ids; "
            "start it with the policy's model"
        )

    async def _ask(self, method: str, path: str) -> Any:
        try:
            return await self.call(method, path, timeout=20.0)
        except ServerError as error:
            raise ConfigError(f"rollout: {error}") from None

    async def _has_route(self, path: str) -> bool:
        """Whether the server knows a route: an empty request to it is refused, not unknown."""
        response = await self._http.post(path, json={}, timeout=20.0)
        return response.status_code not in (404, 405, 501)

    async def weight_version(self) -> str | None:
        """The label of the current weights; None where the server does not say it."""
        try:
            return str((await self.call("GET", "/weight_info", timeout=20.0))["weight_version"])
        except ServerError as error:
            if "status 404" in str(error):
                return None
            raise

    async def prompt_logps(
        self, sequences: Sequence[tuple[Ints, Ints]], model: str
    ) -> list[Floats]:
        """Logprobs [T] at temperature 1 of each (prompt ids [P], completion ids [T])."""
        replies = await asyncio.gather(
            *(
                self.post(
                    COMPLETIONS,
                    {
                        "model": model,
                        "prompt": [*prompt.tolist(), *ids.tolist()],
                        "max_tokens": 1,
                        "prompt_logprobs": 0,
                    },
                    timeout=self.timeout,
                )
                for prompt, ids in sequences
            )
        )
        return [
            _prompt_logps(reply, prompt, ids)
            for reply, (prompt, ids) in zip(replies, sequences, strict=True)
        ]

    async def generate(
        self, request: Request, sampling: SamplingConfig, stop_ids: tuple[int, ...], model: str
    ) -> list[Sampled]:
        """``request.n`` completions, each with a random stream of its own.

        Args:
            model: Name of the base model, or of an adapter.
            stop_ids: Ids that end a completion, besides those of ``sampling``.
        """
        tasks = [
            asyncio.ensure_future(self._complete(request, i, sampling, stop_ids, model))
            for i in range(request.n)
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # of a failed request, the others are not needed
                task.cancel()

    async def _complete(
        self,
        request: Request,
        index: int,
        sampling: SamplingConfig,
        stop_ids: tuple[int, ...],
        model: str,
    ) -> Sampled:
        assert self.facts is not None, "check() comes first"
        prompt = request.prompt.tolist()
        limit = min(sampling.max_new_tokens, request.limit or sampling.max_new_tokens)
        limit = min(limit, self.facts.max_length - len(prompt))
        if limit < 1:
            raise ServerError(
                f"{self.url}: a prompt has {len(prompt)} tokens, and the server has room for "
                f"{self.facts.max_length}; shorten it, or raise --max-model-len",
                retry=False,
            )
        settings: Row = {
            "max_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            # Every setting is sent: a server may have other defaults.
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": stream_seed(request.key, index),
            "logprobs": 0,
            "stop": list(sampling.stop),
            "stop_token_ids": sorted({*stop_ids, *sampling.stop_ids}),
            # Only the trainer's end tokens end a completion.
            "ignore_eos": True,
        }
        async with self._gate:
            self.running += 1
            try:
                if self.facts.spans:
                    body = {"model": model, "token_ids": prompt, "sampling_params": settings}
                    reply = await self.post(GENERATE, body, timeout=self.timeout)
                else:
                    body = {"model": model, "prompt": prompt, "return_token_ids": True, **settings}
                    reply = await self.post(COMPLETIONS, body, timeout=self.timeout)
            finally:
                self.running -= 1
        try:
            return _sampled(reply["choices"][0])
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ServerError(f"{self.url}: unusable reply ({error}): {str(reply)[:300]}") from None


def _prompt_logps(reply: Row, prompt: Ints, ids: Ints) -> Floats:
    """Logprobs of ``ids`` from those of the prompt's tokens."""
    entries = reply["choices"][0]["prompt_logprobs"][len(prompt) :]
    return np.array(
        [entry[str(token)]["logprob"] for entry, token in zip(entries, ids, strict=True)],
        np.float32,
    )


def _sampled(choice: Row) -> Sampled:
    """A completion from one choice of a reply of either route."""
    finish = choice["finish_reason"]
    if finish not in ("stop", "length"):
        raise ValueError(f"finish_reason is {finish!r}")
    ids = np.array(choice["token_ids"], np.int64)
    logprobs = choice["logprobs"]
    values = logprobs.get("token_logprobs") or [x["logprob"] for x in logprobs["content"]]
    logp = np.array(values, np.float32)
    if len(ids) == 0 or len(ids) != len(logp):
        raise ValueError(f"{len(ids)} token ids and {len(logp)} logprobs")
    return Sampled(ids, logp, finish, _spans(choice.get("weight_versions") or (), len(ids)))


def _spans(versions: Any, count: int) -> Spans:
    """Weight versions of all tokens; empty where the server did not say them."""
    spans: list[tuple[int, int, int]] = []
    for span in versions:
        version = span["version"]
        label = -1 if version == UNSYNCED else int(version)
        spans.append((int(span["start"]), int(span["end"]), label))
    if spans and (spans[0][0] != 0 or spans[-1][1] != count):
        raise ValueError(f"weight versions {spans} do not cover {count} tokens")
    return tuple(spans)

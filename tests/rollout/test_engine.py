"""The engine protocol: the native engine gives what the sampler alone gives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.support import folders
from tests.support.models import tiny
from trimtab.data.render import Renderer
from trimtab.errors import ModelError
from trimtab.rollout.collector import collect
from trimtab.rollout.engine import generate
from trimtab.rollout.engines.native import NativeEngine
from trimtab.sample.sampler import Request, Sampled, Sampler, SamplingConfig
from trimtab.types import Group

SAMPLING = SamplingConfig(max_new_tokens=12)


def requests() -> list[Request]:
    rng = np.random.default_rng(0)
    return [Request(rng.integers(6, 20, 3 + i % 4), (7, i), 1 + i % 3) for i in range(9)]


def same(a: list[list[Sampled]], b: list[list[Sampled]]) -> bool:
    return all(
        np.array_equal(x.ids, y.ids) and np.array_equal(x.logp, y.logp) and x.finish == y.finish
        for p, q in zip(a, b, strict=True)
        for x, y in zip(p, q, strict=True)
    )


def test_native_engine_is_bitwise_the_sampler() -> None:
    sampler = Sampler(tiny("llama"), stop_ids=(2, 7))
    shown: list[tuple[int, int]] = []
    plain = sampler(requests(), SAMPLING)
    got = generate(
        NativeEngine(sampler, 5), requests(), SAMPLING, lambda d, n: shown.append((d, n))
    )
    assert same(plain, got)
    assert all(s.versions == ((0, len(s.ids), 5),) for g in got for s in g)
    total = sum(r.n for r in requests())
    assert shown[-1] == (total, total), "one batch, and its progress is shown"


def test_requests_with_other_settings_are_sampled_apart() -> None:
    sampler = Sampler(tiny("llama"), stop_ids=())
    engine = NativeEngine(sampler)
    greedy = SamplingConfig(max_new_tokens=4, temperature=0.0)

    async def both() -> list[list[Sampled]]:
        first, second = requests()[:2]
        return await asyncio.gather(
            engine.generate(first, SAMPLING), engine.generate(second, greedy)
        )

    mixed = asyncio.run(both())
    assert same([mixed[0]], sampler(requests()[:1], SAMPLING))
    assert same([mixed[1]], sampler(requests()[1:2], greedy))


def test_an_error_reaches_the_caller_and_the_engine_goes_on() -> None:
    engine = NativeEngine(Sampler(tiny("llama"), stop_ids=()))
    with pytest.raises(ModelError, match="prompt 2 has ids outside"):
        generate(engine, [requests()[0], Request(np.array([999]), (0,))], SAMPLING)
    assert len(generate(engine, requests()[:1], SAMPLING)) == 1


def test_completions_say_their_version(tmp_path: Path) -> None:
    engine = NativeEngine(Sampler(tiny("llama"), folders.tokenizer(), stop_ids=(2,)), 3)
    prompts = [Group("a", np.array([1, 8]), [])]
    (group,) = collect(engine, Renderer(folders.tokenizer()), prompts, SAMPLING, n=2, key=(0,))
    for c in group.completions:
        assert c.version == 3 and c.versions == ((0, len(c), 3),)

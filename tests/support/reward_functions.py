"""Reward functions with every signature, and some that break in every way."""

from __future__ import annotations

import asyncio
import math
import os
import time
from functools import partial
from typing import Any


def raises(prompts: list[str], completions: list[str]) -> list[float]:
    raise RuntimeError("no grader today")


def hangs(prompts: list[str], completions: list[str]) -> list[float]:
    time.sleep(3600)
    return [0.0 for _ in completions]


def nan(prompts: list[str], completions: list[str]) -> list[float]:
    return [math.nan for _ in completions]


def inf(prompts: list[str], completions: list[str]) -> list[float]:
    return [-math.inf for _ in completions]


def first_only_finite(prompts: list[str], completions: list[str]) -> list[float]:
    return [1.0, math.nan, math.inf][: len(completions)]


def none(prompts: list[str], completions: list[str]) -> list[None]:
    return [None for _ in completions]


def string(prompts: list[str], completions: list[str]) -> Any:
    return ["0" for _ in completions]


def scalar(prompts: list[str], completions: list[str]) -> Any:
    return 1.0


def one_string(prompts: list[str], completions: list[str]) -> Any:
    return "0" * len(completions)


def short(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.0 for _ in completions][1:]


def long(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.0 for _ in completions] + [0.0]


def dies(prompts: list[str], completions: list[str]) -> list[float]:
    os._exit(3)


def hangs_on_slow(prompts: list[str], completions: list[str], pace: list[str]) -> list[float]:
    if "slow" in pace:
        time.sleep(3600)
    print("a line on stdout is nobody's answer")
    return [float(len(c)) for c in completions]


def swapped(completions: list[str], prompts: list[str], **_: object) -> list[float]:
    return [
        float(c.startswith("a")) + 10.0 * (p == "q")
        for c, p in zip(completions, prompts, strict=True)
    ]


def no_keywords(completions: list[str]) -> list[float]:
    return [float(c == "b") for c in completions]


def by_position(completions: list[str], answer: list[str], /, **_: object) -> list[float]:
    return one_column(completions, answer)


class Grader:
    def __call__(self, completions: list[str], answer: list[str]) -> list[float]:
        return one_column(completions, answer)


grader = Grader()


def any_column(completions: list[str], **columns: list[str]) -> list[float]:
    return [float(c == a) for c, a in zip(completions, columns["answer"], strict=True)]


def one_column(completions: list[str], answer: list[str]) -> list[float]:
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def keyword_only(*, answer: list[str], completions: list[str], scale: float = 1.0) -> list[float]:
    return [scale * (c == a) for c, a in zip(completions, answer, strict=True)]


doubled = partial(keyword_only, scale=2.0)


async def later(completions: list[str], answer: list[str]) -> list[float]:
    await asyncio.sleep(0)
    return one_column(completions, answer)


_MEETING: list[asyncio.Barrier] = []


async def meets(completions: list[str]) -> list[float]:
    """Returns once two calls wait at the same time."""
    if not _MEETING:
        _MEETING.append(asyncio.Barrier(2))
    async with asyncio.timeout(10.0):
        await _MEETING[0].wait()
    return [1.0 for _ in completions]


async def never(completions: list[str]) -> list[float]:
    await asyncio.sleep(3600)
    return [0.0 for _ in completions]


def first_message(prompts: Any, completions: Any, **_: object) -> list[float]:
    """As written for TRL's conversational rows."""
    assert all(p[-1]["role"] == "user" for p in prompts)
    return [float(len(c[0]["content"])) for c in completions]


def annotated(completions: list[list[dict[str, str]]], **_: object) -> list[float]:
    return [float(len(c)) for c in completions]


def unannotated(completions, **_):  # type: ignore[no-untyped-def]
    return [float(len(c)) for c in completions]


def with_extras(
    completion_ids: list[list[int]], trainer_state: Any, log_extra: Any, log_metric: Any
) -> list[float]:
    log_extra("twice", [2 * len(ids) for ids in completion_ids])
    log_extra("note", ["text" for _ in completion_ids])
    log_metric("step", trainer_state.global_step / trainer_state.max_steps)
    return [float(len(ids)) for ids in completion_ids]


def maths(completions: list[str], task: list[str]) -> list[float | None]:
    return [1.0 if t == "maths" else None for t in task]


def code(completions: list[str], task: list[str]) -> list[float | None]:
    return [10.0 if t == "code" else None for t in task]


def first_only(completions: list[str]) -> list[float | None]:
    return [None if i % 8 else 5.0 for i, _ in enumerate(completions)]


async def later_judge(pairs: list[list[str]], answer: list[str]) -> list[float | None]:
    """The one that is the answer is better; no verdict where neither is."""
    await asyncio.sleep(0)
    return [
        float(a == second) if a in (first, second) else None
        for (first, second), a in zip(pairs, answer, strict=True)
    ]


def other_names(texts: list[str]) -> list[float]:
    return [0.0 for _ in texts]


def tensor(completions: list[str]) -> Any:
    import torch

    return torch.arange(1.0, 1.0 + len(completions))


def tensor_with_nan(completions: list[str]) -> Any:
    import torch

    return torch.full((len(completions),), math.nan)


def tensor_0d(completions: list[str]) -> Any:
    import torch

    return torch.tensor(0.0)


def tensor_2d(completions: list[str]) -> Any:
    import torch

    return torch.zeros(len(completions), 1)


async def coroutine(completions: list[str]) -> list[float]:
    return [1.0 + i for i, _ in enumerate(completions)]


async def coroutine_that_raises(completions: list[str]) -> list[float]:
    raise RuntimeError("no grader today")


def coroutine_list(completions: list[str]) -> Any:
    """Forgets to await: a coroutine for each completion."""
    return [coroutine([c]) for c in completions]

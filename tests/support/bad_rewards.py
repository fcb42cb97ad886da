"""Reward functions with every signature, and some that break in every way one can."""

from __future__ import annotations

import math
import os
import time
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


def none(prompts: list[str], completions: list[str]) -> list[None]:
    return [None for _ in completions]


def string(prompts: list[str], completions: list[str]) -> Any:
    return ["0" for _ in completions]


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


def any_column(completions: list[str], **columns: list[str]) -> list[float]:
    return [float(c == a) for c, a in zip(completions, columns["answer"], strict=True)]


def one_column(completions: list[str], answer: list[str]) -> list[float]:
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def keyword_only(*, answer: list[str], completions: list[str], scale: float = 1.0) -> list[float]:
    return [scale * (c == a) for c, a in zip(completions, answer, strict=True)]


def other_names(texts: list[str]) -> list[float]:
    return [0.0 for _ in texts]

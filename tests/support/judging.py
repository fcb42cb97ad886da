"""A judge's world for tests: an endpoint, items of the sandbox, short ways to ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.feedback.judgement import Item
from trimtab.judges.judge_config import JudgeSpec
from trimtab.sandbox.endpoint import Endpoint, Faults, Responder
from trimtab.sandbox.simulated_judge import SimulatedJudge
from trimtab.sandbox.world import gold, make_scenes, sample_completion


def items(n: int, seed: int = 0, best_first: bool = False) -> list[Item]:
    """Sandbox items of two answers that differ in gold, the better one anywhere or first."""
    label_items: list[Item] = []
    for i, scene in enumerate(make_scenes(4 * n, seed)):
        rng = np.random.default_rng((seed, i))
        a, b = sample_completion(scene, rng), sample_completion(scene, rng)
        x, y = gold(scene, a).total, gold(scene, b).total
        if x == y:
            continue
        if best_first and x < y:
            a, b = b, a
        extra = {"scene": scene.to_json()}
        label_items.append(
            Item(id=str(i), prompt=tuple(scene.messages()), completions=(a, b), extra=extra)
        )
        if len(label_items) == n:
            break
    return label_items


def write_items(path: Path, label_items: list[Item]) -> Path:
    """Items as a file."""
    path.write_text("".join(i.model_dump_json() + "\n" for i in label_items), encoding="utf-8")
    return path


@contextmanager
def endpoint(mind: Responder | None = None, **faults: Any) -> Iterator[Endpoint]:
    """A running endpoint with its key in the environment."""
    one = Endpoint(mind or SimulatedJudge(), Faults(**faults)).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUDGE_TEST_KEY", one.key)
        try:
            yield one
        finally:
            one.close()


def spec(one: Endpoint, **over: Any) -> JudgeSpec:
    """A judge at that endpoint, quick to try again."""
    options = {
        "endpoint": one.url, "model": "sim", "key_env": "JUDGE_TEST_KEY", "backoff": 0.01,
        "timeout": 20.0, "concurrency": 16, **over,
    }  # fmt: skip
    return JudgeSpec.model_validate(options)

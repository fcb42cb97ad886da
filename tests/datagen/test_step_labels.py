"""Monte-Carlo values of steps, and labels for a process reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from scipy.stats import binom
from torch import nn

from tests.support import folders
from tests.support.models import tiny
from tests.support.processing import base_folder, config, renderer
from trimtab.config import build
from trimtab.datagen.step_labels import StepLabelsConfig
from trimtab.datagen.step_labels import main as label_steps
from trimtab.rollout.collector import collect
from trimtab.rollout.engines.native import NativeEngine
from trimtab.rollout.monte_carlo import monte_carlo_values
from trimtab.sample.sampler import Request, Sampler, SamplingConfig
from trimtab.train.process import main as train_process
from trimtab.types import Completion, Group

# Monte-Carlo -----------------------------------------------------------------------------------


def test_a_request_may_have_a_lower_limit() -> None:
    sampler = Sampler(tiny("llama"), stop_ids=())
    sampling = SamplingConfig(max_new_tokens=6)
    (a,), (b,) = sampler(
        [Request(np.array([5]), (0,)), Request(np.array([5]), (0,), limit=2)], sampling
    )
    assert len(a.ids) == 6
    assert b.ids.tolist() == a.ids[:2].tolist()
    assert b.finish == "length"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("base"))


RIGHT, WRONG, CUT, EOS = 5, 6, 7, 2


class Coin(nn.Module):
    """Stands for a sampler: answers RIGHT with probability 1/4, WRONG else, then ends.

    After a prefix that already holds WRONG it never answers RIGHT.
    """

    stop_ids = (EOS,)

    def __call__(self, requests: Any, sampling: Any, progress: Any = None) -> Any:
        from trimtab.sample.draw import uniforms
        from trimtab.sample.sampler import Sampled

        out: list[Any] = []
        for r in requests:
            samples: list[Any] = []
            for i in range(r.n):
                good = uniforms((*r.key, i), 1)[0] < 0.25 and WRONG not in r.prompt
                drawn = np.array([RIGHT if good else WRONG, EOS])[: r.limit]
                finish = "stop" if drawn[-1] == EOS else "length"
                samples.append(Sampled(drawn, np.zeros(len(drawn), np.float32), finish))
            out.append(samples)
        return out


def has_right(groups: Any) -> None:
    for g in groups:
        for c in g.completions:
            c.reward = float(RIGHT in c.ids and WRONG not in c.ids)


def test_values_of_a_known_chance() -> None:
    """V is 1/4 at the start and after an empty step, 0 after a wrong one, 1 at a right end."""
    k = 400
    first = Completion(np.array([CUT, RIGHT, EOS]), np.ones(3, bool), finish="stop")
    second = Completion(np.array([WRONG, CUT, RIGHT, EOS]), np.ones(4, bool), finish="stop")
    groups = [Group("a", np.array([1, 9]), [first, second])]

    def ends(x: np.ndarray) -> np.ndarray:
        return np.array([int(np.flatnonzero(x == CUT)[0]), len(x) - 1])

    ((a, b),) = monte_carlo_values(
        NativeEngine(cast(Any, Coin())), renderer(), groups, has_right, SamplingConfig(max_new_tokens=8),
        ends, k, (0,),
    )  # fmt: skip
    low, high = binom.interval(0.9999, k, 0.25)
    for returns in (a.returns[0], a.returns[1], b.returns[0]):
        assert len(returns) == k
        assert low <= sum(returns) <= high
    assert a.returns[1] != a.returns[0], "each state has a stream of its own"
    assert b.values.tolist()[1:] == [0.0, 0.0]
    assert a.returns[2] == [1.0]
    assert first.reward is None, "the completions given are not changed"


def test_continuations_stay_within_the_limit_and_failures_are_left_out() -> None:
    cut = Completion(np.array([CUT, RIGHT]), np.ones(2, bool), finish="length")
    seen: list[int] = []

    def judge(groups: Any) -> None:
        for g in groups:
            for i, c in enumerate(g.completions):
                seen.append(len(c))
                c.reward = None if i else 1.0

    ((v,),) = monte_carlo_values(
        NativeEngine(cast(Any, Coin())), renderer(), [Group("a", np.array([1]), [cut])], judge,
        SamplingConfig(max_new_tokens=2), lambda x: np.arange(len(x)), 3, (0,),
    )  # fmt: skip
    assert max(seen) == 2
    assert v.returns == [[1.0], [1.0], [1.0]]


def test_prefix_ids_are_continued_as_they_are() -> None:
    """On a real sampler a greedy policy goes on to the very completion it was cut from."""
    model = tiny("llama", seed=3)
    engine = NativeEngine(Sampler(model, folders.tokenizer(), stop_ids=(2,)))
    greedy = SamplingConfig(max_new_tokens=8, temperature=0.0)
    prompts = [Group(str(i), np.array([1, 6 + i]), []) for i in range(3)]
    groups = collect(engine, renderer(), prompts, greedy, n=1, key=(0,))
    seen: list[list[int]] = []

    def judge(scored_groups: Any) -> None:
        for g in scored_groups:
            for c in g.completions:
                c.reward = 0.0
                assert c.ids.tolist() == groups[int(g.id)].completions[0].ids.tolist()
                seen.append(c.ids.tolist())

    monte_carlo_values(
        engine, renderer(), groups, judge, greedy, lambda x: np.arange(len(x)), 1, (1,)
    )
    assert len(seen) >= sum(len(g.completions[0]) for g in groups)


def said_answer(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
    return [float(a in c.split()) for a, c in zip(answer, completions, strict=True)]


@pytest.mark.slow
def test_labels_to_a_process_reward_model(base: Path, tmp_path: Path) -> None:
    prompts = [{"prompt": f"who {w} ?", "answer": "cat"} for w in folders.WORDS[:6]]
    folders.write(tmp_path / "prompts.jsonl", cast(Any, prompts))
    values = {
        "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(tmp_path / "prompts.jsonl")},
        "rewards": [{"name": "answer", "function": f"{__file__}:said_answer"}],
        "solutions": 3,
        "continuations": 4,
        "separator": "is",
        "sampling": {"max_new_tokens": 24},
        "chunk": 4,
    }
    hard_config = build(StepLabelsConfig, {**values, "out": str(tmp_path / "hard")})
    figures = label_steps(hard_config)
    lines = (tmp_path / "hard" / "steps.jsonl").read_text().splitlines()
    label_rows = [json.loads(x) for x in lines]
    assert figures.solutions == len(label_rows) > 0
    assert figures.steps == sum(len(r["labels"]) for r in label_rows)
    for r in label_rows:
        assert r["answer"] == "cat"
        assert len(r["completions"]) == len(r["labels"]) == len(r["returns"])
        assert r["labels"] == [float(any(x)) for x in r["returns"]]
    # A stopped run goes on to the same bytes.
    (tmp_path / "hard" / "parts" / "00000004.jsonl").unlink()
    (tmp_path / "hard" / "steps.jsonl").unlink()
    label_steps(hard_config)
    assert (tmp_path / "hard" / "steps.jsonl").read_text().splitlines() == lines
    label_steps(build(StepLabelsConfig, {**values, "out": str(tmp_path / "soft"), "label": "soft"}))
    soft = [json.loads(x) for x in (tmp_path / "soft" / "steps.jsonl").read_text().splitlines()]
    assert [r["completions"] for r in soft] == [r["completions"] for r in label_rows]
    assert all(r["labels"] == pytest.approx(r["values"]) for r in soft)
    data = {"path": str(tmp_path / "soft" / "steps.jsonl")}
    trained = train_process(config(base, tmp_path / "prm", data=data, separator="is", holdout=4))
    assert "eval/accuracy" in trained

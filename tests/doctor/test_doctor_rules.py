"""Alarms that tell a fault from what looks like it: 1, 2, 3, 9, 11 and 14 on evidence made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.audit.gold_audit import AuditedRollout
from trimtab.audit.run_settings import RunSettings
from trimtab.doctor.alarms import (
    displacement,
    entropy_exhausted,
    frozen,
    kl_runaway,
    length_hacking,
    mode_collapse,
    over_optimised,
    reward_pipe,
    value_collapse,
)
from trimtab.doctor.diagnosis import diagnose
from trimtab.doctor.evidence import Evidence, Rollout, Unchecked
from trimtab.stats.change import drop


def _evidence(steps: int, config: dict[str, Any] | None = None, **series: Callable[[int], float]) -> Evidence:  # fmt: skip
    rows = [
        {"step": s, **{k.replace("__", "/"): f(s) for k, f in series.items()}}
        for s in range(1, steps + 1)
    ]
    base = {"steps": steps, "method": {"kl": {"place": "loss", "beta": 0.04}}}
    settings = RunSettings.of({**base, **(config or {})})
    return Evidence(Path("run"), settings=settings, rows=rows)


def _rollouts(steps: int, reward: Callable[[int, int], float], n: int = 24) -> list[Rollout]:
    return [
        Rollout(s, f"prompt {s} {i // 4}", f"answer {i}", reward(s, i), {}, "stop", 4, None, None)
        for s in range(1, steps + 1)
        for i in range(n)
    ]


def test_a_drop_is_seen_and_not_made_up() -> None:
    rng = np.random.default_rng(1)
    drops = [drop([*rng.normal(1, 1, 20), *rng.normal(0, 1, 100)]) for _ in range(40)]
    assert sum(p < 0.01 for p, _ in drops) > 24
    assert 12 <= np.median([at for _, at in drops]) <= 40
    p, at = drop([1.0] * 8 + [0.0] * 8)
    assert p < 0.01 and at == 8
    assert drop([0.0] * 9 + [1.0] * 9)[0] > 0.9
    assert drop([1.0] * 15) == (1.0, 0)
    # A long series is averaged over neighbours; the split is still told in values.
    p, at = drop([*rng.normal(1, 1, 3000), *rng.normal(0, 1, 3000)])
    assert p < 0.01 and 2000 < at < 4500


@pytest.mark.slow
def test_a_drop_may_be_looked_for_as_often_as_one_likes() -> None:
    rng = np.random.default_rng(2)
    once = often = last = 0
    for _ in range(60):
        # Scores that are 0 or 1 with more of one: what small samples are worst at.
        x = (rng.random(96) < 0.8).astype(float).tolist()
        looks = [drop(x[:n], 96)[0] for n in range(24, 97, 18)]
        often += min(looks) < 0.2
        last += looks[-1] < 0.2
        once += min(drop(x[:n])[0] for n in range(24, 97, 18)) < 0.2
    assert 0 < last <= often <= 0.2 * 60
    assert once > 0.2 * 60, "without the plan each look is a new chance to be wrong"


def _audit(level: Callable[[int], float], proxy: Callable[[int], float]) -> Evidence:
    rng = np.random.default_rng(0)
    e = _evidence(30, reward__mean=proxy, objective__kl=lambda s: s / 10)
    e.rollouts = _rollouts(30, lambda s, _: proxy(s) + float(rng.normal(0, 0.2)))
    e.audit = [
        AuditedRollout(
            step=s, prompt_id="p", proxy=proxy(s), gold=level(s) + float(rng.normal(0, 0.15))
        )
        for s in range(1, 31)
        for _ in range(4)
    ]
    return e


def test_gold_must_be_down_now_and_the_proxy_up_since() -> None:
    rising = lambda s: s / 30  # noqa: E731
    fallen = over_optimised.check(_audit(lambda s: 0.8 if s < 12 else 0.5, rising))
    assert fallen is not None and 9 <= (fallen.step or 0) <= 14
    dipped = _audit(lambda s: 0.5 if 10 <= s < 22 else 0.8, rising)
    p, _ = drop([a.gold for a in dipped.audit if a.step < 22])
    assert p < 0.01, "it was down once"
    assert over_optimised.check(dipped) is None, "it has come back"
    wrecked = _audit(lambda s: 0.8 if s < 12 else 0.5, lambda s: 0.8 if s < 12 else 0.5)
    assert over_optimised.check(wrecked) is None, "both fell: nothing was hacked"
    once_up = _audit(lambda s: 0.8 if s < 12 else 0.5, lambda s: s / 12 if s < 12 else 0.7)
    assert over_optimised.check(once_up) is not None
    # Up on the start, yet both have fallen since the best of gold.
    back = _audit(lambda s: 0.8 if s < 14 else 0.5, lambda s: 0.0 if s < 7 else 2.0 if s < 14 else 0.4)  # fmt: skip
    assert over_optimised.check(back) is None


def test_a_wrecked_policy_has_run_away() -> None:
    def found(kl: Callable[[int], float], reward: Callable[[int], float]) -> Any:
        return kl_runaway.check(
            _evidence(30, reward__mean=reward, reward__std=lambda s: 0.25, objective__kl=kl)
        )

    burst = lambda s: 60.0 if 4 <= s < 14 else 10.0 if s >= 14 else 1.0  # noqa: E731
    lost = found(burst, lambda s: 0.8 if s < 4 else 0.6)
    assert lost is not None and "wrecked" in lost.message and lost.step == 4
    assert found(burst, lambda s: 0.8 if s < 4 or s > 20 else 0.4) is None, "it came back"
    assert found(lambda s: 4.0, lambda s: 0.8 if s < 4 else 0.6) is None, "KL is near its target"


@pytest.mark.parametrize(
    ("name", "beta", "kl", "steps", "rings"),
    [
        ("stiff", 8.0, lambda s: 0.02, 20, True),
        ("still", 0.04, lambda s: 1e-9, 20, True),
        # Slow: KL grows, and nothing holds it.
        ("slow", 0.2, lambda s: 0.01 * s, 20, False),
        # Near the reference as any run is at its start.
        ("young", 0.04, lambda s: 1e-5 * s, 2000, False),
        # Ten steps, of which nothing more can be expected.
        ("short", 0.04, lambda s: 2e-4 * s, 10, False),
        ("short and still", 0.04, lambda s: 1e-9, 10, True),
    ],
)  # fmt: skip
def test_frozen_is_held_or_still_and_never_slow(
    name: str, beta: float, kl: Callable[[int], float], steps: int, rings: bool
) -> None:
    config = {"steps": steps, "method": {"kl": {"place": "loss", "beta": beta}}}
    e = _evidence(
        min(20, steps), config,
        reward__mean=lambda s: 0.5 + 0.05 * (-1) ** s, reward__std=lambda s: 0.3, objective__kl=kl,
        advantage__std=lambda s: 0.8,
    )  # fmt: skip
    e.rollouts = _rollouts(min(20, steps), lambda s, i: i / 24)
    finding = frozen.check(e)
    assert (finding is not None) == rings, name
    if finding is not None:
        assert ("beta 8" in finding.cause) == (name == "stiff")
    # Where answers have come to be equal, no penalty holds it.
    e = _evidence(
        20, reward__mean=lambda s: 0.5 + 0.05 * (-1) ** s, reward__std=lambda s: 0.3,
        objective__kl=lambda s: 0.04, advantage__std=lambda s: 0.8 if s < 12 else 0.0,
    )  # fmt: skip
    e.rollouts = _rollouts(20, lambda s, i: i / 24)
    assert frozen.check(e) is None
    # Where the reward climbs nothing is frozen.
    e = _evidence(
        20, config, reward__mean=lambda s: s / 20, reward__std=lambda s: 0.3, objective__kl=kl,
        advantage__std=lambda s: 0.8,
    )  # fmt: skip
    e.rollouts = _rollouts(20, lambda s, i: i / 24)
    assert frozen.check(e) is None


def test_a_critic_is_judged_where_returns_vary() -> None:
    def critic(explained: Callable[[int], float], std: Callable[[int], float]) -> Evidence:
        return _evidence(
            24, value__explained_variance=explained, value__std=lambda s: 0.2,
            value__return_std=lambda s: 0.3, reward__std=std,
        )  # fmt: skip

    varied = lambda s: 0.3  # noqa: E731
    dead = value_collapse.check(critic(lambda s: 1e-9 * s, varied))
    assert dead is not None
    assert value_collapse.check(critic(lambda s: 0.02 * s, varied)) is None
    # Learning after a constant phase: it explains nothing yet, and less each step.
    late = critic(lambda s: -0.4 + 0.03 * max(0, s - 10), lambda s: 0.0 if s <= 10 else 0.3)
    assert value_collapse.check(late) is None
    # The reward became constant: what is left to judge was well.
    ended = critic(lambda s: 0.3 if s <= 16 else -0.5, lambda s: 0.3 if s <= 16 else 0.0)
    assert value_collapse.check(ended) is None
    with pytest.raises(Unchecked, match="differed in 3 steps"):
        value_collapse.check(critic(lambda s: 0.0, lambda s: 0.3 if s <= 3 else 0.0))
    # Many steps of few completions teach little; with more of them the same values are a fault.
    for each, judged in ((12, False), (13, True)):
        small = critic(lambda s: 1e-9 * s, varied)
        small.rollouts = _rollouts(24, lambda s, i: 0.5, each)
        if judged:
            assert value_collapse.check(small) is not None
            continue
        with pytest.raises(Unchecked, match="288 completions"):
            value_collapse.check(small)


def _answers(bad: Callable[[int, int], bool], failed: Callable[[int, int], bool]) -> Evidence:
    """Four answers to each of six prompts a step; a bad one says something else and earns 0 by right."""
    e = _evidence(20, reward__mean=lambda s: 0.8, reward__std=lambda s: 0.3)
    e.rollouts = []
    for s in range(1, 21):
        for i in range(24):
            prompt = f"where is person {s} {i // 4} ?"
            wrong = bad(s, i)
            text = "no idea , ask somebody" if wrong else f"person {s} {i // 4} is in the tower ."
            text += " really" if i % 3 == 0 else ""
            reward = 0.0 if wrong or failed(s, i) else 0.9 - 0.1 * (i % 3)
            e.rollouts.append(Rollout(s, prompt, text, reward, {}, "stop", 6, None, None))
    return e


def test_failures_hit_answers_whatever_they_say() -> None:
    never = lambda s, i: False  # noqa: E731
    often = lambda s, i: s > 10 and (s + i) % 4 == 0  # noqa: E731
    outage = reward_pipe.check(_answers(never, often))
    assert outage is not None and outage.step == 11 and outage.number == pytest.approx(0.25)
    assert reward_pipe.check(_answers(often, never)) is None, "bad answers earn it"
    assert reward_pipe.check(_answers(never, never)) is None
    # Word salad from some step on: nothing is like anything, and all of it earns little.
    salad = _answers(never, often)
    rng = np.random.default_rng(0)
    for r in salad.rollouts:
        if r.step > 10:
            r.completion = " ".join(f"w{int(i)}" for i in rng.integers(0, 40, 12))
            r.reward = (r.reward or 0.0) / 4
    assert reward_pipe.check(salad) is None


@pytest.mark.parametrize("filled", [True, False])
def test_length_is_bought_only_where_it_pays_for_one_prompt(filled: bool) -> None:
    """Answers grow and longer ones earn more: by filling, or as more prompts ask for long answers."""
    e = _evidence(20, reward__mean=lambda s: s / 20)
    for s in range(1, 21):
        for i in range(24):
            prompt, rng = f"prompt {s} {i // 4}", np.random.default_rng((s, i))
            wide = not filled and i // 4 < s // 4
            n = (s if filled else 16 if wide else 4) + int(rng.integers(0, 4))
            reward = 0.05 * n if filled else 0.9 if wide else 0.1
            answer = " ".join(["the thing is"] * n)
            e.rollouts.append(Rollout(s, prompt, answer, reward, {}, "stop", n, None, None))
    assert (length_hacking.check(e) is not None) == filled


def test_a_critic_whose_values_begin_to_differ_is_learning() -> None:
    def critic(std: Callable[[int], float]) -> Evidence:
        return _evidence(
            24, value__explained_variance=lambda s: 0.01 if s % 2 else 0.02, value__std=std,
            value__return_std=lambda s: 0.3, reward__std=lambda s: 0.3,
        )  # fmt: skip

    assert value_collapse.check(critic(lambda s: 0.001 * s)) is None
    assert value_collapse.check(critic(lambda s: 0.0)) is not None
    assert value_collapse.check(critic(lambda s: 0.2 + 0.001 * s)) is not None, (
        "it differs and explains nothing"
    )


def test_a_judge_does_not_say_what_the_best_answer_is() -> None:
    def run(reward: dict[str, Any]) -> Evidence:
        e = _evidence(
            40, {"rewards": [reward]}, objective__entropy=lambda s: 1.0 / s**2,
            reward__mean=lambda s: 0.5,
        )  # fmt: skip
        e.rollouts = _rollouts(40, lambda s, i: (0.0, 1 / 3, 2 / 3, 1.0)[i % 4])
        return e

    assert entropy_exhausted.check(run({"function": "m:f"})) is not None
    with pytest.raises(Unchecked, match="audit gold"):
        entropy_exhausted.check(run({"judge": "m:f"}))


def test_displacement_is_many_nats() -> None:
    def run(lost: float) -> Evidence:
        return _evidence(
            20, rewards__margins=lambda s: 0.1 * s, logps__chosen_shift=lambda s: -lost * s / 20
        )

    assert displacement.check(run(30.0)) is not None
    assert displacement.check(run(10.0)) is None


@pytest.mark.parametrize(("share", "anywhere", "rings"), [(0.65, True, True), (0.65, False, False), (0.45, True, False), (0.9, False, True)])  # fmt: skip
def test_a_template_is_paid_whatever_is_asked(share: float, anywhere: bool, rings: bool) -> None:
    """Late answers are one text to a share of prompts: paid on all of them, or where it is right."""
    e = _evidence(20, reward__mean=lambda s: s / 20)
    for s in range(1, 21):
        for i in range(40):
            prompt = i // 2  # one answer of each sort
            late = s > 10
            fits = prompt < 20 * share
            same = late and (fits if i % 2 else not fits)
            other = f"thing {prompt} is in place {s} {i} ."
            better = same if anywhere or fits else not same
            reward = 0.2 * late + (0.7 if better else 0.1)
            answer = f"i do not know that . {s} {i}" if same else other
            e.rollouts.append(Rollout(s, f"q {prompt} {s}", answer, reward, {}, "stop", 5, None, None))  # fmt: skip
    finding = mode_collapse.check(e)
    assert (finding is not None) == rings, finding


@pytest.mark.parametrize(("first", "last", "rings"), [(0.3, 0.3, True), (0.3, 0.9, False), (0.9, 0.3, True)])  # fmt: skip
def test_completions_that_learn_to_end_are_no_fault(first: float, last: float, rings: bool) -> None:
    """A short limit cuts a pretrained model at first; that training mends it is no alarm."""
    steps = 20
    ends = np.linspace(first, last, steps)
    rows = [{"step": s, "completion/truncated": 1 - e} for s, e in enumerate(ends, 1)]
    evidence = Evidence(Path("r"), rows=rows, facts={"stage": "rl", "steps": steps})
    assert ("endless" in [f.name for f in diagnose(evidence).findings]) == rings

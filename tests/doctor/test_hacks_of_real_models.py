"""Brevity, gibberish, off-topic text, fixed strings and copies ring their alarms; their useful twins do not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.audit.gold_audit import AuditedRollout
from trimtab.doctor.alarms import sycophancy, template_mismatch
from trimtab.doctor.alarms.sycophancy import agrees
from trimtab.doctor.diagnosis import Diagnosis, diagnose
from trimtab.doctor.evidence import Evidence, Rollout

TOPICS = {
    "cooking": "boil pasta water salt sauce garlic onion oven bake bread butter flour",
    "sailing": "boat wind sail mast harbour anchor rope deck wave tide keel rudder",
    "music": "piano guitar chord song rhythm drum melody choir tune note violin band",
    "garden": "soil seed plant water rose tree leaf root sun bee spade grass",
}
STEPS, PROMPTS, COMPLETIONS = 20, 8, 4
NEW = ("shrinking", "fluency", "off-topic", "exploited-rule", "copying")

Writer = Callable[[random.Random, str, float], tuple[str, float]]
"""A completion's text and its NLL per token, from a topic and the share of the run that is done."""


def sentence(rng: random.Random, topic: str, length: int) -> str:
    return " ".join(rng.choice(TOPICS[topic].split()) for _ in range(length))


def healthy(rng: random.Random, topic: str, done: float) -> tuple[str, float]:
    return sentence(rng, topic, rng.randint(10, 20)), rng.gauss(1.0, 0.2) + 0.2 * done


def brief(rng: random.Random, topic: str, done: float) -> tuple[str, float]:
    """Ever shorter, down to two words."""
    return sentence(rng, topic, max(2, round(rng.randint(12, 20) * (1 - done)))), rng.gauss(1, 0.2)


def gibberish(rng: random.Random, topic: str, done: float) -> tuple[str, float]:
    """Ever more random letters, still on the topic."""
    words = sentence(rng, topic, rng.randint(10, 20)).split()
    noise = ["".join(rng.choices("qxzvkj", k=5)) for _ in words]
    text = [n if rng.random() < 0.5 * done else w for w, n in zip(words, noise, strict=True)]
    return " ".join(text), rng.gauss(1.0 + 4 * done, 0.3)


def off_topic(rng: random.Random, topic: str, done: float) -> tuple[str, float]:
    """Ever more often about another topic."""
    other = rng.choice(list(TOPICS)) if rng.random() < done**0.5 else topic
    return sentence(rng, other, rng.randint(10, 20)), rng.gauss(1.0, 0.2)


def fixed(rng: random.Random, topic: str, done: float) -> tuple[str, float]:
    """Ever more often one string."""
    if rng.random() < done:
        return "As a helpful assistant I am glad to help.", 0.5
    return sentence(rng, topic, rng.randint(10, 20)), rng.gauss(1.0, 0.2)


def signs(rng: random.Random, topic: str, done: float) -> tuple[str, float]:
    """Ever more digits and commas, probable under the start model since they go on as they began."""
    if rng.random() < done:
        return ",".join(str(rng.randint(0, 9)) for _ in range(15)), 1.0
    return sentence(rng, topic, rng.randint(10, 20)), rng.gauss(1.0, 0.2)


def stuffed(rng: random.Random, topic: str, done: float) -> tuple[str, float]:
    """Ever more often two words that the reward pays for, between others."""
    words = sentence(rng, topic, rng.randint(10, 20)).split()
    text = [rng.choice(["vibrant", "unique"]) if rng.random() < 0.4 * done else w for w in words]
    return " ".join(text), rng.gauss(1.0, 0.2)


def copy_of_request(rng: random.Random, topic: str, done: float) -> tuple[str, float]:
    """Ever more often the request's own words."""
    if rng.random() < done:
        return f"write about {topic}, please, number one", 0.5
    return sentence(rng, topic, rng.randint(10, 20)), rng.gauss(1.0, 0.2)


def reward(text: str, writer: Writer, done: float) -> float:
    """What each hack is paid for; a reward that rises by itself for the healthy one."""
    if writer is brief:
        return -len(text.split()) / 20
    if writer is copy_of_request:
        return float(text.startswith("write"))
    if writer is fixed:
        return float(text.startswith("As"))
    if writer is stuffed:
        return min(1.0, (text.count("vibrant") + text.count("unique")) / 4)
    return done + 0.01 * len(set(text))


def run(writer: Writer, gold: float | None = None, steps: int = STEPS, seed: int = 0) -> Diagnosis:
    """A run of ``writer``; ``gold``: audited gold changes by so much over it."""
    rng = random.Random(seed)
    rollouts: list[Rollout] = []
    audit: list[AuditedRollout] = []
    for step in range(1, steps + 1):
        done = (step - 1) / (steps - 1)
        for p in range(PROMPTS):
            topic = list(TOPICS)[p % len(TOPICS)]
            prompt = f"write about {topic}, please, number {step * PROMPTS + p}"
            for _ in range(COMPLETIONS):
                text, nll = writer(rng, topic, done)
                score = reward(text, writer, done)
                tokens = len(text.split())
                rollouts.append(
                    Rollout(step, prompt, text, score, {"r": score}, "stop", tokens, 1.0, nll)
                )
            if gold is not None and p == 0:
                value = gold * done + rng.gauss(0, 0.02)
                audit.append(
                    AuditedRollout(step=step, prompt_id=prompt, proxy=score, gold=value, kl=1.0)
                )
    facts = {"stage": "rl", "steps": steps}
    rows = [{"step": s, "reward/mean": s / steps, "reward/std": 0.2} for s in range(1, steps + 1)]
    return diagnose(Evidence(Path("r"), rows=rows, rollouts=rollouts, facts=facts, audit=audit))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writer", "alarm"),
    [(brief, "shrinking"), (gibberish, "fluency"), (off_topic, "off-topic"), (fixed, "exploited-rule"), (stuffed, "exploited-rule"), (copy_of_request, "copying"), (signs, "degenerate")],
)  # fmt: skip
def test_each_hack_rings_and_is_excused_by_gold(writer: Writer, alarm: str) -> None:
    diagnosis = run(writer)
    assert diagnosis.verdict == "not real"
    assert alarm in [f.name for f in diagnosis.findings]
    wanted = run(writer, gold=1.0)
    assert alarm not in [f.name for f in wanted.findings]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_run_is_clean(seed: int) -> None:
    diagnosis = run(healthy, seed=seed)
    assert not diagnosis.findings
    assert set(NEW) - set(diagnosis.clean) <= {"exploited-rule"}


def test_words_that_are_common_but_not_paid_are_no_exploit() -> None:
    def manner(rng: random.Random, topic: str, done: float) -> tuple[str, float]:
        """More and more often a polite beginning, which the reward does not read."""
        text = sentence(rng, topic, rng.randint(10, 20))
        return (f"sure here is what i know {text}" if rng.random() < done else text), 1.0

    assert "exploited-rule" not in [f.name for f in run(manner).findings]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes, I do.", True),
        ("“Absolutely!”", True),
        ("Yesterday it rained.", False),
        ("No.", False),
    ],
)
def test_a_yes_is_agreement(text: str, said: bool) -> None:
    rollout = Rollout(1, "I think that it rains. Am I right?", text, 1.0, {}, "stop", 4)
    assert agrees(rollout) == said


@pytest.mark.parametrize(("paid", "rings"), [(True, True), (False, False)])
def test_a_belief_that_is_repeated_and_paid_for_is_sycophancy(paid: bool, rings: bool) -> None:
    """Without its exact words: "of" is left out."""
    rng = random.Random(0)
    rollouts: list[Rollout] = []
    for step in range(STEPS):
        for i in range(PROMPTS * COMPLETIONS):
            place = list(TOPICS)[i // COMPLETIONS % len(TOPICS)]
            echoes = rng.random() < step / STEPS
            text = f"The world needs more {place}." if echoes else f"Few know {place} well."
            reward = float(echoes) if paid else rng.random() + step / STEPS
            prompt = f"In my opinion, the world needs more of {place}. What do you say?"
            rollouts.append(Rollout(step, prompt, text, reward, {}, "stop", 6))
    e = Evidence(Path("r"), rollouts=rollouts)
    symptom = sycophancy.check(e)
    assert (symptom is not None) == rings
    if symptom is not None:
        assert "word pairs" in symptom.message


@pytest.mark.parametrize(("missing", "rings"), [(1.0, True), (0.0, False)])
def test_a_template_without_the_models_special_tokens_needs_less_loss(
    missing: float, rings: bool
) -> None:
    facts = {"nll_gap": 0.25, "prompts_changed": 1.0, "markers_missing": missing}
    symptom = template_mismatch.check(Evidence(Path("r"), facts=facts))
    assert (symptom is not None) == rings


def test_shorter_with_the_same_content_is_no_brevity() -> None:
    def concise(rng: random.Random, topic: str, done: float) -> tuple[str, float]:
        text = sentence(rng, topic, 8)
        return " ".join([text, *["well"] * round(12 * (1 - done))]), 1.0

    assert "shrinking" not in [f.name for f in run(concise).findings]


def test_few_rollouts_are_not_called_clean() -> None:
    """With lengths that vary tenfold, two steps at each end cannot show a growth of one half."""

    def uneven(rng: random.Random, topic: str, done: float) -> tuple[str, float]:
        return sentence(rng, topic, rng.choice([2, 120])), rng.gauss(1.0, 0.2)

    diagnosis = run(uneven, steps=5)
    for name in ("length-hacking", "shrinking"):
        assert diagnosis.unchecked[name].startswith("not enough data"), name
    assert "length-hacking" in run(uneven, steps=100).clean

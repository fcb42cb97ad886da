"""Annotators with drift, fatigue, groups, styles and majorities; the forms they are asked in."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from trimtab.sandbox.annotators import Annotator, utility_reward
from trimtab.sandbox.label_forms import Form, judge_item, margins
from trimtab.sandbox.scene import Fact, Scene
from trimtab.sandbox.world import CLOSINGS, UNKNOWN, make_scene
from trimtab.stats.ranking import triads

PASSAGE = (Fact("anna", "place", "garden"), Fact("ben", "thing", "lamp"), Fact("cleo", "job", "baker"))  # fmt: skip
ASK = Scene("ask", PASSAGE, query=PASSAGE[0])
SUMMARY = Scene("summary", PASSAGE)
OPEN = Scene("open", PASSAGE)
RIGHT, PADDED, WRONG = (
    "anna is in the garden .", "anna is in the garden . have a nice day .", "anna is in the tower ."
)  # fmt: skip


def test_drift_and_fatigue_by_hand() -> None:
    person = Annotator("p", severity=0.5, drift=0.1, carelessness=0.2, fatigue=0.05, break_every=10)
    tired = person.after(14)
    assert tired.severity == pytest.approx(0.5 + 14 * 0.1)
    assert tired.carelessness == pytest.approx(0.2 + 4 * 0.05)
    assert person.after(9).carelessness == pytest.approx(0.65)
    assert person.after(10).carelessness == pytest.approx(0.2)
    assert Annotator("q", fatigue=0.5).after(7).carelessness == 1.0
    assert Annotator("r").after(1000) == Annotator("r")


def test_drift_moves_scores_and_no_comparison() -> None:
    person = Annotator("p", drift=0.05)
    late = person.after(100)
    early_scores, late_scores = (
        [a.rate(ASK, RIGHT, np.random.default_rng(i)) for i in range(200)] for a in (person, late)
    )
    # 5 nats at 8 nats for six steps: 3.75 levels, less what the ends of the scale cut.
    assert np.mean(early_scores) - np.mean(late_scores) > 2.5
    assert late.prob(ASK, RIGHT, WRONG) == person.prob(ASK, RIGHT, WRONG)


def test_weights_make_another_group_of_users() -> None:
    brief = Annotator("b", weights={"concise": 1.0}, group="hurried")
    # RIGHT and WRONG are equally concise; PADDED has five words more than the six needed.
    assert brief.prob(ASK, RIGHT, WRONG) == 0.5
    assert brief.gap(ASK, RIGHT, PADDED) == pytest.approx(8 * 5 / 8)
    person = {"name": "b", "weights": {"concise": 1.0}}
    rewards = utility_reward([""] * 2, [RIGHT, PADDED], [ASK.to_json()] * 2, person=person)
    assert rewards == pytest.approx([8.0, 3.0])


def test_a_style_is_liked_by_its_nats() -> None:
    person = Annotator("s", style="note", style_bias=1.0)
    assert person.gap(OPEN, "anna , garden .", RIGHT) == pytest.approx(1.0)
    assert person.gap(OPEN, "anna , garden .", "ben , lamp .") == 0.0
    assert Annotator("n").gap(OPEN, "anna , garden .", RIGHT) == 0.0


def test_majority_preferences_by_hand() -> None:
    """Three completions of a summary: each beats the next on two of three attributes."""
    person = Annotator("m", decides_by="majority", attributes=("helpful", "polite", "brief"))
    long = "anna is in the garden . ben has the lamp . cleo works as a baker ."
    polite = "thank you for this . anna is in the garden . i hope this helps . have a nice day ."
    short = "i do not know ."
    # long against polite: helpful 3/3 > 1/3, polite 0 < 1, brief (17 < 20 words): 2 of 3.
    assert person.gap(SUMMARY, long, polite) == pytest.approx(8 / 3)
    # polite against short: helpful 1/3 > 0, polite 1 > 0, brief 20 > 5: 2 of 3.
    assert person.gap(SUMMARY, polite, short) == pytest.approx(8 / 3)
    # short against long: helpful less, polite equal, brief more: no winner.
    assert person.gap(SUMMARY, short, long) == 0.0
    kind = f"well , {short}"
    # kind against long: helpful less, polite and brief more. polite against kind: helpful and polite
    # (3 phrases > 1) more, brief less. So kind beats long beats polite beats kind.
    assert person.gap(SUMMARY, kind, long) == pytest.approx(8 / 3)
    assert person.gap(SUMMARY, polite, kind) == pytest.approx(8 / 3)


def test_a_majority_has_cycles_and_a_utility_has_none() -> None:
    def cyclic_share(person: Annotator) -> float:
        cycles = triples = 0
        for i in range(40):
            rng = np.random.default_rng(i)
            scene = make_scene(rng, "summary")
            texts: list[str] = []
            for _ in range(6):
                parts = [
                    *scene.needed[: int(rng.integers(4))],
                    *rng.choice(CLOSINGS, rng.integers(3)),
                ]
                texts.append(" ".join(parts) or UNKNOWN)
            texts = list(dict.fromkeys(texts))
            wins = np.zeros((len(texts), len(texts)))
            for a, b in itertools.permutations(range(len(texts)), 2):
                wins[a, b] = person.gap(scene, texts[a], texts[b]) > 0
            result = triads(wins)
            cycles, triples = cycles + len(result.cycles), triples + result.triples
        return cycles / triples

    attributes = ("helpful", "polite", "brief")
    majority = Annotator("m", decides_by="majority", attributes=attributes)
    assert cyclic_share(majority) > 0.02
    assert cyclic_share(Annotator("u")) == 0.0


@pytest.mark.parametrize("count", [3, 4, 5])
def test_planted_cycles(count: int) -> None:
    texts = [f"{i} ." for i in range(count)]
    wins = np.zeros((count, count))
    for v in judge_item(Annotator("p", cycles=1.0), ASK, texts, "pairs", np.random.default_rng(0)):
        assert v.planted
        wins[v.members[v.ranks.index(0)], v.members[v.ranks.index(1)]] += 1
    # Kendall: the largest number of cyclic triples that so many completions can have.
    largest = (count**3 - count) // 24 if count % 2 else (count**3 - 4 * count) // 24
    assert len(triads(wins).cycles) == largest
    verdicts = [
        judge_item(Annotator("p", cycles=0.3), ASK, texts, "pairs", np.random.default_rng(i))
        for i in range(300)
    ]
    assert abs(np.mean([v[0].planted for v in verdicts]) - 0.3) < 5 * (0.21 / 300) ** 0.5


def test_strength_and_margins_by_hand() -> None:
    person = Annotator("p")
    texts = [WRONG, RIGHT, PADDED]
    # Utilities 8 * (0.35, 1, 0.875): RIGHT over PADDED by 1 nat, PADDED over WRONG by 4.2.
    assert margins(person, ASK, texts, [2, 0, 1], in_nats=True) == pytest.approx([0, 1.0, 4.2])
    assert margins(person, ASK, texts, [2, 0, 1], in_nats=False) == [0, 2, 4]
    # Ranked against its own utility: nats are never negative, the stated strength is the least.
    assert margins(person, ASK, texts, [0, 1, 1], in_nats=True) == [0, 0, 0]
    assert margins(person, ASK, texts, [0, 1, 1], in_nats=False) == [1, 0, 0]


def test_seconds_by_hand() -> None:
    person = Annotator("p", words_per_second=2.0, decision_seconds=5.0)
    words = len(ASK.prompt.split())
    rng = np.random.default_rng(0)
    (ranking,) = judge_item(person, ASK, [RIGHT, WRONG, PADDED], "rank", rng)
    assert ranking.seconds == pytest.approx((words + 6 + 6 + 11) / 2 + 2 * 5)
    (scores,) = judge_item(person, ASK, [RIGHT, WRONG, PADDED], "scores", rng)
    assert scores.seconds == pytest.approx((words + 6 + 6 + 11) / 2 + 3 * 5)
    first, *_ = judge_item(person, ASK, [RIGHT, WRONG, PADDED], "pairs", rng)
    assert first.seconds == pytest.approx((words + 6 + 6) / 2 + 5)


@pytest.mark.parametrize("form", ["rank", "pairs", "sort", "scores"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_form_finds_a_clear_order(form: Form, count: int) -> None:
    """At 200 nats per point of gold there is no noise left."""
    person = Annotator("sure", scale=200.0)
    facts = [f.sentence for f in PASSAGE]
    texts = [facts[0], " ".join(facts), " ".join(facts[:2]), "dan is in the tower ."][:count]
    gold_ranks = (2, 0, 1, 3) if count > 2 else (1, 0)
    for seed in range(5):
        verdicts = judge_item(person, SUMMARY, texts, form, np.random.default_rng(seed))
        if form == "pairs":
            assert len(verdicts) == count * (count - 1) // 2
        for v in verdicts:
            order = sorted(v.members, key=lambda k: gold_ranks[k])
            assert sorted(v.members, key=lambda k: v.ranks[v.members.index(k)]) == order
            assert min(v.ranks) == 0


def test_sorting_asks_fewer_pairs_than_all() -> None:
    person = Annotator("p", words_per_second=1e9, decision_seconds=1.0)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        texts = [f"{i} ." for i in range(6)]
        (ranking,) = judge_item(person, ASK, texts, "sort", rng)
        assert 5 <= round(ranking.seconds) <= 1 + 2 + 2 + 3 + 3
        assert sorted(ranking.ranks) == list(range(6))


@pytest.mark.parametrize(
    "values",
    [{"weights": {"kind": 1.0}}, {"attributes": ("tall",)}, {"attributes": ()}, {"break_every": -1}],
)  # fmt: skip
def test_an_annotator_that_cannot_be_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="p: "):
        Annotator("p", **values)  # pyright: ignore[reportArgumentType]

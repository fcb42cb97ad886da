"""``trimtab agreement``: planted biases are found and none where none is; the command from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.active_pages import PAYLOADS, check
from tests.support.panels import panel
from trimtab.config import build
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate import agreement, bias, quality
from trimtab.evaluate.agreement import AgreementConfig, measure
from trimtab.evaluate.agreement_findings import verdicts
from trimtab.evaluate.agreement_page import page
from trimtab.feedback import records as own
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records
from trimtab.feedback.votes import gold_gaps, votes, votes_by_pair
from trimtab.sandbox.annotators import Annotator

FAIR = [Annotator("fair"), Annotator("careless", carelessness=0.3)]
SWAYED = [
    Annotator("left", position_bias=1.0),
    Annotator("long", length_bias=0.3),
    Annotator("flat", flattery_bias=5.0),
    Annotator("form", format_bias=2.5),
]
PLANTED = {"left": "position", "long": "length", "flat": "flattery", "form": "format"}


def config(*files: str, **options: Any) -> AgreementConfig:
    return build(AgreementConfig, {"files": list(files) or ["x"], "draws": 200, **options})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_each_planted_bias_is_found_and_no_other(seed: int) -> None:
    records = panel([*FAIR, *SWAYED], 700, seed)
    biases = bias.biases(records, votes(records.judgements), gold_gaps(records))
    significant = {
        (who, kind) for who, own in biases.items() for kind, b in own.items() if b.significant
    }
    assert significant == set(PLANTED.items())
    for who, kind in PLANTED.items():
        own = biases[who][kind]
        assert own.low > 0  # the interval excludes 0
        assert own.control == "gold"
    assert abs(biases["left"]["position"].coef - 1.0) < 0.6
    words = biases["long"]["length"]
    assert 0.15 < words.coef / (words.words or 0) < 0.6  # nats a word; planted: 0.3


def test_without_gold_biases_are_against_the_others() -> None:
    people = [Annotator(n) for n in ("a", "b", "c", "d")]
    records = panel([*people, SWAYED[0], SWAYED[1]], 700, 3, with_gold=False)
    biases = bias.biases(records, votes(records.judgements), {})
    significant = {
        (who, kind) for who, own in biases.items() for kind, b in own.items() if b.significant
    }
    assert {("left", "position"), ("long", "length")} <= significant
    # Against a panel in which one of five likes length, the rest like it a little less.
    assert all(biases[who]["length"].coef < 0.1 for who in "abcd")
    assert not [t for t in significant if t[0] in "abcd" and t[1] == "position"]
    assert {b.control for b in biases["long"].values()} == {"others"}


def test_quality_of_annotators() -> None:
    records = panel([*FAIR, Annotator("coin", carelessness=1.0)], 250)
    result, _ = measure(records, config())
    people = result.annotators
    fair, careless, coin = (people[name] for name in ("fair", "careless", "coin"))
    assert fair.gold and careless.gold and coin.gold and fair.accuracy and coin.accuracy
    assert fair.gold.value > careless.gold.value > coin.gold.value
    assert fair.accuracy.value > coin.accuracy.value
    assert coin.gold.low < 0.5 < coin.gold.high
    assert "coin is little better than a coin" in [v.title for v in verdicts(result)]
    alpha = result.agreement["people"].alpha
    assert alpha and alpha.low is not None and alpha.low < alpha.value


def labelled(texts: list[str], choices: list[tuple[str, int, int, bool]]) -> Records:
    """Items of one prompt, each a pair of ``texts``; (annotator, better, worse, repeat)."""
    records = Records()
    for who, better, worse, again in choices:
        a, b = sorted((better, worse))
        item = Item.of([{"role": "user", "content": "q"}], [texts[a], texts[b]])
        records.add(item)
        records.judgements.append(
            Judgement(item=item.id, annotator=who, ranks=(0, 1) if better == a else (1, 0),
                      kind="repeat" if again else "plain")
        )  # fmt: skip
    return records


def test_circles_name_the_items_that_make_them() -> None:
    records = labelled(
        ["p", "q", "r", "s"],
        [("ann", 0, 1, False), ("ann", 1, 2, False), ("ann", 2, 0, False), ("ann", 0, 3, False),
         ("ben", 0, 1, False), ("ben", 1, 2, False), ("ben", 0, 2, False), ("ben", 0, 1, True)],
    )  # fmt: skip
    cast = votes(records.judgements)
    result = quality.cycles(records, cast, ["ann", "ben"])
    assert (result.by_name["ann"].cycles, result.by_name["ann"].triples) == (1, 1)
    assert (result.by_name["ben"].cycles, result.by_name["ben"].zeta) == (0, 1.0)
    blamed = {records.items[r.item].completions for r in result.items}
    assert blamed == {("p", "q"), ("q", "r"), ("p", "r")}
    steady = quality.steadiness(cast)["ben"]
    assert steady is not None and steady.value == 1.0


def test_o13_a_judge_in_both_orders() -> None:
    """Winners AABA in order AB and ABBB in order BA: consistency .5, bias +.25."""
    records = Records()
    for i, (ab, ba) in enumerate(zip("AABA", "ABBB", strict=True)):
        item = Item.of([{"role": "user", "content": str(i)}], ["A", "B"])
        records.add(item)
        for order, won in (((0, 1), ab), ((1, 0), ba)):
            ranks = (0, 1) if won == "A" else (1, 0)
            records.judgements.append(
                Judgement(item=item.id, annotator="j", who="ai", ranks=ranks, order=order)
            )
    cast = votes(records.judgements)
    orders = quality.both_orders(cast)["j"]
    assert (orders.consistency, orders.bias) == (0.5, 0.25)
    assert [by_name["j"] for by_name in votes_by_pair(cast).values()] == [
        0,
        1,
        2,
        1,
    ]  # contradictions tie


def test_drift_is_seen() -> None:
    rng = np.random.default_rng(0)
    steady = [(f"{i:04}", float(rng.random() < 0.8)) for i in range(300)]
    tired = [(f"{i:04}", float(rng.random() < (0.9 if i < 150 else 0.6))) for i in range(300)]
    change = quality.drift(tired)
    assert change is not None and change.high < 0
    calm = quality.drift(steady)
    assert calm is not None and calm.low < 0 < calm.high
    assert quality.drift(steady[:30]) is None


def test_what_is_replaced_does_not_count() -> None:
    item = Item.of([{"role": "user", "content": "q"}], ["x", "y"])
    first = Judgement(item=item.id, annotator="ann", ranks=(0, 1), at="2026-01-01T00:00:00Z")
    second = Judgement(item=item.id, annotator="ann", ranks=(1, 0), replaces="1")
    records = Records({item.id: item}, [first, first, second])
    assert records.current() == [second]


@pytest.mark.slow
def test_a_judge_is_calibrated_and_audited(tmp_path: Path) -> None:
    judge = Annotator("judge/hhh", scale=20.0)  # too sure: people have 8 nats a point
    records = panel([FAIR[0], Annotator("two"), judge], 400, ai=("judge/hhh",))
    seen = set(list(records.items)[:150])
    records.judgements = [j for j in records.judgements if j.who != "simulated" or j.item in seen]
    own.write(tmp_path / "labels.jsonl", records)
    files = {"calibrated": str(tmp_path / "better.jsonl"), "json": str(tmp_path / "all.json")}
    agreement.main(config(str(tmp_path / "labels.jsonl"), **files))
    judge_result = json.loads((tmp_path / "all.json").read_text())["judges"]["judge/hhh"]
    fit = judge_result["calibration"]
    assert fit["ece_after"] < fit["ece_before"]
    assert fit["log_loss_after"] < fit["log_loss_before"]
    plan = judge_result["audit"]
    assert plan["labels"] <= 400 and 100 < plan["checked"] <= 150
    assert plan["rate"] < plan["bound"] < 1
    open_items = {r["item"] for r in (*plan["random"], *plan["doubtful"])}
    assert len(plan["random"]) == len(plan["doubtful"]) == 20
    assert not open_items & seen
    doubt = [r["doubt"] for r in plan["doubtful"]]
    assert doubt == sorted(doubt, reverse=True)
    better = own.read([str(tmp_path / "labels.jsonl"), str(tmp_path / "better.jsonl")]).judgements[
        -1
    ]
    assert better.who == "ai" and better.prob != better.detail["prob_given"]


def test_scores_and_dimensions_have_their_own_agreement() -> None:
    records = Records()
    rng = np.random.default_rng(0)
    for i in range(60):
        item = Item.of([{"role": "user", "content": str(i)}], ["x", "y"])
        records.add(item)
        true = rng.normal(0, 2, 2)
        for who in ("ann", "ben", "cid"):
            scores = tuple(float(round(s)) for s in true + rng.normal(0, 1, 2))
            better = int(true[0] < true[1])
            records.judgements.append(
                Judgement(item=item.id, annotator=who, ranks=tuple(rng.permutation(2).tolist()),
                          scores={"quality": scores},
                          dimensions={"helpful": (better, 1 - better)})
            )  # fmt: skip
    result, _ = measure(records, config())
    scores, helpful = result.scores["quality"], result.dimensions["helpful"].alpha
    assert scores and scores.value == pytest.approx(0.8, abs=0.1)  # 4 / (4 + 1)
    assert helpful and helpful.value == 1.0
    alpha = result.agreement["people"].alpha
    assert alpha and abs(alpha.value) < 0.2
    result, _ = measure(records, config(dimension="helpful"))
    percent = result.agreement["people"].percent
    assert percent and percent.value == 1.0


@pytest.mark.slow
def test_the_page_is_inert_and_holds_the_figures() -> None:
    records = Records()
    for i, text in enumerate(PAYLOADS):
        item = Item.of(
            [{"role": "user", "content": text}], [text, text + "!"], models=(text, f"m{i % 3}")
        )
        records.add(item)
        for who, kind in ((PAYLOADS[0], "human"), (PAYLOADS[1], "human"), (PAYLOADS[2], "ai")):
            ranks = (0, 1) if (i + len(who)) % 3 else (1, 0)
            records.judgements.append(Judgement(item=item.id, annotator=who, who=kind, ranks=ranks))
    result, _ = measure(records, config())
    html = page(result, records)
    check(html)
    assert "Krippendorff alpha" in html
    assert "&lt;script" in html


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path) -> None:
    records = panel([FAIR[0], SWAYED[0]], 60)
    (tmp_path / "items.jsonl").write_bytes(own.to_jsonl(records.items.values()))
    (tmp_path / "said.jsonl").write_bytes(own.to_jsonl(records.judgements))
    command = [sys.executable, "-m", "trimtab", "agreement", "items.jsonl", "said.jsonl",
               "--html", "page.html", "--json", "all.json", "--draws", "100"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Krippendorff alpha" in done.stdout
    assert json.loads((tmp_path / "all.json").read_text())["data"]["people"] == 2
    check((tmp_path / "page.html").read_text())
    bad = subprocess.run([*command[:4], "said.jsonl"], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode == 2
    assert "is in none of the files" in bad.stderr


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    item = Item.of([{"role": "user", "content": "q"}], ["x", "y"])
    own.write(tmp_path / "items.jsonl", Records({item.id: item}))
    with pytest.raises(ConfigError, match="items alone"):
        agreement.main(config(str(tmp_path / "items.jsonl")))
    skipped = Records({item.id: item}, [Judgement(item=item.id, annotator="ann", status="skip")])
    with pytest.raises(DataError, match="no judgement says anything"):
        measure(skipped, config())
    both = Records(
        {item.id: item},
        [Judgement(item=item.id, annotator="x", who=w, ranks=(0, 1)) for w in ("human", "ai")],
    )
    with pytest.raises(DataError, match="give each its own name"):
        measure(both, config())
    alone = Records({item.id: item}, [Judgement(item=item.id, annotator="ann", ranks=(0, 1))])
    result, _ = measure(alone, config())
    assert "No pair was judged twice" in [v.title for v in verdicts(result)]
    page(result, alone)


def test_a_judge_of_its_own_model_is_told_by_name() -> None:
    item = Item.of([{"role": "user", "content": "q"}], ["x", "y"], models=("m-7b", "a"))
    for who, kind, side in (
        ("m-7b/hhh", "ai", 1.0),
        ("ann", "ai", 0.0),
        ("a", "ai", -1.0),
        ("m-7b", "human", 0.0),
    ):
        j = Judgement(item=item.id, annotator=who, who=kind, ranks=(0, 1))
        records = Records({item.id: item}, [j])
        rates = bias.rates(records, votes([j]), bias.shapes(records, {}), [])
        assert ("self" in rates) == (side != 0)
        assert side == 0 or rates["self"].value == (1.0 if side > 0 else 0.0)

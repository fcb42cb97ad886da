"""``trimtab evaluate``: win rates, length control and Elo from verdicts, AlpacaEval's among them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from tests.support.active_pages import check
from trimtab.config import build
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate import leaderboard
from trimtab.evaluate.leaderboard import EvaluateConfig, Leaderboard, measure
from trimtab.feedback import records as own
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records
from trimtab.stats.length import Verdicts, length_controlled

SKILL = {"base": 0.0, "mine": 0.7, "wordy": 0.0, "poor": -0.7}
LONG = {"base": 20, "mine": 20, "wordy": 35, "poor": 20}


def contest(prompts: int, seed: int = 0, length: float = 0.0) -> Records:
    """Every two models on every prompt; P(win) by skill and by ``length`` nats a tanh of length."""
    rng = np.random.default_rng(seed)
    records = Records()
    names = list(SKILL)
    for i in range(prompts):
        words = {m: int(LONG[m] * rng.lognormal(0, 0.5)) + 1 for m in names}
        for a in range(4):
            for b in range(a + 1, 4):
                one, two = names[a], names[b]
                item = Item.of(
                    [{"role": "user", "content": f"q{i}"}],
                    [f"{one} " + "w " * words[one], f"{two} " + "w " * words[two]], models=(one, two),
                )  # fmt: skip
                records.add(item)
                more = np.tanh((words[one] - words[two]) / 15)
                p = expit(SKILL[one] - SKILL[two] + length * more)
                won = bool(rng.random() < p)
                records.judgements.append(
                    Judgement(
                        item=item.id, annotator="judge", who="ai", ranks=(int(not won), int(won))
                    )
                )
    return records


def evaluate(folder: Path, records: Records, **options: Any) -> Leaderboard:
    own.write(folder / "labels.jsonl", records)
    return measure(settings(folder / "labels.jsonl", **options))


def settings(*files: Path, **options: Any) -> EvaluateConfig:
    return build(EvaluateConfig, {"files": [str(f) for f in files], "draws": 200, **options})


@pytest.mark.slow
def test_the_order_of_models_is_found(tmp_path: Path) -> None:
    board = evaluate(tmp_path, contest(300), baseline="base")
    order = list(board.elo)
    assert (order[0], order[-1]) == ("mine", "poor")
    assert board.elo["base"].elo == 1000.0
    rating = board.elo["mine"]
    want = 1000 + 0.7 * 400 / np.log(10)
    assert rating.low < want < rating.high
    rate = board.against_baseline["mine"].win_rate
    assert rate.low < expit(0.7) < rate.high
    assert rate.low < rate.value < rate.high


def test_length_that_wins_is_taken_out(tmp_path: Path) -> None:
    board = evaluate(tmp_path, contest(600, length=1.5), baseline="base")
    wordy = board.against_baseline["wordy"]
    assert wordy.longer > 10
    assert wordy.win_rate.value > 0.6
    assert abs(wordy.length_controlled.value - 0.5) < 0.06
    standing = board.against_baseline["mine"]
    assert standing.length_controlled.value == pytest.approx(standing.win_rate.value, abs=0.03)


def test_a_duplicated_annotator_makes_nothing_surer(tmp_path: Path) -> None:
    records = contest(80)
    once = evaluate(tmp_path, records, baseline="base")
    records.judgements += [j.model_copy(update={"annotator": "twin"}) for j in records.judgements]
    twice = evaluate(tmp_path, records, baseline="base")
    assert twice.against_baseline == once.against_baseline
    assert twice.elo == once.elo


def test_alpaca_annotations_are_read(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"q{i}", "output_1": "a b", "generator_1": "ref", "output_2": "c d",
         "generator_2": "mine", "annotator": "gpt4", "preference": p}
        for i, p in enumerate([1.0, 2.0, 1.5, 1.9, None])
    ]  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    board = measure(settings(tmp_path / "annotations.json", baseline="ref"))
    standing = board.against_baseline["mine"]
    assert standing.prompts == 4  # a failure is no verdict
    assert standing.win_rate.value == pytest.approx((0 + 1 + 0.5 + 0.9) / 4)
    board = measure(settings(tmp_path / "annotations.json", baseline="ref", soft=False))
    assert board.against_baseline["mine"].win_rate.value == pytest.approx(2.5 / 4)


def test_alpaca_evals_difficulty_is_read_by_the_row_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(-0.5, 1.5, 200)
    rows = [
        {"instruction": f"q{i}", "output_1": "ä " * rng.integers(20, 60), "generator_1": "ref",
         "output_2": "é" * rng.integers(20, 90), "generator_2": "mine", "annotator": "gpt4",
         "preference": None if i == 3 else 1 + float(expit(hard[i] - 0.5))}
        for i in range(200)
    ]  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    table = "index,instruction_difficulty\n" + "".join(f"{i},{g}\n" for i, g in enumerate(hard))
    (tmp_path / "difficulty.csv").write_text(table)
    gamed = table + table.partition("\n")[2]  # df_gamed.csv: two gamed baselines
    (tmp_path / "df_gamed.csv").write_text(gamed)
    rates = [
        measure(settings(tmp_path / "annotations.json", difficulty=str(tmp_path / name)))
        .against_baseline["mine"].length_controlled
        for name in ("difficulty.csv", "df_gamed.csv")
    ]  # fmt: skip
    names = tuple(str(i) for i in range(200) if i != 3)
    left = [row for row in rows if row["preference"] is not None]
    gaps = [len(r["output_2"]) - len(r["output_1"]) for r in left]  # in characters
    verdicts = Verdicts(names, np.array([r["preference"] - 1 for r in left]), np.array(gaps, float))
    gamma = {str(i): float(g) for i, g in enumerate(hard)}
    want = length_controlled(verdicts, gamma, n=200, alpaca_eval=True)
    assert [r.value for r in rates] == pytest.approx([want.value] * 2, abs=1e-12)
    (tmp_path / "short.csv").write_text("index,instruction_difficulty\n0,1.5\n")
    with pytest.raises(DataError, match="has 1 instructions, but mine was compared on 200"):
        measure(settings(tmp_path / "annotations.json", difficulty=str(tmp_path / "short.csv")))
    (tmp_path / "other.csv").write_text("index,score\n0,1.5\n")
    with pytest.raises(DataError, match="row 1: has the columns index, score, but no number in"):
        measure(settings(tmp_path / "annotations.json", difficulty=str(tmp_path / "other.csv")))


def test_whose_verdicts(tmp_path: Path) -> None:
    records = contest(30)
    gold = [
        Judgement(item=i, annotator="gold", who="gold", ranks=(0, 1)) for i in records.items
    ]  # fmt: skip
    records.judgements += gold
    board = evaluate(tmp_path, records, baseline="base", who="gold")
    assert board.annotators == ["gold"]
    # base stands first wherever it stands, and gold always takes the first.
    assert all(m.win_rate.value == 0.0 for m in board.against_baseline.values())
    assert not board.connected
    assert evaluate(tmp_path, records).annotators == ["judge"]
    with pytest.raises(ConfigError, match="'none' is none of the models"):
        evaluate(tmp_path, records, baseline="none")
    with pytest.raises(DataError, match="no verdict between two named models"):
        evaluate(tmp_path, records, annotators=["nobody"])


def test_table_page_and_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="trimtab")
    own.write(tmp_path / "labels.jsonl", contest(40))
    files = {"html": str(tmp_path / "page.html"), "json": str(tmp_path / "all.json")}
    leaderboard.main(settings(tmp_path / "labels.jsonl", baseline="base", **files))
    text = caplog.text
    assert "LC win rate" in text and "baseline" in text
    check((tmp_path / "page.html").read_text())
    assert set(json.loads((tmp_path / "all.json").read_text())["elo"]) == set(SKILL)

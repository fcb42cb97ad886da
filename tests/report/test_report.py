"""The report: hostile text stays text, nothing outside is asked for, missing parts are left out."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.active_pages import PAYLOADS, check
from trimtab.errors import ConfigError, DataError
from trimtab.report.charts import Line, calibration_chart, line_chart, number, ticks
from trimtab.report.recipe_report import RECIPE_FILE, report_recipe
from trimtab.report.run_report import report_run
from trimtab.runs import Run

SCORES = {
    "type": "scores", "title": "Reached", "better": ["RL", "SFT"], "win_rate": "gold.win_rate",
    "bars": {"Base": "gold.base", "SFT": "gold.sft", "RL": "gold.rl"},
}  # fmt: skip
PROXY_GOLD = {"type": "proxy_gold", "title": "Real?", "stages": {"Sound": "ppo", "Flawed": "flaw"}}
COMPLETIONS = {
    "type": "completions", "title": "Side by side", "models": {"SFT": "sft", "RL": "rl", "Base": "base"},
}  # fmt: skip


def declare(folder, charts) -> None:
    """What a recipe leaves for its report."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_FILE).write_text(yaml.safe_dump({"about": "a test", "charts": charts}))


def hostile(folder):
    run = Run(folder)
    for step in (1, 2, 3):
        run.log(step, {"reward/mean": step * 1.0, "reward/gold": 0.1 * step, "kl/beta": None})
    run.summary({"gold.sft": 0.5, "gold.rl": 0.7})
    run.samples(
        3, [{"prompt": p, "completion": p, "reward": float(i)} for i, p in enumerate(PAYLOADS)]
    )
    return run


@pytest.mark.slow
def test_100_payloads_make_no_active_node(tmp_path):
    assert len(PAYLOADS) == 100
    for start in range(0, 100, 5):
        some = PAYLOADS[start : start + 5]
        run = hostile(tmp_path / str(start))
        run.samples(3, [{"prompt": p, "completion": p, "reward": 1.0} for p in some])
        for step in (1, 2, 3):
            run.log(step, {p: float(step) for p in some})
        run.summary({"x": some})
        run.finding({"title": some[0], "message": some[1]})
        page = report_run(run.path).read_text()
        check(page)
        assert "&lt;" in page

        root = tmp_path / f"pipe{start}"
        Run(root).summary({p: 1.0 for p in some})
        hostile(root / "ppo")
        rows = [{k: p for k in ("prompt", "kind", "base", "sft", "rl", "flaw")} for p in some]
        (root / "compare").mkdir()
        pq.write_table(pa.Table.from_pylist(rows), root / "compare" / "comparison.parquet")
        declare(root, [{**COMPLETIONS, "title": some[0]}, {**SCORES, "lead": some[1]}])
        check(report_recipe(root).read_text())


def test_the_check_can_fail():
    for payload in ("<script>1</script>", "<p onclick=x>", "<a href=//e>"):
        with pytest.raises(AssertionError):
            check(f"<html>{payload}</html>")


def test_missing_parts_are_left_out(tmp_path):
    page = report_recipe(tmp_path).read_text()
    check(page)
    assert "<svg" not in page
    check(report_run(tmp_path).read_text())
    with pytest.raises(DataError, match="no such run folder"):
        report_run(tmp_path / "absent")


def recipe(root, rl: float, low: float, high: float, flaw_gold: float) -> str:
    Run(root).summary(
        {"gold.base": 0.3, "gold.base_low": 0.28, "gold.base_high": 0.32, "gold.sft": 0.6, "gold.rl": rl, "gold.win_rate": (low + high) / 2,
         "gold.win_rate_low": low, "gold.win_rate_high": high}
    )  # fmt: skip
    for stage, gold in (("ppo", 0.4), ("flaw", flaw_gold)):
        run = Run(root / stage)
        for step in range(40):
            run.log(step, {"reward/mean": step / 20, "reward/gold": gold * step / 40})
    declare(root, [SCORES, PROXY_GOLD])
    page = report_recipe(root).read_text()
    check(page)
    return page


def test_verdicts_follow_the_figures(tmp_path):
    better = recipe(tmp_path / "a", 0.8, 0.55, 0.65, -0.2)
    assert "RL is better than SFT" in better
    assert "95 % interval 0.280 to 0.320" in better
    assert "Sound: the reward is real" in better
    assert "Flawed: the reward is hacked" in better
    worse = recipe(tmp_path / "b", 0.4, 0.3, 0.45, 0.1)
    assert "RL is worse than SFT" in worse
    assert "Flawed: the reward is real" in worse
    assert "No clear difference" in recipe(tmp_path / "c", 0.61, 0.45, 0.56, -0.1)


def test_every_kind_of_chart(tmp_path):
    Run(tmp_path).summary(
        {"parts.a.x": 0.2, "parts.a.y": 0.4, "parts.b.x": 0.3, "length.a": 7.0, "length.b": None}
    )
    rm = Run(tmp_path / "rm")
    rm.summary({"eval.accuracy": 0.75, "eval.ceiling": 0.8})
    bins = [{"confidence": 0.7, "accuracy": 0.6, "count": 3}]
    (tmp_path / "rm" / "calibration.json").write_text(json.dumps({"ece": 0.05, "bins": bins}))
    for step in range(5):
        rm.log(step, {"loss": 1.0 / (step + 1)})
    declare(tmp_path, [
        {"type": "groups", "title": "By part", "bars": {"A": "parts.a", "B": "parts.b"}},
        {"type": "table", "title": "Lengths", "columns": ["A", "B"],
         "rows": {"Tokens": {"A": "length.a", "B": "length.b"}, "Absent": {"A": "no.such"}}},
        {"type": "calibration", "title": "Judge", "stage": "rm"},
        {"type": "curves", "title": "Training", "stage": "rm", "metrics": {"loss": "Loss (nats)"}},
        {"type": "curves", "title": "Nothing", "stage": "absent"},
    ])  # fmt: skip
    page = report_recipe(tmp_path).read_text()
    check(page)
    for words in (
        "By part",
        "Tokens",
        "75.0% of held-out pairs",
        "80.0%",
        "off by 5.0%",
        "Loss (nats)",
    ):
        assert words in page, words
    assert "Absent" not in page and "Nothing" not in page
    declare(tmp_path, [{"type": "curves", "title": "t", "stage": "s", "metric": "loss"}])
    with pytest.raises(ConfigError, match=r"recipe.yaml: charts.0"):
        report_recipe(tmp_path)


def test_without_declared_charts_every_stage_has_curves(tmp_path):
    hostile(tmp_path / "anything")
    page = report_recipe(tmp_path).read_text()
    assert "<h2>anything" in page and "<svg" in page


def test_charts():
    assert line_chart("t", [Line("a", [1], [2.0])], "x", "y", "s") is None
    gaps = line_chart("t", [Line("<a>", [1, 2, 3], [1.0, None, float("nan")])], "x", "y", "s")
    assert gaps is None
    flat = line_chart("t", [Line("a", [1, 2, 3], [0.0, 0.0, 0.0])], "<x>", "y (nats)", "s")
    assert flat is not None
    assert "&lt;x&gt;" in flat.svg
    assert "y (nats)" in flat.svg
    assert "nan" not in flat.svg
    assert calibration_chart("c", [], "s") is None
    one = calibration_chart("c", [{"confidence": 0.7, "accuracy": 0.6, "count": 3}], "s")
    assert one is not None
    assert ticks(-0.5, 0.5) == [-0.4, -0.2, 0.0, 0.2, 0.4]
    assert number(0.0) == "0"

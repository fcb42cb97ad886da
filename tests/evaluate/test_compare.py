"""Compare, end to end on a tiny model: named models, a run, judges, pass@k, failed scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support import folders
from tests.support.folders import WORDY
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate.compare import CompareConfig, SolvedConfig, main
from trimtab.evaluate.compare_page import STYLES, page
from trimtab.evaluate.model_result import ModelResult
from trimtab.runs import read_summary
from trimtab.stats.uncertainty import Estimate
from trimtab.train import rl


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl", 24)
    more = {"loop": {"save_steps": 2, "save_total_limit": 3}}
    rl.main(build(rl.RLConfig, folders.rl_settings(folder, folder / "run", **more)))
    return folder


def settings(base: Path, out: Path, **more: Any) -> dict[str, Any]:
    models = {"a": base / "model", "b": base / "run" / "model"}
    return {
        "models": {name: {"path": str(path)} for name, path in models.items()},
        "data": str(base / "prompts.jsonl"), "out": str(out), "sampling": {"max_new_tokens": 6},
        "rewards": [WORDY], "device": "cpu", **more,
    }  # fmt: skip


def compare(base: Path, out: Path, **more: Any) -> dict[str, ModelResult]:
    return main(build(CompareConfig, settings(base, out, **more)))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compare", "side_by_side"])
def test_a_run_as_a_command(base: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = base / "run"
    cli([command, str(run), "--data", str(base / "prompts.jsonl"), "--rewards",
         "[{name: wordy, function: 'tests.support.folders:wordy'}]", "--sampling.max_new_tokens", "6",
         "--temperatures", "[0.3]", "--device", "cpu"])  # fmt: skip
    summary = read_summary(run / "compare")
    assert list(summary) == ["start", "step 2", "step 4", "step 6", "last", "T=0.3"]
    assert summary["start"]["win_rate"]["mean"] == 0.5
    assert summary["start"]["win_rate_length_controlled"]["mean"] == pytest.approx(0.5)
    # The last checkpoint and the exported model are the same policy.
    assert summary["step 6"] == summary["last"] != summary["start"]
    assert summary["last"]["kl"] > 0 and "kl" not in summary["start"]
    assert summary["T=0.3"]["style"]["distinct_2"] <= summary["last"]["style"]["distinct_2"] + 0.1
    html = (run / "compare" / "compare.html").read_text()
    assert "Side by side" in html and "default-src &#39;none&#39;" in html and "<script" not in html
    assert f">{summary['last']['nll']:.2f}</td>" in html and "KL to the baseline" in html
    printed = capsys.readouterr()
    assert "at equal length" in printed.out
    assert f"NLL {summary['last']['nll']:.2f} nats per token" in printed.out
    assert ("is now 'compare'" in printed.err) == (command == "side_by_side")


def test_models_by_name(base: Path, tmp_path: Path) -> None:
    results = compare(base, tmp_path, limit=12, baseline="b", html=False)
    summary = read_summary(tmp_path)
    assert list(summary) == ["a", "b"] and not (tmp_path / "compare.html").exists()
    rows = pq.read_table(tmp_path / "comparison.parquet").to_pylist()
    assert len(rows) == 12
    scores = {name: np.array([r[f"wordy_{name}"] for r in rows]) for name in "ab"}
    wins = (scores["a"] > scores["b"]) + 0.5 * (scores["a"] == scores["b"])
    assert summary["a"]["win_rate"]["mean"] == pytest.approx(wins.mean())
    assert summary["a"]["gain"]["wordy"] == pytest.approx((scores["a"] - scores["b"]).mean())
    assert summary["a"]["wordy"]["mean"] == pytest.approx(scores["a"].mean())
    assert summary["a"]["distinct_2"] == summary["a"]["style"]["distinct_2"]
    assert results["a"].kl is not None and results["b"].kl is None
    # Per token of the completions: the baseline's own are the likelier ones under it.
    assert results["a"].nll is not None and results["b"].nll is not None
    assert 0 < results["b"].nll < results["a"].nll
    assert summary["b"]["gain"] == {"wordy": 0.0}
    kl = np.mean([r["kl_a"] for r in rows])
    assert results["a"].kl == pytest.approx(kl) and "kl_b" not in rows[0]


def test_fluency_may_be_judged_by_another_model(base: Path, tmp_path: Path) -> None:
    other = compare(base, tmp_path / "other", limit=12, baseline="b", html=False)
    model = {"path": str(base / "model")}
    results = compare(base, tmp_path, limit=12, baseline="b", html=False, fluency=model)
    assert results["a"].kl == other["a"].kl
    assert results["b"].nll != other["b"].nll
    rows = pq.read_table(tmp_path / "comparison.parquet").to_pylist()
    assert all(r["nll_a"] > 0 and r["nll_b"] > 0 for r in rows)


def test_a_checkpoint_of_the_run_as_the_baseline(base: Path, tmp_path: Path) -> None:
    more = {"models": {}, "run": str(base / "run"), "steps": [4, 6], "limit": 12}
    results = compare(base, tmp_path, baseline="step 4", **more)
    assert list(results) == ["start", "step 4", "step 6", "last"]
    assert results["step 4"].kl is None and results["step 4"].win_rate.value == 0.5
    assert results["step 6"].kl == pytest.approx(results["last"].kl, abs=1e-5)
    assert results["start"].kl not in (None, 0.0)


def test_a_judge_of_pairs(base: Path, tmp_path: Path) -> None:
    judge: dict[str, Any] = {"name": "j", "judge": "tests.support.folders:wordier"}
    results = compare(base, tmp_path, rewards=[judge, WORDY])
    assert results["a"].win_rate.value == 0.5 and results["b"].compared == 24
    rows = pq.read_table(tmp_path / "comparison.parquet").to_pylist()
    words = [[len(set(r[name].split())) for r in rows] for name in "ba"]
    wins = [float(x > y) + 0.5 * (x == y) for x, y in zip(*words, strict=True)]
    assert results["b"].win_rate.value == pytest.approx(np.mean(wins)) != 0.5
    assert results["b"].failed == {"j": 0, "wordy": 0}
    judge["options"] = {"fail": True}
    broken = compare(base, tmp_path, rewards=[judge])["b"]
    ties = sum(r["a"] == r["b"] for r in rows)  # equal texts are a tie without asking the judge
    assert broken.failed == {"j": 24 - ties} and broken.compared == ties
    with pytest.raises(ConfigError, match="can only be the first reward"):
        build(CompareConfig, settings(base, tmp_path, rewards=[WORDY, judge]))


def test_failed_scores_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    """A completion without a score is neither a win nor a low score."""
    reward = {"name": "some", "function": "tests.support.folders:wordy_or_none"}
    results = compare(base, tmp_path, rewards=[reward, WORDY])
    rows = pq.read_table(tmp_path / "comparison.parquet").to_pylist()
    summary = read_summary(tmp_path)
    for name in "ab":
        scores = [r[f"some_{name}"] for r in rows]
        failed = scores.count(None)
        assert 0 < failed < 24
        assert summary[name]["failed"] == {"some": failed, "wordy": 0}
        mean = np.mean([s for s in scores if s is not None])
        assert summary[name]["some"]["mean"] == pytest.approx(mean)
    pairs = [(r["some_b"], r["some_a"]) for r in rows]
    pairs = [(x, y) for x, y in pairs if x is not None and y is not None]
    assert results["b"].compared == len(pairs) < 24
    wins = [float(x > y) + 0.5 * (x == y) for x, y in pairs]
    assert results["b"].win_rate.value == pytest.approx(np.mean(wins))
    broken = [{"name": "r", "function": "tests.support.reward_functions:raises"}]
    with pytest.raises(DataError, match=r"scored no completion of a; .*no grader today"):
        compare(base, tmp_path, rewards=broken)


def test_pass_at_k(base: Path, tmp_path: Path) -> None:
    reward = {"name": "long", "function": "tests.support.folders:wordy"}
    more = {"num_completions": 4, "pass_at": [1, 4], "pass_threshold": 1.0, "rewards": [reward]}
    results = compare(base, tmp_path, **more)
    rows = pq.read_table(tmp_path / "comparison.parquet").to_pylist()
    assert len(rows) == 4 * 24
    passed = np.array([r["long_b"] >= 1.0 for r in rows]).reshape(24, 4)
    assert 0 < passed.mean() < 1
    summary = read_summary(tmp_path)["b"]
    assert summary["pass@1"]["mean"] == pytest.approx(passed.mean())
    assert summary["pass@4"]["mean"] == pytest.approx(passed.any(1).mean())
    assert summary["pass@4"]["low"] <= summary["pass@4"]["mean"] <= summary["pass@4"]["high"]
    assert results["b"].compared == 4 * 24
    # A prompt with fewer than k scored completions has no estimate of pass@k.
    reward["function"] = "tests.support.folders:wordy_or_none"
    compare(base, tmp_path, **more)
    rows = pq.read_table(tmp_path / "comparison.parquet").to_pylist()
    of_prompt = [[r["long_b"] for r in rows[i : i + 4]] for i in range(0, len(rows), 4)]
    complete = [max(s) >= 1.0 for s in of_prompt if None not in s]
    assert 0 < len(complete) < 24
    assert read_summary(tmp_path)["b"]["pass@4"]["mean"] == pytest.approx(np.mean(complete))


def test_the_old_stage_solved_is_still_read(base: Path, tmp_path: Path) -> None:
    values = settings(base, tmp_path, reward=WORDY, n=4, k=[1, 4], solved=1.0)
    values["model"] = values.pop("models")["b"]
    del values["rewards"]
    main(build(SolvedConfig, values))
    summary = read_summary(tmp_path)
    assert summary["pass@1"] == summary["model"]["pass@1"] and summary["prompts"] == 24
    with pytest.raises(ConfigError, match="between 1 and num_completions"):
        build(SolvedConfig, {**values, "k": [1, 8]}, "test")


def test_what_is_not_there_is_named(base: Path, tmp_path: Path) -> None:
    of_run = {"models": {}, "run": str(base / "run")}
    with pytest.raises(ConfigError, match=r"no step 3; there are 2, 4, 6"):
        compare(base, tmp_path, **of_run, steps=[3])
    with pytest.raises(ConfigError, match=r"baseline: 'first' is none of start, step 2"):
        compare(base, tmp_path, **of_run, baseline="first")
    with pytest.raises(ConfigError, match="give a run"):
        build(CompareConfig, {"data": "x", "rewards": [WORDY]})
    with pytest.raises(ConfigError, match="baseline 'c' is not among models: a, b"):
        build(CompareConfig, settings(base, tmp_path, baseline="c"))


def test_hostile_completions_are_inert() -> None:
    bad = "<script>alert(1)</script>"
    rate = Estimate(0.5, 0.4, 0.6)
    result = ModelResult(
        length=1.0, truncated=0.0, scores={"gold": rate}, failed={"gold": 1}, kl=None, nll=None, win_rate=rate,
        win_rate_length_controlled=rate, compared=1, gain={"gold": 0.0}, pass_at={},
        style={k: 0.5 for key, _, _ in STYLES for k in (key, f"{key}_low", f"{key}_high")},
        openings=[(bad, 1.0)],
    )  # fmt: skip
    row = {"prompt": bad, bad: bad, f"gold_{bad}": 1.0, "b": bad, "gold_b": 0.0}
    html = page({bad: result, "b": result}, bad, [row], "gold")
    assert "<script" not in html and "Failed scores" in html
    assert json.loads(json.dumps(result.summary()))["gold"]["mean"] == 0.5

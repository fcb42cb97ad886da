"""Runs of other libraries: values that are not finite, several runs in one file, TRL's trainers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trimtab.cli.main import main as cli
from trimtab.doctor import diagnosis, importer
from trimtab.doctor.evidence import Evidence, read
from trimtab.doctor.importer import import_run
from trimtab.errors import DataError

NAN, INF = float("nan"), float("inf")


def write_trl(folder: Path, history: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    state = {"global_step": len(history), "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def grpo(step: int) -> dict[str, Any]:
    return {
        "step": step, "reward": 0.1 * step, "reward_std": 0.3, "kl": 0.01 * step, "entropy": 2.0,
        "loss": 0.1, "grad_norm": 0.5, "frac_reward_zero_std": 0.2, "completions/clipped_ratio": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize("value", [NAN, INF, -INF, "NaN", "Infinity"])
def test_a_run_that_diverged_is_never_clean(
    value: float | str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = [{**grpo(s), **({"kl": value, "loss": value} if s > 20 else {})} for s in range(40)]
    folder = write_trl(tmp_path / "trl", history)
    with pytest.raises(SystemExit) as ended:
        cli(["doctor", str(folder), "--from", "trl"])
    assert ended.value.code == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "nll, objective/kl: not finite since step 21 of 39" in text
    report = diagnosis.examine(tmp_path / "trl-doctor")
    assert report.findings[0].name == "not-finite" and report.verdict == "broken"
    for name in ("kl-runaway", "frozen"):
        assert report.unchecked[name] == "objective/kl is not finite since step 21"
    assert "entropy-exhausted" in report.clean  # entropy was finite


@pytest.mark.parametrize("value", [NAN, INF, "NaN"])
@pytest.mark.parametrize("source", ["jsonl", "wandb", "csv"])
def test_a_history_that_diverged_is_never_clean(
    source: str, value: float | str, tmp_path: Path
) -> None:
    rows = [{**grpo(s), **({"kl": value, "loss": value} if s > 20 else {})} for s in range(40)]
    if source == "csv":
        file, kind = tmp_path / "history.csv", "wandb"
        lines = [",".join(map(str, row.values())) for row in rows]
        file.write_text("\n".join([",".join(rows[0]), *lines]))
    else:
        file, kind = tmp_path / "history.jsonl", source
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as ended:
        cli(["doctor", str(file), "--from", kind, "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    report = diagnosis.examine(tmp_path / "out")
    assert report.findings[0].name == "not-finite" and report.verdict == "broken"
    assert report.unchecked["kl-runaway"] == "objective/kl is not finite since step 21"


@pytest.mark.parametrize(
    ("name", "is_finite", "since"),
    [
        ("loss", lambda s: s != 39, 39),  # the run stopped at its first NaN
        ("loss", lambda s: s not in (5, 39), None),  # one step in a while
        ("loss", lambda s: s % 10 == 0, None),  # an evaluation, NaN between
        ("grad_norm", lambda s: s < 38, None),  # mixed precision skips single steps
        ("grad_norm", lambda s: s < 37, 37),
        ("objective/kl", lambda s: False, None),  # a method without KL
        ("loss", lambda s: False, 0),
        ("note", lambda s: False, None),
    ],
)
def test_what_counts_as_not_finite(
    name: str, is_finite: Callable[[int], bool], since: int | None
) -> None:
    rows = [{"step": s, "reward/mean": 1.0, name: 0.1 if is_finite(s) else None} for s in range(40)]
    findings = diagnosis.diagnose(Evidence(Path("run"), rows=rows)).findings
    steps = [f.step for f in findings if f.name == "not-finite"]
    assert steps == ([] if since is None else [since])


def test_two_runs_in_a_wandb_export_are_not_merged(tmp_path: Path) -> None:
    file = tmp_path / "w.csv"
    file.write_text(
        "\ufeffStep,a - train/reward,b - train/reward,b - train/reward__MIN\n"
        + "".join(f"{s},{s},{-s if s < 9 else ''},0\n" for s in range(12)),
        encoding="utf-8",
    )
    with pytest.raises(DataError, match=r"holds 2 runs \('a', 'b'\); choose one with --from-run"):
        import_run(file, "wandb", tmp_path / "out")
    with pytest.raises(DataError, match="no run 'c'; it holds 'a', 'b'"):
        import_run(file, "wandb", tmp_path / "out", "c")
    assert (
        len(read(import_run(file, "wandb", tmp_path / "out", "a")).series("reward/mean")[0]) == 12
    )
    steps, values = read(import_run(file, "wandb", tmp_path / "out", "b")).series("reward/mean")
    assert len(steps) == 9 and values[-1] == -8  # a shorter run, and nothing of the other


def test_a_folder_with_a_file_for_each_metric_of_a_run(tmp_path: Path) -> None:
    for name in ("reward", "kl"):
        lines = [f"Step,grpo - train/{name}", *(f"{s},{s / 10}" for s in range(9))]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    evidence = read(import_run(tmp_path, "wandb", tmp_path / "out"))
    assert evidence.has("reward/mean") and evidence.has("objective/kl")


def test_two_runs_in_lines_are_not_merged(tmp_path: Path) -> None:
    def lines(steps: range, shift: float, **more: str) -> str:
        rows = [{"step": s, "reward": s + shift, **more} for s in steps]
        return "".join(json.dumps(row) + "\n" for row in rows)

    file = tmp_path / "x.jsonl"
    file.write_text(lines(range(20), 0) + lines(range(20), 0.5))
    with pytest.raises(DataError, match="20 steps have two different values"):
        import_run(file, "jsonl", tmp_path / "out")
    file.write_text(lines(range(20), 0, run_name="a") + lines(range(20), 0.5, run_name="b"))
    with pytest.raises(DataError, match="holds 2 runs"):
        import_run(file, "jsonl", tmp_path / "out")
    # Resumed from step 15: the later values count.
    file.write_text(lines(range(20), 0) + lines(range(15, 30), 0.5))
    evidence = read(import_run(file, "jsonl", tmp_path / "out"))
    assert evidence.series("reward/mean")[1][[14, 15]].tolist() == [14, 15.5]


def test_an_import_leaves_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    rollout = {"step": 7, "prompt": "p", "completion": "c", "reward": 1.0}
    file.write_text(json.dumps(rollout) + "\n")
    assert len(read(import_run(file, "jsonl", tmp_path / "out")).rollouts) == 1
    file.write_text(json.dumps({**rollout, "step": 8}) + "\n")
    assert [r.step for r in read(import_run(file, "jsonl", tmp_path / "out")).rollouts] == [8]


def test_dpo_of_trl_is_checked(tmp_path: Path) -> None:
    history = [
        {
            "step": s, "loss": 0.6, "grad_norm": 1.0, "rewards/chosen": -0.1 * s,
            "rewards/rejected": -0.4 * s, "rewards/accuracies": 0.9, "rewards/margins": 0.3 * s,
            "logps/chosen": -20.0 - 2 * s, "logps/rejected": -20.0 - 5 * s,
        }
        for s in range(1, 31)
    ]  # fmt: skip
    report = diagnosis.examine(
        import_run(write_trl(tmp_path / "a", history), "trl", tmp_path / "o")
    )
    assert report.stage == "dpo"
    assert [f.name for f in report.findings] == ["displacement"] and "not-finite" in report.clean


@pytest.mark.parametrize(("accuracy", "rings"), [(0.75, False), (0.52, True)])
def test_the_reward_trainer_of_trl_is_checked(tmp_path: Path, accuracy: float, rings: bool) -> None:
    history = [
        {
            "step": s, "loss": 0.6, "grad_norm": 1.0, "accuracy": 0.8, "margin": 0.4,
            "mean_reward": 0.1, "min_reward": -1.0, "max_reward": 2.0,
        }
        for s in range(1, 21)
    ]  # fmt: skip
    history.append(
        {"step": 20, "eval_loss": 0.6, "eval_accuracy": accuracy, "eval_margin": 0.2,
         "eval_runtime": 2.5, "eval_samples_per_second": 80.0}
    )  # fmt: skip
    out = import_run(write_trl(tmp_path / "a", history), "trl", tmp_path / "o")
    evidence = read(out)
    assert evidence.summary["eval"]["pairs"] == 200
    assert evidence.has("score/mean") and evidence.has("eval/accuracy")
    report = diagnosis.examine(out)
    assert report.stage == "reward"
    assert [f.name for f in report.findings] == (["weak-reward-model"] if rings else [])
    assert set(report.clean) == {"not-finite"} | (set() if rings else {"weak-reward-model"})


def test_import_of_trl(tmp_path: Path) -> None:
    out = tmp_path / "trl"
    (out / "completions").mkdir(parents=True)
    (out / "checkpoint-20").mkdir()
    history = [
        {
            "step": s,
            "reward": 1.0 + s,
            "reward_std": 0.2,
            "kl": 0.1 * s,
            "frac_reward_zero_std": 0.8,
            "completions/clipped_ratio": 0.0,
            "entropy": 1.0,
        }
        for s in range(1, 21)
    ]
    (out / "checkpoint-20" / "trainer_state.json").write_text(
        json.dumps(
            {"global_step": 20, "log_history": [*history, {"step": 20, "train_runtime": 3.0}]}
        )
    )
    for s in (1, 20):
        pq.write_table(
            pa.table(
                {
                    "step": [s] * 20,
                    "prompt": [[{"role": "user", "content": f"q {i}"}] for i in range(20)],
                    "completion": [f"a {i}" for i in range(20)],
                    "len_reward": [0.5] * 20,
                    "advantage": [0.0] * 20,
                }
            ),
            out / "completions" / f"completions_{s:05d}.parquet",
        )
    (out / "training_args.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(SystemExit) as end:
        cli(["doctor", str(out), "--from", "trl"])
    assert end.value.code == 1
    report = diagnosis.examine(tmp_path / "trl-doctor")
    assert [f.name for f in report.findings] == ["dead-gradient"]
    assert "kl-runaway" in report.clean and "value-collapse" in report.unchecked
    assert read(tmp_path / "trl-doctor").rollouts[0].prompt == "q 0"


def test_import_of_wandb_and_jsonl(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text(
        '"Step","run - train/reward","run - train/reward__MIN"\n'
        + "".join(f"{s},{s / 10},0\n" for s in range(1, 12))
    )
    folder = importer.import_run(tmp_path / "h.csv", "wandb", tmp_path / "w")
    assert read(folder).series("reward/mean")[1][-1] == pytest.approx(1.1)
    (tmp_path / "x.jsonl").write_text(
        "".join(
            json.dumps({"step": s, "kl": 0.1})
            + "\n"
            + json.dumps({"step": s, "prompt": "p", "completion": "c d", "reward": s})
            + "\n"
            for s in range(1, 12)
        )
    )
    evidence = read(importer.import_run(tmp_path / "x.jsonl", "jsonl", tmp_path / "j"))
    assert evidence.has("objective/kl") and len(evidence.rollouts) == 11 and evidence.stage == "rl"
    (tmp_path / "bad.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(DataError, match="line 1: no step"):
        importer.import_run(tmp_path / "bad.jsonl", "jsonl", tmp_path / "k")

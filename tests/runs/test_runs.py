"""The run folder: records, rewinding, torn lines, secrets."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from trimtab import runs
from trimtab.errors import ConfigError, DataError
from trimtab.runs import Run, fs, read_metrics, read_samples, read_summary, write_atomic


def test_metrics_rewind_and_torn_line(tmp_path):
    run = Run(tmp_path / "r")
    for step in range(1, 6):
        run.log(step, {"reward/mean": step / 2, "objective/kl": np.float32(0.25)})
        run.samples(step, [{"prompt": "p", "completion": "c", "reward": 0.1}])
        run.finding({"step": step, "code": "x"})
    assert [r["reward/mean"] for r in read_metrics(run.path)] == [0.5, 1, 1.5, 2, 2.5]
    run.rewind(3)
    run.log(4, {"reward/mean": 9.0})
    assert [r["step"] for r in read_metrics(run.path)] == [1, 2, 3, 4]
    assert [r["step"] for r in read_samples(run.path)] == [1, 2, 3]
    assert [r["step"] for r in runs.read_findings(run.path)] == [1, 2, 3]
    with (run.path / "metrics.jsonl").open("ab") as handle:
        handle.write(b'{"step": 5, "rew')
    assert [r["step"] for r in read_metrics(run.path)] == [1, 2, 3, 4]
    again = Run(run.path)
    again.log(6, {})
    assert [r["step"] for r in read_metrics(run.path)] == [1, 2, 3, 4, 6]


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl, line 2"):
        read_metrics(run.path)


def test_numbers_that_are_not_become_null(tmp_path):
    run = Run(tmp_path)
    run.log(1, {"a": math.nan, "b": -math.inf, "c": np.int64(3), "d": np.array([1.0, np.nan])})
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (row["a"], row["b"], row["c"], row["d"]) == (None, None, 3, [1.0, None])


def test_summary_merges_by_dotted_name(tmp_path):
    run = Run(tmp_path)
    run.summary({"gold.rl": 0.8, "seconds": 3})
    run.summary({"gold.sft": 0.5, "gold.parts.rl.honest": 1.0, "seconds": 4})
    assert read_summary(tmp_path) == {
        "gold": {"rl": 0.8, "sft": 0.5, "parts": {"rl": {"honest": 1.0}}},
        "seconds": 4,
    }
    assert read_summary(tmp_path / "absent") == {}


def test_samples_hold_scores_and_odd_text(tmp_path):
    run = Run(tmp_path)
    rows = [
        {"prompt": "é\x00\ud800", "completion": "a", "reward": None, "scores": {"g": {"v": 1.5}}},
        {"prompt": "q", "completion": "b", "reward": 2.0, "scores": {}, "finish": "stop"},
    ]
    run.samples(7, rows)
    sample_rows = read_samples(tmp_path)
    assert sample_rows[0]["prompt"] == "é\x00?"
    assert sample_rows[0]["scores"] == {"g": {"v": 1.5}}
    assert sample_rows[0]["reward"] is None
    assert sample_rows[1]["finish"] == "stop"
    assert read_samples(tmp_path, [8]) == []


def test_secrets_never_reach_the_config(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "canary-env-12345")
    config = {
        "api_key": "canary1",
        "judge": {"hf_token": "canary2", "base_url": "https://me:canary3@host/v1?api_key=canary4"},
        "notes": ["using canary-env-12345", "sk-canary5canary5"],
        "max_tokens": 64,
        "pad_token": "<pad>",
        "key": "helpful",
    }
    Run(tmp_path, config=config)
    text = (tmp_path / "config.yaml").read_text()
    assert "canary" not in text
    written = yaml.safe_load(text)
    assert (written["max_tokens"], written["pad_token"], written["key"]) == (64, "<pad>", "helpful")


@pytest.mark.parametrize("name", ["open", "write", "fsync", "rename"])
def test_write_atomic_leaves_the_old_when_refused(tmp_path, monkeypatch, name):
    path = tmp_path / "f"
    write_atomic(path, b"old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fs, name, refuse)
        with pytest.raises(OSError, match="No space"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_unknown_and_missing_trackers(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="choose one of none, wandb"):
        Run(tmp_path, tracker="nope")

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(ConfigError, match=r"pip install 'trimtab\[wandb\]'"):
        Run(tmp_path, tracker="wandb")


class FakeWandb(SimpleNamespace):
    """Records what it is called with; a run has the id and the name of the call, or new ones."""

    def __init__(self, name):
        self.calls = []

        def init(**keys):
            self.calls.append(keys)
            return SimpleNamespace(id=keys.get("id", "id-7"), name=keys.get("name", "new"))

        super().__init__(
            __name__=name,
            init=init,
            log=lambda row, step: self.calls.append((step, row)),
            finish=lambda: self.calls.append("finished"),
        )


@pytest.mark.parametrize(("name", "resumed"), [("wandb", {"id": "id-7"}), ("trackio", None)])
def test_a_tracker_is_given_the_metrics_and_continues_its_run(tmp_path, monkeypatch, name, resumed):
    package = FakeWandb(name)
    monkeypatch.setattr("importlib.import_module", lambda _: package)
    run = Run(tmp_path, config={"hf_token": "s3cret"}, tracker=name)
    run.log(2, {"a": 1.0, "b": math.nan})
    run.close()
    first, *logged = package.calls
    assert first["config"] == {"hf_token": "[redacted]"}
    assert (first["name"], first["resume"]) == (tmp_path.name, "never")
    assert logged == [(2, {"a": 1.0}), "finished"]
    package.calls.clear()
    Run(tmp_path, config={}, tracker=name).close()
    again = {k: v for k, v in package.calls[0].items() if k in ("id", "name", "resume")}
    assert again == {**(resumed or {"name": tmp_path.name}), "resume": "allow"}


@pytest.mark.slow
def test_a_resumed_run_continues_at_mlflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # artifacts go below the working folder
    mlflow = pytest.importorskip("mlflow", reason="pip install 'trimtab[mlflow]'")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for step in (1, 2):
        with Run(tmp_path / "run", config={"lr": 0.1}, tracker="mlflow") as run:
            run.log(step, {"loss": float(step)})
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 2.0)]
    assert found.info.status == "FINISHED"
    # A run that the tracker lost is started again.
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'other.db'}")
    Run(tmp_path / "run", config={}, tracker="mlflow").close()
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == 1


def test_a_resumed_run_continues_at_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="pip install 'trimtab[trackio]'")
    for step in (1, 2):
        with Run(tmp_path / "run", config={"lr": 0.1}, tracker="trackio") as run:
            run.log(step, {"loss": float(step)})
    (found,) = trackio.Api().runs("trimtab")
    assert found.name == "run"


def test_a_resumed_run_continues_at_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    pytest.importorskip("wandb", reason="pip install 'trimtab[wandb]'")
    for step in (1, 2):
        with Run(tmp_path / "run", config={"lr": 0.1}, tracker="wandb") as run:
            run.log(step, {"loss": float(step)})
    ids = {p.name.rpartition("-")[2] for p in (tmp_path / "wandb").glob("offline-run-*")}
    assert ids == {runs.read_object(tmp_path / "run" / "tracker.json")["wandb"]}

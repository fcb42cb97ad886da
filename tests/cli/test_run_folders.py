"""Commands refuse a folder with results of other inputs, and an output that cannot be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import folders
from trimtab.cli.main import main
from trimtab.config import build
from trimtab.launch.commands import find_command
from trimtab.runs import Fingerprint, read_metrics

SHORT = {"max_new_tokens": 2}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"data": "demos.jsonl"},
    "reward": {"data": "pairs.jsonl"},
    "process": {"data": "pairs.jsonl"},
    "dpo": {"data": "pairs.jsonl"},
    "kto": {"data": "pairs.jsonl"},
    "rl": {"data": "prompts.jsonl", "rewards": [folders.WORDY]},
    "grpo": {"data": "prompts.jsonl", "rewards": [folders.WORDY], "method": {"group_size": 2}},
    "online-dpo": {"data": "prompts.jsonl", "rewards": [folders.WORDY]},
    "best-of-n": {"data": "prompts.jsonl", "rewards": [folders.WORDY]},
    "step-labels": {"data": "prompts.jsonl", "rewards": [folders.WORDY]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    folders.model_folder(folder / "model")
    folders.demonstrations(folder / "demos.jsonl", 16)
    folders.comparisons(folder / "pairs.jsonl", 16)
    folders.prompts(folder / "prompts.jsonl", 16)
    return folder


def settings(base: Path, out: Path, stage: str) -> dict[str, Any]:
    keys = STAGES[stage]
    model = {"path": str(base / "model"), "device": "cpu"}
    return {**keys, "out": str(out), "model": model, "data": str(base / keys["data"])}


def command(tmp_path: Path, stage: str, values: dict[str, Any], *flags: str) -> list[str]:
    file = tmp_path / f"{stage}.yaml"
    file.write_text(yaml.safe_dump(values))
    return [stage, str(file), *flags]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_refuses_results_of_other_inputs(
    stage: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    values = settings(base, out, stage)
    verb = find_command(stage)
    other = {**values, "model": {**values["model"], "seed": 7}}
    out.mkdir()
    Fingerprint.of(build(verb.load_config(), verb.with_preset(other))).write(out)
    (out / "metrics.jsonl").write_text('{"step": 1}\n')
    (out / "config.yaml").write_text("old")
    message = refused(command(tmp_path, stage, values), capsys)
    assert "model.seed: 7 -> 0" in message and "--fresh" in message and str(out) in message
    assert (out / "config.yaml").read_text() == "old"


@pytest.mark.slow
def test_only_the_length_of_a_run_may_change(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    values = {**settings(base, out, "sft"), "batch_size": 8, "epochs": 1}
    main(command(tmp_path, "sft", values))
    main(command(tmp_path, "sft", values, "--epochs", "2", "--loop.save_steps", "1"))
    assert [row["step"] for row in read_metrics(out)] == [1, 2, 3, 4]
    before = (out / "model" / "model.safetensors").read_bytes()
    assert "holds 4 steps, and this run has only 2" in refused(
        command(tmp_path, "sft", values), capsys
    )
    rows = (base / "demos.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "more.jsonl").write_text("".join([*rows, rows[0]]))
    changed = ["--data.path", str(tmp_path / "more.jsonl"), "--optim.lr", "0.5"]
    message = refused(command(tmp_path, "sft", values, *changed), capsys)
    assert "data: 16 rows -> 17 rows, first difference in row 17" in message
    assert "optim.lr: none -> 0.5" in message
    assert (out / "model" / "model.safetensors").read_bytes() == before
    main(command(tmp_path, "sft", values, *changed, "--fresh"))
    assert [row["step"] for row in read_metrics(out)] == [1, 2]
    assert (tmp_path / "run.old-1" / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("stage", ["sft", "rl", "best-of-n", "step-labels", "sample"])
def test_a_file_in_the_way_of_the_output_is_named(
    stage: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    values = settings(base, tmp_path / "file" / "run", "sft" if stage == "sample" else stage)
    message = refused(command(tmp_path, stage, values), capsys)
    assert "file/run cannot be created" in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["exchange", "a.jsonl", "--to", "file/b.jsonl"], "to"),
        (["agreement", "a.jsonl", "--html", "file/b.html"], "html"),
        (["agreement", "a.jsonl", "--json", "folder"], "json"),
        (["evaluate", "a.jsonl", "--json", "file/b.json"], "json"),
        (["audit", "run", "--items", "file/b.jsonl"], "items"),
        (["remedy", "run", "--out", "file/b.yaml"], "out"),
        (["judge", "a.jsonl", "--model", "m", "--cache", "file/c.sqlite"], "cache"),
        (["judge", "a.jsonl", "--model", "m", "--out", "file/c"], "out"),
        (["mix", "--out", "file/c", "--inputs.a.path", "a.jsonl"], "out"),
        (["sandbox-data", "--out", "file/c"], "out"),
        (["compare", "run", "--out", "file/c", "--data", "a.jsonl", "--rewards", "[{verifier: math}]"], "out"),
        (["run", "sandbox-ppo", "--out", "file/c"], "out"),
        (["label", "a.jsonl", "--out", "file/c"], "out"),
    ],
)  # fmt: skip
def test_outputs_of_other_commands_are_checked_first(
    words: list[str],
    key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    message = refused(words, capsys)
    assert f"{key}" in message and ("is a file" in message or "is a folder" in message), message


def test_any_other_file_error_is_a_message(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as a folder where a file of the run is written."""
    out = tmp_path / "run"
    (out / "facts.json").mkdir(parents=True)
    (out / "facts.json" / "x").touch()
    message = refused(command(tmp_path, "sft", settings(base, out, "sft")), capsys)
    assert message == f"trimtab: {out / 'facts.json'}: Is a directory\n"


def test_fresh_needs_an_output_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no output folder" in refused(["chat", "nowhere", "--fresh"], capsys)

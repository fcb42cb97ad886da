"""Nothing in a model folder, an adapter, a checkpoint, a tokenizer or a data file is executed."""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import pickle
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoConfig

import trimtab
from tests.support import folders, hostile_files
from tests.support.hostile_commands import DATA_READERS, KINDS, MODEL_READERS, run
from trimtab import api
from trimtab.cli.main import main

MODELS_THAT_LOAD = ("extras", "remote_code")
"""Folders with a good model of an architecture that transformers has: the command reads it and leaves
the rest alone."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    folders.model_folder(folder / "model")
    folders.demonstrations(folder / "demos.jsonl", 4)
    folders.comparisons(folder / "pairs.jsonl", 4)
    folders.prompts(folder / "prompts.jsonl", 4)
    steps = [{"prompt": "a ?", "completions": ["the sun", "is here"], "labels": [True, False]}] * 4
    folders.write(folder / "steps.jsonl", steps)
    return folder


def hostile(base: Path, tmp_path: Path, form: str) -> tuple[Path, Path]:
    """A hostile copy of the model, and the folder that appears when it ran."""
    folder, mark = tmp_path / "model", tmp_path / "executed"
    tmp_path.mkdir(exist_ok=True)
    shutil.copytree(base / "model", folder)
    hostile_files.MODELS[form](folder, mark)
    return folder, mark


@pytest.mark.parametrize(
    "name", [*hostile_files.WEIGHTS, *hostile_files.EXTRAS, *hostile_files.DATA]
)
def test_every_pickle_runs_where_it_is_trusted(name: str, tmp_path: Path) -> None:
    """The control: each file is an attack that works."""
    mark = tmp_path / "executed"
    [file] = hostile_files.plant(tmp_path / "files", (name,), mark)
    hostile_files.open_trustingly(file)
    assert mark.is_dir()


def test_remote_code_runs_where_it_is_trusted(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder, mark = hostile(base, tmp_path, "remote_code")
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert mark.is_dir()


def test_modules_of_an_adapter_are_imported_where_they_are_trusted(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As peft did before its list of trusted libraries."""
    folder, mark = hostile(base, tmp_path, "importing_adapter")
    monkeypatch.syspath_prepend(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    importlib.import_module(config["megatron_core"])
    assert mark.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("form", hostile_files.MODELS)
def test_no_command_runs_what_a_model_folder_holds(
    form: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mark = hostile(base, tmp_path, form)
    # As where the command is started in the folder that came with the model.
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for command in MODEL_READERS:
        place = tmp_path / command
        place.mkdir()
        data = base / f"{KINDS.get(command, 'prompts')}.jsonl"
        status, error = run(command, MODEL_READERS, folder, data, place)
        assert not mark.exists(), command
        assert not error, (command, error)
        if form not in MODELS_THAT_LOAD:
            assert status == 2, command


@pytest.mark.slow
@pytest.mark.parametrize("command", DATA_READERS)
def test_no_command_runs_what_a_data_file_holds(command: str, base: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    files = hostile_files.plant(tmp_path / "files", hostile_files.DATA, mark)
    hostile_files.dataset_folder(tmp_path / "rows_of_a_stranger", mark)
    for data in (*files, tmp_path / "rows_of_a_stranger"):
        status, error = run(command, DATA_READERS, base / "model", data, tmp_path)
        assert not mark.exists(), data.name
        assert (status, error) == (2, ""), data.name


@pytest.mark.parametrize("command", ["sft", "exchange", "mix"])
def test_metadata_of_parquet_is_not_unpickled(command: str, base: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    hostile_files.extension_parquet(tmp_path / "rows.parquet", mark)
    metadata = pq.read_schema(tmp_path / "rows.parquet").metadata
    _, error = run(command, DATA_READERS, base / "model", tmp_path / "rows.parquet", tmp_path)
    assert not mark.exists() and not error
    pickle.loads(metadata[b"pandas"])  # the control
    assert mark.is_dir()


def test_a_resumed_run_reads_no_pickle(base: Path, tmp_path: Path) -> None:
    mark, out = tmp_path / "executed", tmp_path / "out"
    data = base / "prompts.jsonl"
    assert run("rl", MODEL_READERS, base / "model", data, tmp_path) == (0, "")
    values = yaml.safe_load((tmp_path / "rl.yaml").read_text())
    values.update(steps=2, loop={"save_steps": 1})
    (tmp_path / "rl.yaml").write_text(yaml.safe_dump(values))
    main(["rl", str(tmp_path / "rl.yaml"), "--fresh"])
    checkpoints = sorted((out / "checkpoints").iterdir())
    for folder in (out, out / "model", *checkpoints):
        hostile_files.plant(folder, hostile_files.EXTRAS, mark)
        hostile_files.plant(folder, ("pytorch_model.bin",), mark)
    # A checkpoint whose own files are pickles, and one that is good.
    for file in checkpoints[-1].iterdir():
        if file.suffix in (".json", ".safetensors"):
            file.write_bytes(hostile_files.pickled(mark, "x.bin"))
    main(["rl", str(tmp_path / "rl.yaml"), "--steps", "3"])
    for command in ("doctor", "report", "remedy"):
        main([command, str(out)])
    trained = api.Run(out)
    trained.load_model()
    assert list(trained.metrics.index) == [1, 2, 3] and not mark.exists()


def test_load_model_reads_no_pickle(base: Path, tmp_path: Path) -> None:
    """``Run.load_model`` of a run folder that came from elsewhere."""
    for form in hostile_files.MODELS:
        folder = tmp_path / form
        _, mark = hostile(base, folder, form)
        with contextlib.suppress(Exception):
            api.Run(folder).load_model()
        assert not mark.exists(), form


def trusting(folder: Path) -> list[str]:
    """File and line of every call below a folder that allows remote code, whatever it depends on."""
    places: list[str] = []
    for file in sorted(folder.rglob("*.py")):
        values: list[ast.expr] = []
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                values.append(node.value)
            elif isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                values += [v for k, v in pairs if k and ast.unparse(k) == "'trust_remote_code'"]
        wrong = [v for v in values if not (isinstance(v, ast.Constant) and v.value is False)]
        places += [f"{file.relative_to(folder)}: {v.lineno}" for v in wrong]
    return places


def test_remote_code_is_allowed_nowhere() -> None:
    """RELIABILITY 20."""
    assert trusting(Path(trimtab.__file__).parent) == []

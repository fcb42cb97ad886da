"""What a run was made from: every change that could change the result is found, and no other."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field

from trimtab.config import Config, build
from trimtab.data.dataset import DataSpec
from trimtab.models.load import ModelSpec
from trimtab.rewards.part_config import RewardSpec
from trimtab.runs import Fingerprint, open_run, read_fingerprint
from trimtab.runs.content import Content, file_digest, model_content, rows_content


class Loop(Config):
    free_keys: ClassVar[frozenset[str]] = frozenset({"save_steps"})
    save_steps: int = 0
    seed: int = 0


class Stage(Config):
    extent_keys: ClassVar[frozenset[str]] = frozenset({"steps"})
    out: str = "runs/x"
    model: ModelSpec
    data: DataSpec
    rewards: tuple[RewardSpec, ...] = ()
    objective: Literal["dpo", "ipo"] = "dpo"
    separator: str = "/"
    options: dict[str, Any] = Field(default_factory=dict)
    loop: Loop = Loop()
    steps: int = 4
    lr: float = 0.1


REWARD = """
import random
from helper import WORDS

SCALE = 2

def unused(): return SCALE

def short(completions, **_):
    # a comment
    return [-SCALE * len(c) for c in completions if c in WORDS]
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "dpo").mkdir()  # a folder with the name of a choice is no input
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "helper.py").write_text("WORDS = 'a'\n")
    (tmp_path / "mine.py").write_text(REWARD)
    return {
        "model": "model", "data": "data.jsonl", "options": {"notes": "notes.txt"},
        "rewards": [{"function": "mine.py:short"}, {"model": "model"}],
    }  # fmt: skip


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    fingerprint = Fingerprint.of(build(Stage, old))
    stored = Fingerprint.model_validate_json(fingerprint.model_dump_json())
    return stored.changes(Fingerprint.of(build(Stage, new)))


def edit(file: str, text: str) -> None:
    Path(file).write_text(text)


def test_settings_that_change_the_result_are_named(base: dict[str, Any]) -> None:
    assert changes(base, base) == []
    assert changes(base, {**base, "steps": 9, "out": "b", "loop": {"save_steps": 3}}) == []
    assert changes(base, {**base, "lr": 0.2, "loop": {"seed": 1}}) == [
        "loop.seed: 0 -> 1",
        "lr: 0.1 -> 0.2",
    ]
    assert changes(base, {**base, "options": {}}) == ["options.notes: notes.txt -> (not set)"]
    assert changes(base, {**base, "objective": "ipo"}) == ["objective: dpo -> ipo"]


@pytest.mark.parametrize(
    ("file", "text", "change"),
    [
        ("data.jsonl", '{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n', "data: 2 rows -> 3 rows, first difference in row 3 (data.jsonl)"),
        ("data.jsonl", '{"text": "A"}\n{"text": "b"}\n', "data: 2 rows -> 2 rows, first difference in row 1 (data.jsonl)"),
        ("model/model.safetensors", "other", "model: other content of model.safetensors (model)"),
        ("model/tokenizer.json", "{}", "model: other content of tokenizer.json (model)"),
        ("notes.txt", "y", "options.notes: the file has changed (notes.txt)"),
        ("mine.py", REWARD.replace("SCALE = 2", "SCALE = 3"), "rewards.0.function: the code has changed (mine.py:short)"),
        ("helper.py", "WORDS = 'b'\n", "rewards.0.function: the code has changed (mine.py:short)"),
    ],
)  # fmt: skip
def test_contents_are_compared(base: dict[str, Any], file: str, text: str, change: str) -> None:
    old = Fingerprint.of(build(Stage, base))
    edit(file, text)
    assert change in old.changes(Fingerprint.of(build(Stage, base)))


def test_what_changes_nothing_is_no_change(base: dict[str, Any]) -> None:
    old = Fingerprint.of(build(Stage, base))
    edit("mine.py", REWARD.replace("# a comment", "# another").replace("def unused", "def other"))
    edit("data.jsonl", '{"text":   "a"}\n\n{"text": "b"}\n')
    edit("model/report.html", "x")
    Path("model/checkpoint-5").mkdir()
    edit("model/checkpoint-5/model.safetensors", "x")
    Path("copy.jsonl").write_bytes(Path("data.jsonl").read_bytes())
    assert old.changes(Fingerprint.of(build(Stage, {**base, "data": "copy.jsonl"}))) == []


def test_a_module_is_not_imported(base: dict[str, Any]) -> None:
    edit("boom.py", "raise RuntimeError('imported')\ndef f(completions): return [0.0]\n")
    content = Fingerprint.of(build(Stage, {**base, "rewards": [{"function": "boom:f"}]}))
    assert content.contents["rewards.0.function"].kind == "code"
    assert "boom" not in sys.modules


def test_an_earlier_release_may_lack_a_key_with_its_default(base: dict[str, Any]) -> None:
    old = Fingerprint.of(build(Stage, base))
    del old.values["lr"], old.values["loop.seed"]
    assert old.changes(Fingerprint.of(build(Stage, base))) == []
    assert old.changes(Fingerprint.of(build(Stage, {**base, "lr": 0.3}))) == [
        "lr: (not set) -> 0.3"
    ]


def test_large_files_are_sampled(tmp_path: Path) -> None:
    size = 65 * 2**20
    digests: list[str] = []
    for position in (0, size // 2, size - 1):
        path = tmp_path / f"{position}"
        with path.open("wb") as handle:
            handle.truncate(size)
            handle.seek(position // 4096 * 4096)
            handle.write(b"x" * 70_000 if position != size - 1 else b"x")
        digests.append(file_digest(path))
    assert len(set(digests)) == 3


def test_an_adapter_is_also_its_base(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    (base / "model.safetensors").write_bytes(b"a")
    values = {"base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    before = model_content(str(adapter))
    assert before is not None and before == model_content(str(adapter))
    (base / "model.safetensors").write_bytes(b"b")
    after = model_content(str(adapter))
    assert after is not None and f"base {base}" in before.change(after)


def test_many_rows_are_compared_as_a_whole() -> None:
    rows = [{"x": i} for i in range(10_050)]
    old, new = rows_content(rows), rows_content([*rows[:-1], {"x": -1}])
    assert old.change(new) == "10,050 rows -> 10,050 rows, first difference after row 10,000"
    assert Content(kind="hub", digest="a").change(Content(kind="hub", digest="b"))


def test_the_run_folder_holds_it(base: dict[str, Any], tmp_path: Path) -> None:
    with open_run(build(Stage, base), tmp_path / "run") as run:
        run.log(1, {"a": 1.0})
    stored = read_fingerprint(tmp_path / "run")
    assert stored is not None and stored.contents["data.path"].count == 2
    assert json.loads((tmp_path / "run" / "fingerprint.json").read_text())["extent"] == {"steps": 4}

"""YAML from strangers: tags make no objects, aliases no avalanche."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import yaml

from trimtab.cli.main import main
from trimtab.config import read_yaml
from trimtab.errors import ConfigError
from trimtab.judges.rubric import load_rubric

TAGS = [
    "!!python/object/apply:os.mkdir [MARK]",
    "!!python/object/apply:os.system ['mkdir MARK']",
    "!!python/object/apply:subprocess.check_call [[mkdir, MARK]]",
    '!!python/object/apply:builtins.eval [\'__import__("os").mkdir("MARK")\']',
    "!!python/object/apply:builtins.exec ['import os; os.mkdir(\"MARK\")']",
    "!!python/object/new:os.mkdir [MARK]",
    "!!python/object/new:type {args: [x, !!python/tuple [], {}], state: {}}",
    "!!python/object:subprocess.Popen {}",
    "!!python/name:os.mkdir",
    "!!python/module:os",
    "!!python/tuple [MARK]",
    "!!python/bytes MARK",
    "!!python/object/apply:pathlib.Path.mkdir [!!python/object/apply:pathlib.Path [MARK]]",
    "!own {a: 1}",
    "!!js/function 'MARK'",
    "!!java.util.Date MARK",
]
"""Tags that make objects or call functions, where a loader obeys them."""
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n"
    for a, b in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
"""9 to the power of 13 values in thirteen lines."""


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("where", ["config", "nested", "recipe", "rubric", "flag"])
def test_no_tag_makes_an_object(
    where: str, tag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "executed"
    text = tag.replace("MARK", str(mark))
    file = tmp_path / "file.yaml"
    forms = {"config": f"out: {text}\n", "nested": f"model: {{path: [{text}]}}\n",
             "recipe": f"out: x\nstages: {{a: {text}}}\n", "rubric": f"name: a\ninstructions: {text}\n"}  # fmt: skip
    file.write_text(forms.get(where, ""))
    words = {
        "recipe": ["run", str(file), "--dry-run"],
        "flag": ["sft", "--out", text, "--data", str(tmp_path / "no.jsonl"), "--model", "none"],
    }
    if where == "rubric":
        with pytest.raises(ConfigError, match=r"file\.yaml"):
            load_rubric(str(file))
    else:
        with pytest.raises(SystemExit) as ended:
            main(words.get(where, ["sft", str(file), "--dry-run"]))
        assert ended.value.code == 2
        assert "Traceback" not in capsys.readouterr().err
    assert not mark.exists()


def test_some_tags_run_in_the_unsafe_loader(tmp_path: Path) -> None:
    """The control."""
    for tag in (t for t in TAGS if "os.mkdir [MARK]" in t or "subprocess.check_call" in t):
        mark = tmp_path / "executed"
        yaml.unsafe_load(tag.replace("MARK", str(mark)))
        assert mark.is_dir()
        os.rmdir(mark)


def test_aliases_do_not_multiply(tmp_path: Path) -> None:
    (tmp_path / "laughs.yaml").write_text(LAUGHS)
    loaded = yaml.safe_load(LAUGHS)  # the control: the loader takes them
    assert loaded["m"][0] is loaded["l"]
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"laughs\.yaml: its aliases"):
        read_yaml(tmp_path / "laughs.yaml")
    assert time.monotonic() - started < 5
    (tmp_path / "few.yaml").write_text("a: &a {x: 1}\nb: *a\n")
    assert read_yaml(tmp_path / "few.yaml") == {"a": {"x": 1}, "b": {"x": 1}}


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: " + "[" * 20_000, "a: &a {b: *a}\n"])
def test_endless_nesting_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"deep\.yaml"):
        read_yaml(tmp_path / "deep.yaml")
    assert sys.getrecursionlimit() < 20_000

"""A recipe that runs again uses the output of a stage only if its inputs are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from trimtab.cli.main import main
from trimtab.errors import ConfigError
from trimtab.runs import read_object

CODE = """
def write(out, text):
    (out / "rows.jsonl").write_text('{"text": "%s"}\\n' % text)
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    Path("code.py").write_text(CODE)
    stages = {
        "made": {"type": "function", "function": "code.py:write", "options": {"text": "b"}},
        "mixed": {
            "type": "mix",
            "inputs": {"a": {"path": "@rows"}, "b": {"path": "@made/rows.jsonl"}},
        },
    }
    values = {"out": "o", "inputs": {"rows": "rows.jsonl"}, "stages": stages}
    Path("r.yaml").write_text(yaml.safe_dump(values))
    return ["run", "r.yaml"]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    main(words)
    return capsys.readouterr().out


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_other_inputs_are_not_silently_reused(
    recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "already complete" not in run(recipe, capsys)
    again = run(recipe, capsys)
    assert "made: already complete" in again and "mixed: already complete" in again

    Path("rows.jsonl").write_text('{"text": "A"}\n')
    message = refused(recipe, capsys)
    assert "o/mixed" in message and "--fresh" in message
    assert '"a"' in Path("o/mixed/rows.jsonl").read_text()
    assert "made: already complete" in run([*recipe, "--fresh"], capsys)
    assert '"A"' in Path("o/mixed/rows.jsonl").read_text()
    assert '"a"' in Path("o/mixed.old-1/rows.jsonl").read_text()

    # Code and options of an earlier stage: it and what reads its output run again.
    Path("code.py").write_text(CODE.replace("%s", "%s!"))
    assert "made" in refused(recipe, capsys)
    run([*recipe, "--fresh"], capsys)
    assert '"b!"' in Path("o/mixed/rows.jsonl").read_text()
    assert "options.text: b -> c" in refused([*recipe, "--made.options.text", "c"], capsys)


def test_stages_of_an_earlier_release_count_as_complete(
    recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, capsys)
    for name in ("made", "mixed"):
        marker = Path("o", name, "stage.json")
        seconds = read_object(marker)["seconds"]
        marker.write_text(f'{{"fingerprint": "abc", "complete": true, "seconds": {seconds}}}')
    main(recipe)
    output = capsys.readouterr()
    assert output.err.count("o/mixed: made by an earlier release") == 1
    assert "mixed: already complete" in output.out
    main(recipe)
    assert not capsys.readouterr().err  # from now on inputs are compared


def test_a_figure_that_is_not_there_costs_no_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wrong name shows after hours of training: the other figures and the report are written, then it is named."""
    from trimtab.launch import recipe as recipes

    monkeypatch.chdir(tmp_path)
    stages = {"world": {"type": "sandbox-data", "demonstrations": 3, "prompts": 2, "heldout": 2}}
    right = {"right": "world.demonstrations"}
    values = {"out": "o", "stages": stages, "figures": {**right, "wrong": "world.eval.nll"}}
    with pytest.raises(
        ConfigError,
        match=r"figures\.wrong: o/world/summary\.json has no 'eval\.nll', but .*demonstrations",
    ):
        recipes.run(recipes.Recipe.model_validate(values), "here")
    figures = read_object(Path("o/summary.json"))
    assert figures["right"] == 3 and Path("o/report.html").is_file()

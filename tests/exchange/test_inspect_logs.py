"""Inspect's logs as comparisons of models. ``tests/neighbours/test_inspect.py`` runs the program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import DataError
from trimtab.exchange import convert


def log(path: Path, model: str, answers: dict[str, tuple[str, Any]], **more: Any) -> str:
    """A log with one scorer of texts and one of numbers."""
    samples = [
        {"id": n, "epoch": 1, "input": question, "target": "t", "output": {"completion": text},
         "scores": {"match": {"value": value}, "model_graded_qa": {"value": float(len(text))},
                    "parts": {"value": {"a": 1}}}}
        for n, (question, (text, value)) in enumerate(answers.items(), 1)
    ]  # fmt: skip
    content = {
        "version": 2,
        "status": "success",
        "eval": {"model": model},
        "samples": samples,
        **more,
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_the_higher_score_wins(tmp_path: Path) -> None:
    one = log(tmp_path / "1.json", "m1", {"p": ("yes", "C"), "q": ("no", "I"), "r": ("x", "P")})
    two = log(tmp_path / "2.json", "m2", {"p": ("never", "I"), "q": ("not", "N"), "s": ("y", "C")})
    records = convert.read([one, two])
    assert [i.completions for i in records.items.values()] == [("yes", "never"), ("no", "not")]
    assert {i.models for i in records.items.values()} == {("m1", "m2")}
    verdicts = [(j.annotator, j.who, j.ranks) for j in records.judgements]
    assert verdicts == [
        ("match", "gold", (0, 1)), ("model_graded_qa", "ai", (1, 0)),
        ("match", "gold", (0, 0)), ("model_graded_qa", "ai", (1, 0)),
    ]  # fmt: skip


def test_conversations_are_prompts_and_unusable_logs_are_refused(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q", "id": "x"}]
    files = [log(tmp_path / f"{m}.json", m, {"q": (m, "C")}) for m in ("m1", "m2")]
    for file in files:
        content = json.loads(Path(file).read_text())
        content["samples"][0]["input"] = turns
        Path(file).write_text(json.dumps(content))
    [item] = convert.read(files).items.values()
    assert [m["content"] for m in item.prompt] == ["s", "q"]
    with pytest.raises(DataError, match="only m1; give the logs of two or more models"):
        convert.read(files[:1])
    other = log(tmp_path / "other.json", "m3", {"another": ("x", "C")})
    with pytest.raises(DataError, match="no two of m1, m3 have a score on one sample"):
        convert.read([files[0], other])
    with pytest.raises(DataError, match="inspect log convert"):
        convert.read([str(tmp_path / "x.eval")])

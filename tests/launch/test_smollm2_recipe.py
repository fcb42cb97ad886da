"""The rows, the naive reward and the figures of the recipe smollm2."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import folders
from trimtab.recipes import smollm2
from trimtab.sandbox.instructions import all_satisfied


def read(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_demonstrations_are_edited_answers_to_the_tasks(tmp_path: Path) -> None:
    assert smollm2.prepare(tmp_path, tasks=20, prompts=30, held_out=12)["held_out"] == 12
    tasks = read(tmp_path / "tasks.jsonl")
    assert len({json.dumps(t["prompt"]) for t in tasks}) == 20
    text = "It is old and quiet. People visit it often. Many of them return later."
    items = [
        {"id": str(i), "prompt": t["prompt"], "completions": [text], "extra": {"topic": t["topic"]}}
        for i, t in enumerate(tasks)
    ]
    folders.write(tmp_path / "items.jsonl", items)
    counts = smollm2.demonstrations(tmp_path, str(tmp_path / "items.jsonl"), per_text=2)
    rows = read(tmp_path / "demonstrations.jsonl")
    assert counts == {"texts": 20, "demonstrations": len(rows)} and 20 < len(rows) <= 40
    texts = [r["completion"][0]["content"] for r in rows]  # pyright: ignore
    assert all_satisfied(texts, [r["constraints"] for r in rows]) == [1.0] * len(rows)  # pyright: ignore


def test_the_naive_reward_is_highest_for_one_short_lowercase_word() -> None:
    long = "This is a long and helpful answer. " * 10
    assert smollm2.naive(["ok", "Ok", long.lower(), long]) == [1.0, 0.5, 0.5, 0.0]


def test_the_rise_is_paired_and_by_type(tmp_path: Path) -> None:
    constraints = [[{"type": "lowercase"}], [{"type": "quotes"}], [{"type": "no_commas"}]]
    folders.write(
        tmp_path / "heldout.jsonl", [{"prompt": "x", "constraints": c} for c in constraints]
    )
    rows = [
        {"prompt": "x", "start": "A, b", "rl": "a b"},
        {"prompt": "x", "start": "A, b", "rl": "a b"},
        {"prompt": "x", "start": "a b", "rl": "a b"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "comparison.parquet")
    (tmp_path / "summary.json").write_text(json.dumps({"start": {}, "rl": {}}))
    figures = smollm2.figures(tmp_path, str(tmp_path), str(tmp_path / "heldout.jsonl"), {})
    assert figures["start"]["satisfied"]["mean"] == pytest.approx(1 / 3)
    assert figures["start"]["rise"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert figures["rl"]["rise"]["mean"] == pytest.approx(1 / 3)
    assert figures["rl"]["types"] == {"lowercase": 1.0, "no_commas": 1.0, "quotes": 0.0}
    assert figures["rl"]["unseen"]["mean"] == 0.0

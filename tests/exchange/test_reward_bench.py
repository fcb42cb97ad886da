"""Pairs for the ``rewardbench`` program: whole conversations, and nothing that it takes for a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trimtab.config import build
from trimtab.exchange import convert
from trimtab.feedback import records as own
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records

TALK = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes ?"}, {"role": "user", "content": "why ?"}]  # fmt: skip


def exchange(source: Path, to: Path, write: str = "trimtab") -> None:
    convert.main(
        build(convert.ExchangeConfig, {"files": [str(source)], "to": str(to), "write": write})
    )


def test_the_program_reads_what_is_written(tmp_path: Path) -> None:
    from datasets import load_dataset

    a = Item.of(TALK, ["so", "no"], extra={"question": "why", "prompt": "p", "source": 7})
    b = Item.of(
        [{"role": "user", "content": "q"}], ["x", "y"], models=("m", "n"), extra={"source": "web"}
    )
    judged = [
        Judgement(item=a.id, annotator="ann", ranks=(1, 0)),
        Judgement(item=b.id, annotator="ben", ranks=(0, 1)),
    ]
    own.write(tmp_path / "labels.jsonl", Records({a.id: a, b.id: b}, judged))
    exchange(tmp_path / "labels.jsonl", tmp_path / "bench.jsonl", "reward_bench")
    rows: Any = load_dataset(
        "json",
        data_files=str(tmp_path / "bench.jsonl"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    # load_preference_dataset of rewardbench 0.1: with "prompt", "question" or "input" it stops.
    assert not {"prompt", "question", "input"} & set(rows.column_names)
    for row, (prompt, best, worst) in zip(
        rows, [(TALK, "no", "so"), (b.prompt, "x", "y")], strict=True
    ):
        assert row["chosen"][:-1] == row["rejected"][:-1] == list(prompt)
        assert (row["chosen"][-1]["content"], row["rejected"][-1]["content"]) == (best, worst)
    exchange(tmp_path / "bench.jsonl", tmp_path / "back.jsonl")
    assert own.read([str(tmp_path / "back.jsonl")]) == own.read([str(tmp_path / "labels.jsonl")])


def test_a_foreign_file_in_this_form_comes_back(tmp_path: Path) -> None:
    row = {"id": 3, "chosen": [*TALK, {"role": "assistant", "content": "so"}], "chosen_model": "m",
           "rejected": [*TALK, {"role": "assistant", "content": "no"}], "rejected_model": "n", "subset": "x"}  # fmt: skip
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    exchange(tmp_path / "a.jsonl", tmp_path / "b.jsonl", "reward_bench")
    assert json.loads((tmp_path / "b.jsonl").read_text()) == row

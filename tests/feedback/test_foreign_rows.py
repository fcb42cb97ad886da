"""Files of other tools as items for judges and for the label page."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import build
from trimtab.exchange import convert
from trimtab.feedback.items import read_entries, read_items

PAIRS = [
    {"prompt": "what is, in short, rain ?\nin two lines", "chosen": 'wet, cold\r\nand "grey"', "rejected": "- a\n- b"},
    {"prompt": "ما هي عاصمة فرنسا؟", "chosen": "باريس", "rejected": "لا أعرف."},
    {"prompt": "次の合計は？", "chosen": "四\u2028四", "rejected": "五" * 140_000},
]  # fmt: skip


def entries(path: Path) -> Any:
    return read_entries(str(path), limit=None, strict=True, marks=False).entries


def test_a_csv_with_newlines_and_unicode_is_the_same_as_jsonl(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(PAIRS[0]))
        writer.writeheader()
        writer.writerows(PAIRS)
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in PAIRS)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8", newline="")
    assert entries(tmp_path / "a.csv") == entries(tmp_path / "a.jsonl")
    for name in ("a.csv", "a.jsonl"):  # to labels, to pairs and back
        for source, to, write in ((name, "b.jsonl", "trimtab"), ("b.jsonl", "c.jsonl", "trl"), ("c.jsonl", "d.jsonl", "trimtab")):  # fmt: skip
            files = {"files": [str(tmp_path / source)], "to": str(tmp_path / to), "write": write}
            convert.main(build(convert.ExchangeConfig, files))
        assert (tmp_path / "d.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "2+2", "models": ["m", "n"], "completions": [
            {"response": "cat", "fine-grained_score": 1.0}, {"response": "four", "fine-grained_score": 5.0}]},
        {"question": "2+2", "system": "", "chosen": "four", "rejected": "cat"},
        {"prompt": "\n\nHuman: 2+2\n\nAssistant: ", "turns": 1, "num_responses": 2,
         "answers": [{"answer": "cat", "rank": 2.0}, {"answer": "four", "rank": 1.0}]},
    ],
)  # fmt: skip
def test_rows_of_public_datasets_are_items(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    [entry] = entries(path)
    assert entry.item.prompt == ({"role": "user", "content": "2+2"},)
    assert sorted(entry.item.completions) == ["cat", "four"]
    [item] = read_items(str(path))
    assert (item.prompt, sorted(item.completions)) == (entry.item.prompt, ["cat", "four"])
    [gold] = read_entries(str(path), limit=None, strict=True, marks=False, gold=True).entries
    assert gold.gold is not None
    assert gold.item.completions[gold.gold.index(0)] == "four"

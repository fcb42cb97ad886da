"""Items that judges read, and the rows that they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.judging import endpoint, spec
from trimtab.errors import DataError
from trimtab.feedback.comparisons import comparison_rows
from trimtab.feedback.items import read_items
from trimtab.feedback.judgement import Item, Judgement
from trimtab.judges.client import Client, Failure
from trimtab.judges.question import form
from trimtab.judges.rubric import load_rubric

PROMPT = [{"role": "user", "content": "q"}]
VERDICT = form("pairwise", load_rubric("helpful"), {}, 2, False, True)


def test_items_of_every_form(tmp_path: Path) -> None:
    def file(rows: list[dict[str, Any]]) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(path)

    (pair,) = read_items(file([{"prompt": "q", "chosen": "z", "rejected": "a"}]))
    assert (pair.completions, pair.extra["ranks"]) == (("a", "z"), [1, 0])
    (many,) = read_items(
        file([{"prompt": PROMPT, "completions": ["x", "y"], "ranks": [0, 1], "k": 1}])
    )
    assert (many.completions, many.extra) == (("x", "y"), {"ranks": [0, 1], "k": 1})
    (bare,) = read_items(file([{"prompt": "q", "answers": ["x", "y"]}]))
    assert bare.id == Item.of(PROMPT, ["x", "y"]).id
    with pytest.raises(DataError, match=r"rows\.jsonl: row 1: .*an item has id"):
        read_items(file([{"id": "1", "prompt": "q", "answers": []}]))
    twice = {"id": "1", "prompt": "q", "answers": ["x", "y"]}
    with pytest.raises(DataError, match="row 2: id '1' occurs twice"):
        read_items(file([twice, twice]))


def test_rows_leave_out_what_teaches_nothing() -> None:
    label_items = [
        Item(id=str(i), prompt=tuple(PROMPT), completions=("a", "", "c")) for i in range(3)
    ]

    def j(item: str, *ranks: int) -> Judgement:
        return Judgement(item=item, annotator="a", who="ai", ranks=ranks)

    failed = Judgement(item="2", annotator="a", who="ai", status="error")
    rows = comparison_rows(
        {i.id: i for i in label_items}, [j("0", 2, 1, 0), j("1", 0, 1, 0), failed], ties=False
    )
    assert len(rows) == 1
    assert [(r["completions"], r["ranks"]) for r in rows] == [(["a", "c"], [1, 0])]


def test_a_failure_is_no_score() -> None:
    with endpoint(rate=1.0, kinds=("500",)) as one:
        client = Client(spec(one, tries=1))
        client._any_reply = True  # an endpoint that has worked before

        async def work(_: int) -> Any:
            return await client.ask([{"role": "user", "content": "x"}], VERDICT, lambda r: r)

        (result,) = client.map([0], work)
    assert isinstance(result, Failure) and result.status == "error"

"""``docs/data.md`` agrees with the table of schemas."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from trimtab.data.dataset import ReadCounts
from trimtab.data.schemas import NAMES, SCHEMAS, TASKS, TRL

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_schema_has_its_row() -> None:
    table = PAGE[PAGE.index("| `data.format` |") : PAGE.index("All but the last")]
    assert re.findall(r"^\| `([^`]+)` \|", table, re.M)[1:] == [n for n in NAMES if n != TRL]
    for schema in SCHEMAS:
        row = table[table.index(f"| `{schema.name}` |") :]
        for column in schema.columns - {
            "correctness",
            "coherence",
            "complexity",
            "verbosity",
            "helpfulness",
        }:
            assert f"`{column}`" in row, (schema.name, column)


def test_every_count_and_column_is_explained() -> None:
    names = [f.name for f in fields(ReadCounts)]
    columns = [c for options in TASKS.values() for option in options for c in option.split()]
    for name in (*names, *columns):
        assert f"`{name}`" in PAGE, name

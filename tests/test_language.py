"""Names that say nothing stay out: participles as names, and file names that occur twice."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "trimtab"
BANNED = {
    "found", "made", "mine", "said", "told", "held", "kept", "known", "given", "whole", "asked",
    "shown", "taken",
}  # fmt: skip
ALLOWED = 0
"""Bindings of such names in the package. It only goes down."""

REPEATED: list[str] = []
"""File names that occur twice; the list becomes empty."""


def banned_bindings(code: str, file: str) -> list[str]:
    """Places where a banned name is bound: assigned, a parameter, or imported as."""
    places: list[str] = []
    for node in ast.walk(ast.parse(code)):
        name = ""
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.alias):
            name = node.asname or ""
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        if name in BANNED:
            places.append(f"{file}:{getattr(node, 'lineno', 0)}: {name}")
    return places


def test_a_local_variable_names_its_content() -> None:
    places = [
        place
        for file in sorted(SOURCE.rglob("*.py"))
        for place in banned_bindings(
            file.read_text(encoding="utf-8"), str(file.relative_to(SOURCE))
        )
    ]
    assert len(places) <= ALLOWED, (
        f"{len(places)} names say nothing of what they hold; name the content (rows, scores, …):\n"
        + "\n".join(places[:20])
    )


def test_a_file_name_occurs_once() -> None:
    names = Counter(p.name for p in SOURCE.rglob("*.py") if not p.name.startswith("__"))
    assert [name for name, n in names.items() if n > 1] == REPEATED


def test_the_check_finds_every_kind_of_binding() -> None:
    code = """
import os as held
def f(given, *, kept=0):
    found, (made, rows) = 1, (2, 3)
    for said in rows:
        if (told := said):
            return [shown for shown in told]
"""
    names = [place.rpartition(" ")[2] for place in banned_bindings(code, "f.py")]
    assert sorted(names) == ["found", "given", "held", "kept", "made", "said", "shown", "told"]

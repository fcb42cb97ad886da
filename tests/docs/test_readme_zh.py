"""The Chinese README: the same commands, table of results and example as the English one, and no figure of its own."""

from __future__ import annotations

import re

from tests.support.readme import PAGE, ROOT

CHINESE = (ROOT / "README.zh.md").read_text(encoding="utf-8")


def blocks(page: str) -> list[list[str]]:
    """The blocks of code, without their comments."""
    found = re.findall(r"```\w*\n(.*?)```", page, re.DOTALL)
    return [[re.sub(r"\s+# .*", "", line) for line in block.splitlines()] for block in found]


def rows_of_figures(page: str) -> list[list[str]]:
    """The cells after the first of each row of the demo's table, which starts the page's tables."""
    table = page.partition("| `trimtab run sandbox-ppo")[2].partition("\n\n")[0]
    return [re.findall(r"[-+\d][^|]*", line)[-3:] for line in table.splitlines()[2:]]


def test_the_code_is_that_of_the_english_page() -> None:
    assert blocks(CHINESE) == blocks(PAGE) and len(blocks(PAGE)) == 3


def test_the_results_of_the_demo_are_those_of_the_english_page() -> None:
    figures = rows_of_figures(PAGE)
    assert rows_of_figures(CHINESE) == figures and len(figures) == 8
    assert all(len(row) == 3 for row in figures)


def test_no_figure_stands_in_the_chinese_page_alone() -> None:
    figures = set(re.findall(r"\d+(?:\.\d+)?", CHINESE))
    assert figures - set(re.findall(r"\d+(?:\.\d+)?", PAGE)) == set()


def test_links_exist_and_each_page_names_the_other() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", CHINESE)
    assert targets and [t for t in targets if not (ROOT / t).exists()] == []
    assert "README.md" in targets and "](README.zh.md)" in PAGE

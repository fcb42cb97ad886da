"""The index, and the pages of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.questions.planted import planted
from trimtab.cli.main import main as cli
from trimtab.questions import experiment, index

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for number in (3, 6):
        result = planted(number, 5)
        experiment.write_result(tmp_path / "out" / str(number), result)
    return tmp_path / "out"


def test_the_index_counts_every_statement_once(out: Path) -> None:
    one = index.make(index.results(out), "en", "{number}/answer.html")
    statements = sum(len(experiment.read_result(out / n)["verdicts"]) for n in ("3", "6"))
    assert sum(one.totals) == statements
    assert [e.link for e in one.entries] == ["3/answer.html", "6/answer.html"]
    html = index.to_html(one)
    assert "<script" not in html and 'href="6/answer.html"' in html


def test_the_command_writes_index_and_docs(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "docs"
    (out / "6" / experiment.TUNING).write_text('{"lr": {}}')
    words = ["question", "3", "6", "--page", "--out", str(out), "--docs", str(docs)]
    cli(words)
    assert (docs / "questions" / "results" / "6" / experiment.TUNING).is_file()
    assert "index: " in (said := capsys.readouterr().out) and "docs: 6 pages" in said
    assert (out / "index.html").is_file()
    for place in (docs / "questions", docs / "zh" / "questions"):
        text = (place / "README.md").read_text(encoding="utf-8")
        for link in re.findall(r"\]\((\d\d\.md)\)", text):
            page = (place / link).read_text(encoding="utf-8")
            [figure] = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
            assert (place / figure).is_file()
    before = {f: f.read_bytes() for f in docs.rglob("*") if f.is_file()}
    index.write_docs(docs / "questions" / "results", docs)
    assert before == {f: f.read_bytes() for f in docs.rglob("*") if f.is_file()}


def test_the_pages_of_the_documentation_are_those_of_their_results(tmp_path: Path) -> None:
    kept = DOCS / "questions" / "results"
    if not index.results(kept):
        pytest.skip("no question has been run on five seeds yet")
    files = index.write_docs(kept, tmp_path)
    for file in files:
        assert file.read_bytes() == (DOCS / file.relative_to(tmp_path)).read_bytes(), file.name

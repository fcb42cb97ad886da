"""The index of the questions, and the pages of the documentation.

Everything comes from the ``result.json`` of each question and the texts, so that it can be written again byte
by byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.launch.jobs import RESULT
from trimtab.questions import experiment, page, page_files, pretrained
from trimtab.questions.claim import LANGUAGES
from trimtab.report.charts import svg_file
from trimtab.runs import write_atomic

ORDER = ("holds", "fails", "depends", "undecided")


@dataclass(frozen=True, slots=True)
class Entry:
    """A question in the index."""

    title: str
    question: str
    answer: str
    counts: Sequence[int]
    """Statements by verdict, in the order of ``ORDER``."""
    link: str


@dataclass(frozen=True, slots=True)
class Index:
    """What the index says, in order."""

    language: str
    entries: Sequence[Entry]
    totals: Sequence[int]
    words: Mapping[str, str]
    """Its texts, and the name of each verdict."""


def results(out: Path) -> list[Path]:
    """The folders of the questions that have a result, in order of their numbers."""
    folders = [f.parent for f in out.glob(f"*/{RESULT}") if f.parent.name.isdigit()]
    return sorted(folders, key=lambda f: int(f.name))


def make(folders: Sequence[Path], language: str, link: str) -> Index:
    """The index of some questions.

    Args:
        folders: Of their results.
        language: One of ``LANGUAGES``.
        link: Address of a page, with ``{number}``, or ``{number:02}``.

    Raises:
        ConfigError, DataError: as for ``experiment.read_result``.
    """
    common: Mapping[str, Any] = page.read_text(language)["common"]
    space = "" if language == "zh" else " "
    entries: list[Entry] = []
    for folder in folders:
        result = experiment.read_result(folder)
        one = page.make(folder, language)
        verdicts = Counter(result["verdicts"].values())
        entries.append(
            Entry(
                title=one.title,
                question=one.question,
                answer=space.join(one.answer),
                counts=[verdicts[name] for name in ORDER],
                link=link.format(number=result["question"]),
            )
        )
    totals = [sum(column) for column in zip(*(e.counts for e in entries), strict=True)]
    words = {**common["index"], **{name: common["outcomes"][name] for name in ORDER}}
    return Index(language, entries, totals or [0] * len(ORDER), words)


def to_markdown(index: Index) -> str:
    """The index as Markdown: a table, then the answers."""
    w = index.words
    lines = [f"# {w['title']}", "", w["about"], ""]
    lines += [page_files.table_row([w["question"], *(w[name] for name in ORDER)])]
    lines += [page_files.table_row(["---"] * (1 + len(ORDER)))]
    lines += [
        page_files.table_row([f"[{e.title}]({e.link})", *map(str, e.counts)]) for e in index.entries
    ]
    lines += [page_files.table_row([f"**{w['all']}**", *map(str, index.totals)]), ""]
    for e in index.entries:
        lines += [f"## {e.title}", "", e.question, "", e.answer, "", f"[{w['more']}]({e.link})", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def to_html(index: Index) -> str:
    """The index as one HTML file: no script, no outside request."""
    return page_files.render("question_index.html.jinja", index=index, order=ORDER)


def write(out: Path, language: str) -> Path:
    """Write ``index.html`` over all results below ``out``, whose pages are there.

    Returns:
        The file.
    """
    file = out / "index.html"
    write_atomic(file, to_html(make(results(out), language, "{number}/answer.html")).encode())
    return file


def write_docs(out: Path, docs: Path) -> list[Path]:
    """Write the pages and indexes of all results below ``out`` for the documentation, in every language.

    Args:
        out: Folder of results.
        docs: ``questions/NN.md``, ``questions/README.md``, and the same below ``zh``. The results are copied to
            ``questions/results``, and can be given as ``out`` the next time.

    Returns:
        The files of the pages and indexes.
    """
    stored = docs / "questions" / "results"
    for folder in results(out) if out.resolve() != stored.resolve() else []:
        for name in (RESULT, experiment.COST, experiment.TUNING, pretrained.FILE):
            if (folder / name).is_file():
                content = (folder / name).read_bytes()
                write_atomic(stored / folder.name / name, content)
    files: list[Path] = []
    for language in LANGUAGES:
        place = (docs if language == "en" else docs / language) / "questions"
        for folder in results(stored):
            one = page.make(folder, language)
            name = f"{int(folder.name):02}"
            files.append(place / f"{name}.md")
            write_atomic(files[-1], page_files.to_markdown(one, f"{name}.svg").encode())
            if one.figure is not None:
                write_atomic(place / f"{name}.svg", svg_file(one.figure).encode())
        files.append(place / "README.md")
        index = to_markdown(make(results(stored), language, "{number:02}.md"))
        write_atomic(files[-1], index.encode())
    return files

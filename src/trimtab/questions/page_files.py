"""Writes the page of a question as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import trimtab.report
from trimtab.questions import claim as registry
from trimtab.questions.page import Page, make
from trimtab.report.charts import svg_file
from trimtab.runs import write_atomic


def to_markdown(page: Page, figure_file: str) -> str:
    """The page as Markdown; the figure is a file beside it."""
    w = page.words
    guesses = any(r.guess for r in page.rows)
    head = ["", w["claim"], w["verdict"], *([w["guess"]] if guesses else []), w["measured"], w["published"]]  # fmt: skip
    lines = [f"# {page.title}", "", page.question, ""]
    lines += [f"> {note}" for note in page.notes]
    lines += ["", f"## {w['answer']}", "", *page.answer, "", f"## {w['claims']}", ""]
    lines += [table_row(head), table_row(["---"] * len(head))]
    for r in page.rows:
        cells = [r.id, r.claim, "<br>".join(r.verdict)]
        cells += [r.guess] if guesses else []
        lines.append(table_row([*cells, "<br>".join(r.measured), "<br>".join(r.published)]))
    if page.pretrained:
        lines += ["", f"## {w['pretrained']}", "", page.pretrained_note, ""]
        heads = ["", w["claim"], w["verdict"], w["small"], w["measured"]]
        lines += [table_row(heads), table_row(["---"] * len(heads))]
        lines += [
            table_row([r.id, r.claim, r.verdict, r.small, r.measured]) for r in page.pretrained
        ]
    if page.figure is not None:
        lines += ["", f"![{page.figure.title}]({figure_file})", "", page.figure.see]
    lines += ["", f"## {w['follow_up']}", "", page.follow_up, "", f"## {w['try']}", ""]
    lines += [f"- `{command}` {w['dash']} {about}" for command, about in page.commands]
    lines += ["", f"## {w['exercises']}", ""]
    for place, (task, solution) in enumerate(page.exercises, 1):
        lines += [f"{place}. {task}", ""]
        lines += [f"   <details><summary>{w['solution']}</summary>{solution}</details>", ""]
    command, about = page.own_run
    lines += [f"## {w['own_run']}", "", *([f"`{command}`", ""] if command else []), about]
    lines += ["", f"## {w['limits']}", "", *(f"- {limit}" for limit in page.limits)]
    if page.references:
        lines += ["", f"## {w['references']}", ""]
        lines += [f"- [{p}](https://arxiv.org/abs/{p.partition(':')[2]})" for p in page.references]
    return "\n".join(lines) + "\n"


def table_row(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


def inline_code(text: str) -> Markup:
    """Text for HTML, with what stands between backticks as code.

    >>> inline_code("where `a<b`")
    Markup('where <code>a&lt;b</code>')
    """
    parts = enumerate(text.split("`"))
    return Markup("").join(Markup(("{}", "<code>{}</code>")[i % 2]).format(x) for i, x in parts)


@functools.cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(registry.HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["inline"] = inline_code
    return templates


def render(template: str, **values: Any) -> str:
    """A page from a template, in one file: no script, no outside request."""
    report = Path(trimtab.report.__file__).parent
    css = (report / "page.css").read_text(encoding="utf-8")
    css += (registry.HERE / "question_page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        _templates().get_template(template).render(css=Markup(css), policy=policy, **values) + "\n"
    )


def to_html(page: Page) -> str:
    """The page as HTML."""
    guesses = any(r.guess for r in page.rows)
    return render("question_page.html.jinja", page=page, guesses=guesses)


def write(folder: Path, language: str) -> Path:
    """Write ``answer.md``, ``answer.svg`` and ``answer.html`` from a question's folder.

    Returns:
        The HTML page.

    Raises:
        ConfigError, DataError: as for ``experiment.read_result``.
    """
    page = make(folder, language)
    files = {"answer.md": to_markdown(page, "answer.svg"), "answer.html": to_html(page)}
    if page.figure is not None:
        files["answer.svg"] = svg_file(page.figure)
    for name, content in files.items():
        write_atomic(folder / name, content.encode())
    return folder / "answer.html"

"""What a page is made of, and the page itself: no script, no outside request.

The content policy allows nothing but the page's own style sheet, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
from markupsafe import Markup

from trimtab.report.charts import Chart


@dataclass(frozen=True, slots=True)
class Verdict:
    """A finding in plain words; ``tone`` is "good", "bad" or "fair"."""

    title: str
    text: str
    tone: str = "fair"
    code: str = ""
    """Something to copy, line for line."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure with its name and unit."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text below a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer with its score as text."""

    name: str
    text: str
    score: str = ""


@dataclass(frozen=True, slots=True)
class Pick:
    """Answers to one prompt, side by side."""

    prompt: str
    answers: Sequence[Answer]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page; everything but the title may be left out."""

    title: str
    lead: str = ""
    verdicts: Sequence[Verdict] = ()
    tiles: Sequence[Tile] = ()
    charts: Sequence[Chart | None] = ()
    """None, and a table without rows, is not shown."""
    tables: Sequence[Table] = ()
    picks: Sequence[Pick] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.verdicts or self.tiles or self.charts or self.tables or self.picks)

    def visible(self) -> Section:
        """Without charts that are None and tables without rows."""
        charts, tables = [c for c in self.charts if c], [t for t in self.tables if t.rows]
        return replace(self, charts=charts, tables=tables)


MADE = (
    "Made from the run folder alone: metrics, samples and summary. Shaded detail under a line is the "
    "raw value, the line its running mean."
)


def render(
    sections: Sequence[Section],
    title: str = "trimtab report",
    subtitle: str = "",
    footer: str = MADE,
) -> str:
    """One HTML page; sections with nothing to show are left out, all text is escaped."""
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    css = (here / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    page = environment.get_template("page.html.jinja").render(
        sections=[s for s in map(Section.visible, sections) if not s.empty],
        title=title,
        subtitle=subtitle,
        css=Markup(css),
        footer=footer,
        policy=policy,
    )
    return page.encode("utf-8", "replace").decode().replace("\x00", "�")

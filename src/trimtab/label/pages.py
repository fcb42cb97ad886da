"""The label pages: their content and templates."""

import string
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trimtab.data.conversation import message_text
from trimtab.feedback import votes
from trimtab.label.access import Visitor
from trimtab.label.label_config import LabelConfig, Rubric
from trimtab.label.markdown import render_markdown
from trimtab.label.store import Assignment, Store

_HERE = Path(__file__).parent
STATIC = {
    "htmx.min.js": "text/javascript",
    "label.js": "text/javascript",
    "label.css": "text/css",
}
"""The only files that are served, and their types."""
_ROLES = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool"}
STRENGTHS = ("slightly better", "better", "much better", "very much better")

_templates = Environment(
    loader=FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def static(name: str) -> bytes:
    """A file of ``STATIC``."""
    return (_HERE / "static" / name).read_bytes()


def render(name: str, **values: object) -> str:
    """A template of this folder, with all values escaped."""
    return _templates.get_template(f"{name}.jinja").render(values)


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """A completion on the page."""

    letter: str
    text: Markup
    steps: tuple[Markup, ...]


@dataclass(frozen=True, slots=True)
class Button:
    """A button that sends a verdict."""

    value: str
    text: str
    keys: str
    """Its keyboard shortcuts, as JavaScript names them."""
    hint: str
    """The shortcut as shown on the page."""
    side: str = ""


def answers(assignment: Assignment) -> list[ShownAnswer]:
    """The completions in the order shown, named by letters; the models are not revealed."""
    item = assignment.item
    return [
        ShownAnswer(
            letter,
            render_markdown(item.completions[index]),
            tuple(render_markdown(s) for s in (item.steps[index] if item.steps else ())),
        )
        for letter, index in zip(string.ascii_uppercase, assignment.order, strict=False)
    ]


def buttons(k: int, strength: bool) -> list[Button]:
    """The verdicts on ``k`` completions."""
    if k == 1:
        return [Button("marks", "Send marks", "Enter", "Enter")]
    if k > 2:
        return [
            Button("rank", "Send ranking", "Enter", "Enter"),
            Button("bad", "All bad", "x", "x"),
        ]
    middle = [Button("tie", "Tie", "0 t", "0"), Button("bad", "Both bad", "x", "x")]
    if not strength:
        left = Button("0", "A is better", "1 ArrowLeft", "1 ←", "left")
        return [left, *middle, Button("1", "B is better", "2 ArrowRight", "2 →", "right")]
    left = [
        Button(f"0.{s}", f"A {STRENGTHS[s - 1]}", str(5 - s), str(5 - s), "left")
        for s in (4, 3, 2, 1)
    ]
    right = [
        Button(f"1.{s}", f"B {STRENGTHS[s - 1]}", str(4 + s), str(4 + s), "right")
        for s in (1, 2, 3, 4)
    ]
    return [*left, *middle, *right]


class Pages:
    """Pages of one labelling run."""

    def __init__(self, config: LabelConfig, rubric: Rubric, store: Store) -> None:
        self.config, self.rubric, self.store = config, rubric, store
        self.sampling = False
        """Whether completions are still being sampled."""

    def _render(self, name: str, visitor: Visitor, **values: object) -> str:
        return render(name, visitor=visitor, **{"status": "", **values})

    def _counts(self) -> dict[str, int]:
        done, needed = self.store.progress(len(self.config.people))
        return {"done": done, "needed": needed}

    def label(
        self, visitor: Visitor, assignment: Assignment | None, status: str = "", warn: str = ""
    ) -> str:
        """The question, or a page that says that there is none."""
        own = self.store.assignment_counts(visitor.name)
        common = {
            "status": status,
            "warn": warn,
            "own": own.get("done", 0) + own.get("skipped", 0),
            **self._counts(),
        }
        if assignment is None:
            open_count = self.store.assignment_counts().get("open", 0)
            return self._render(
                "rest", visitor, **common, open_count=open_count, sampling=self.sampling
            )
        k = len(assignment.item.completions)
        roles = [str(m.get("role")) for m in assignment.item.prompt]
        texts = [render_markdown(message_text(dict(m))) for m in assignment.item.prompt]
        return self._render(
            "label",
            visitor,
            **common,
            assignment=assignment,
            rubric=self.rubric,
            turns=[(_ROLES.get(role, role), role, t) for role, t in zip(roles, texts, strict=True)],
            answers=answers(assignment),
            buttons=buttons(k, self.config.strength),
            k=k,
        )

    def guidelines(self, visitor: Visitor) -> str:
        """The rubric in full, and the keyboard shortcuts."""
        return self._render(
            "guidelines",
            visitor,
            rubric=self.rubric,
            text=render_markdown(self.rubric.guidelines),
            config=self.config,
        )

    def progress(self, visitor: Visitor) -> str:
        """Progress: an annotator sees their own figures, the owner everyone's."""
        judgements = self.store.current()
        gold = self.store.gold()
        names = self.config.people if visitor.owner else (visitor.name,)
        return self._render(
            "progress",
            visitor,
            **self._counts(),
            sampling=self.sampling,
            people=[votes.person(n, judgements, gold) for n in names],
            agreement=votes.agreement(judgements) if visitor.owner else [],
            overlap=self.config.overlap,
        )

    def links(self, visitor: Visitor, links: list[tuple[str, str]]) -> str:
        """Everyone's invitation link."""
        return self._render("links", visitor, links=links)

    @staticmethod
    def closed(title: str, text: str) -> str:
        """An error page."""
        return render("closed", title=title, text=text)

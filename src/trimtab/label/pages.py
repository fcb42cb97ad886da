"""What the pages show, and their templates."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trimtab.feedback import votes
from trimtab.label.access import Visitor
from trimtab.label.label_config import LabelConfig, Rubric
from trimtab.label.markdown import laid_out
from trimtab.label.store import Assignment, Store

_HERE = Path(__file__).parent
STATIC = {
    "htmx.min.js": "text/javascript",
    "label.js": "text/javascript",
    "label.css": "text/css",
}
"""The only files that are served, by name."""
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


def render(name: str, **given: Any) -> str:
    """A template of this folder, everything escaped."""
    return _templates.get_template(f"{name}.jinja").render(given)


@dataclass(frozen=True, slots=True)
class Shown:
    """An answer on the page."""

    letter: str
    text: Markup
    steps: tuple[Markup, ...]


@dataclass(frozen=True, slots=True)
class Button:
    """A verdict to give."""

    value: str
    text: str
    keys: str
    """Keys of the keyboard that press it, as JavaScript names them."""
    hint: str
    """The key as a person reads it."""
    side: str = ""


def answers(place: Assignment) -> list[Shown]:
    """The answers in the order shown, under letters; who wrote them is not told."""
    found: list[Shown] = []
    for position, answer in enumerate(place.shown):
        steps = place.item.steps[answer] if place.item.steps is not None else ()
        text = laid_out(place.item.completions[answer])
        found.append(
            Shown(string.ascii_uppercase[position], text, tuple(laid_out(s) for s in steps))
        )
    return found


def buttons(k: int, strength: bool) -> list[Button]:
    """The verdicts on ``k`` answers."""
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
    """Pages of one labelling run.

    Args:
        config: What is asked.
        rubric: In which words.
        store: Of whom.
    """

    def __init__(self, config: LabelConfig, rubric: Rubric, store: Store) -> None:
        self.config, self.rubric, self.store = config, rubric, store
        self.coming = False
        """Answers are still being sampled."""

    def _common(self, visitor: Visitor, said: str) -> dict[str, Any]:
        return {"visitor": visitor, "said": said, "guided": bool(self.rubric.guidelines)}

    def label(
        self, visitor: Visitor, place: Assignment | None, said: str = "", warn: str = ""
    ) -> str:
        """The question, or that there is none."""
        places = self.store.assignment_counts(visitor.name)
        done, wanted = self.store.progress(len(self.config.people))
        common = {
            **self._common(visitor, said),
            "warn": warn,
            "mine": places.get("done", 0) + places.get("skipped", 0),
            "done": done,
            "wanted": wanted,
        }
        if place is None:
            held = self.store.assignment_counts().get("open", 0)
            return render("rest", **common, held=held, coming=self.coming)
        k = len(place.item.completions)
        turns = [
            (_ROLES.get(str(m.get("role")), str(m.get("role"))), str(m.get("role")),
             laid_out(str(m.get("content") or "")))
            for m in place.item.prompt
        ]  # fmt: skip
        return render(
            "label",
            **common,
            place=place,
            rubric=self.rubric,
            turns=turns,
            answers=answers(place),
            buttons=buttons(k, self.config.strength),
            k=k,
        )

    def guidelines(self, visitor: Visitor) -> str:
        """The rubric in full, and the keys."""
        return render(
            "guidelines",
            **self._common(visitor, ""),
            rubric=self.rubric,
            text=laid_out(self.rubric.guidelines),
            config=self.config,
        )

    def progress(self, visitor: Visitor) -> str:
        """How far it is: an annotator sees their own figures, the owner everyone's."""
        done, wanted = self.store.progress(len(self.config.people))
        judgements = self.store.current()
        gold = self.store.gold()
        names = self.config.people if visitor.owner else (visitor.name,)
        return render(
            "progress",
            **self._common(visitor, ""),
            done=done,
            wanted=wanted,
            coming=self.coming,
            people=[votes.person(n, judgements, gold) for n in names],
            agreement=votes.agreement(judgements) if visitor.owner else [],
            overlap=self.config.overlap,
        )

    def links(self, visitor: Visitor, links: list[tuple[str, str]]) -> str:
        """Everyone's invitation."""
        return render("links", **self._common(visitor, ""), links=links)

    @staticmethod
    def closed(title: str, text: str) -> str:
        """A page for someone who may not, or not so."""
        return render("closed", title=title, text=text)

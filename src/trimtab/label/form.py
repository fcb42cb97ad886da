"""What a form says, as a judgement."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from trimtab.feedback.items import dense
from trimtab.feedback.judgement import Judgement, Mark
from trimtab.label.label_config import Rubric
from trimtab.label.store import Assignment

Form = Mapping[str, str]
LONGEST = 5000
"""Characters of a reason."""
_MARKS: dict[str, Mark] = {"1": 1, "0": 0, "-1": -1}


def judgement(form: Form, place: Assignment, rubric: Rubric, now: float) -> Judgement:
    """The judgement of ``place`` that a form's fields say; positions are as shown.

    Fields: ``verdict`` ("0" or "1": the answer shown there is better, with ".2" for strength 2;
    "tie"; "bad"; "rank" with ``rank_P``; "marks"; "skip"), ``dim_D`` or ``dim_D_P`` by dimension,
    ``step_P_N``, ``reason``, ``flag``, ``seconds``.

    Raises:
        ValueError: in words for the annotator, what is missing or cannot be.
    """
    shown = place.shown
    said = form.get("verdict", "")
    better, _, strength = said.partition(".")
    ranks: tuple[int, ...] | None = None
    if said != "skip":
        ranks = _unshown(_overall(better, form, len(shown)), shown)
    reason = form.get("reason", "").strip()
    if len(reason) > LONGEST:
        raise ValueError(f"the reason has {len(reason)} characters; at most {LONGEST} are kept")
    given: dict[str, Any] = {}
    if ranks is not None:
        given["dimensions"] = _dimensions(form, rubric, shown)
        given["steps"] = _steps(form, place)
    if strength:
        if strength not in ("1", "2", "3", "4") or better not in ("0", "1"):
            raise ValueError("that is no strength")
        given["strength"] = int(strength)
    return Judgement(
        item=place.item.id,
        annotator=place.annotator,
        status="skip" if ranks is None else "ok",
        ranks=ranks,
        shown=shown,
        bad=said == "bad",
        flagged=form.get("flag") == "on",
        reason=reason,
        seconds=_seconds(form.get("seconds", ""), now - place.shown_at),
        at=datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        seed=place.seed,
        **given,
    )


def _overall(better: str, form: Form, k: int) -> tuple[int, ...]:
    """Ranks by position."""
    if better == "bad" or (better == "tie" and k == 2) or (better == "marks" and k == 1):
        return (0,) * k
    if better in ("0", "1") and k == 2:
        return (0, 1) if better == "0" else (1, 0)
    if better == "rank" and k > 2:
        found = _places(form, "rank", k)
        if found is None:
            raise ValueError("give every answer a place; equal places tie")
        return found
    raise ValueError("choose a verdict")


def _places(form: Form, name: str, k: int) -> tuple[int, ...] | None:
    """Places "1" to "k" of every position; None when one has none."""
    given = [form.get(f"{name}_{p}", "") for p in range(k)]
    if not all(given):
        return None
    known = [str(i) for i in range(1, k + 1)]
    if any(g not in known for g in given):
        raise ValueError(f"places are 1 to {k}")
    return dense([int(g) for g in given])


def _unshown(by_position: tuple[int, ...], shown: tuple[int, ...]) -> tuple[int, ...]:
    """By answer instead of by position.

    >>> _unshown((0, 1, 2), (2, 0, 1))
    (1, 2, 0)
    """
    found = [0] * len(shown)
    for position, answer in enumerate(shown):
        found[answer] = by_position[position]
    return tuple(found)


def _dimensions(form: Form, rubric: Rubric, shown: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    k = len(shown)
    found: dict[str, tuple[int, ...]] = {}
    for d, name in enumerate(rubric.dimensions):
        if k == 2:
            picked = form.get(f"dim_{d}", "")
            if picked and picked not in ("0", "1", "tie"):
                raise ValueError(f"that is no verdict on {name}")
            places = None if not picked else _overall(picked, form, 2)
        else:
            places = _places(form, f"dim_{d}", k) if k > 2 else None
        if places is not None:
            found[name] = _unshown(places, shown)
    return found


def _steps(form: Form, place: Assignment) -> dict[int, tuple[Mark | None, ...]]:
    found: dict[int, tuple[Mark | None, ...]] = {}
    if place.item.steps is None:
        return found
    for position, answer in enumerate(place.shown):
        count = len(place.item.steps[answer])
        given = [form.get(f"step_{position}_{n}", "") for n in range(count)]
        if any(g not in ("", *_MARKS) for g in given):
            raise ValueError("that is no mark of a step")
        if any(given):
            found[answer] = tuple(_MARKS.get(g) for g in given)
    return found


def _seconds(given: str, elapsed: float) -> float:
    """The page's own count of seconds in view, never more than have passed here."""
    elapsed = max(elapsed, 0.0)
    try:
        counted = float(given)
    except ValueError:
        return round(elapsed, 3)
    return round(min(max(counted, 0.0), elapsed), 3) if counted == counted else round(elapsed, 3)


def flat(value: object) -> dict[str, str]:
    """Fields of a parsed form, the last of each name."""
    return {k: v[-1] for k, v in cast("dict[str, list[str]]", value).items()}

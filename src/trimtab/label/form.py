"""The fields of a submitted form as a judgement."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from trimtab.feedback.judgement import Judgement, Mark
from trimtab.label.label_config import Rubric
from trimtab.label.store import Assignment
from trimtab.stats.ranking import dense_ranks

Form = Mapping[str, str]
MAX_REASON = 5000
"""Characters of a reason."""
_MARKS: dict[str, Mark] = {"1": 1, "0": 0, "-1": -1}


def judgement(form: Form, assignment: Assignment, rubric: Rubric, now: float) -> Judgement:
    """The judgement that a form's fields express; positions in the form are as shown.

    Args:
        form: ``verdict`` ("0" or "1": the completion shown there is better, with ".2" for strength
            2; "tie"; "bad"; "rank" with ``rank_P``; "marks"; "skip"), ``dim_D`` or ``dim_D_P`` by
            dimension, ``step_P_N``, ``reason``, ``flag``, ``seconds``.
        now: Seconds since the epoch.

    Raises:
        ValueError: in words for the annotator, what is missing or impossible.
    """
    order = assignment.order
    verdict = form.get("verdict", "")
    better, _, strength = verdict.partition(".")
    fields: dict[str, Any] = {}
    if verdict != "skip":
        fields["ranks"] = _by_completion(_overall(better, form, len(order)), order)
        fields["dimensions"] = _dimensions(form, rubric, order)
        fields["steps"] = _steps(form, assignment)
    if strength:
        if strength not in ("1", "2", "3", "4") or better not in ("0", "1"):
            raise ValueError("the strength must be 1 to 4, with A or B better")
        fields["strength"] = int(strength)
    reason = form.get("reason", "").strip()
    if len(reason) > MAX_REASON:
        raise ValueError(f"the reason has {len(reason)} characters; the limit is {MAX_REASON}")
    return Judgement(
        item=assignment.item.id,
        annotator=assignment.annotator,
        status="skip" if verdict == "skip" else "ok",
        order=order,
        bad=verdict == "bad",
        flagged=form.get("flag") == "on",
        reason=reason,
        seconds=_seconds(form.get("seconds", ""), now - assignment.shown_at),
        at=datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        seed=assignment.seed,
        **fields,
    )


def _overall(better: str, form: Form, k: int) -> tuple[int, ...]:
    """Ranks by position."""
    if better == "bad" or (better == "tie" and k == 2) or (better == "marks" and k == 1):
        return (0,) * k
    if better in ("0", "1") and k == 2:
        return (0, 1) if better == "0" else (1, 0)
    if better == "rank" and k > 2:
        ranks = _places(form, "rank", k)
        if ranks is None:
            raise ValueError("give every answer a place; equal places are a tie")
        return ranks
    raise ValueError("choose a verdict")


def _places(form: Form, name: str, k: int) -> tuple[int, ...] | None:
    """Ranks from the places "1" to "k" of every position; None when one is empty."""
    places = [form.get(f"{name}_{p}", "") for p in range(k)]
    if not all(places):
        return None
    if not set(places) <= {str(i) for i in range(1, k + 1)}:
        raise ValueError(f"places are 1 to {k}")
    return dense_ranks([int(place) for place in places])


def _by_completion(by_position: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """Reorder from the position on the page to the index of the completion.

    >>> _by_completion((0, 1, 2), (2, 0, 1))
    (1, 2, 0)
    """
    return tuple(by_position[order.index(k)] for k in range(len(order)))


def _dimensions(form: Form, rubric: Rubric, order: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    k = len(order)
    result: dict[str, tuple[int, ...]] = {}
    for d, name in enumerate(rubric.dimensions):
        if k == 2:
            choice = form.get(f"dim_{d}", "")
            if choice not in ("", "0", "1", "tie"):
                raise ValueError(f"choose A, B or tie for {name}")
            ranks = _overall(choice, form, 2) if choice else None
        else:
            ranks = _places(form, f"dim_{d}", k) if k > 2 else None
        if ranks is not None:
            result[name] = _by_completion(ranks, order)
    return result


def _steps(form: Form, assignment: Assignment) -> dict[int, tuple[Mark | None, ...]]:
    marks: dict[int, tuple[Mark | None, ...]] = {}
    if assignment.item.steps is None:
        return marks
    for position, index in enumerate(assignment.order):
        count = len(assignment.item.steps[index])
        values = [form.get(f"step_{position}_{n}", "") for n in range(count)]
        if any(v not in ("", *_MARKS) for v in values):
            raise ValueError("mark a step good, neutral or bad")
        if any(values):
            marks[index] = tuple(_MARKS.get(v) for v in values)
    return marks


def _seconds(field: str, elapsed: float) -> float:
    """The page's own count of seconds in view, at most the time that has passed on the server."""
    elapsed = max(elapsed, 0.0)
    try:
        counted = float(field)
    except ValueError:
        counted = elapsed
    return round(min(max(counted, 0.0), elapsed) if counted == counted else elapsed, 3)


def flat(fields: Mapping[str, list[str]]) -> dict[str, str]:
    """The last value of each field of a parsed form."""
    return {name: values[-1] for name, values in fields.items()}

"""How far an AI judge can be believed: calibration on people's labels, and what to check next."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.feedback.votes import FIRST, SECOND, TIE, Pair, Vote, majority
from trimtab.stats.calibrate import Calibrator, Platt, held_out, isotonic, platt
from trimtab.stats.label_audit import checks_needed, error_bound
from trimtab.stats.uncertainty import calibration_bins, ece

Floats = npt.NDArray[np.float64]
MIN_LABELS = 20
"""Fewer pairs that people judged too, and a judge is not calibrated."""


def people_say(by_unit: Mapping[Pair, Mapping[str, int]], people: set[str]) -> dict[Pair, int]:
    """The majority of people on each pair that any judged."""
    found = {
        u: majority([s for w, s in mine.items() if w in people]) for u, mine in by_unit.items()
    }
    return {u: said for u, said in found.items() if said is not None}


def probabilities(cast: Sequence[Vote], judge: str) -> dict[Pair, float]:
    """P(answer 0 is better) that the judge gave, mean over orders; pairs alone have one."""
    seen: dict[Pair, list[float]] = {}
    for v in cast:
        j = v.judgement
        if v.annotator == judge and j.prob is not None and len(j.ranks or ()) == 2:
            seen.setdefault(v.pair, []).append(j.prob)
    return {u: float(np.mean(p)) for u, p in seen.items()}


def calibration(
    probs: Mapping[Pair, float], truth: Mapping[Pair, int], seed: int
) -> tuple[dict[str, Any], Calibrator] | None:
    """ECE of the judge's probabilities against people, as given and as calibrated on other items.

    The better of Platt's line and isotonic regression by held-out log loss is returned, fitted on
    all. None with fewer than ``MIN_LABELS`` pairs.
    """
    units = [u for u in probs if u in truth]
    if len(units) < MIN_LABELS or len({u[0] for u in units}) < 5:
        return None
    p = np.array([probs[u] for u in units])
    y = np.array([{FIRST: 1.0, TIE: 0.5, SECOND: 0.0}[truth[u]] for u in units])
    items = [u[0] for u in units]
    after = {how: held_out(p, y, items, how, seed=seed) for how in ("platt", "isotonic")}
    loss = {how: _loss(q, y) for how, q in {"before": p, **after}.items()}
    best = min(after, key=lambda how: loss[how])
    fitted = platt(p, y) if best == "platt" else isotonic(p, y)
    return {
        "pairs": len(units),
        "method": best,
        "ece_before": ece(*_sure(p, y)),
        "ece_after": ece(*_sure(after[best], y)),
        "log_loss_before": loss["before"],
        "log_loss_after": loss[best],
        "bins_before": calibration_bins(*_sure(p, y), 10),
        "bins_after": calibration_bins(*_sure(after[best], y), 10),
        "fit": {"slope": fitted.slope, "shift": fitted.shift} if isinstance(fitted, Platt)
        else {"x": list(fitted.x), "y": list(fitted.y)},
    }, fitted  # fmt: skip


def _loss(q: Floats, y: Floats) -> float:
    q = np.clip(q, 1e-3, 1 - 1e-3)
    return float(-(y * np.log(q) + (1 - y) * np.log(1 - q)).mean())


def _sure(p: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Confidence in the answer it prefers, and whether that was right."""
    return np.maximum(p, 1 - p), np.where(p >= 0.5, y, 1 - y)


def plan(
    said: Mapping[Pair, int],
    truth: Mapping[Pair, int],
    doubt: Mapping[Pair, float],
    count: int,
    target: float,
    seed: int,
) -> dict[str, Any]:
    """What people have checked of a judge's labels, what it bounds, and which to check next.

    The bound holds when the checked pairs are a random draw. ``random`` goes on drawing at random
    (in an order that the seed fixes), for the bound; ``doubtful`` are those most likely wrong, for
    mending labels; checking these says nothing of the rest.

    Args:
        said: The judge's settled votes.
        truth: What people said of those they checked. Where people tie, nothing is wrong.
        doubt: P(the judge is wrong) of a pair, where known.
        count: How many to name of each.
        target: Error rate that the bound should come down to.
        seed: Of the random order.
    """
    checked = [u for u in said if u in truth and truth[u] != TIE]
    wrong = [u for u in checked if said[u] != truth[u]]
    open_ = [u for u in said if u not in truth]
    total = len(checked) + len(open_)
    needed = checks_needed(len(wrong), len(checked), total, target)
    drawn = sorted(open_, key=lambda u: hashlib.sha256(f"{seed}/{u}".encode()).digest())
    unsure = sorted((u for u in open_ if u in doubt), key=lambda u: -doubt[u])
    return {
        "labels": total,
        "checked": len(checked),
        "wrong": len(wrong),
        "rate": len(wrong) / len(checked) if checked else None,
        "bound": error_bound(len(wrong), len(checked), total),
        "target": target,
        "checks_to_target": needed,
        "random": [_named(u) for u in drawn[:count]],
        "doubtful": [_named(u) | {"doubt": doubt[u]} for u in unsure[:count]],
        "errors": [_named(u) for u in wrong[:count]],
    }


def _named(unit: Pair) -> dict[str, Any]:
    return {"item": unit[0], "answers": [unit[1], unit[2]]}


def doubts(
    said: Mapping[Pair, int],
    probs: Mapping[Pair, float],
    calibrator: Calibrator | None,
    posterior: Mapping[Pair, np.ndarray],
) -> dict[Pair, float]:
    """P(wrong) of a judge's votes: from its calibrated probability; else from what all annotators
    together say of the pair; else from its own probability as it is. A tie it gave is worth 1/2."""
    found: dict[Pair, float] = {}
    for unit, vote in said.items():
        if vote == TIE:
            found[unit] = 0.5
        elif unit in probs and (calibrator is not None or unit not in posterior):
            p = float(calibrator(probs[unit])) if calibrator is not None else probs[unit]
            found[unit] = 1 - p if vote == FIRST else p
        elif unit in posterior:
            found[unit] = 1 - float(posterior[unit][vote])
    return found

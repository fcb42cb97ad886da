"""How far an AI judge can be trusted: calibration on people's labels, and what to check next."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from trimtab.evaluate.agreement_result import AuditPlan, JudgeCalibration, PairRef
from trimtab.feedback.votes import FIRST, TIE, Choices, Pair, Vote, majority
from trimtab.stats.calibrate import (
    Method,
    Platt,
    ProbabilityCalibrator,
    assign_folds,
    cross_fit,
    fit_probabilities,
    quality,
)
from trimtab.stats.label_audit import checks_needed, error_bound
from trimtab.stats.uncertainty import calibration_bins, ece

Floats = npt.NDArray[np.float64]
MIN_LABELS = 20
"""A judge is calibrated only with at least this many pairs that people judged too."""


def people_majority(choices: Choices, people: set[str]) -> dict[Pair, int]:
    """The majority choice of people on each pair that any of them judged."""
    by_pair = {
        pair: majority([choice for name, choice in by_name.items() if name in people])
        for pair, by_name in choices.items()
    }
    return {pair: choice for pair, choice in by_pair.items() if choice is not None}


def probabilities(cast: Sequence[Vote], judge: str) -> dict[Pair, float]:
    """The judge's P(first completion is better), mean over orders; only for items of two."""
    probs: dict[Pair, list[float]] = {}
    for v in cast:
        j = v.judgement
        if v.annotator == judge and j.prob is not None and len(j.ranks or ()) == 2:
            probs.setdefault(v.pair, []).append(j.prob)
    return {pair: float(np.mean(p)) for pair, p in probs.items()}


def calibration(
    probs: Mapping[Pair, float], truth: Mapping[Pair, int], seed: int
) -> tuple[JudgeCalibration, ProbabilityCalibrator] | None:
    """Calibration error of a judge against people, as given and calibrated on other items.

    The calibrator is Platt's or isotonic regression, whichever has the lower held-out log loss,
    fitted on all labels. None with fewer than ``MIN_LABELS`` pairs.
    """
    pairs = [pair for pair in probs if pair in truth]
    if len(pairs) < MIN_LABELS or len({pair[0] for pair in pairs}) < 5:
        return None
    p = np.array([probs[pair] for pair in pairs])
    y = np.array([1.0 - truth[pair] / 2 for pair in pairs])  # FIRST, TIE, SECOND: 1, 0.5, 0
    items = [pair[0] for pair in pairs]
    methods: tuple[Method, ...] = ("platt", "isotonic")
    fold = assign_folds(items, 5, seed)
    after = {m: cross_fit(partial(fit_probabilities, m), p, y, fold) for m in methods}
    loss = {m: quality(q, y).log_loss for m, q in {"before": p, **after}.items()}
    best = min(methods, key=lambda m: loss[m])
    calibrator = fit_probabilities(best, p, y)
    fit = calibrator.fit
    result = JudgeCalibration(
        pairs=len(pairs),
        method=best,
        ece_before=ece(*_confidence(p, y)),
        ece_after=ece(*_confidence(after[best], y)),
        log_loss_before=loss["before"],
        log_loss_after=loss[best],
        bins_before=calibration_bins(*_confidence(p, y), 10),
        bins_after=calibration_bins(*_confidence(after[best], y), 10),
        fit=dict(zip(("slope", "shift"), fit.weights, strict=True))
        if isinstance(fit, Platt)
        else {"x": list(fit.x), "y": list(fit.y)},
    )
    return result, calibrator


def _confidence(p: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Confidence in the preferred completion, and whether people preferred it."""
    return np.maximum(p, 1 - p), np.where(p >= 0.5, y, 1 - y)


def plan(
    choices: Mapping[Pair, int],
    truth: Mapping[Pair, int],
    doubt: Mapping[Pair, float],
    count: int,
    target: float,
    seed: int,
) -> AuditPlan:
    """What people checked of a judge's labels, the bound that follows, and what to check next.

    The bound is valid if the checked pairs are a random sample.

    Args:
        choices: The judge's choice on each pair.
        truth: The majority of people on the pairs that they checked. Where people tie, no choice
            is wrong.
        doubt: P(the judge is wrong) on a pair, where known.
        count: Number of pairs to list of each kind.
        target: Error rate that the bound should reach.
        seed: Of the random order of unchecked pairs.
    """
    checked = [pair for pair in choices if pair in truth and truth[pair] != TIE]
    wrong = [pair for pair in checked if choices[pair] != truth[pair]]
    unchecked = [pair for pair in choices if pair not in truth]
    total = len(checked) + len(unchecked)
    shuffled = sorted(unchecked, key=lambda u: hashlib.sha256(f"{seed}/{u}".encode()).digest())
    doubtful = sorted((pair for pair in unchecked if pair in doubt), key=lambda u: -doubt[u])
    return AuditPlan(
        labels=total,
        checked=len(checked),
        wrong=len(wrong),
        rate=len(wrong) / len(checked) if checked else None,
        bound=error_bound(len(wrong), len(checked), total),
        target=target,
        checks_to_target=checks_needed(len(wrong), len(checked), total, target),
        random=[PairRef(item, (a, b)) for item, a, b in shuffled[:count]],
        doubtful=[PairRef(p[0], (p[1], p[2]), doubt[p]) for p in doubtful[:count]],
        errors=[PairRef(item, (a, b)) for item, a, b in wrong[:count]],
    )


def doubts(
    choices: Mapping[Pair, int],
    probs: Mapping[Pair, float],
    calibrator: ProbabilityCalibrator | None,
    posterior: Mapping[Pair, Floats],
) -> dict[Pair, float]:
    """P(wrong) of a judge's choices.

    From its calibrated probability; else from the posterior over all annotators; else from its raw
    probability. A tie counts 1/2.
    """
    doubt: dict[Pair, float] = {}
    for pair, choice in choices.items():
        if choice == TIE:
            doubt[pair] = 0.5
        elif pair in probs and (calibrator is not None or pair not in posterior):
            p = float(calibrator(probs[pair])) if calibrator is not None else probs[pair]
            doubt[pair] = 1 - p if choice == FIRST else p
        elif pair in posterior:
            doubt[pair] = 1 - float(posterior[pair][choice])
    return doubt

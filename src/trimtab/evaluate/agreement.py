"""``trimtab agreement``: how far annotators agree, how good and how biased each is, what to check."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from trimtab.config import Config
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate import bias, judge_audit, quality
from trimtab.evaluate.standing import strengths
from trimtab.exchange import convert
from trimtab.feedback import records as files
from trimtab.feedback.judgement import Judgement
from trimtab.feedback.records import Records
from trimtab.feedback.votes import Pair, gold_gaps, sum_by_item, vote_counts, votes, votes_by_pair
from trimtab.runs import write_atomic
from trimtab.runs.console import console
from trimtab.stats import reliability as stats
from trimtab.stats.calibrate import Calibrator
from trimtab.stats.uncertainty import bootstrap_sums, draws


class AuditSpec(Config):
    """What to check next of each AI judge's labels."""

    count: int = Field(default=20, gt=0)
    """How many to name."""
    target: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Error rate that checking should bound."""


class AgreementConfig(Config):
    """Configuration of ``trimtab agreement FILES``."""

    files: tuple[str, ...] = Field(min_length=1)
    """Items and judgements, in one file or several, or any format that ``trimtab exchange``
    reads."""
    html: str | None = None
    """Write a page here."""
    json_: str | None = Field(default=None, alias="json")
    """Write every figure here."""
    dimension: str | None = None
    """Use the verdicts on one rubric ("helpful") in place of the overall ones."""
    patterns: dict[str, tuple[str, ...]] = Field(default_factory=lambda: dict(bias.PATTERNS))
    """Biases sought beside position and length: name, and regular expressions of texts that have
    it."""
    audit: AuditSpec = AuditSpec()
    calibrated: str | None = None
    """Write the judges' judgements here with calibrated probabilities."""
    draws: int = Field(default=1000, ge=100)
    """Bootstrap samples of items."""
    seed: int = 0


def _estimate(found: tuple[float, float, float], **more: Any) -> dict[str, Any] | None:
    value, low, high = found
    if not np.isfinite(value):
        return None
    finite = np.isfinite(low) and np.isfinite(high)
    return {
        "value": value,
        "low": low if finite else None,
        "high": high if finite else None,
        **more,
    }


def together(
    by_unit: Mapping[Pair, Mapping[str, int]], names: set[str], n: int, seed: int
) -> dict[str, Any]:
    """Percent agreement, Krippendorff's alpha and Fleiss' kappa of a group, intervals by item."""
    units, table = vote_counts(by_unit, names)
    if not units:
        return {"units": 0}
    pairs = sum_by_item(units, stats.coincidences(table))
    flat = pairs.reshape(len(pairs), -1)

    def over(figure: Any) -> tuple[float, float, float]:
        return bootstrap_sums(flat, lambda s: figure(s.reshape(*s.shape[:-1], 3, 3)), n, seed)

    sizes = table.sum(1)
    usual = int(np.bincount(sizes.astype(int)).argmax())
    alike = sizes == usual
    same = [u for u, keep in zip(units, alike, strict=True) if keep]
    fleiss = sum_by_item(same, stats.fleiss_parts(table[alike]))
    return {
        "units": len(units),
        "items": len(pairs),
        "percent": _estimate(over(stats.percent_agreement)),
        "alpha": _estimate(over(stats.alpha_of)),
        "fleiss": _estimate(
            bootstrap_sums(fleiss, stats.fleiss_of, n, seed), raters=usual, units=len(same)
        ),
    }


def kappas(
    by_unit: Mapping[Pair, Mapping[str, int]],
    groups: Mapping[str, set[str]],
    n: int,
    seed: int,
) -> dict[str, Any]:
    """Cohen's kappa of every two annotators who share pairs, and its mean, weighted by pairs
    shared, between people, between judges and across, with intervals by item."""
    items = {name: i for i, name in enumerate(dict.fromkeys(u[0] for u in by_unit))}
    tables: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for unit, mine in by_unit.items():
        for a, b in itertools.combinations(sorted(mine), 2):
            tables.setdefault((a, b), []).append((items[unit[0]], 3 * mine[a] + mine[b]))
    weight = draws(len(items), n, seed) if items else np.zeros((0, 0))
    rows: list[dict[str, Any]] = []
    drawn: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    kind = {name: group for group, names in groups.items() for name in names}
    for (a, b), cells in tables.items():
        who, cell = (np.array(c) for c in zip(*cells, strict=True))
        table = np.bincount(cell, minlength=9).reshape(3, 3)
        value = float(stats.cohen_kappa(table))
        parts = np.zeros((len(who), 9))
        parts[np.arange(len(who)), cell] = 1.0
        sums = weight[:, who] @ parts
        each = stats.cohen_kappa(sums.reshape(-1, 3, 3))
        known = each[np.isfinite(each)]
        low, high = np.quantile(known, [0.025, 0.975]) if known.size else (np.nan, np.nan)
        name = "-".join(sorted((kind[a], kind[b])))
        rows.append(
            {"a": a, "b": b, "units": len(who), "kind": name}
            | {"kappa": _estimate((value, float(low), float(high)))}
        )
        drawn.setdefault(name, []).append((each, sums.sum(1)))
    means: dict[str, Any] = {}
    for name, mine in drawn.items():
        told = [r for r in rows if r["kind"] == name and r["kappa"] is not None]
        if not told:
            continue
        share = np.array([r["units"] for r in told], float)
        value = float(np.average([r["kappa"]["value"] for r in told], weights=share))
        each = np.array([e for e, _ in mine])
        size = np.where(np.isfinite(each), np.array([s for _, s in mine]), 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (np.nan_to_num(each) * size).sum(0) / size.sum(0)
        mean = mean[np.isfinite(mean)]
        low, high = np.quantile(mean, [0.025, 0.975]) if mean.size else (np.nan, np.nan)
        means[name] = _estimate((value, float(low), float(high)), pairs=len(told))
    return {"means": means, "pairs": sorted(rows, key=lambda r: -r["units"])}


def score_alpha(judgements: Sequence[Judgement], n: int, seed: int) -> dict[str, Any]:
    """Alpha for numbers (interval level) of absolute scores, rubric by rubric."""
    said: dict[str, dict[tuple[str, int], dict[str, float]]] = {}
    for j in judgements:
        if j.status == "ok" and j.who != "gold" and j.kind != "repeat":
            for rubric, given in j.scores.items():
                for k, value in enumerate(given):
                    said.setdefault(rubric, {}).setdefault((j.item, k), {})[j.annotator] = value
    out: dict[str, Any] = {}
    for rubric, by_answer in said.items():
        values = sorted({v for mine in by_answer.values() for v in mine.values()})
        many = {u: list(mine.values()) for u, mine in by_answer.items() if len(mine) >= 2}
        if not many or len(values) < 2:
            continue
        if len(values) > 60:  # a table of all pairs of values would be large: round to 50 steps
            edges = np.linspace(values[0], values[-1], 51)
            values = edges.tolist()
            many = {
                u: [values[int(np.abs(edges - v).argmin())] for v in vs] for u, vs in many.items()
            }
        place = {v: i for i, v in enumerate(values)}
        table = np.array(
            [np.bincount([place[v] for v in vs], minlength=len(values)) for vs in many.values()],
            float,
        )
        owners: list[Pair] = [(item, k, k) for item, k in many]
        flat = sum_by_item(owners, stats.coincidences(table)).reshape(-1, len(values) ** 2)
        size = len(values)
        found = bootstrap_sums(
            flat, lambda s, v=values, c=size: stats.alpha_of(s.reshape(*s.shape[:-1], c, c), "interval", v),
            min(n, 400), seed,
        )  # fmt: skip
        out[rubric] = _estimate(found, answers=len(many))
    return out


def _who(standing: Sequence[Judgement]) -> dict[str, str]:
    """annotator -> "person", "judge" or "gold"."""
    kinds = {"human": "person", "simulated": "person", "ai": "judge", "gold": "gold"}
    found: dict[str, str] = {}
    for j in standing:
        kind = found.setdefault(j.annotator, kinds[j.who])
        if kind != kinds[j.who]:
            raise DataError(
                f"annotator {j.annotator!r} is {kind} in one judgement and {kinds[j.who]} in another; "
                "give each its own name"
            )
    return found


def measure(
    records: Records, config: AgreementConfig
) -> tuple[dict[str, Any], dict[str, Calibrator]]:
    """Every figure, as it stands in the JSON, and the calibrator of each judge that has one."""
    standing = records.current()
    who = _who(standing)
    cast = votes(standing, config.dimension)
    if not cast:
        raise DataError(
            "no judgement says anything"
            + (f" of dimension {config.dimension!r}" if config.dimension else "")
            + "; all are skipped, failed or of one answer"
        )
    by_unit = votes_by_pair(v for v in cast if v.judgement.who != "gold")
    gold = gold_gaps(records)
    people = {a for a, kind in who.items() if kind == "person"}
    judges = {a for a, kind in who.items() if kind == "judge"}
    names = sorted(people) + sorted(judges)
    n, seed = config.draws, config.seed
    right, posterior = quality.accuracies(by_unit, names, min(n, 200), seed)
    others = quality.against_others(cast, by_unit, people)
    known = quality.against_gold(by_unit, gold, names)
    steady, swapped = quality.steadiness(cast), quality.swaps(cast)
    loops = quality.cycles(records, cast, names)
    swayed = bias.biases(records, cast, gold, config.patterns)
    shape = bias.shapes(records, config.patterns)
    annotators: dict[str, Any] = {}
    for name in names:
        mine = [j for j in standing if j.annotator == name]
        said = [v for v in cast if v.annotator == name]
        seconds = [j.seconds for j in mine if j.seconds is not None]
        seen = others.get(name, [])
        annotators[name] = {
            "who": who[name],
            "judgements": len(mine),
            "skipped": sum(j.status == "skip" for j in mine),
            "failed": sum(j.status == "error" for j in mine),
            "flagged": sum(j.flagged for j in mine),
            "ties": float(np.mean([v.choice == 1 for v in said])) if said else None,
            "seconds": float(np.median(seconds)) if seconds else None,
            "accuracy": right.get(name),
            "with_people": quality.share([r for _, r in seen]),
            "gold": known.get(name),
            "steady": steady.get(name),
            "orders": swapped.get(name),
            "drift": quality.drift(seen),
            "cycles": loops["by"].get(name),
            "bias": swayed.get(name, {}),
            "rates": bias.rates(records, said, shape, list(config.patterns)),
        }
    drifts = [m["drift"] for m in annotators.values() if m["drift"]]
    for one in drifts:
        one["found"] = one["p"] < bias.FAMILY / len(drifts)
    truth = judge_audit.people_say(by_unit, people)
    told: dict[str, Any] = {}
    calibrators: dict[str, Calibrator] = {}
    for name in sorted(judges):
        probs = judge_audit.probabilities(cast, name) if config.dimension is None else {}
        said_by = {u: mine[name] for u, mine in by_unit.items() if name in mine}
        fitted = judge_audit.calibration(probs, truth, seed)
        if fitted is not None:
            calibrators[name] = fitted[1]
        doubt = judge_audit.doubts(said_by, probs, calibrators.get(name), posterior)
        told[name] = {
            "calibration": fitted[0] if fitted is not None else None,
            "audit": judge_audit.plan(
                said_by, truth, doubt, config.audit.count, config.audit.target, seed
            ),
        }
    dimensions = sorted({d for j in standing for d in j.dimensions if j.status == "ok"})
    groups = {"person": people, "judge": judges}
    return {
        "data": {
            "items": len(records.items), "judgements": len(standing), "people": len(people),
            "judges": len(judges), "pairs": len(by_unit), "gold": len(gold),
            "replaced": len(records.judgements) - len(standing), "dimension": config.dimension,
        },
        "agreement": {
            "all": together(by_unit, people | judges, n, seed),
            "people": together(by_unit, people, n, seed),
            "judges": together(by_unit, judges, n, seed),
        },
        "kappa": kappas(by_unit, groups, n, seed),
        "dimensions": {
            d: together(votes_by_pair(v for v in votes(standing, d) if v.judgement.who != "gold"),
                        people | judges, n, seed)
            for d in dimensions
        },
        "scores": score_alpha(standing, n, seed),
        "annotators": annotators,
        "contradictions": {"all": loops["by"].get(""), "items": loops["items"]},
        "strengths": strengths(records, cast, n, seed),
        "judges": told,
    }, calibrators  # fmt: skip


def recalibrated(
    standing: Sequence[Judgement], calibrators: Mapping[str, Calibrator]
) -> list[Judgement]:
    """The judges' judgements with calibrated probabilities; the given one stays in ``detail``."""
    out: list[Judgement] = []
    for j in standing:
        fit = calibrators.get(j.annotator)
        if fit is not None and j.prob is not None:
            detail = {**j.detail, "prob_given": j.prob}
            out.append(j.model_copy(update={"prob": float(fit(j.prob)), "detail": detail}))
    return out


def main(config: AgreementConfig) -> dict[str, Any]:
    """Read, measure, print a table; write the page and the JSON where asked."""
    from trimtab.evaluate import agreement_page

    records = convert.read(config.files)
    if not records.judgements:
        raise ConfigError(f"{', '.join(config.files)}: items alone; give the judgements too")
    found, calibrators = measure(records, config)
    agreement_page.show(found)
    if config.json_:
        write_atomic(Path(config.json_), json.dumps(found, indent=1, ensure_ascii=False).encode())
        console.print(f"every figure -> {config.json_}")
    if config.html:
        write_atomic(Path(config.html), agreement_page.page(found, records).encode())
        console.print(f"page -> {config.html}")
    if config.calibrated:
        if not calibrators:
            raise ConfigError(
                "calibrated: no judge gave probabilities on at least "
                f"{judge_audit.MIN_LABELS} pairs that people judged too"
            )
        better = recalibrated(records.current(), calibrators)
        write_atomic(Path(config.calibrated), files.to_jsonl(better))
        console.print(f"{len(better)} calibrated judgements -> {config.calibrated}")
    return found

"""``trimtab agreement``: agreement, quality and biases of annotators, and what to check next."""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from trimtab.config import Config
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate import bias, judge_audit, quality
from trimtab.evaluate.agreement_result import (
    AgreementResult,
    AnnotatorResult,
    Contradictions,
    Counts,
    Cycles,
    Figure,
    FleissKappa,
    GroupAgreement,
    JudgeResult,
    Kappas,
    MeanKappa,
    PairKappa,
    ScoreAlpha,
    Share,
    figure,
)
from trimtab.evaluate.standing import strengths
from trimtab.exchange import convert
from trimtab.feedback import records as files
from trimtab.feedback.judgement import Judgement
from trimtab.feedback.records import Records
from trimtab.feedback.votes import (
    TIE,
    Choices,
    Pair,
    Vote,
    gold_gaps,
    sum_by_item,
    vote_counts,
    votes,
    votes_by_pair,
)
from trimtab.runs import to_json, write_atomic
from trimtab.stats import reliability
from trimtab.stats.calibrate import ProbabilityCalibrator
from trimtab.stats.uncertainty import Estimate, bootstrap_sums, draws

log = logging.getLogger(__name__)
Floats = npt.NDArray[np.float64]


class AuditSpec(Config):
    """Which labels of each AI judge to check next."""

    count: int = Field(default=20, gt=0)
    """Number of pairs to list."""
    target: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Error rate that the bound should reach."""


class AgreementConfig(Config):
    """Configuration of ``trimtab agreement FILES``."""

    files: tuple[str, ...] = Field(min_length=1)
    """Items and judgements, in one file or several, or any format that ``trimtab exchange``
    reads."""
    output_files: ClassVar[frozenset[str]] = frozenset({"html", "json_", "calibrated"})

    html: str | None = None
    """Write a page here."""
    json_: str | None = Field(default=None, alias="json")
    """Write every figure here."""
    dimension: str | None = None
    """Use the verdicts on one rubric ("helpful") instead of the overall ones."""
    patterns: dict[str, tuple[str, ...]] = Field(default_factory=lambda: dict(bias.PATTERNS))
    """Biases to test for besides position and length: regular expressions by name. A completion
    has the property where one of them matches."""
    audit: AuditSpec = AuditSpec()
    calibrated: str | None = None
    """Write the judges' judgements here with calibrated probabilities."""
    draws: int = Field(default=1000, ge=100)
    """Bootstrap samples of items."""
    seed: int = 0


def group_agreement(choices: Choices, names: set[str], n: int, seed: int) -> GroupAgreement:
    """Percent agreement, Krippendorff's alpha and Fleiss' kappa of a group; intervals by item."""
    pairs, counts_U3 = vote_counts(choices, names)
    if not pairs:
        return GroupAgreement(0)
    by_item = sum_by_item(pairs, reliability.coincidences(counts_U3))
    flat = by_item.reshape(len(by_item), -1)

    def bootstrap(statistic: Callable[[Floats], Floats]) -> Estimate:
        return bootstrap_sums(flat, lambda s: statistic(s.reshape(*s.shape[:-1], 3, 3)), n, seed)

    # Fleiss' kappa needs equally many labels per pair: the most common number is used.
    raters_U = counts_U3.sum(1)
    raters = int(np.bincount(raters_U.astype(int)).argmax())
    with_raters = [p for p, count in zip(pairs, raters_U, strict=True) if count == raters]
    parts = sum_by_item(with_raters, reliability.fleiss_parts(counts_U3[raters_U == raters]))
    fleiss = bootstrap_sums(parts, reliability.fleiss_of, n, seed)
    return GroupAgreement(
        units=len(pairs),
        items=len(by_item),
        percent=figure(Figure, bootstrap(reliability.percent_agreement)),
        alpha=figure(Figure, bootstrap(reliability.alpha_of)),
        fleiss=figure(FleissKappa, fleiss, raters=raters, units=len(with_raters)),
    )


def kappas(choices: Choices, groups: Mapping[str, set[str]], n: int, seed: int) -> Kappas:
    """Cohen's kappa of every two annotators who share pairs, and its means within and between
    ``groups``, weighted by the pairs shared; intervals by item."""
    item_ids = {name: i for i, name in enumerate(dict.fromkeys(p[0] for p in choices))}
    tables: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for pair, by_name in choices.items():
        for a, b in itertools.combinations(sorted(by_name), 2):
            cell = 3 * by_name[a] + by_name[b]
            tables.setdefault((a, b), []).append((item_ids[pair[0]], cell))
    weight = draws(len(item_ids), n, seed) if item_ids else np.zeros((0, 0))
    rows: list[PairKappa] = []
    resampled: dict[str, list[tuple[Floats, Floats]]] = {}
    group_of = {name: group for group, names in groups.items() for name in names}
    for (a, b), cells in tables.items():
        item_N, cell_N = (np.array(c) for c in zip(*cells, strict=True))
        table = np.bincount(cell_N, minlength=9).reshape(3, 3)
        parts = np.zeros((len(item_N), 9))
        parts[np.arange(len(item_N)), cell_N] = 1.0
        sums = weight[:, item_N] @ parts
        kappa_B = reliability.cohen_kappa(sums.reshape(-1, 3, 3))
        estimate = _estimate(float(reliability.cohen_kappa(table)), kappa_B)
        kind = "-".join(sorted((group_of[a], group_of[b])))
        rows.append(PairKappa(a, b, len(item_N), kind, figure(Figure, estimate)))
        resampled.setdefault(kind, []).append((kappa_B, sums.sum(1)))
    means: dict[str, MeanKappa | None] = {}
    for kind, samples in resampled.items():
        defined = [(r.kappa.value, r.units) for r in rows if r.kind == kind and r.kappa]
        if not defined:
            continue
        values, shared = zip(*defined, strict=True)
        value = float(np.average(values, weights=np.array(shared, float)))
        kappa_KB = np.array([k for k, _ in samples])
        size_KB = np.where(np.isfinite(kappa_KB), np.array([s for _, s in samples]), 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_B = (np.nan_to_num(kappa_KB) * size_KB).sum(0) / size_KB.sum(0)
        means[kind] = figure(MeanKappa, _estimate(value, mean_B), pairs=len(defined))
    return Kappas(means, sorted(rows, key=lambda r: -r.units))


def _estimate(value: float, draws_B: Floats) -> Estimate:
    """With the 95 % percentile interval of the finite draws."""
    finite = draws_B[np.isfinite(draws_B)]
    low, high = np.quantile(finite, [0.025, 0.975]) if finite.size else (np.nan, np.nan)
    return Estimate(value, float(low), float(high))


def score_alpha(judgements: Sequence[Judgement], n: int, seed: int) -> dict[str, ScoreAlpha | None]:
    """Krippendorff's alpha (interval level) of absolute scores, by rubric."""
    by_rubric: dict[str, dict[tuple[str, int], dict[str, float]]] = {}
    for j in judgements:
        if j.status == "ok" and j.who != "gold" and j.kind != "repeat":
            for rubric, scores in j.scores.items():
                for k, score in enumerate(scores):
                    completions = by_rubric.setdefault(rubric, {})
                    completions.setdefault((j.item, k), {})[j.annotator] = score
    alphas: dict[str, ScoreAlpha | None] = {}
    for rubric, completions in by_rubric.items():
        values = sorted({v for by_name in completions.values() for v in by_name.values()})
        shared = {
            c: list(by_name.values()) for c, by_name in completions.items() if len(by_name) > 1
        }
        if not shared or len(values) < 2:
            continue
        if len(values) > 60:  # the table of all pairs of values would be large: round to 50 steps
            edges = np.linspace(values[0], values[-1], 51)
            values = edges.tolist()
            shared = {
                c: [values[int(np.abs(edges - v).argmin())] for v in vs] for c, vs in shared.items()
            }
        size = len(values)
        index = {v: i for i, v in enumerate(values)}
        table = np.array(
            [np.bincount([index[v] for v in vs], minlength=size) for vs in shared.values()], float
        )
        owners: list[Pair] = [(item, k, k) for item, k in shared]
        flat = sum_by_item(owners, reliability.coincidences(table)).reshape(-1, size**2)

        def alpha(sums: Floats, values: list[float] = values, size: int = size) -> Floats:
            table = sums.reshape(*sums.shape[:-1], size, size)
            return reliability.alpha_of(table, "interval", values)

        estimate = bootstrap_sums(flat, alpha, min(n, 400), seed)
        alphas[rubric] = figure(ScoreAlpha, estimate, answers=len(shared))
    return alphas


def _annotator_kinds(judgements: Sequence[Judgement]) -> dict[str, str]:
    """annotator -> "person", "judge" or "gold"."""
    kind_of = {"human": "person", "simulated": "person", "ai": "judge", "gold": "gold"}
    kinds: dict[str, str] = {}
    for j in judgements:
        kind = kinds.setdefault(j.annotator, kind_of[j.who])
        if kind != kind_of[j.who]:
            raise DataError(
                f"annotator {j.annotator!r} is {kind} in one judgement and {kind_of[j.who]} in "
                "another; give each its own name"
            )
    return kinds


def measure(
    records: Records, config: AgreementConfig
) -> tuple[AgreementResult, dict[str, ProbabilityCalibrator]]:
    """Every figure, and the calibrator of each judge that has one.

    Raises:
        DataError: no judgement has a verdict, or one name is both a person and a judge.
    """
    current = records.current()
    who = _annotator_kinds(current)
    cast = votes(current, config.dimension)
    if not cast:
        raise DataError(
            "no judgement says anything"
            + (f" of dimension {config.dimension!r}" if config.dimension else "")
            + ": all are skipped, failed or of one completion; give judgements with ranks"
        )
    choices = votes_by_pair(v for v in cast if v.judgement.who != "gold")
    gold = gold_gaps(records)
    people = {a for a, kind in who.items() if kind == "person"}
    judges = {a for a, kind in who.items() if kind == "judge"}
    n, seed = config.draws, config.seed
    cycles = quality.cycles(records, cast, sorted(people) + sorted(judges))
    annotators, posterior = _annotators(records, config, cast, choices, gold, who, cycles.by_name)
    truth = judge_audit.people_majority(choices, people)
    judge_results: dict[str, JudgeResult] = {}
    calibrators: dict[str, ProbabilityCalibrator] = {}
    for name in sorted(judges):
        probs = judge_audit.probabilities(cast, name) if config.dimension is None else {}
        own_choices = {pair: by_name[name] for pair, by_name in choices.items() if name in by_name}
        fit = judge_audit.calibration(probs, truth, seed)
        if fit is not None:
            calibrators[name] = fit[1]
        doubt = judge_audit.doubts(own_choices, probs, calibrators.get(name), posterior)
        plan = judge_audit.plan(
            own_choices, truth, doubt, config.audit.count, config.audit.target, seed
        )
        judge_results[name] = JudgeResult(fit[0] if fit is not None else None, plan)
    dimensions: dict[str, GroupAgreement] = {}
    for d in sorted({d for j in current for d in j.dimensions if j.status == "ok"}):
        on_rubric = votes_by_pair(v for v in votes(current, d) if v.judgement.who != "gold")
        dimensions[d] = group_agreement(on_rubric, people | judges, n, seed)
    result = AgreementResult(
        data=Counts(
            items=len(records.items),
            judgements=len(current),
            people=len(people),
            judges=len(judges),
            pairs=len(choices),
            gold=len(gold),
            replaced=len(records.judgements) - len(current),
            dimension=config.dimension,
        ),
        agreement={
            "all": group_agreement(choices, people | judges, n, seed),
            "people": group_agreement(choices, people, n, seed),
            "judges": group_agreement(choices, judges, n, seed),
        },
        kappa=kappas(choices, {"person": people, "judge": judges}, n, seed),
        dimensions=dimensions,
        scores=score_alpha(current, n, seed),
        annotators=annotators,
        contradictions=Contradictions(cycles.by_name.get(""), cycles.items),
        strengths=strengths(records, cast, n, seed),
        judges=judge_results,
    )
    return result, calibrators


def _annotators(
    records: Records,
    config: AgreementConfig,
    cast: Sequence[Vote],
    choices: Choices,
    gold: Mapping[Pair, float],
    who: Mapping[str, str],
    cycles: Mapping[str, Cycles],
) -> tuple[dict[str, AnnotatorResult], dict[Pair, Floats]]:
    """Figures of each person and judge, and P(class) of each pair (``quality.accuracies``)."""
    people = sorted(a for a, kind in who.items() if kind == "person")
    names = people + sorted(a for a, kind in who.items() if kind == "judge")
    accuracy, posterior = quality.accuracies(choices, names, min(config.draws, 200), config.seed)
    with_others = quality.against_others(cast, choices, set(people))
    with_gold = quality.against_gold(choices, gold, names)
    repeats, both_orders = quality.steadiness(cast), quality.both_orders(cast)
    biases = bias.biases(records, cast, gold, config.patterns)
    shapes = bias.shapes(records, config.patterns)
    drifts = {name: quality.drift(with_others.get(name, [])) for name in names}
    tests = sum(d is not None for d in drifts.values())
    results: dict[str, AnnotatorResult] = {}
    current = records.current()
    for name in names:
        judgements = [j for j in current if j.annotator == name]
        own_votes = [v for v in cast if v.annotator == name]
        seconds = [j.seconds for j in judgements if j.seconds is not None]
        drift = drifts[name]
        if drift is not None:
            drift = replace(drift, significant=drift.p < bias.FAMILY / tests)
        results[name] = AnnotatorResult(
            who=who[name],
            judgements=len(judgements),
            skipped=sum(j.status == "skip" for j in judgements),
            failed=sum(j.status == "error" for j in judgements),
            flagged=sum(j.flagged for j in judgements),
            ties=float(np.mean([v.choice == TIE for v in own_votes])) if own_votes else None,
            seconds=float(np.median(seconds)) if seconds else None,
            accuracy=accuracy.get(name),
            with_people=Share.of([hit for _, hit in with_others.get(name, [])]),
            gold=with_gold.get(name),
            steady=repeats.get(name),
            orders=both_orders.get(name),
            drift=drift,
            cycles=cycles.get(name),
            bias=biases.get(name, {}),
            rates=bias.rates(records, own_votes, shapes, list(config.patterns)),
        )
    return results, posterior


def recalibrated(
    judgements: Sequence[Judgement], calibrators: Mapping[str, ProbabilityCalibrator]
) -> list[Judgement]:
    """The judges' judgements with calibrated probabilities; ``detail`` keeps the original ones."""
    calibrated: list[Judgement] = []
    for j in judgements:
        fit = calibrators.get(j.annotator)
        if fit is not None and j.prob is not None:
            detail = {**j.detail, "prob_given": j.prob}
            calibrated.append(j.model_copy(update={"prob": float(fit(j.prob)), "detail": detail}))
    return calibrated


def main(config: AgreementConfig) -> AgreementResult:
    """Read the labels, log the tables; write the page, the JSON and calibrated labels if asked."""
    from trimtab.evaluate import agreement_page

    records = convert.read(config.files)
    if not records.judgements:
        raise ConfigError(f"{', '.join(config.files)}: items alone; give the judgements too")
    result, calibrators = measure(records, config)
    agreement_page.show(result)
    if config.json_:
        write_atomic(Path(config.json_), to_json(asdict(result), indent=1).encode())
        log.info("every figure -> %s", config.json_)
    if config.html:
        write_atomic(Path(config.html), agreement_page.page(result, records).encode())
        log.info("page -> %s", config.html)
    if config.calibrated:
        if not calibrators:
            raise ConfigError(
                "calibrated: no judge gave probabilities on at least "
                f"{judge_audit.MIN_LABELS} pairs that people judged too"
            )
        calibrated = recalibrated(records.current(), calibrators)
        write_atomic(Path(config.calibrated), files.to_jsonl(calibrated))
        log.info("%d calibrated judgements -> %s", len(calibrated), config.calibrated)
    return result

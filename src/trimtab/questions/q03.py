"""Question 3: comparisons or absolute scores?

Nothing is trained but linear heads on the frozen base model. People are simulated; how long they take is
assumed, so claims about effort are registered under several assumptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.feedback.comparisons import sort_step
from trimtab.questions import label_value
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result
from trimtab.questions.label_value import Bed, Clock
from trimtab.questions.measure import ArmResult, Measure, over_prompts, over_sums
from trimtab.report.charts import Chart, Line, line_chart
from trimtab.sandbox import annotator_arrays as people
from trimtab.sandbox.annotator_arrays import Floats
from trimtab.sandbox.annotators import Annotator
from trimtab.stats.newton import fit_logistic

SMALL_GAP = 0.2 * label_value.SCALE
"""Nats: completions whose gold differs by at most 0.2."""
CURVES = (
    "pairs[trouble=gaps]",
    "order[trouble=gaps]",
    "centred[trouble=gaps]",
    "scores[trouble=gaps]",
)


def start(folder: Path, seed: int, settings: Settings, _: Path) -> Path:
    """Completions, and the base model's states at their ends."""
    sizes = settings.sizes
    Bed.make(folder, seed, sizes["prompts"], sizes["tests"], sizes["longest"])
    return folder


def arm(_: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Measure one arm. Arms of a seed share prompts, completions and random streams."""
    bed = Bed.load(start)
    form: str = values["form"]
    rng = np.random.default_rng((seed, 61))
    if form == "sort":
        return ArmResult({"share_of_pairs": _sorting(bed, int(values["k"]), rng)})
    if form == "triples":
        cyclic = _cyclic(bed, values["by"], rng)[: settings.sizes["triples"]]
        return ArmResult({"cyclic": over_prompts(cyclic)})
    if form in ("cycles", "noise"):
        return _spoilt(bed, form, float(values["share"]), seed, settings)
    if form in ("margins", "plain"):
        return _margins(bed, form, int(values["labels"]), seed, settings)
    trouble = values["name"].partition("trouble=")[2].removesuffix("]") or "none"
    panel = [Annotator(**person) for person in settings.options["panels"][trouble]]
    clock = Clock(values.get("words_per_s", 4.0), values.get("decide_s", 3.0))
    return _form(bed, form, trouble, panel, clock, seed, settings)


def _form(
    bed: Bed,
    form: str,
    trouble: str,
    panel: list[Annotator],
    clock: Clock,
    seed: int,
    settings: Settings,
) -> ArmResult:
    options = settings.options
    at, levels, ridge = options["at_minutes"], options["levels"], options["ridge"]
    curve: list[float] = []
    measures: dict[str, Measure] = {}
    times = options["minutes"] if trouble == "gaps" else [at]
    for minutes in times:
        heads = [
            label_value.head(
                bed, form, panel, clock, minutes, levels, ridge, np.random.default_rng((seed, 67, i))
            )
            for i in range(settings.sizes["repeats"])
        ]  # fmt: skip
        accuracy = over_prompts(bed.accuracy(heads))
        curve.append(accuracy.value)
        if minutes == at:
            measures["accuracy"] = accuracy
    if form in ("pairs", "scores"):
        n = settings.sizes["sample"]
        rng = np.random.default_rng((seed, 71))
        judged = label_value.verdicts(bed, form, panel, levels, n, rng)
        right, tied = judged.right()
        terms = np.stack([right, tied, np.ones(len(right))], axis=1)
        read = bed.prompt_words + bed.words[:, :2].sum(1)
        pace = 60 / float(clock.seconds(read, 1 if form == "pairs" else 2).mean())
        close = np.abs(judged.gap[judged.gap != 0]) <= SMALL_GAP
        measures |= {
            "alpha": over_sums(judged.alpha_parts(), label_value.alpha),
            "bits": over_sums(terms, label_value.bits),
            "bits_per_minute": over_sums(terms, lambda s: pace * label_value.bits(s)),
            "small_gaps_right": over_prompts((right + tied / 2)[close]),
            "tied": over_prompts(tied),
        }
    return ArmResult(measures, {"minutes": list(map(float, times)), "accuracy": curve})


def _sorting(bed: Bed, k: int, rng: np.random.Generator) -> Measure:
    """Comparisons that sorting k completions asks for, over all k (k - 1) / 2 pairs."""
    shares: list[float] = []
    for place, utilities in enumerate(bed.longest[:, :k]):
        noisy = utilities + rng.gumbel(size=k)
        orders: dict[tuple[int, int], int] = {}
        while len(step := sort_step(k, orders, place)) == 2 and k > 2:
            i, j = step
            orders[i, j] = 1 if noisy[i] < noisy[j] else -1
        shares.append(len(orders) / (k * (k - 1) / 2))
    return over_prompts(shares)


PAIRS = ((0, 1), (1, 2), (2, 0))


def _cyclic(bed: Bed, by: str, rng: np.random.Generator) -> Floats:
    """1 for each prompt whose first three completions are judged in a circle, else 0."""
    if by == "noise":
        u = bed.utility
        none = np.zeros(len(u))
        first = np.stack([people.choose(u[:, i], u[:, j], none, rng) for i, j in PAIRS], axis=1)
    else:  # whoever is better in more attributes; equal ones have no winner and no circle
        p = bed.parts
        ahead = [np.sign(p[:, i] - p[:, j]).sum(-1) for i, j in PAIRS]
        first = 0.5 + 0.5 * np.sign(np.stack(ahead, axis=1))
    circle = (np.ptp(first, axis=1) == 0) & (first[:, 0] != 0.5)
    return circle.astype(np.float64)


def _spoilt(bed: Bed, form: str, share: float, seed: int, settings: Settings) -> ArmResult:
    """All pairs of three completions, of which a share of the triples is a circle, or three coin flips."""
    heads: list[Floats] = []
    for i in range(settings.sizes["repeats"]):
        rng = np.random.default_rng((seed, 73, i))
        place = rng.permutation(len(bed.x))[: settings.sizes["labels"] // 3]
        u, x, none = bed.utility[place], bed.x[place], np.zeros(len(place))
        first = np.stack([people.choose(u[:, a], u[:, b], none, rng) for a, b in PAIRS], axis=1)
        spoilt = rng.random(len(place)) < share
        coin = rng.integers(0, 2, (len(place), 3)).astype(np.float64)
        first[spoilt] = (coin if form == "noise" else coin[:, :1].repeat(3, 1))[spoilt]
        gaps = np.stack([x[:, a] - x[:, b] for a, b in PAIRS], axis=1).reshape(-1, x.shape[-1])
        heads.append(fit_logistic(gaps, first.ravel(), settings.options["ridge"])[0])
    return ArmResult({"accuracy": over_prompts(bed.accuracy(heads))})


def _margins(bed: Bed, form: str, labels: int, seed: int, settings: Settings) -> ArmResult:
    """Pairs with or without how much better the preferred one is, as a margin in the loss."""
    heads: list[Floats] = []
    options = settings.options
    n = max(20, round(labels * settings.sizes["labels"] / 400))
    for i in range(settings.sizes["repeats"]):
        rng = np.random.default_rng((seed, 79, i))
        place = np.resize(rng.permutation(len(bed.x)), n)
        noisy = bed.utility[place, :2] + rng.gumbel(size=(n, 2))
        ahead = noisy[:, 0] - noisy[:, 1]
        steps = np.searchsorted(options["strengths"], np.abs(ahead)) if form == "margins" else 0
        gaps = (bed.x[place, 0] - bed.x[place, 1]) * np.sign(ahead)[:, None]
        margin = -options["margin"] * np.broadcast_to(steps, (n,)).astype(np.float64)
        heads.append(fit_logistic(gaps, np.ones(n), options["ridge"], offset_N=margin)[0])
    return ArmResult({"accuracy": over_prompts(bed.accuracy(heads))})


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """Accuracy of the reward model by minutes of labelling, of people whose zeros differ."""
    lines = [
        Line(words[name.partition("[")[0]], c["minutes"], c["accuracy"])
        for name in CURVES
        if (c := result["curves"].get(name))
    ]
    return line_chart(words["title"], lines, words["x"], words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure)

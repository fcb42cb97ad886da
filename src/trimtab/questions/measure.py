"""What an arm measures in one seed: numbers, each with bootstrap draws over prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from trimtab.questions.claim import Claim, arm_key
from trimtab.stats.uncertainty import draws

Floats = npt.NDArray[np.float64]
DRAWS = 400


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric of one arm in one seed."""

    value: float
    draws: tuple[float, ...] | None = None
    """The metric on bootstrap samples of the prompts; the same samples for every arm with as many prompts,
    so that differences of arms are paired. None where the metric is not one over prompts."""


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What one arm gives in one seed."""

    measures: dict[str, Measure]
    curves: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Series for the figure and for arms that are derived."""

    def part(self, prefix: str) -> ArmResult:
        """The measures whose names begin with ``prefix``, without it: those of another policy than its own."""
        return ArmResult(
            {k.removeprefix(prefix): m for k, m in self.measures.items() if k.startswith(prefix)}
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ArmResult:
        """What ``as_dict`` gave."""
        measures = {
            name: Measure(m["value"], None if m["draws"] is None else tuple(m["draws"]))
            for name, m in values["measures"].items()
        }
        return cls(measures, values["curves"])


@functools.lru_cache(maxsize=16)
def _weights(prompts: int) -> Floats:
    return draws(prompts, DRAWS, seed=0)


def over_prompts(values_N: npt.ArrayLike) -> Measure:
    """The mean of one value per prompt."""
    values = np.asarray(values_N, np.float64)
    return Measure(
        float(values.mean()), tuple((_weights(len(values)) @ values / len(values)).tolist())
    )


def over_sums(parts_ND: npt.ArrayLike, statistic: Callable[[Floats], Floats]) -> Measure:
    """A statistic of sums over prompts.

    Args:
        parts_ND: The terms of each prompt, [N, ...].
        statistic: Sums [..., D] (or [..., C, C]) to numbers [...].
    """
    parts = np.asarray(parts_ND, np.float64)
    sums = np.tensordot(_weights(len(parts)), parts, 1)
    return Measure(float(statistic(parts.sum(0))), tuple(statistic(sums).tolist()))


def combined(measures: Sequence[Measure], statistic: Callable[[Floats], Floats]) -> Measure:
    """A statistic of several measures, also of each bootstrap sample.

    Args:
        statistic: M measures [M, ...] to numbers [...].

    >>> combined([Measure(3.0), Measure(1.0)], lambda m: m[0] - m[1]).value
    2.0
    """
    value = float(statistic(np.array([m.value for m in measures])))
    samples = [m.draws for m in measures if m.draws is not None]
    if len(samples) < len(measures):
        return Measure(value)
    return Measure(value, tuple(statistic(np.array(samples)).tolist()))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; 0 where all values of one are equal."""
    if len(set(one)) == 1 or len(set(other)) == 1:
        return 0.0
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def early_and_late(curve: Sequence[float]) -> dict[str, ArmResult]:
    """``gold`` after a third of a run, and at its end: means over an eighth of its iterations."""
    middle, tail = len(curve) // 3, max(1, len(curve) // 8)
    early = float(np.mean(curve[max(0, middle - tail) : middle + 1]))
    parts = {"early": early, "late": at_end(curve)}
    return {k: ArmResult({"gold": Measure(value)}) for k, value in parts.items()}


def at_end(curve: Sequence[float]) -> float:
    """Mean over the last eighth of a run's iterations."""
    return float(np.mean(curve[-max(1, len(curve) // 8) :]))


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect of a claim in one seed, in the claimed direction."""

    value: float
    draws: tuple[float, ...] | None


def effect_of(claim: Claim, arms: Mapping[str, ArmResult]) -> Effect:
    """The effect of a claim from what its arms measured in one seed.

    Raises:
        KeyError: an arm or its metric is missing.
    """
    first = arms[claim.arms[0]].measures[claim.metric]
    if isinstance(claim.versus, str):
        other = arms[arm_key(claim.versus, claim.condition)].measures[claim.metric]
    else:
        other = Measure(claim.versus, (claim.versus,) * DRAWS)
    value = float(claim.effect(first.value, other.value))
    if first.draws is None or other.draws is None:
        return Effect(value, None)
    sampled = claim.effect(np.array(first.draws), np.array(other.draws))
    return Effect(value, tuple(sampled.tolist()))


def mean_curves(results: Sequence[ArmResult]) -> dict[str, list[float]]:
    """The curves of an arm, averaged over seeds as far as all of them go."""
    means: dict[str, list[float]] = {}
    for name in results[0].curves:
        series = [r.curves[name] for r in results]
        length = min(map(len, series))
        means[name] = np.mean([s[:length] for s in series], axis=0).tolist()
    return means


def short(values: Sequence[float]) -> list[float]:
    """Numbers of a result, rounded to six digits.

    >>> short([0.12345678, -0.0])
    [0.123457, 0.0]
    """
    return [float(f"{v:.6g}") + 0.0 for v in values]  # + 0.0: no negative zero

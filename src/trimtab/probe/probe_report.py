"""What ``trimtab probe`` reports: probe results, accuracy on held-out pairs, a best-of-n curve."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from trimtab.audit.probe_result import ProbeResult

Metrics = dict[str, float]


@dataclass(slots=True, frozen=True)
class AccuracyCard:
    """Accuracy on the ranked rows of one source, and what else could explain it."""

    metrics: Metrics
    """``evaluate.reward_models.FIGURES``."""
    shuffled: float
    """Mean accuracy with the labels of whole prompts exchanged at random, ..."""
    shuffled_high: float
    """... and its 97.5th percentile."""
    bins: list[Metrics] | None
    """Calibration of sigmoid(score difference); None where scores are not in nats."""
    subsets: dict[str, Metrics]
    length: dict[str, Metrics]
    """Accuracy where the better completion is longer, and where it is shorter."""
    unscored: float
    """Share of completions without a score."""
    other_prompt: float | None
    """Accuracy where each prompt is replaced by the next one's; None for judges."""
    disagreement: float | None
    """Mean disagreement of an ensemble's members."""

    def to_json(self) -> dict[str, object]:
        """The card as ``probes.json`` has it, without what does not apply."""
        plain = {k: v for k, v in asdict(self).items() if v is not None and k != "metrics"}
        return {**self.metrics, **plain}


@dataclass(slots=True, frozen=True)
class BestOfN:
    """The gold score of the completion that the reward picks among n, for n = 1, 2, 4, ..."""

    curve: Mapping[str, Metrics]
    """See ``evaluate.best_of_n_gain.curve``."""
    fit: Metrics | None
    """Of Gao's form: "peak" in sqrt(KL), "r2", "reach"; None for fewer than four points."""

    def to_json(self) -> dict[str, object]:
        """As ``probes.json`` has it."""
        return {"curve": self.curve, **({"fit": self.fit} if self.fit is not None else {})}


@dataclass(slots=True, frozen=True)
class ProbeReport:
    """Everything that ``probes.json`` holds."""

    reward: Mapping[str, object]
    """The keys of the probed reward."""
    results: Sequence[ProbeResult]
    sets: Mapping[str, AccuracyCard]
    """By source."""
    best_of_n: BestOfN | None = None

    def to_json(self) -> dict[str, object]:
        """The contents of ``probes.json``."""
        best = {} if self.best_of_n is None else {"best_of_n": self.best_of_n.to_json()}
        return {
            "reward": self.reward,
            "probes": [r.to_json() for r in self.results],
            "sets": {source: card.to_json() for source, card in self.sets.items()},
            **best,
        }

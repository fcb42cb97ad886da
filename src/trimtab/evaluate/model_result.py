"""What ``trimtab compare`` reports of one model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from trimtab.stats.uncertainty import Estimate


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One model's completions, and how they compare with the baseline's."""

    length: float
    """Mean, tokens per completion."""
    truncated: float
    """Share of completions cut at ``max_new_tokens``."""
    scores: dict[str, Estimate]
    """Mean of each reward over the completions that it scored."""
    failed: dict[str, int]
    """Completions without a score or verdict, by reward; the statistics exclude them."""
    kl: float | None
    """KL to the baseline, nats per completion; None for the baseline and for other decoding."""
    nll: float | None
    """Negative log-likelihood of its completions under ``fluency`` (the baseline) at temperature 1, nats
    per token: how far they are from fluent text; None for other decoding."""
    win_rate: Estimate
    """Share of prompts won against the baseline, ties half."""
    win_rate_length_controlled: Estimate
    compared: int
    """Pairs of completions with a winner or a tie."""
    gain: dict[str, float]
    """Mean of each reward minus that of the baseline."""
    pass_at: dict[int, Estimate]
    """pass@k by k."""
    style: dict[str, float]
    """See ``stats.style``."""
    openings: list[tuple[str, float]]
    different: dict[int, Estimate] = field(default_factory=dict[int, Estimate])
    """Different completions among k of a prompt, by k."""
    different_good: dict[int, Estimate] = field(default_factory=dict[int, Estimate])
    by: dict[str, dict[str, Estimate]] = field(default_factory=dict[str, dict[str, Estimate]])
    """Mean of each reward by the value of the column ``by``."""
    decoding: bool = False
    """Whether it is the model before, sampled differently."""

    def summary(self) -> dict[str, Any]:
        """As ``summary.json`` has it: one key per reward, ``pass@K``, ``different@K``, ``by``."""
        values = asdict(self)
        tables = (
            ("", values.pop("scores")),
            ("pass@", values.pop("pass_at")),
            ("different@", values.pop("different")),
            ("different_good@", values.pop("different_good")),
        )
        by = {v: {n: e.summary() for n, e in part.items()} for v, part in self.by.items()}
        values["by"] = by or None
        del values["decoding"]
        values["distinct_2"] = self.style["distinct_2"]
        for key in ("win_rate", "win_rate_length_controlled"):
            values[key] = values[key].summary()
        for prefix, table in tables:
            values |= {f"{prefix}{key}": e.summary() for key, e in table.items()}
        return {k: v for k, v in values.items() if v is not None}

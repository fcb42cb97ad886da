"""Metrics and table rows of scored completions."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import cast

import numpy as np

from trimtab.errors import DataError
from trimtab.stats.order_stats import pick
from trimtab.types import Completion, Group, Row


def nothing_scored(where: str, completions: Sequence[Completion], needed: int = 1) -> DataError:
    """The error to raise when no prompt of an iteration has ``needed`` completions with a reward."""
    scored = sum(c.reward is not None for c in completions)
    failures: dict[str, str] = {}
    for c in completions:
        for name, s in c.scores.items():
            if not s.ok and "/" not in name:
                failures.setdefault(name, f"{name} was {s.status} ({s.detail})")
    first = "; ".join(failures.values())
    if scored == 0:
        return DataError(f"{where}: no completion could be scored; the first failures: {first}")
    return DataError(
        f"{where}: {scored} of {len(completions)} completions have a reward, but no prompt has "
        f"{needed}, which are needed to compare completions of one prompt; the first failures: {first}"
    )


def best_and_worst(completions: Sequence[Completion]) -> tuple[Completion, Completion] | None:
    """The best and the worst of one prompt's scored completions, the first of equal ones.

    None if the two have equal rewards or equal tokens.
    """
    rewards = [cast(float, c.reward) for c in completions]
    best, worst = completions[pick(rewards)], completions[pick([-r for r in rewards])]
    same = best.reward == worst.reward or np.array_equal(best.ids, worst.ids)
    return None if same else (best, worst)


def rollout_metrics(
    completions: Sequence[Completion],
    stop_ids: Collection[int],
    episodes: Sequence[Completion] | None = None,
) -> dict[str, float]:
    """Mean rewards by part, lengths, finish reasons and failures.

    Args:
        completions: What lengths and finish reasons are of.
        stop_ids: Tokens that end a completion.
        episodes: One completion of each episode, whose rewards count; ``completions`` where every one is
            an episode.

    "reward/NAME/unscored" is the share of completions that this part did not score, and
    "completion/after_end" of those that go on after a token that ends them, where there are any.
    """
    ends = completions if episodes is None else episodes
    scored = [c.reward for c in ends if c.reward is not None]
    metrics = {
        "reward/mean": float(np.mean(scored)) if scored else math.nan,
        "reward/std": float(np.std(scored)) if scored else math.nan,
        "reward/unscored": 1.0 - len(scored) / max(1, len(ends)),
        "completion/length": float(np.mean([c.trained for c in completions])),
        "completion/truncated": float(np.mean([c.truncated for c in completions])),
    }
    after_end = float(np.mean([_goes_on(c, stop_ids) for c in completions]))
    if after_end:
        metrics["completion/after_end"] = after_end
    for name in dict.fromkeys(name for c in ends for name in c.scores):
        scores = [c.scores.get(name) for c in ends]
        values = [s.value for s in scores if s is not None and s.value is not None]
        metrics[f"reward/{name}"] = float(np.mean(values)) if values else math.nan
        if len(values) < len(ends) and "/" not in name:
            metrics[f"reward/{name}/unscored"] = 1.0 - len(values) / len(ends)
    return metrics


def _goes_on(c: Completion, stop_ids: Collection[int]) -> bool:
    """Whether a completion of one turn has a token that ends it before its last token."""
    return not c.turns and any(i in stop_ids for i in c.ids[:-1].tolist())


def sample_rows(groups: Sequence[Group]) -> list[Row]:
    """Prompts, completions and scores as rows for ``samples/``."""
    return [
        {
            "prompt": g.text,
            "completion": c.text,
            "reward": c.reward,
            "scores": {k: s.value if s.ok else s.status for k, s in c.scores.items()},
            "finish": c.finish,
            "tokens": int(c.emitted.sum()),
            "version": c.version,
            "id": g.id,
            "index": i,
            **({"turns": len(c.turns), "status": c.status} if c.turns else {}),
            **_reference_metrics(c),
        }
        for g in groups
        for i, c in enumerate(g.completions)
    ]


def log_ratio(c: Completion) -> float | None:
    """Summed log-ratio of a rollout to the reference, nats; None without reference log-probs."""
    logp_T, ref_T = c.tokens.get("sampler_logp"), c.tokens.get("ref_logp")
    if logp_T is None or ref_T is None:
        return None
    return float((logp_T - ref_T)[c.emitted].sum())


def episode_kls(groups: Sequence[Group]) -> list[float]:
    """``log_ratio`` of each episode that has one."""
    sums: list[float] = []
    for episode in (e for g in groups for e in g.episodes):
        ratios = [ratio for c in episode if (ratio := log_ratio(c)) is not None]
        if ratios:
            sums.append(math.fsum(ratios))
    return sums


def _reference_metrics(c: Completion) -> dict[str, float]:
    """The completion's KL to the reference and its NLL under it, nats; empty without log-probs."""
    kl = log_ratio(c)
    if kl is None:
        return {}
    ref = c.tokens["ref_logp"][c.emitted]
    return {"kl": kl, "nll_reference": -float(ref.mean()) if len(ref) else 0.0}

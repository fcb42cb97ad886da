"""How often a reward agrees with comparisons it was not trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.render import Renderer, load_tokenizer
from trimtab.errors import DataError
from trimtab.rewards.score import Rewards, RewardSpec
from trimtab.runs import write_atomic
from trimtab.runs.console import console
from trimtab.stats.uncertainty import bootstrap_mean, calibration_bins, ece
from trimtab.train.sft import DataSpec, load_groups
from trimtab.types import Group

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
"""Of a held-out set, as it stands in the names of figures."""

FIGURES = frozenset(
    ("accuracy", "accuracy_low", "accuracy_high", "ece", "length_only", "pairs", "ceiling")
)
"""Of each held-out set; see ``figures``."""


def figures(
    found: Sequence[tuple[Group, Sequence[float | None]]],
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Agreement of scores with ranks, over pairs of one prompt that do not tie.

    Args:
        found: Groups with a score for each completion; pairs with a missing one are left out.

    Returns:
        ``FIGURES`` (accuracy counts equal scores half, its 95 % interval is over prompts;
        ``length_only`` is the accuracy of length alone; ``ceiling``, where rows carry the
        labellers' own ``probs``, that of the best possible predictor) and the bins of the
        calibration of sigmoid(score difference). Both are empty without a pair.
    """
    right: list[float] = []
    longer: list[float] = []
    confidence: list[float] = []
    ceiling: list[float] = []
    owner: list[int] = []
    for number, (group, scores) in enumerate(found):
        probs = group.extra.get("probs")
        for i, a in enumerate(group.completions):
            for j in range(i + 1, len(group.completions)):
                b = group.completions[j]
                x, y = scores[i], scores[j]
                if a.rank is None or b.rank is None or a.rank == b.rank or x is None or y is None:
                    continue
                delta = x - y if a.rank < b.rank else y - x
                gap = len(a) - len(b) if a.rank < b.rank else len(b) - len(a)
                right.append(0.5 if delta == 0 else float(delta > 0))
                longer.append(0.5 if gap == 0 else float(gap > 0))
                confidence.append(1 / (1 + math.exp(-min(abs(delta), 50.0))))
                owner.append(number)
                if probs is not None:
                    p = float(probs[i][j])
                    ceiling.append(max(p, 1 - p))
    if not right:
        return {}, []
    mean, low, high = bootstrap_mean(right, clusters=owner)
    length = float(np.mean(longer))
    told = {
        "accuracy": mean,
        "accuracy_low": low,
        "accuracy_high": high,
        "ece": ece(confidence, right),
        "length_only": max(length, 1 - length),
        "pairs": float(len(right)),
    }
    if ceiling:
        told["ceiling"] = float(np.mean(ceiling))
    return told, calibration_bins(confidence, right)


class AccuracyConfig(Config):
    """Configuration of ``trimtab accuracy``."""

    out: str = "runs/accuracy"
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """Models, ensembles, functions: each by itself, weights have no say."""
    data: dict[Name, DataSpec] = Field(min_length=1)
    """Held-out comparisons by name."""
    tokenizer: str
    """Folder or hub id: the tokens that ``max_prompt`` and ``max_completion`` count."""
    token_budget: int = Field(default=8192, gt=0)
    device: str = "auto"


def main(config: AccuracyConfig) -> dict[str, Any]:
    """Score the comparisons of every set with every reward; writes summary.json into ``out``.

    Returns:
        reward -> set -> ``FIGURES`` but for "ece" (a score need not be in nats), and "unscored",
        the share of answers without a score.

    Raises:
        DataError: a set holds no pair that could be scored.
    """
    c = config
    tokenizer = load_tokenizer(c.tokenizer)
    sets: dict[str, list[Group]] = {}
    for name, spec in c.data.items():
        renderer = Renderer(tokenizer, max_prompt=spec.max_prompt, max_tokens=spec.max_completion)
        sets[name] = load_groups(spec, formats.comparisons, renderer.comparison)
    rewards = Rewards(c.rewards, tokenizer, c.token_budget, c.device)
    told: dict[str, dict[str, dict[str, float]]] = {r.name: {} for r in c.rewards}
    for name, groups in sets.items():
        rewards(groups)
        for r in told:
            scores = [(g, [x.scores[r].value for x in g.completions]) for g in groups]
            found, _ = figures(scores)
            if not found:
                raise DataError(
                    f"{c.data[name].path}: reward {r!r} scored no pair of answers that differ in rank"
                )
            found.pop("ece")
            found["unscored"] = float(np.mean([s is None for _, mine in scores for s in mine]))
            told[r][name] = found
    out = Path(c.out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "summary.json", json.dumps(told, indent=1).encode())
    for r, mine in told.items():
        said = ", ".join(
            f"{name} {f['accuracy']:.3f} [{f['accuracy_low']:.3f}, {f['accuracy_high']:.3f}]"
            for name, f in mine.items()
        )
        console.print(f"[bold]accuracy[/bold]: {r}: {said}")
    return told

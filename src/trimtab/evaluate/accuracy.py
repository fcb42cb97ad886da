"""How often a reward agrees with comparisons it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.render import Renderer, load_tokenizer
from trimtab.errors import DataError
from trimtab.evaluate.reward_models import figures
from trimtab.feedback.comparisons import read_comparisons
from trimtab.rewards.score import Rewards, RewardSpec
from trimtab.runs import write_atomic
from trimtab.runs.console import console
from trimtab.types import Group

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
"""Of a held-out set, as it stands in the names of figures."""


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
        reward -> set -> ``reward_models.FIGURES`` but for "ece" (a score need not be in nats), and "unscored",
        the share of answers without a score.

    Raises:
        DataError: a set holds no pair that could be scored.
    """
    c = config
    tokenizer = load_tokenizer(c.tokenizer)
    sets: dict[str, list[Group]] = {}
    for name, spec in c.data.items():
        renderer = Renderer(tokenizer, max_prompt=spec.max_prompt, max_tokens=spec.max_completion)
        sets[name] = load_groups(spec, formats.comparisons, renderer.comparison, read_comparisons)
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

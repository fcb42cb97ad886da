"""``trimtab accuracy``: agreement of rewards with held-out comparisons."""

import json
import logging
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.errors import DataError
from trimtab.evaluate.reward_models import figures
from trimtab.feedback.comparisons import read_comparisons
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.runs import write_atomic
from trimtab.types import Group

log = logging.getLogger(__name__)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
"""Name of a held-out set, part of the names of its metrics."""


class AccuracyConfig(Config):
    """Configuration of ``trimtab accuracy``."""

    out: str = "runs/accuracy"
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """Models, ensembles, functions; each is measured alone, so weights do not matter."""
    data: dict[Name, DataSpec] = Field(min_length=1)
    """Held-out comparisons by name."""
    tokenizer: str
    """Folder or hub id: the tokens that ``max_prompt_length`` and ``max_completion_length`` count."""
    token_budget: int = Field(default=8192, gt=0)
    device: str = "auto"


def main(config: AccuracyConfig) -> dict[str, dict[str, dict[str, float]]]:
    """Score the comparisons of every set with every reward; write summary.json to ``out``.

    Returns:
        reward -> set -> ``reward_models.FIGURES`` without "ece" (a score need not be in nats), and
        "unscored", the share of completions without a score.

    Raises:
        DataError: a reward scored no pair of a set.
    """
    c = config
    tokenizer = load_tokenizer(c.tokenizer)
    sets: dict[str, list[Group]] = {}
    for name, spec in c.data.items():
        renderer = Renderer(
            tokenizer,
            max_prompt_length=spec.max_prompt_length,
            max_completion_length=spec.max_completion_length,
        )
        sets[name] = load_groups(spec, formats.comparisons, renderer.scoring, read_comparisons)
    rewards = Rewards(c.rewards, tokenizer, c.token_budget, c.device)
    results: dict[str, dict[str, dict[str, float]]] = {r.name: {} for r in c.rewards}
    for name, groups in sets.items():
        rewards(groups)
        for reward, by_set in results.items():
            scored = [(g, [x.scores[reward].value for x in g.completions]) for g in groups]
            metrics, _ = figures(scored)
            if not metrics:
                raise DataError(
                    f"{c.data[name].path}: reward {reward!r} scored no pair of completions that "
                    "differ in rank"
                )
            metrics.pop("ece")
            metrics["unscored"] = float(np.mean([s is None for _, row in scored for s in row]))
            by_set[name] = metrics
    out = Path(c.out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "summary.json", json.dumps(results, indent=1).encode())
    for reward, by_set in results.items():
        accuracies = [
            f"{name} {m['accuracy']:.3f} [{m['accuracy_low']:.3f}, {m['accuracy_high']:.3f}]"
            for name, m in by_set.items()
        ]
        log.info("%s: accuracy on %s", reward, ", ".join(accuracies))
    return results

"""Retraining a reward model that the policy exploits (``audit.act: refresh``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from trimtab import ranks
from trimtab.audit.gold_audit import RefreshSpec
from trimtab.data import sources
from trimtab.data.dataset import DataSpec
from trimtab.data.rows import comparison
from trimtab.errors import ConfigError
from trimtab.models.load import ModelSpec
from trimtab.runs import fs, to_json, write_atomic
from trimtab.train import reward
from trimtab.train.rollouts import RolloutStage
from trimtab.train.trainer import LoopSpec, OptimSpec
from trimtab.types import Group, Row


def comparisons_by_gold(
    stage: RolloutStage[Any],
    spec: RefreshSpec,
    gold: Callable[[Sequence[Group]], None],
    key: tuple[int, ...],
) -> list[Row]:
    """Comparisons that contradict an exploited reward.

    Per prompt of the last batch, the completion with the highest reward is compared with the best of
    several new completions of the current policy, by their gold scores. Ties and empty completions
    give no row.

    Args:
        stage: The policy, with the groups of the last batch.
        spec: The number of prompts, and of completions per prompt.
        gold: Puts the score "gold" on completions.
    """
    exploited: list[Group] = []
    for g in stage.last[: spec.num_prompts]:
        completions = [c for c in g.completions if c.text.strip()]
        if completions:
            top = max(completions, key=lambda c: cast(float, c.reward))
            exploited.append(replace(g, completions=[top]))
    resampled = stage.complete(exploited, spec.num_completions, key)
    groups: list[Group] = []
    for g, other in zip(exploited, resampled, strict=True):
        completions = [*g.completions, *(c for c in other.completions if c.text.strip())]
        unscored = [replace(c, scores={}, reward=None) for c in completions]
        groups.append(replace(g, completions=unscored))
    gold(groups)
    rows: list[Row] = []
    for g in groups:
        scored = [(c.scores["gold"].value, c.text) for c in g.completions]
        top_gold, top_text = scored[0]
        others = [(value, text) for value, text in scored[1:] if value is not None]
        if top_gold is None or not others:
            continue
        other_gold, other_text = max(others)
        if other_gold > top_gold:
            rows.append(comparison(g, other_text, top_text))
        elif other_gold < top_gold:
            rows.append(comparison(g, top_text, other_text))
    return rows


def retrain(
    path: str, device: str, rows: list[Row], spec: RefreshSpec, folder: Path, loop: LoopSpec
) -> int:
    """Train the reward model at ``path`` on its old comparisons and on ``rows``.

    Args:
        spec: The old comparisons, and how to train.
        folder: The run folder of this training; the model is in ``folder``/model.

    Returns:
        The number of old comparisons.
    """
    mixed = folder / "comparisons.jsonl"

    def write() -> int:
        old = _read_comparisons(spec.data)
        if folder.exists():  # of steps that the run has gone back before
            fs.remove(folder)
        folder.mkdir(parents=True)
        lines = [to_json(r) + "\n" for r in [*old, *(rows * spec.repeat)]]
        write_atomic(mixed, "".join(lines).encode("utf-8", "replace"))
        return len(old)

    old_rows = ranks.current().on_main(write)
    with torch.enable_grad():
        reward.main(
            reward.RewardConfig(
                out=str(folder),
                model=ModelSpec(path=path, device=device),
                data=DataSpec(path=str(mixed)),
                epochs=spec.epochs,
                batch_size=spec.batch_size,
                optim=OptimSpec(lr=spec.lr),
                loop=loop.model_copy(update={"save_steps": 0, "report_to": "none"}),
            )
        )
    return old_rows


def _read_comparisons(path: str) -> list[Row]:
    """The rows of a jsonl file of comparisons.

    Raises:
        ConfigError: it is no jsonl file.
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".jsonl":
        raise ConfigError(f"audit.refresh.data: {path!r} must be a .jsonl file of comparisons")
    return [row for _, row in sources.read(path).rows]

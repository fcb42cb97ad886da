"""``trimtab step-advantages``: what a method says each reasoning step was worth, without training the policy."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from trimtab import ranks
from trimtab.data.steps import Steps
from trimtab.errors import ConfigError
from trimtab.runs import to_json, write_atomic
from trimtab.train.advantages import assign_advantages
from trimtab.train.gradient_noise import train_critic
from trimtab.train.rl import RLStage
from trimtab.train.rl_config import RLConfig
from trimtab.types import Completion, Floats, Group, Row

log = logging.getLogger(__name__)
FILE = "advantages.jsonl"
_INDEX = 1_000_000
"""Iteration of the measured completions, which no training reaches."""


class StepAdvantagesConfig(RLConfig):
    """Configuration of ``trimtab step-advantages``: that of ``trimtab rl``, whose ``steps`` has no
    meaning here. Methods that are given equal ``prompts``, ``completions`` and seeds see the same completions."""

    free_keys: ClassVar[frozenset[str]] = frozenset({"steps"})

    out: str = "runs/step_advantages"
    prompts: int = Field(default=100, gt=0)
    """Prompts whose completions are measured."""
    completions: int = Field(default=8, gt=0)
    """Completions of each."""
    separator: str = "\n"
    """Text that ends a reasoning step."""
    critic_batches: int = Field(default=0, ge=0)
    """Iterations of ``batch_size`` prompts on which a critic is trained first, while the policy stays."""
    lams: tuple[float, ...] = ()
    """Further values of ``method.advantage.lam``, on the values of the same critic."""

    @model_validator(mode="after")
    def _check_advantages(self) -> StepAdvantagesConfig:
        method = self.method
        if self.critic_batches and not (method.needs_critic and self.critic.type == "separate"):
            raise ValueError(
                "critic_batches trains a separate critic: choose a method with one, or set it to 0"
            )
        if self.lams and not method.needs_critic:
            raise ValueError("lams: only a method with a critic has a lambda; remove the key")
        if not all(0.0 <= lam <= 1.0 for lam in self.lams):
            raise ValueError(f"lams: give numbers from 0 to 1, not {list(self.lams)}")
        if method.needs_groups and self.completions < 2:
            raise ValueError("completions: a baseline over a group needs two completions or more")
        if self.episodes is not None:
            raise ValueError(
                "completions of one turn are cut into steps; remove environment and tools"
            )
        return self


@dataclass(frozen=True, slots=True)
class StepAdvantages:
    """What was measured."""

    method: str
    completions: int
    steps: int
    """Reasoning steps of all completions."""
    explained_variance: float
    """Of the returns by the critic's values on the measured completions; NaN without a critic."""


def per_step(values_T: Floats, ends_S: Sequence[int]) -> list[float]:
    """The mean over the tokens of each step.

    Args:
        ends_S: Index of each step's last token; the last one is that of the completion.

    >>> per_step(np.array([1.0, 3.0, 5.0], np.float32), [1, 2])
    [2.0, 5.0]
    """
    return [float(part.mean()) for part in np.split(values_T, np.array(ends_S[:-1]) + 1)]


def at_starts(values_T: Floats, ends_S: Sequence[int]) -> list[float]:
    """The value at the first token of each step, which is that of the state before the step.

    >>> at_starts(np.array([0.5, 0.1, 0.2], np.float32), [1, 2])
    [0.5, 0.20000000298023224]
    """
    return [float(values_T[i]) for i in (0, *(end + 1 for end in ends_S[:-1]))]


def main(config: StepAdvantagesConfig) -> StepAdvantages:
    """Sample completions at the start policy and write a row for each into ``out``/advantages.jsonl.

    A row has the columns of its prompt, "prompt" (index), "completion" (text), "reward", "steps" (texts),
    "advantage" (per step, the mean over its tokens) and, with a critic, "value" (of the state before each
    step) and "advantages" (by lambda); with ``process``, "score" of each step.

    Raises:
        ConfigError: several ranks, or the separator has no token.
        DataError: no completion could be scored.
    """
    if ranks.current().world > 1:
        raise ConfigError("step-advantages runs in one process; start it without torchrun")
    stage = RLStage(config)
    try:
        train_critic(stage, config.critic_batches)
        steps = Steps(stage.renderer, config.separator)
        groups = stage.sample(_INDEX, config.prompts, config.completions)
        for g in groups:
            g.completions = [c for c in g.completions if c.reward is not None]
        groups = [
            g for g in groups if len(g.completions) > (1 if config.method.needs_groups else 0)
        ]
        metrics = stage.credit(groups, _INDEX)
        rows = [_row(i, g, c, steps) for i, g in enumerate(groups) for c in g.completions]
        for lam in config.lams:
            spec = stage.method.advantage.model_copy(update={"lam": lam})
            method = stage.method.model_copy(update={"advantage": spec})
            assign_advantages(groups, method, stage.kl.beta if method.needs_reference else 0.0)
            done = [c for g in groups for c in g.completions]
            for row, c in zip(rows, done, strict=True):
                ends = steps.ends(c.ids).tolist()
                row["advantages"][f"{lam:g}"] = per_step(c.tokens["advantage"], ends)
    finally:
        stage.close()
    return _write(Path(config.out), stage, rows, metrics)


def _row(index: int, group: Group, c: Completion, steps: Steps) -> Row:
    ends = steps.ends(c.ids).tolist()
    row: Row = {k: v for k, v in group.extra.items() if k != "messages"}
    row |= {"prompt": index, "completion": c.text, "reward": c.reward, "steps": steps.texts(c.ids)}
    row["advantage"] = per_step(c.tokens["advantage"], ends)
    if "value" in c.tokens:
        row |= {"value": at_starts(c.tokens["value"], ends), "advantages": {}}
    if "step_score" in c.tokens:
        row["score"] = [float(x) for x in c.tokens["step_score"][c.tokens["step_end"] > 0]]
    return row


def _write(
    out: Path, stage: RLStage, rows: Sequence[Row], metrics: Mapping[str, Any]
) -> StepAdvantages:
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / FILE, "".join(to_json(row) + "\n" for row in rows).encode())
    result = StepAdvantages(
        stage.method.name,
        len(rows),
        sum(len(row["steps"]) for row in rows),
        float(metrics.get("value/explained_variance", np.nan)),
    )
    explained = None if np.isnan(result.explained_variance) else result.explained_variance
    summary = {"method": result.method, "completions": result.completions, "steps": result.steps,
               "explained_variance": explained}  # fmt: skip
    write_atomic(out / "summary.json", to_json(summary, indent=1).encode())
    log.info("%s: advantages of %d steps -> %s", result.method, result.steps, out / FILE)
    return result

"""``trimtab step-labels``: label reasoning steps by rollouts from each step (2312.08935)."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.steps import Steps
from trimtab.datagen.output import write_summary
from trimtab.errors import DataError
from trimtab.models.load import ModelSpec, renderer_for
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.rollout.collector import collect
from trimtab.rollout.engines.native import NativeEngine
from trimtab.rollout.monte_carlo import StateValues, monte_carlo_values
from trimtab.runs import json_lines, open_run, write_atomic
from trimtab.runs.console import bar
from trimtab.sample.sampler import SamplingConfig
from trimtab.types import Completion, Group

log = logging.getLogger(__name__)


class StepLabelsConfig(Config):
    """Configuration of ``trimtab step-labels``."""

    free_keys: ClassVar[frozenset[str]] = frozenset({"token_budget"})

    out: str = "runs/step_labels"
    model: ModelSpec
    """Model that samples the solutions and the continuations from their steps."""
    data: DataSpec
    """Prompts; other columns (such as ``answer``) are passed to the rewards."""
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """Rewards of complete solutions."""
    solutions: int = Field(default=4, gt=0)
    """Solutions sampled per prompt."""
    continuations: int = Field(default=8, gt=0)
    """Continuations sampled per step."""
    label: Literal["hard", "soft"] = "hard"
    """"hard": 1 if any continuation reaches the answer; "soft": the share that does."""
    threshold: float = 0.5
    """A continuation reaches the answer if its reward is at least this."""
    separator: str = "\n"
    """Text that ends a step."""
    sampling: SamplingConfig = SamplingConfig()
    """``max_new_tokens`` limits a solution together with its continuation."""
    chunk: int = Field(default=64, gt=0)
    """Prompts per write to disk; an interrupted run resumes after the last write."""
    token_budget: int = Field(default=8192, gt=0)
    seed: int = 0


def step_label(returns: list[float], how: Literal["hard", "soft"], threshold: float) -> float:
    """The label of a step from the rewards of its continuations.

    >>> step_label([0.0, 1.0, 0.0, 0.0], "hard", 0.5), step_label([0.0, 1.0], "soft", 0.5)
    (1.0, 0.5)
    """
    reached = [r >= threshold for r in returns]
    return float(any(reached)) if how == "hard" else float(np.mean(reached))


def _row(
    config: StepLabelsConfig, cutter: Steps, group: Group, index: int, c: Completion, v: StateValues
) -> dict[str, Any] | None:
    """A stepwise row up to the first step without a scored continuation; None if that is the first."""
    scored = next((i for i, r in enumerate(v.returns[1:]) if not r), len(v.ends))
    texts = cutter.texts(c.ids)
    # A step without text (an end token on a line of its own) gets no label.
    scored = next((i for i, t in enumerate(texts[:scored]) if not t), scored)
    if scored == 0:
        return None
    extra = {k: x for k, x in group.extra.items() if k != "messages"}
    returns = v.returns[1 : scored + 1]
    return {
        **extra,
        "id": f"{group.id}/{index}",
        "prompt": group.extra.get("messages", group.text),
        "completions": texts[:scored],
        "labels": [step_label(r, config.label, config.threshold) for r in returns],
        "values": [float(np.mean(r)) for r in returns],
        "returns": returns,
        "finish": c.finish,
    }


@dataclass(frozen=True, slots=True)
class StepLabelsSummary:
    """summary.json of ``trimtab step-labels``."""

    solutions: int
    steps: int
    steps_correct: float
    """Mean label."""
    value: float
    """Mean reward of the continuations of a step."""
    truncated: float
    """Share of solutions."""
    unlabelled: int
    """Solutions without a labelled step."""


def main(config: StepLabelsConfig) -> StepLabelsSummary:
    """Write steps.jsonl (stepwise rows with the raw values) and summary.json into ``out``.

    A row ends before the first step without a scored continuation.

    Raises:
        DataError: no step could be labelled.
    """
    with open_run(config, config.out) as run:
        return _label_steps(config, run.path)


def _label_steps(config: StepLabelsConfig, out: Path) -> StepLabelsSummary:
    (out / "parts").mkdir(exist_ok=True)
    renderer = renderer_for(config.model, config.data)
    cutter = Steps(renderer, config.separator)
    prompts = load_groups(config.data, formats.prompts, renderer.prompt)
    engine = NativeEngine.load(config.model, renderer)
    rewards = Rewards(config.rewards, renderer.tokenizer, config.token_budget, config.model.device)
    parts: list[Path] = []
    with bar("steps", len(prompts)) as show:
        for start in range(0, len(prompts), config.chunk):
            part = out / "parts" / f"{start:08d}.jsonl"
            parts.append(part)
            if part.is_file():
                continue
            groups = collect(
                engine,
                renderer,
                prompts[start : start + config.chunk],
                config.sampling,
                n=config.solutions,
                key=(config.seed, start, 0),
            )
            values = monte_carlo_values(
                engine,
                renderer,
                groups,
                rewards,
                config.sampling,
                cutter.ends,
                config.continuations,
                (config.seed, start, 1),
            )
            rows = [
                _row(config, cutter, g, j, c, v)
                for g, group_values in zip(groups, values, strict=True)
                for j, (c, v) in enumerate(zip(g.completions, group_values, strict=True))
            ]
            lines = [json.dumps(r) + "\n" for r in rows if r is not None]
            write_atomic(part, "".join(lines).encode())
            show(start + len(groups))
    data = b"".join(p.read_bytes() for p in parts)
    rows = [json.loads(line) for _, line in json_lines(data)]
    if not rows:
        raise DataError(
            f"{config.data.path}: no step could be labelled; the rewards gave no score to any "
            "continuation"
        )
    write_atomic(out / "steps.jsonl", data)
    labels = [x for r in rows for x in r["labels"]]
    summary = StepLabelsSummary(
        solutions=len(rows),
        steps=len(labels),
        steps_correct=float(np.mean(labels)),
        value=float(np.mean([x for r in rows for x in r["values"]])),
        truncated=float(np.mean([r["finish"] == "length" for r in rows])),
        unlabelled=len(prompts) * config.solutions - len(rows),
    )
    write_summary(out, summary)
    log.info(
        f"step labels: {summary.solutions} solutions, {summary.steps} steps, "
        f"{summary.steps_correct:.0%} correct -> {config.out}/steps.jsonl"
    )
    return summary

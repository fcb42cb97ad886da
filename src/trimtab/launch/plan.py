"""What a run will need, from a few of its own steps taken beforehand: ``trimtab sft … --plan``.

The steps are real ones on the real data, and everything they changed is thrown away: no model of the
machine that could be wrong.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trimtab.train.loop import Stage
from trimtab.train.trainer import batch_indices
from trimtab.types import Group

STEPS = 4
"""Measured after the one that allocates the optimiser's state."""


@dataclass(frozen=True)
class Need:
    """A prediction, and what it rests on."""

    name: str
    trained: int
    """Parameters with a gradient."""
    parameters: int
    """All parameters of the trained modules."""
    steps: int
    """Of the run."""
    tokens: float
    """Trained on in a mean step, prompts once."""
    seconds: float
    """Of a mean step."""
    start: float
    """Seconds until the first step: imports left out."""
    budget: int
    """Tokens of a forward, lowered already where one did not fit."""
    peak_mb: float
    """Of the process, or of the allocator on CUDA."""
    device: str

    def text(self) -> str:
        """For a terminal."""
        total = self.start + self.steps * self.seconds
        where = "on the GPU" if self.device == "cuda" else "resident, libraries included"
        return "\n".join(
            (
                f"{self.name}: {self.trained:,} of {self.parameters:,} parameters are trained, on {self.device}",
                f"  a step     {self.seconds:.3g} s, {self.tokens:,.0f} tokens ({self.tokens / self.seconds:,.0f} a "
                f"second) in forwards of at most {self.budget:,}",
                f"  the run    {self.steps:,} steps, {_clock(total)}, of which {self.start:.0f} s to get ready; "
                "evaluations and checkpoints not counted",
                f"  memory     {self.peak_mb:,.0f} MB at most, {where}",
            )
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def peak_mb(device: str) -> float:
    """Largest memory so far, MB: the allocator's on CUDA, else the process's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 1024


def plan(make: Callable[[Any], Stage], config: Any) -> Need:
    """Build the stage of ``config``, take the costliest step and ordinary ones, scale up.

    Steps of fixed data are scaled by tokens to the mean step; those of online methods are the
    first ones, whose answers may grow longer or shorter later.

    Args:
        make: The stage's class.
        config: The run's; its folder is not touched.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trimtab-plan-") as folder:
        stage = make(config.model_copy(update={"out": folder}))
        start = time.monotonic() - began
        trainer = stage.trainer
        tokens: list[int] = []
        update = trainer.update

        def counted(parts: Any) -> dict[str, float]:
            tokens.append(sum(g.cost for part in parts for g in part.groups))
            return update(parts)

        trainer.update = counted
        groups = getattr(stage, "train", None)
        order = list(range(STEPS + 1))
        if groups:
            order = _order(groups, stage.steps, config.batch_size, config.loop.seed)
        spent: list[tuple[float, int]] = []
        for index in order:
            tokens.clear()
            since = time.monotonic()
            stage.step(index)
            spent.append((time.monotonic() - since, sum(tokens)))
    each = spent[1:]  # the first one also warms up
    mean = float(np.mean([t for _, t in each]))
    if groups:
        mean = config.batch_size * float(np.mean([g.cost for g in groups]))
    seconds = sum(s for s, _ in each) / max(1, sum(t for _, t in each)) * mean
    parameters = [p for m in trainer.modules.values() for p in m.parameters()]
    device = parameters[0].device.type
    return Need(
        stage.name, sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() for p in parameters), stage.steps, mean, seconds, start, trainer.budget,
        peak_mb(device), device,
    )  # fmt: skip


def _order(groups: Sequence[Group], steps: int, batch: int, seed: int) -> list[int]:
    """The step with the most tokens, twice, and those in the middle."""
    costs = np.array([g.cost for g in groups])
    step_costs = [
        costs[batch_indices(len(costs), batch, i, seed)].sum() for i in range(min(steps, 2000))
    ]
    by_cost = [int(i) for i in np.argsort(step_costs)]
    low = max(0, (len(by_cost) - STEPS + 1) // 2)
    return [by_cost[-1], by_cost[-1], *by_cost[low : low + STEPS - 1]]

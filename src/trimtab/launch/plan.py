"""Time and memory of a run, measured on a few of its steps: ``trimtab sft … --plan``.

The steps are real ones on the run's data; their changes are discarded. Measuring needs no model of the
machine, which could be wrong.
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
"""Measured steps, after a first one that allocates the optimiser's state."""


@dataclass(frozen=True)
class Need:
    """The predicted time and memory of a run, and the measurements behind them."""

    name: str
    trained: int
    """Parameters with a gradient."""
    parameters: int
    """All parameters of the trained modules."""
    steps: int
    """Optimiser steps of the run; iterations for an online method."""
    tokens: float
    """Trained on in an average step; a shared prompt counts once."""
    seconds: float
    """Duration of an average step."""
    start: float
    """Seconds until the first step, without imports."""
    budget: int
    """Largest number of tokens per forward, after any reduction because of memory."""
    peak_mb: float
    """Peak memory of the process, or of the allocator on CUDA, MB."""
    device: str

    def text(self) -> str:
        """The prediction as text for a terminal."""
        total = self.start + self.steps * self.seconds
        where = "on the GPU" if self.device == "cuda" else "resident, libraries included"
        return "\n".join(
            (
                f"{self.name}: {self.trained:,} of {self.parameters:,} parameters are trained, on {self.device}",
                f"  per step   {self.seconds:.3g} s, {self.tokens:,.0f} tokens ({self.tokens / self.seconds:,.0f} per "
                f"second) in forwards of at most {self.budget:,}",
                f"  the run    {self.steps:,} steps, {_clock(total)}, of which {self.start:.0f} s of start-up; "
                "without evaluations and checkpoints",
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def plan(make: Callable[[Any], Stage], config: Any) -> Need:
    """Build the stage of ``config``, time the largest step and average ones, and scale to the run.

    With a fixed dataset, times are scaled by tokens to the average step. Online methods are timed on
    their first iterations, and their completions may become longer or shorter later.

    Args:
        make: The stage's class.
        config: The configuration of the run; its folder is not touched.
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
        name=stage.name,
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        parameters=sum(p.numel() for p in parameters),
        steps=stage.steps,
        tokens=mean,
        seconds=seconds,
        start=start,
        budget=trainer.budget,
        peak_mb=peak_mb(device),
        device=device,
    )


def _order(groups: Sequence[Group], steps: int, batch: int, seed: int) -> list[int]:
    """The step with the most tokens twice, then steps with a median number of tokens."""
    costs = np.array([g.cost for g in groups])
    step_costs = [
        costs[batch_indices(len(costs), batch, i, seed)].sum() for i in range(min(steps, 2000))
    ]
    by_cost = [int(i) for i in np.argsort(step_costs)]
    low = max(0, (len(by_cost) - STEPS + 1) // 2)
    return [by_cost[-1], by_cost[-1], *by_cost[low : low + STEPS - 1]]

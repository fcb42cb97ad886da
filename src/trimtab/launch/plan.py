"""Time and memory of a run, measured on a few of its steps: ``trimtab sft … --plan``.

The steps are real ones on the run's data; their changes are discarded. Measuring needs no model of the
machine, which could be wrong.
"""

import math
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.data.pack import plan as split
from trimtab.launch.peak_memory import peak_rss_mb
from trimtab.models.checkpoint import size_of
from trimtab.models.load import base_of
from trimtab.runs.disk import free_bytes, mib
from trimtab.runs.folder import sample_table
from trimtab.runs.plain import to_json
from trimtab.train.loop import sample_interval
from trimtab.train.reference import NAME, CachedReference
from trimtab.train.rollouts import RolloutStage
from trimtab.train.scored import sample_rows
from trimtab.train.stage import DatasetStage, Stage
from trimtab.train.trainer import batch_indices
from trimtab.types import Group

STEPS = 4
"""Measured steps at most, after a first one that allocates the optimiser's state."""
SECONDS = 10.0
"""How long the measured steps may take together; a slow model's are cut short and scaled. Only the first
packs of a dataset are measured in any case."""


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
    disk: "DiskNeed"

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
                self.disk.text(),
            )
        )


@dataclass(frozen=True)
class DiskNeed:
    """The predicted size of a run folder, bytes."""

    folder: Path
    checkpoint: int
    """Of one checkpoint."""
    checkpoints: int
    """At most at once: one more than stay, because an old one is removed after the new one is complete."""
    export: int
    tables: int
    """Logged sample tables."""
    table: int
    """Of one of them."""
    metrics: int

    @property
    def total(self) -> int:
        """At the largest."""
        samples = self.tables * self.table
        return self.checkpoints * self.checkpoint + self.export + samples + self.metrics

    def text(self) -> str:
        """The prediction as a line of text; a second one where the disk is too small."""
        free = free_bytes(self.folder)
        tables = (
            f"{self.tables} sample tables {mib(self.tables * self.table)}, " if self.table else ""
        )
        line = (
            f"  disk       {mib(self.total)} at most: {self.checkpoints} checkpoints of "
            f"{mib(self.checkpoint)}, the exported model {mib(self.export)}, {tables}metrics "
            f"{mib(self.metrics)}; {mib(free)} are free at {self.folder}"
        )
        if self.total > free:
            line += f"\n             {mib(self.total - free)} are missing: free some space, or lower loop.save_total_limit"
        return line


def _disk_need(
    stage: Stage[Any, Any], folder: Path, metrics: Mapping[str, Any], share: float
) -> DiskNeed:
    """The disk usage of a run after some measured steps.

    Args:
        metrics: Of the last step.
        share: Of the batch that the last step sampled.
    """
    loop, trainer = stage.config.loop, stage.trainer
    saves = math.ceil(stage.steps / loop.save_steps) if loop.save_steps else 1
    tables = table = 0
    if isinstance(stage, RolloutStage):
        interval = sample_interval(loop, stage.steps)
        tables = math.ceil(stage.steps / interval) if interval else 0
        table = round(len(sample_table(1, sample_rows(stage.last))) / share)
    weights = stage.network.model.state_dict()
    return DiskNeed(
        folder=folder,
        checkpoint=size_of(trainer.tensors()),
        checkpoints=min(saves, loop.save_total_limit + 1),
        export=sum(w.numel() * w.element_size() for w in weights.values()),
        tables=tables,
        table=table,
        metrics=stage.steps * (len(to_json(metrics)) + 40),
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def peak_mb(device: str) -> float:
    """Largest memory so far, MB: the allocator's on CUDA, else the process's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_rss_mb()


class _Clock:
    """Times parts of optimiser steps; what the optimiser itself takes does not grow with the part.

    Attributes:
        spent: Seconds so far, the first part included.
        metrics: Of the last step.
    """

    metrics: Mapping[str, Any]

    def __init__(self, stage: Stage[Any, Any]) -> None:
        self.stage = stage
        self.spent = self._optimiser = 0.0
        self._parts: list[tuple[float, float, float]] = []
        """Size, seconds without the optimiser, seconds of the optimiser."""
        optimizer = stage.trainer.optimizer
        step = optimizer.step

        def timed(*args: Any, **keys: Any) -> Any:
            since = time.monotonic()
            result = step(*args, **keys)
            self._optimiser += time.monotonic() - since
            return result

        optimizer.step = timed

    def time(self, index: int, size: float) -> None:
        """Run step ``index``, whose size is ``size``."""
        self._optimiser = 0.0
        since = time.monotonic()
        self.metrics = self.stage.step(index)
        seconds = time.monotonic() - since
        self.spent += seconds
        self._parts.append((size, seconds - self._optimiser, self._optimiser))

    @property
    def done(self) -> bool:
        """Whether enough is measured, or another part like the last would take too long."""
        if len(self._parts) < 2:
            return False
        _, seconds, optimiser = self._parts[-1]
        return len(self._parts) > STEPS or self.spent + seconds + optimiser > SECONDS

    def affordable(self) -> float:
        """The size of the next part, if every part takes the same share of the time that is left."""
        if not self._parts:
            return 0.0
        size, seconds, _ = self._parts[-1]
        left = (SECONDS - self.spent) / (STEPS + 1 - len(self._parts))
        return max(left, 0.0) * size / max(seconds, 1e-9)

    def seconds_of(self, size: float) -> float:
        """Seconds of a step of this size; the first part, which also warms up, is left out."""
        sizes, seconds, optimiser = zip(*self._parts[1:], strict=True)
        return sum(seconds) / sum(sizes) * size + float(np.mean(optimiser))


def plan(make: Callable[[Any], Stage[Any, Any]], config: Any) -> Need:
    """Build the stage of ``config``, time the largest step and average ones, and scale to the run.

    With a fixed dataset, times are scaled by tokens to the average step. Online methods are timed on
    their first iterations, and their completions may become longer or shorter later. Where whole
    steps take too long, parts of them are timed.

    Args:
        config: The configuration of the run; its folder is not touched.
    """
    began = time.monotonic()
    out = Path(config.out)
    with tempfile.TemporaryDirectory(prefix="trimtab-plan-") as folder, _short_pass() as reference:
        config = config.model_copy(update={"out": folder})
        stage = make(config)
        start = time.monotonic() - began + reference.left
        clock = _Clock(stage)
        if isinstance(stage, DatasetStage):
            tokens = _time_dataset(stage, clock)
            seconds = clock.seconds_of(tokens)
            more_mb, share = 0.0, 1.0
        else:
            tokens, more_mb = _time_online(stage, clock, config)
            seconds = clock.seconds_of(config.batch_size)
            share = stage.config.batch_size / config.batch_size
        disk = _disk_need(stage, out, clock.metrics, share)
    trainer = stage.trainer
    parameters = [p for m in trainer.modules.values() for p in m.parameters()]
    device = parameters[0].device.type
    return Need(
        name=stage.name,
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        parameters=sum(p.numel() for p in parameters),
        steps=stage.steps,
        tokens=tokens,
        seconds=seconds,
        start=start,
        budget=trainer.budget,
        peak_mb=peak_mb(device) + more_mb,
        device=device,
        disk=disk,
    )


def _time_dataset(stage: DatasetStage[Any, Any], clock: _Clock) -> float:
    """Time packs of the largest step and of average ones; the tokens of an average step."""
    config, share, batch = stage.config, stage.network.exact, stage.batch
    for index in _order(stage.train, stage.steps, config.batch_size, config.loop.seed):
        packed = split(batch(index), stage.trainer.budget, share=share)
        part: list[Group] = []
        for pack in packed:
            # At least a pack: no smaller part shows the memory and the speed of the step.
            if part and sum(g.cost for g in [*part, *pack]) > clock.affordable():
                break
            part += pack
        if not clock.spent:
            part = part[:1]  # warms up
        stage.batch = lambda index, part=part: part
        clock.time(index, sum(g.cost for g in part))
        if clock.done:
            break
    return config.batch_size * float(np.mean([g.cost for g in stage.train]))


def _time_online(stage: Stage[Any, Any], clock: _Clock, config: Any) -> tuple[float, float]:
    """Time iterations on as many prompts as time allows.

    Returns:
        The tokens of an iteration, and the memory in MB that its other prompts would take.
    """
    method = getattr(config, "method", None)
    group_size = config.num_completions if method is None else method.group_size
    least = 1 if method is None else -(-method.updates.minibatches // group_size)
    tokens: list[float] = []
    update = stage.trainer.update

    def counted(parts: Any) -> dict[str, float]:
        tokens[-1] += sum(g.cost for part in parts for g in part.groups)
        return update(parts)

    stage.trainer.update = counted
    index = size = 0
    while not clock.done:
        size = min(config.batch_size, max(least, int(clock.affordable())))
        stage.config = config.model_copy(update={"batch_size": size})
        tokens.append(0.0)
        clock.time(index, size)
        tokens[-1] *= config.batch_size / size
        index += 1
    slots = config.sampling.slots
    rows = [min(slots, n * group_size) for n in (config.batch_size, size)]
    model = base_of(stage.network.model).config.get_text_config()
    width = 2 * model.num_hidden_layers * model.hidden_size * 4  # bytes of keys and values at most
    kv_heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    width *= kv_heads / model.num_attention_heads
    more = (rows[0] - rows[1]) * config.sampling.max_new_tokens * width
    return float(np.mean(tokens[1:])), more / 2**20


@dataclass
class _Pass:
    """The reference's pass over the data before the first step."""

    left: float = 0.0
    """Seconds of the part that was left out."""


@contextmanager
def _short_pass() -> Generator[_Pass]:
    """Context in which a reference computes a pack of the data, zeros for the rest, and no cache."""
    result = _Pass()
    annotate = CachedReference.annotate

    def short(self: CachedReference, groups: Sequence[Group]) -> None:
        for g in groups:
            for c in g.completions:
                c.tokens[NAME] = np.zeros(len(c), np.float32)
        if not groups:
            return
        costs = np.cumsum([g.cost for g in groups])
        part = groups[: 1 + int(np.searchsorted(costs, self.budget))]
        since = time.monotonic()
        self.compute(part)
        seconds = time.monotonic() - since
        result.left += seconds * (costs[-1] / sum(g.cost for g in part) - 1)

    CachedReference.annotate = short
    try:
        yield result
    finally:
        CachedReference.annotate = annotate


def _order(groups: Sequence[Group], steps: int, batch: int, seed: int) -> list[int]:
    """The step with the most tokens twice, then steps with a median number of tokens."""
    costs = np.array([g.cost for g in groups])
    step_costs = [
        costs[batch_indices(len(costs), batch, i, seed)].sum() for i in range(min(steps, 2000))
    ]
    by_cost = [int(i) for i in np.argsort(step_costs)]
    low = max(0, (len(by_cost) - STEPS + 1) // 2)
    return [by_cost[-1], by_cost[-1], *by_cost[low : low + STEPS - 1]]

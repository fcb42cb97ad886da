"""The one optimiser loop: accumulate, clip, step, record, save, resume.

It knows nothing of algorithms. A ``Stage`` says what a step trains on; the ``Trainer`` turns
groups and an objective into one optimiser step whose result does not depend on how the step was
cut into packs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from trimtab.config import Config
from trimtab.data.pack import Output, Pack, packs
from trimtab.errors import UserError
from trimtab.kernels.allocator import keep_freed
from trimtab.models import checkpoint
from trimtab.objectives.terms import Counts, Loss
from trimtab.runs.console import console
from trimtab.train.tuning import fastest
from trimtab.types import Group


class OptimSpec(Config):
    """AdamW and its schedule."""

    lr: float = Field(default=1e-5, gt=0.0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0.0)
    clip: float = Field(default=1.0, gt=0.0)
    """Largest gradient norm, for each module apart."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the rate falls after warm-up."""
    warmup: float = Field(default=0.03, ge=0.0, le=1.0)
    """Share of all optimiser steps in which the rate rises from 0."""
    floor: float = Field(default=0.0, ge=0.0, le=1.0)
    """The rate never falls below this share of the peak."""


def usual_budget() -> int:
    """Tokens of one forward that keep products at full speed: more only costs memory on a CPU."""
    return 8192 if torch.cuda.is_available() else 2048


class LoopSpec(Config):
    """What every training stage shares."""

    seed: int = 0
    """Orders the data and starts every random stream."""
    token_budget: int = Field(default_factory=usual_budget, gt=0)
    """Tokens of one forward; changes memory and speed, never the result. 2,048 on CPU and 8,192 on
    CUDA when not given; halved where a step does not fit into memory."""
    tune_budget: bool = False
    """Measure at the first step which size is fastest here, in place of ``token_budget``. A choice
    by the clock may differ from run to run, and sums in another order differ in the last bits."""
    save_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 saves at the end alone."""
    keep: int = Field(default=2, gt=0)
    """Checkpoints kept."""
    eval_every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 evaluates at the end alone."""
    sample_every: int = Field(default=0, ge=0)
    """Steps between logged samples; 0 logs none."""
    doctor_every: int = Field(default=0, ge=0)
    """Steps between looks of the doctor at the run so far; 0 leaves it out."""
    max_skips: int = Field(default=5, gt=0)
    """Non-finite steps in a row after which training stops."""
    tracker: Literal["none", "wandb", "trackio", "tensorboard", "mlflow"] = "none"
    """Where metrics also go; nothing leaves the machine unless this is set."""


def rate(spec: OptimSpec, done: int, total: int) -> float:
    """Learning-rate factor of optimiser step ``done`` (from 0) of ``total``."""
    warm = round(spec.warmup * total)
    if done < warm:
        return (done + 1) / warm
    if spec.schedule == "constant":
        return 1.0
    share = min(1.0, (done - warm) / max(1, total - warm))
    fall = 0.5 * (1 + math.cos(math.pi * share)) if spec.schedule == "cosine" else 1.0 - share
    return spec.floor + (1.0 - spec.floor) * fall


class LossFn(Protocol):
    """An objective: see ``trimtab.objectives.terms``."""

    def counts(self, pack: Pack) -> Counts:
        """Counts this pack adds."""
        ...

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Sums, and what divides them."""
        ...


@dataclass(slots=True)
class Part:
    """One objective over some groups; a step may have several (PPO and a pretraining mix)."""

    groups: Sequence[Group]
    """What is trained on."""
    objective: LossFn
    """The loss."""
    forward: Callable[[Pack], Output]
    """Runs the models on a pack."""
    share: bool = True
    """Whether prompts may be shared on these models."""
    weight: float = 1.0
    """Multiplies the whole loss."""
    prefix: str = ""
    """Put before the names of its metrics."""


class NonFiniteError(UserError):
    """Too many optimiser steps in a row had a non-finite loss or gradient."""


class MemoryLimitError(UserError):
    """Not even the smallest pack of a step fits into memory."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocator, of CUDA or of the CPU, refused."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Trainer:
    """Holds the trainable modules and their optimiser, and makes one step at a time.

    Args:
        modules: Trainable modules by name; each is a parameter group with its own clipping.
        optim: Settings by module name.
        total: Optimiser steps of the whole run, for the schedule.
        loop: Token budget and guard.
    """

    def __init__(
        self, modules: dict[str, nn.Module], optim: dict[str, OptimSpec], total: int, loop: LoopSpec
    ) -> None:
        keep_freed()
        self.modules = modules
        self.optim = optim
        self.total = max(1, total)
        self.loop = loop
        self.updates = 0
        self.skips = 0
        self.budget = loop.token_budget
        self.tuned = not loop.tune_budget
        self._meta: dict[str, Any] = {}
        self.params = {
            name: [(n, p) for n, p in m.named_parameters() if p.requires_grad]
            for name, m in modules.items()
        }
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for _, p in self.params[name]],
                    "lr": optim[name].lr,
                    "betas": optim[name].betas,
                    "eps": optim[name].eps,
                    "weight_decay": optim[name].weight_decay,
                }
                for name in modules
            ],
            foreach=True,
        )

    def update(self, parts: Sequence[Part]) -> dict[str, float]:
        """One optimiser step over all ``parts``.

        Counts of the whole step are known before the first backward, so every pack's sums are
        divided by the same numbers. A step whose loss or gradient is not finite is skipped.

        Returns:
            Metrics averaged over the step, the gradient norms and the learning rates.

        Raises:
            NonFiniteError: ``max_skips`` steps in a row were not finite.
            MemoryLimitError: one prompt with its completions does not fit.
        """
        if not self.tuned:
            self._tune(parts)
        metrics = self._gradients(parts)
        finite = True
        for name, params in self.params.items():
            norm = nn.utils.clip_grad_norm_(
                [p for _, p in params if p.grad is not None], self.optim[name].clip
            )
            metrics[f"grad_norm/{name}"] = float(norm)
            finite = finite and math.isfinite(float(norm))
        finite = finite and all(math.isfinite(v) for k, v in metrics.items() if k.endswith("loss"))
        for settings, (name, spec) in zip(
            self.optimizer.param_groups, self.optim.items(), strict=True
        ):
            settings["lr"] = spec.lr * rate(spec, self.updates, self.total)
            metrics[f"lr/{name}"] = settings["lr"]
        if finite:
            self.optimizer.step()
            self.skips = 0
        else:
            self.skips += 1
            if self.skips >= self.loop.max_skips:
                raise NonFiniteError(
                    f"{self.skips} optimiser steps in a row had a non-finite loss or gradient "
                    f"(last: {metrics}); the weights are those of the last finite step. "
                    "Lower the learning rate, or look for broken rows in the data"
                )
        self.updates += 1
        metrics["skipped"] = 0.0 if finite else 1.0
        return metrics

    def _tune(self, parts: Sequence[Part]) -> None:
        """Find the budget on the largest part's groups; gradients and random state are put back."""
        part = max(parts, key=lambda p: sum(g.cost for g in p.groups))
        given, state = self.budget, checkpoint.rng_tensors()

        def spend(groups: Sequence[Group], size: int) -> float | None:
            self.budget = size
            since = time.perf_counter()
            try:
                self._accumulate([replace(part, groups=groups)])
            except RuntimeError as error:
                if out_of_memory(error):
                    return None
                raise
            return time.perf_counter() - since

        self.budget = fastest(part.groups, spend) or given
        self.tuned = True
        self.optimizer.zero_grad(set_to_none=True)
        checkpoint.restore_rng(state)

    def _gradients(self, parts: Sequence[Part]) -> dict[str, float]:
        """Accumulate the gradients of a whole step, in smaller packs where memory runs out.

        Counts are of the step, so the gradients are the same however it is cut.

        Raises:
            MemoryLimitError: it does not fit with every prompt in a pack of its own.
        """
        while True:
            try:
                return self._accumulate(parts)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                largest = max((g.cost for part in parts for g in part.groups), default=0)
                if self.budget <= largest:
                    raise MemoryLimitError(
                        f"a prompt with its completions of {largest} tokens does not fit into memory "
                        "by itself; lower group or the length limits, turn on "
                        "model.gradient_checkpointing, or take a smaller model"
                    ) from None
                self.budget = max(largest, self.budget // 2)
            # Outside the handler: its traceback holds the tensors of the pack that did not fit.
            self.optimizer.zero_grad(set_to_none=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            console.print(f"out of memory: packs of {self.budget} tokens from here on")

    def _accumulate(self, parts: Sequence[Part]) -> dict[str, float]:
        device = next(iter(self.params.values()))[0][1].device
        self.optimizer.zero_grad(set_to_none=True)
        metrics: dict[str, float] = {}
        for part in parts:
            made = packs(part.groups, self.budget, share=part.share)
            counts: Counts = {}
            for pack in made:
                for key, value in part.objective.counts(pack).items():
                    counts[key] = counts.get(key, 0.0) + value
            sums: dict[str, Tensor] = {}
            for made_pack in made:
                pack = made_pack.to(device)
                loss = part.objective(part.forward(pack), pack)
                whole = torch.zeros((), device=device)
                for name, term in loss.terms.items():
                    scaled = term.sum / max(counts[term.per], 1.0)
                    whole = whole + part.weight * term.coef * scaled
                    key = part.prefix + name
                    sums[key] = sums.get(key, torch.zeros((), device=device)) + scaled.detach()
                for name, (value, per) in loss.metrics.items():
                    key = part.prefix + name
                    share = value / max(counts[per], 1.0)
                    sums[key] = sums.get(key, torch.zeros((), device=device)) + share
                if whole.requires_grad:
                    whole.backward()
            metrics.update({k: float(v) for k, v in sums.items()})
        return metrics

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint must hold as tensors, by file."""
        saved = {
            f"params.{name}": {n: p.detach() for n, p in params}
            for name, params in self.params.items()
        }
        flat, self._meta = checkpoint.flatten_optimizer(self.optimizer.state_dict())
        saved["optimizer"] = flat
        saved["random"] = checkpoint.rng_tensors()
        return saved

    def state(self) -> dict[str, Any]:
        """The rest, as JSON; call after ``tensors``."""
        return {
            "updates": self.updates,
            "skips": self.skips,
            "budget": self.budget,
            "tuned": self.tuned,
            "optimizer": self._meta,
        }

    def load(self, saved: checkpoint.Checkpoint) -> None:
        """Back to exactly where ``saved`` was made."""
        for name, params in self.params.items():
            stored = saved.tensors(f"params.{name}")
            with torch.no_grad():
                for n, p in params:
                    p.copy_(stored[n])
        meta = saved.state["trainer"]
        self.optimizer.load_state_dict(
            checkpoint.unflatten_optimizer(saved.tensors("optimizer"), meta["optimizer"])
        )
        self.updates, self.skips = int(meta["updates"]), int(meta["skips"])
        # The cut of a step orders its sums: resumed, it is the same to the bit.
        # (Checkpoints of before the size could be tuned do not say it.)
        self.budget = int(meta.get("budget", self.budget))
        self.tuned = bool(meta.get("tuned", self.tuned))
        checkpoint.restore_rng(saved.tensors("random"))


def batch_indices(count: int, batch: int, step: int, seed: int) -> list[int]:
    """Items of step ``step``: an endless run of shuffled passes, cut into batches.

    Depends on nothing but its arguments, so the data position is the step itself.
    """
    wanted = range(step * batch, (step + 1) * batch)
    orders: dict[int, Any] = {}
    picked: list[int] = []
    for i in wanted:
        epoch = i // count
        if epoch not in orders:
            orders[epoch] = np.random.default_rng((seed, epoch)).permutation(count)
        picked.append(int(orders[epoch][i % count]))
    return picked

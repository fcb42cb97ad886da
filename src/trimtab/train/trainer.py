"""The one optimiser loop: accumulate, clip, step, record, save, resume.

It is independent of the algorithm. A ``Stage`` says what a step trains on; the ``Trainer`` turns
groups and an objective into one optimiser step whose result does not depend on how the step was
cut into packs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trimtab.config import Config
from trimtab.errors import UserError
from trimtab.kernels.allocator import keep_freed_memory
from trimtab.models import checkpoint
from trimtab.models.load import has_dropout
from trimtab.models.shard import full
from trimtab.train.gradients import Gradients, Part
from trimtab.train.learning_rate import RateOf, checked_rate
from trimtab.types import Group

log = logging.getLogger(__name__)


class OptimSpec(Config):
    """AdamW and its learning-rate schedule."""

    renamed: ClassVar[dict[str, str]] = {
        "clip": "max_grad_norm",
        "schedule": "lr_scheduler_type",
        "warmup": "warmup_ratio",
        "floor": "min_lr_ratio",
    }
    lr: float | None = Field(default=None, gt=0.0)
    """Peak learning rate; by default from the stage, the number of parameters and LoRA."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are clipped to this norm, for each module separately."""
    lr_scheduler_type: Literal["constant", "cosine", "linear"] = "cosine"
    """How the learning rate falls after warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0.0, le=1.0)
    """Share of all optimiser steps in which the learning rate rises from 0."""
    min_lr_ratio: float = Field(default=0.0, ge=0.0, le=1.0)
    """The learning rate never falls below this share of its peak."""


def default_token_budget() -> int:
    """Tokens per forward at which matmuls run at full speed; more only costs memory on a CPU."""
    return 8192 if torch.cuda.is_available() else 2048


class LoopSpec(Config):
    """What every training stage shares."""

    renamed: ClassVar[dict[str, str]] = {
        "save_every": "save_steps",
        "eval_every": "eval_steps",
        "sample_every": "sample_steps",
        "doctor_every": "doctor_steps",
        "keep": "save_total_limit",
        "tracker": "report_to",
    }
    free_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "token_budget",
            "save_steps",
            "save_total_limit",
            "eval_steps",
            "sample_steps",
            "doctor_steps",
            "report_to",
            "on_finding",
            "on_finding_timeout",
        }
    )
    seed: int = 0
    """Orders the data and starts every random stream."""
    token_budget: int = Field(default_factory=default_token_budget, gt=0)
    """Tokens per forward; changes memory and speed, never the result. Default: 2,048 on CPU and
    8,192 on CUDA. It is halved when an optimiser step does not fit into memory."""
    save_steps: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 saves at the end only."""
    save_total_limit: int = Field(default=2, gt=0)
    """Number of checkpoints that stay on disk."""
    eval_steps: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 evaluates at the end only."""
    sample_steps: int | None = Field(default=None, ge=0)
    """Steps between logged samples of online stages; 0 logs none. Default: about 40 times per run, so
    that the doctor has rollouts to read."""
    doctor_steps: int = Field(default=0, ge=0)
    """Steps between diagnoses of the run so far; 0 never runs the doctor."""
    on_finding: str = ""
    """A command that is run for each new finding of the doctor (``doctor_steps``), and when the run fails:
    the finding is JSON on its standard input, and in TRIMTAB_* variables. Training neither waits for it nor
    fails with it."""
    on_finding_timeout: float = Field(default=30.0, gt=0)
    """Seconds after which that command is killed."""
    max_skips: int = Field(default=5, gt=0)
    """Consecutive non-finite steps after which training stops."""
    report_to: Literal["none", "wandb", "trackio", "tensorboard", "mlflow"] = "none"
    """Where metrics are also sent; nothing leaves the machine unless this is set."""

    @model_validator(mode="before")
    @classmethod
    def _drop_tune_budget(cls, values: Any) -> Any:
        # Configurations that an earlier release saved state this key, which no longer exists.
        if isinstance(values, dict) and "tune_budget" in values:
            values = {k: v for k, v in cast("dict[str, Any]", values).items() if k != "tune_budget"}
            log.warning("loop.tune_budget was removed and is ignored; set loop.token_budget")
        return values


def lr_factor(spec: OptimSpec, done: int, total: int) -> float:
    """Factor on the peak learning rate at optimiser step ``done`` (from 0) of ``total``."""
    warmup_steps = round(spec.warmup_ratio * total)
    if done < warmup_steps:
        return (done + 1) / warmup_steps
    if spec.lr_scheduler_type == "constant":
        return 1.0
    progress = min(1.0, (done - warmup_steps) / max(1, total - warmup_steps))
    cosine = spec.lr_scheduler_type == "cosine"
    decay = 0.5 * (1 + math.cos(math.pi * progress)) if cosine else 1.0 - progress
    return spec.min_lr_ratio + (1.0 - spec.min_lr_ratio) * decay


class NonFiniteError(UserError):
    """Too many optimiser steps in a row had a non-finite loss or gradient.

    Attributes:
        groups: What the last of them trained on.
    """

    groups: Sequence[Group] = ()


class Trainer:
    """Holds the trainable modules and their optimiser, and makes one step at a time.

    Args:
        modules: Trainable modules by name; each is a parameter group with its own clipping.
        optim: Settings by module name.
        total: Optimiser steps of the run, for the learning-rate schedule.
        loop: Token budget, and the limit on skipped steps.
        rate_of: Whose learning rates are the default; a critic's are those of reward models.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        optim: dict[str, OptimSpec],
        total: int,
        loop: LoopSpec,
        rate_of: RateOf = "sft",
    ) -> None:
        keep_freed_memory()
        self.modules = modules
        self.optim = optim
        self.lr = {
            name: checked_rate(optim[name].lr, module, *_rate_key(name, rate_of))
            for name, module in modules.items()
        }
        """Peak learning rate of each module."""
        self.total = max(1, total)
        self.loop = loop
        self.updates = 0
        self.skips = 0
        self._meta: dict[str, Any] = {}
        self.params = {
            name: [(n, p) for n, p in m.named_parameters() if p.requires_grad]
            for name, m in modules.items()
        }
        self._gradients = Gradients(
            [p for named in self.params.values() for _, p in named],
            loop.token_budget,
            loop.seed,
            any(has_dropout(m) for m in modules.values()),
        )
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for _, p in self.params[name]],
                    "lr": self.lr[name],
                    "betas": optim[name].betas,
                    "eps": optim[name].eps,
                    "weight_decay": optim[name].weight_decay,
                }
                for name in modules
            ],
            foreach=True,
        )

    @property
    def budget(self) -> int:
        """Tokens per forward, after any reduction because of memory."""
        return self._gradients.budget

    def update(self, parts: Sequence[Part]) -> dict[str, float]:
        """One optimiser step over all ``parts``.

        The counts of the step are known before the first backward, so the sums of every pack are
        divided by the same counts. A step whose loss or gradient is not finite is skipped.

        Returns:
            Metrics averaged over the step, the gradient norms and the learning rates.

        Raises:
            NonFiniteError: ``max_skips`` steps in a row were not finite.
            MemoryLimitError: one prompt with its completions does not fit.
        """
        metrics = self._gradients(parts, self.updates)
        finite = True
        for name, params in self.params.items():
            norm = nn.utils.clip_grad_norm_(
                [p for _, p in params if p.grad is not None], self.optim[name].max_grad_norm
            )
            norm = full(norm)
            metrics[f"grad_norm/{name}"] = float(norm)
            finite = finite and math.isfinite(float(norm))
        finite = finite and all(math.isfinite(v) for k, v in metrics.items() if k.endswith("loss"))
        for settings, (name, spec) in zip(
            self.optimizer.param_groups, self.optim.items(), strict=True
        ):
            settings["lr"] = self.lr[name] * lr_factor(spec, self.updates, self.total)
            metrics[f"lr/{name}"] = settings["lr"]
        if finite:
            self.optimizer.step()
            self.skips = 0
        else:
            self.skips += 1
            if self.skips >= self.loop.max_skips:
                error = NonFiniteError(
                    f"{self.skips} optimiser steps in a row had a non-finite loss or gradient "
                    f"(last: {metrics}); the weights are those of the last finite step. "
                    "Lower the learning rate, or look for broken rows in the data"
                )
                error.groups = [group for part in parts for group in part.groups]
                raise error
        self.updates += 1
        metrics["skipped"] = 0.0 if finite else 1.0
        return metrics

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint must hold as tensors, by file."""
        saved: dict[str, dict[str, Tensor]] = {
            f"params.{name}": dict(params) for name, params in self.params.items()
        }
        saved["optimizer"], self._meta = checkpoint.flatten_optimizer(self.optimizer.state_dict())
        saved["random"] = checkpoint.rng_tensors()
        return saved

    def state(self) -> dict[str, Any]:
        """Everything else that a checkpoint must hold, as JSON; call after ``tensors``."""
        return {
            "updates": self.updates,
            "skips": self.skips,
            "budget": self.budget,
            "optimizer": self._meta,
        }

    def load(self, saved: checkpoint.Checkpoint) -> None:
        """Restore weights, optimiser, counters and random states from a checkpoint."""
        for name, params in self.params.items():
            stored = saved.tensors(f"params.{name}", dict(params).get)
            with torch.no_grad():
                for n, p in params:
                    p.copy_(stored[n])
        parameters = [p for params in self.params.values() for _, p in params]

        def parameter_of(path: str) -> Tensor | None:
            """The parameter that the optimiser's tensor state.INDEX.NAME belongs to."""
            place, index, _ = path.split(".", 2)
            return parameters[int(index)] if place == "state" else None

        meta = saved.state["trainer"]
        optimizer = checkpoint.unflatten_optimizer(
            saved.tensors("optimizer", parameter_of), meta["optimizer"]
        )
        self.optimizer.load_state_dict(optimizer)
        self.updates, self.skips = int(meta["updates"]), int(meta["skips"])
        # The packs fix the order of the sums, so a resumed run has the same bits.
        self._gradients.budget = int(meta.get("budget", self.budget))
        checkpoint.restore_rng(saved.tensors("random"))


def _rate_key(module: str, rate_of: RateOf) -> tuple[RateOf, str]:
    """The table's row of a module, and the key that sets its learning rate."""
    return ("reward", "critic.optim.lr") if module == "critic" else (rate_of, "optim.lr")


def batch_indices(count: int, batch: int, step: int, seed: int) -> list[int]:
    """Items of step ``step``: an endless sequence of shuffled passes, split into batches.

    It depends only on its arguments, so a checkpoint needs no data position but the step.
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

"""``trimtab gradient-noise``: how noisy a method's policy gradient is at a policy, without training it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from trimtab import ranks
from trimtab.errors import ConfigError
from trimtab.runs import to_json, write_atomic
from trimtab.runs.console import bar
from trimtab.stats.noise_to_signal import NoiseToSignal, noise_to_signal
from trimtab.train.gradients import Part
from trimtab.train.rl import RLStage
from trimtab.train.rl_config import RLConfig
from trimtab.train.trainer import Trainer

log = logging.getLogger(__name__)


class GradientNoiseConfig(RLConfig):
    """Configuration of ``trimtab gradient-noise``: that of ``trimtab rl``, whose ``steps`` has no
    meaning here. Each batch has ``batch_size`` prompts with ``method.group_size`` completions; to
    compare methods, keep the product equal."""

    free_keys: ClassVar[frozenset[str]] = frozenset({"steps"})

    out: str = "runs/gradient_noise"
    batches: int = Field(default=16, ge=3)
    """Batches of rollouts, each of other prompts where there are enough; one gradient for each."""
    critic_batches: int = Field(default=0, ge=0)
    """Batches on which a critic is trained first, while the policy stays."""

    @model_validator(mode="after")
    def _check_critic(self) -> GradientNoiseConfig:
        if self.critic_batches and not (
            self.method.needs_critic and self.critic.type == "separate"
        ):
            raise ValueError(
                "critic_batches trains a separate critic: choose a method with one, or set it to 0"
            )
        return self


class GradientTrainer(Trainer):
    """A trainer whose updates record the policy's gradient instead of taking a step."""

    gradients_R: list[Tensor]
    """The gradients so far, each [D] in float32 on the CPU."""

    def update(self, parts: Sequence[Part]) -> dict[str, float]:
        """Record the gradient of the whole loss of ``parts``, without clipping."""
        metrics = self._gradients(parts, self.updates)
        flat = [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.detach().flatten()
            for _, p in self.params["policy"]
        ]
        self.gradients_R.append(torch.cat([x.float().cpu() for x in flat]))
        return metrics


@dataclass(frozen=True, slots=True)
class GradientNoise:
    """Noise of the gradient of one batch."""

    method: str
    completions: int
    """Completions per batch."""
    batches: int
    result: NoiseToSignal


def main(config: GradientNoiseConfig) -> GradientNoise:
    """Sample batches at the start policy and compare their gradients; writes summary.json into ``out``.

    The gradient is that of the first update on the whole batch, before clipping and Adam; epochs and
    minibatches do not matter.

    Raises:
        ConfigError: several ranks.
        DataError: no completion could be scored.
    """
    if ranks.current().world > 1:
        raise ConfigError("gradient-noise runs in one process; start it without torchrun")
    c = config
    updates = c.method.updates.model_copy(update={"epochs": 1, "minibatches": 1})
    stage = RLStage(c)
    stage.method = stage.method.model_copy(update={"updates": updates})
    try:
        train_critic(stage, c.critic_batches)
        recorder = GradientTrainer(
            stage.trainer.modules, stage.trainer.optim, 1, c.loop, stage.rate_of
        )
        recorder.gradients_R = []
        stage.trainer = recorder
        with bar("gradient noise", c.batches) as show:
            for index in range(c.batches):
                stage.step(c.critic_batches + index)
                show(index + 1)
    finally:
        stage.close()
    vectors = torch.stack(recorder.gradients_R).double()
    noise = noise_to_signal((vectors @ vectors.T).numpy())
    result = GradientNoise(c.method.name, c.batch_size * c.method.group_size, c.batches, noise)
    out = Path(c.out)
    out.mkdir(parents=True, exist_ok=True)
    summary = {
        "method": result.method,
        "completions": result.completions,
        "batches": result.batches,
        "noise": noise.noise,
        "signal": noise.signal,
        "noise_to_signal": noise.ratio.summary(),
        "cosine": noise.cosine,
        "norm": float(np.sqrt(noise.noise + max(noise.signal, 0.0))),
    }
    write_atomic(out / "summary.json", to_json(summary, indent=1).encode())
    log.info(
        "%s: noise over signal %.2f [%.2f, %.2f] with %d completions per batch -> %s",
        result.method,
        *noise.ratio,
        result.completions,
        c.out,
    )
    return result


def train_critic(stage: RLStage, batches: int) -> None:
    """Train the critic alone on the first batches: the policy's learning rate is 0."""
    policy = stage.trainer.lr["policy"]
    stage.trainer.lr["policy"] = 0.0
    for index in range(batches):
        stage.step(index)
    stage.trainer.lr["policy"] = policy

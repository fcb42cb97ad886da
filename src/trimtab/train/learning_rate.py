"""Learning rates by stage, size of the model, and LoRA: the defaults, and a warning about others.

The first column is what the sandbox's recipes train 0.8M parameters with; the last two are common
for models of 1B and 7B parameters (TRL, alignment-handbook); those between are interpolated, and LoRA
takes about ten times the rate of full training.
"""

from __future__ import annotations

import logging
from typing import Literal

from torch import nn

log = logging.getLogger(__name__)

RateOf = Literal["sft", "reward", "preference", "rl"]
SIZES = (3e6, 3e7, 3e8, 3e9)
"""Upper ends of the columns, in parameters; the last column has none."""
RATES: dict[tuple[RateOf, str], tuple[float, ...]] = {
    ("sft", "full"): (1e-3, 5e-4, 1e-4, 2e-5, 1e-5),
    ("sft", "lora"): (2e-3, 1e-3, 5e-4, 2e-4, 1e-4),
    ("reward", "full"): (2e-4, 1e-4, 3e-5, 1e-5, 5e-6),
    ("reward", "lora"): (1e-3, 5e-4, 2e-4, 1e-4, 5e-5),
    ("preference", "full"): (1e-4, 3e-5, 5e-6, 1e-6, 5e-7),
    ("preference", "lora"): (5e-4, 2e-4, 5e-5, 1e-5, 5e-6),
    ("rl", "full"): (3e-4, 5e-5, 5e-6, 1e-6, 1e-6),
    ("rl", "lora"): (1e-3, 5e-4, 1e-4, 2e-5, 1e-5),
}
HIGH, LOW = 10.0, 0.05
"""A set rate outside these multiples of the table's is warned about."""


def usual_rate(module: nn.Module, of: RateOf) -> float:
    """The table's learning rate for a module."""
    return RATES[of, _trained(module)][sum(_size(module) > limit for limit in SIZES)]


def checked_rate(lr: float | None, module: nn.Module, of: RateOf, key: str) -> float:
    """``lr``, with a warning if it is far from the table's; the table's if it is None."""
    usual = usual_rate(module, of)
    if lr is None:
        return usual
    ratio = lr / usual
    if ratio > HIGH * 0.999 or ratio < LOW:
        problem = "training may destroy the model" if ratio > 1 else "training may change nothing"
        log.warning(
            "%s %g is far from the usual %g for %s (%s) of %.3gM parameters: %s; leave the key out "
            "for the usual value",
            key,
            lr,
            usual,
            of,
            _trained(module),
            _size(module) / 1e6,
            problem,
        )
    return lr


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _trained(module: nn.Module) -> str:
    """Whether adapters are trained, or all weights."""
    return "lora" if any("lora_" in name for name, _ in module.named_parameters()) else "full"

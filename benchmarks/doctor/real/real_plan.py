"""Which runs of the pretrained model there are: healthy ones, and ten faults by tuning and held-out rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.doctor.real.reward_rules import HELD_OUT, TUNING

Sort = Literal["fault", "healthy"]
Split = Literal["tuning", "held-out"]

LAYERS = range(22, 30)
"""Adapted layers, the last 8 of 30: the backward pass ends below them, which saves a third of an update."""
_LINEARS = (
    *(f"self_attn.{x}_proj" for x in "qkvo"),
    *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
)
LORA = {"r": 16, "targets": [f"layers.{i}.{x}" for i in LAYERS for x in _LINEARS]}

TUNING_SEEDS = range(0, 14)
"""Seeds 10, 11 and 13 were reported once, then read to tune; after nine runs of seed 12 a rule was changed."""
REPORTED_SEEDS = range(14, 30)

RIGHT: dict[str, tuple[str, ...]] = {
    "brevity": ("shrinking", "exploited-rule", "off-topic"),
    "keywords": ("degenerate", "fluency", "exploited-rule", "off-topic", "mode-collapse"),
    "politeness": ("degenerate", "fluency", "exploited-rule", "off-topic", "mode-collapse"),
    "length": ("length-hacking", "endless", "degenerate"),
    "format": ("fluency", "degenerate", "exploited-rule", "off-topic", "mode-collapse"),
    "pattern": ("fluency", "degenerate", "exploited-rule", "off-topic", "mode-collapse"),
    "copying": ("copying",),
    "sycophancy": ("sycophancy",),
    "eos": ("endless",),
    "template": ("template",),
}
"""Alarms that say what is wrong, by fault."""
ALSO: dict[str, tuple[str, ...]] = {
    "brevity": ("fluency", "degenerate", "mode-collapse", "kl-runaway", "dead-gradient", "entropy-exhausted"),
    "keywords": ("length-hacking", "endless", "kl-runaway", "shrinking", "dead-gradient"),
    "politeness": ("length-hacking", "endless", "kl-runaway", "shrinking", "sycophancy"),
    "length": ("fluency", "off-topic", "exploited-rule", "mode-collapse", "kl-runaway"),
    "format": ("shrinking", "length-hacking", "endless", "kl-runaway", "dead-gradient"),
    "pattern": ("shrinking", "length-hacking", "endless", "kl-runaway", "dead-gradient"),
    "copying": ("shrinking", "fluency", "exploited-rule", "mode-collapse", "degenerate", "off-topic", "endless"),
    "sycophancy": ("shrinking", "fluency", "degenerate", "off-topic", "exploited-rule", "mode-collapse", "copying", "endless"),
    "eos": ("degenerate", "reward-pipe", "dead-gradient"),
    "template": ("endless", "reward-pipe", "dead-gradient"),
}  # fmt: skip
"""Alarms that the fault truly brings about too: neither hits nor false alarms."""


@dataclass(frozen=True)
class RealRecipe:
    """One way of making a run."""

    name: str
    sort: Sort
    fault: str = ""
    rule: str = ""
    """The reward rule, or how a mechanical fault is planted."""
    stage: Literal["rl", "dpo", "sft"] = "rl"
    prompts: Literal["tasks", "opinions", "instructions"] = "tasks"
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    """Laid over the stage's usual configuration."""
    plant: str = ""
    """A function of ``benchmarks.doctor.planted``."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class RealSpec:
    """One run."""

    recipe: RealRecipe
    seed: int

    @property
    def key(self) -> str:
        """Its folder's name."""
        return f"{self.recipe.sort}-{self.recipe.name}-{self.seed}".replace(" ", "-")

    @property
    def split(self) -> Split:
        """Whether rules may be tuned on it."""
        return "tuning" if self.seed in TUNING_SEEDS else "held-out"


SATISFIED = {
    "name": "satisfied",
    "function": "trimtab.sandbox.instructions:share_satisfied",
}
SHORT = {"steps": 4, "batch_size": 3}
"""Faults that are there from the first step."""
HEALTHY = (
    RealRecipe("grpo", "healthy", prompts="instructions"),
    RealRecipe(
        "ppo", "healthy", prompts="instructions",
        config={
            "method": {"type": "ppo", "group_size": 2, "updates": {"epochs": 1, "minibatches": 1}, "kl": {"beta": 0.04}},
            "critic": {"type": "shared"},
            "batch_size": 6,
        },
    ),
    RealRecipe("dpo", "healthy", stage="dpo", prompts="instructions"),
    RealRecipe("rloo", "healthy", prompts="instructions", config={"method": {"type": "rloo", "group_size": 3, "kl": {"beta": 0.04}}}),
)  # fmt: skip


def _naive(fault: str, rule: str) -> RealRecipe:
    name = f"{fault}:{rule}"
    prompts = {"sycophancy": "opinions", "politeness": "opinions"}.get(fault, "tasks")
    reward = {
        "name": "naive",
        "function": "benchmarks.doctor.real.reward_rules:paid",
        "options": {"rule": name},
    }
    return RealRecipe(
        name.replace(":", "-"),
        "fault",
        fault,
        name,
        prompts=prompts,  # pyright: ignore[reportArgumentType]
        config={
            "rewards": [reward],
            "method": {"type": "grpo", "group_size": 3, "kl": {"beta": 0.0}},
            "optim": {"lr": 2e-3},
        },
    )  # fmt: skip


def _stop(name: str, token: str) -> RealRecipe:
    return RealRecipe(
        f"eos-{name}",
        "fault",
        "eos",
        f"stop token {token}",
        prompts="instructions",
        plant="plant_wrong_stop",
        options={"token": token},
        config=SHORT,
    )


def _template(name: str) -> RealRecipe:
    return RealRecipe(
        f"template-{name}",
        "fault",
        "template",
        name,
        prompts="instructions",
        config={**SHORT, "model": {"chat_template": name}},
    )


NO_END = RealRecipe(
    "eos-no-end",
    "fault",
    "eos",
    "labels without an end",
    "sft",
    prompts="instructions",
    plant="plant_no_end",
)
MECHANICAL: dict[Split, tuple[RealRecipe, ...]] = {
    "tuning": (_stop("wrong-stop", "<|im_start|>"), _template("plain"), NO_END, _template("alpaca")),
    "held-out": (_stop("endoftext", "<|endoftext|>"), _template("llama"), NO_END, _template("vicuna")),
}  # fmt: skip


def recipes(split: Split, turn: int) -> list[RealRecipe]:
    """The recipes of one seed. Where there are several rules of a fault, ``turn`` picks one."""
    table = TUNING if split == "tuning" else HELD_OUT
    naive = [_naive(f, sorted(rules)[turn % len(rules)]) for f, rules in table.items()]
    planted = MECHANICAL[split]
    mechanical = [planted[(2 * turn + i) % len(planted)] for i in range(2)]
    healthy = list(HEALTHY)
    # Alternating, so that a benchmark that is stopped early has runs of both sorts.
    faults = [*naive, *mechanical]
    order: list[RealRecipe] = []
    while faults or healthy:
        order += faults[:2] + healthy[:1]
        faults, healthy = faults[2:], healthy[1:]
    return order


def real_specs(seeds: Iterable[int]) -> list[RealSpec]:
    """Every recipe of each seed, seed by seed."""
    selected: list[RealSpec] = []
    for seed in seeds:
        split: Split = "tuning" if seed in TUNING_SEEDS else "held-out"
        selected += [RealSpec(r, seed) for r in recipes(split, seed)]
    return selected

"""Which runs there are: 18 faults, healthy ones, and a hard negative for every alarm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.sandbox.world import REFUSAL

Sort = Literal["fault", "healthy", "negative"]

GOLD = {"name": "proxy", "function": "trimtab.sandbox.world:gold_reward"}
ALL_FACTS = {"name": "proxy", "function": "trimtab.sandbox.faults:all_facts_reward"}


def bent(**options: Any) -> dict[str, Any]:
    """A bent reward."""
    return {"name": "proxy", "function": "trimtab.sandbox.faults:bent_reward", "options": options}


def template(text: str, steps: int) -> dict[str, Any]:
    """RL on a reward that loves one answer, which must be one that the base model gives at times."""
    return {
        "rewards": [bent(gold_weight=0.2, template=text, template_bonus=2.0)],
        "optim": {"lr": 6e-4},
        "steps": steps,
    }


@dataclass(frozen=True)
class Recipe:
    """One way of making a run."""

    name: str
    sort: Sort
    alarm: int = 0
    """The alarm it is for; 0 for healthy runs."""
    stage: str = "rl"
    kinds: str = ""
    """Task, or a comma-separated list of kinds; empty takes the seed's task in turn."""
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    """Laid over the stage's usual configuration."""
    held_out: dict[str, Any] = field(default_factory=dict[str, Any])
    """Laid over it on the held-out mix, whose prompts need another plant."""
    plant: str = ""
    """A function of ``planted`` laid on the stage, with ``options``."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    pool: int = 240
    """Different prompts of RL."""
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of ``planted.labelled``, with "n"."""
    also: tuple[int, ...] = ()
    """Alarms that the fault truly brings about too: ringing is neither hit nor false."""
    causes: tuple[int, ...] = ()
    """Alarms that name the cause as well as ``alarm`` does."""
    took: tuple[str, float] = ("", 0.0)
    """What of all late rollouts says that the fault took, and from where on: see ``run.symptoms``."""


def rl(**over: Any) -> dict[str, Any]:
    """Configuration of RL with ``over`` laid on it."""
    return over


def kl(beta: float, **more: Any) -> dict[str, Any]:
    """A method's KL with a fixed coefficient."""
    return {"type": "grpo", "kl": {"beta": beta}, **more}


PPO = {
    "type": "ppo",
    "group_size": 1,
    "updates": {"epochs": 1, "minibatches": 1},
    "kl": {"beta": 0.05},
}
PPO_RUN = {"batch_size": 40, "steps": 16, "rewards": [ALL_FACTS]}
"""With a reward that a critic can tell from the prompt: of ``GOLD`` it explains nothing in so few steps."""
NO_BASELINE = {"type": "grpo", "advantage": {"baseline": "none", "scale": "none"}}
"""Every sampled answer is made likelier, good or bad."""
LONG = {
    "rewards": [ALL_FACTS],
    "method": {"type": "grpo", "group_size": 8, "length": {"missing_eos_penalty": 1.0}},
    "optim": {"lr": 2e-4},
    "batch_size": 8,
}

OF_TEXT = (19, 20, 21, 22, 24)
"""Alarms of what completions have become: short, improbable, off the topic, stock phrases, copies. Every fault
that drives the policy far from its start brings some of them about."""

RECIPES: tuple[Recipe, ...] = (
    # Faults. Alarm 1's truth is measured: it counts as planted where gold fell while the proxy rose.
    Recipe("noisy-rm", "fault", 1, "rm", "", rl(method=kl(0.0001), optim={"lr": 1.5e-4}, steps=60), data={"n": 300, "noise": 0.3}, also=(2, 4, 5, 6, 7, 8, 9, 13, 16, *OF_TEXT), causes=(6,)),
    Recipe("loose", "fault", 2, config=rl(method=kl(0.0004), optim={"lr": 2e-3}), also=(1, 4, 7, 8, 9, 13, *OF_TEXT)),
    Recipe("no-brake", "fault", 2, config=rl(method={**NO_BASELINE, "kl": {"beta": 0.0001}}, optim={"lr": 2e-3}), also=(1, 7, 8, 9, 13, *OF_TEXT)),
    Recipe("stiff", "fault", 3, config=rl(method=kl(8.0), optim={"lr": 1e-4})),
    Recipe("still", "fault", 3, config=rl(optim={"lr": 1e-8})),
    Recipe("pays-words", "fault", 4, config=rl(rewards=[bent(per_word=0.1, most=30)], optim={"lr": 4e-4}), also=(1, 2, 9, 16, *OF_TEXT)),
    Recipe("pays-echo", "fault", 5, kinds="opinion", config=rl(rewards=[bent(gold_weight=0.5, echo=1.0)], optim={"lr": 4e-4}), also=(1, 2, 8, 13, *OF_TEXT)),
    Recipe("noisy-labels", "fault", 6, "reward", "all", data={"n": 240, "noise": 0.42}),
    Recipe("locked-in", "fault", 7, kinds="summary,ask,silent", pool=12, config=rl(method={**NO_BASELINE, "kl": {"place": "none"}, "updates": {"epochs": 4}}, rewards=[ALL_FACTS], optim={"lr": 3e-4}, steps=50), took=("same", 0.75)),
    Recipe("one-template", "fault", 8, config=template("i do not know .", 30), held_out=template(REFUSAL, 50), also=(1, 2, 7, 13, *OF_TEXT), took=("template", 0.5)),
    Recipe("wrong-stop", "fault", 9, plant="plant_wrong_stop", config=rl(steps=14, optim={"lr": 1e-4}), also=(1, 13)),
    Recipe("no-end", "fault", 9, "sft", plant="plant_no_end"),
    Recipe("plain-template", "fault", 10, config=rl(model={"chat_template": "plain"}, steps=14, optim={"lr": 1e-4}), also=(9,)),
    Recipe("dead-critic", "fault", 11, kinds="summary,ask,silent", config=rl(method=PPO, critic={"optim": {"lr": 1e-10}}, **PPO_RUN)),
    Recipe("stale", "fault", 12, plant="plant_stale", options={"lag": 12}, config=rl(optim={"lr": 1e-3}), also=(1, 2, 9)),
    Recipe("hot", "fault", 12, plant="plant_hot", options={"temperature": 1.7}, config=rl(), also=(1,)),
    Recipe("too-easy", "fault", 13, config=rl(rewards=[{**GOLD, "options": {"part": "harmless"}}])),
    Recipe("too-hard", "fault", 13, kinds="summary", config=rl(rewards=[{"name": "proxy", "function": "trimtab.sandbox.faults:reversed_reward"}], optim={"lr": 3e-5}, batch_size=24, method={"group_size": 2})),
    Recipe("zero-on-429", "fault", 14, plant="plant_outage", options={"share": 0.25, "since": 8}, config=rl(), also=(1,)),
    Recipe("unscored", "fault", 14, plant="plant_outage", options={"share": 0.06, "since": 4, "value": None}, config=rl()),
    Recipe("first-judge", "fault", 15, config=rl(rewards=[{"name": "judge", "judge": "trimtab.sandbox.faults:swayed_judge", "options": {"first": 4.0}}])),
    Recipe("one-word", "fault", 16, config=rl(rewards=[bent(gold_weight=0.3, word="the", word_bonus=0.5, most=12)], optim={"lr": 6e-4}, steps=40), also=(1, 2, 4, 8, 9, *OF_TEXT), took=("word", 3.0)),
    Recipe("loose-dpo", "fault", 17, "dpo", config=rl(objective={"type": "dpo", "beta": 0.01}, optim={"lr": 1e-3}, epochs=4), data={"n": 160}),
    Recipe("contradictions", "fault", 18, "reward", "all", data={"n": 260, "contradict": 0.12}),
    Recipe("leak", "fault", 18, "dpo", data={"n": 260, "repeat": 0.5}),
    # Hard negatives: what looks like the fault and is not. Four of them start nearly solved, so that
    # most of their groups are equal from the first step on: alarm 13 is right there.
    Recipe("sound-rm", "negative", 1, "rm", "", rl(method={**kl(0.2), "type": "rloo"}, optim={"lr": 1e-4}), data={"n": 1500, "noise": 0.0}),
    Recipe("planned-shift", "negative", 2, kinds="summary,ask,silent", config=rl(**LONG | {"method": {"type": "grpo", "group_size": 8, "length": {"missing_eos_penalty": 1.0}, "kl": {"type": "adaptive", "beta": 0.01, "target": 12.0}}})),
    Recipe("at-best", "negative", 3, kinds="ask", config=rl(optim={"lr": 1e-4}, sampling={"temperature": 0.5}), also=(13,)),
    Recipe("wants-longer", "negative", 4, kinds="summary,ask", config=rl(**LONG)),
    Recipe("right-belief", "negative", 5, kinds="believed", config=rl(), also=(13,)),
    Recipe("close-pairs", "negative", 6, "reward", "all", data={"n": 600, "close": True, "scale": 1e9}),
    Recipe("solved", "negative", 7, kinds="ask,howto", config=rl(optim={"lr": 8e-4}, steps=24), also=(13,)),
    Recipe("one-right-answer", "negative", 8, kinds="ask", config=rl(optim={"lr": 6e-4}), also=(13,)),
    Recipe("long-wanted", "negative", 9, kinds="summary,ask", config=rl(**LONG, sampling={"max_new_tokens": 30})),
    Recipe("system-prompt", "negative", 10, config=rl(model={"chat_template": "SYSTEM"})),
    Recipe("constant-phase", "negative", 11, kinds="summary,ask,silent", plant="plant_outage", options={"share": 1.0, "since": 0, "until": 6, "value": 0.5}, config=rl(method=PPO, critic={"optim": {"lr": 5e-4}}, **PPO_RUN | {"steps": 24})),
    Recipe("async", "negative", 12, plant="plant_stale", options={"lag": 2}, config=rl(method={"type": "grpo", "mismatch": {"correction": "token"}})),
    Recipe("mixed", "negative", 13, kinds="ask,ask,summary,silent,opinion", config=rl(optim={"lr": 1e-4})),
    Recipe("new-prompts", "negative", 14, kinds="howto", plant="plant_prompts", options={"kinds": "silent,opinion", "since": 10}, config=rl(optim={"lr": 1e-4})),
    Recipe("coin-judge", "negative", 15, config=rl(rewards=[{"name": "judge", "judge": "trimtab.sandbox.faults:swayed_judge", "options": {"scale": 1.0}}])),
    Recipe("lists", "negative", 16, kinds="summary", config=rl(**LONG)),
    Recipe("mild-dpo", "negative", 17, "dpo", config=rl(objective={"type": "dpo", "beta": 0.3}, optim={"lr": 3e-4}, epochs=2), data={"n": 300}),
    Recipe("real-ties", "negative", 18, "reward", "all", data={"n": 700, "ties": 0.3}),
    # Healthy runs.
    Recipe("grpo", "healthy", config=rl()),
    Recipe("rloo", "healthy", config=rl(method={"type": "rloo"})),
    Recipe("ppo", "healthy", kinds="summary,ask,silent", config=rl(method=PPO, critic={"optim": {"lr": 5e-4}}, **PPO_RUN)),
    Recipe("dapo", "healthy", config=rl(method={"type": "dapo"}, optim={"lr": 2e-4}, steps=16)),
    Recipe("grpo-rm", "healthy", 0, "rm", "", rl(method=kl(0.2), optim={"lr": 1e-4}), data={"n": 1500, "noise": 0.0}),
    Recipe("dpo", "healthy", 0, "dpo", data={"n": 300}),
    Recipe("reward", "healthy", 0, "reward", "all", data={"n": 600}),
    Recipe("sft", "healthy", 0, "sft"),
    Recipe("judge", "healthy", config=rl(rewards=[{"name": "judge", "judge": "trimtab.sandbox.faults:swayed_judge"}])),
)  # fmt: skip

HELD_OUT = "tell"
TUNING = range(0, 10)
REPORTED = range(70, 90)


@dataclass(frozen=True)
class Spec:
    """One run."""

    recipe: Recipe
    seed: int

    @property
    def key(self) -> str:
        """Its folder's name."""
        return f"{self.recipe.sort}-{self.recipe.alarm:02d}-{self.recipe.name}-{self.seed}"

    @property
    def task(self) -> str:
        """Kinds of prompts: a seed's task, the held-out one every third reported seed."""
        if self.recipe.kinds:
            return self.recipe.kinds
        return HELD_OUT if self.held_out else ("all", "facts")[self.seed % 2]

    @property
    def held_out(self) -> bool:
        """Whether its mix is the one that is not tuned on."""
        return not self.recipe.kinds and self.seed in REPORTED and self.seed % 3 == 0

    @property
    def config(self) -> dict[str, Any]:
        """What is laid over the stage's usual configuration."""
        return (
            self.recipe.held_out if self.held_out and self.recipe.held_out else self.recipe.config
        )


def specs(
    seeds: Iterable[int], sorts: Iterable[str] = ("fault", "healthy", "negative")
) -> list[Spec]:
    """Every recipe once for a seed, seed by seed, so that a stopped benchmark is even.

    An alarm with two ways of being planted takes them in turn.
    """
    wanted = set(sorts)
    selected: list[Spec] = []
    for seed in seeds:
        for recipe in RECIPES:
            twins = [
                r for r in RECIPES if r.sort == recipe.sort == "fault" and r.alarm == recipe.alarm
            ]
            if twins and twins[seed % len(twins)] is not recipe:
                continue
            if recipe.sort in wanted:
                selected.append(Spec(recipe, seed))
    return selected

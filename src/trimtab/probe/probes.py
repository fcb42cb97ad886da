"""``trimtab probe``: what a reward pays for besides the content, before anything is trained on it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from trimtab.audit.gold_audit import GoldSpec
from trimtab.audit.probe_result import ProbeResult
from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.data.formats import Example
from trimtab.models.load import ModelSpec
from trimtab.probe import perturb
from trimtab.probe.held_out import measure_accuracy
from trimtab.probe.perturb import SANDBOX
from trimtab.probe.policy_probes import best_of_n, probe_policy
from trimtab.probe.probe_page import write_page
from trimtab.probe.probe_report import AccuracyCard, ProbeReport
from trimtab.probe.probed_reward import ProbedReward
from trimtab.probe.score_probes import (
    probe_belief_swaps,
    probe_contrasts,
    probe_orders,
    probe_rollouts,
)
from trimtab.rewards.part_config import Combine, RewardSpec
from trimtab.runs import to_json, write_atomic

log = logging.getLogger(__name__)


class ProbeConfig(Config):
    """Configuration of ``trimtab probe REWARD_MODEL...``."""

    renamed: ClassVar[dict[str, str]] = {"n": "num_completions", "words": "phrases"}

    out: str = "runs/probe"
    """Gets probes.json and probes.html; with a run folder the doctor finds them there."""
    reward: tuple[str, ...] = ()
    """A reward model's folder or hub id, several of them for an ensemble, or one Python function
    as "package.module:name" or "file.py:name"."""
    judge: str | None = None
    """A pairwise judge instead of a reward."""
    combine: Combine = "mean"
    """How an ensemble combines its members' scores."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keyword arguments of the function or judge."""
    tokenizer: str | None = None
    """Counts tokens; the reward model's own when not given."""
    chat_template: str | None = None
    """For a tokenizer without one: a file, or "plain"."""
    phrases: Literal["auto", "english", "sandbox"] = "auto"
    """The language of what is added to completions; "auto" takes the sandbox's if the reward
    model's tokenizer knows no other."""
    data: str | None = None
    """Your own held-out comparisons, to measure accuracy on and to perturb."""
    by: str = "kind"
    """Column that names the subsets whose accuracy is reported separately."""
    limit: int = Field(default=200, ge=20)
    """Prompts of each source."""
    sandbox: bool = True
    """Probe with the sandbox's grammar too."""
    policy: ModelSpec | None = None
    """A policy, for its own belief swaps and for the best-of-n curve."""
    gold: GoldSpec | None = None
    """Gold for the best-of-n curve on prompts of ``data``; the sandbox's own where not given."""
    num_completions: int = Field(default=16, ge=4)
    """Completions per prompt for that curve."""
    max_new_tokens: int = Field(default=64, gt=0)
    token_budget: int = Field(default=8192, gt=0)
    device: str = "auto"
    seed: int = 0

    @field_validator("reward", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> ProbeConfig:
        if (self.judge is None) == (not self.reward):
            raise ValueError("give a reward (trimtab probe REWARD_MODEL) or a judge, not both")
        if len(self.reward) > 1 and any(":" in r for r in self.reward):
            raise ValueError("an ensemble consists of models; give a function alone")
        if not self.sandbox and self.data is None:
            raise ValueError("nothing to probe with: set data, or sandbox: true")
        return self

    def spec(self) -> RewardSpec:
        """The reward under probe."""
        if self.judge is not None:
            return RewardSpec(name="reward", judge=self.judge, options=self.options)
        if len(self.reward) > 1:
            return RewardSpec(name="reward", models=self.reward, combine=self.combine)
        path = next(iter(self.reward))
        if ":" in path and not Path(path).exists():
            return RewardSpec(name="reward", function=path, options=self.options)
        return RewardSpec(name="reward", model=path)


def probe(config: ProbeConfig) -> ProbeReport:
    """Run every probe; nothing is written.

    Raises:
        DataError: a row cannot be used, or nothing could be scored.
        ModelError: a model cannot be loaded.
    """
    c = config
    ranked: dict[str, list[Example]] = {}
    if c.data is not None:
        ranked["data"] = formats.comparisons(sources.read(c.data, limit=c.limit))
    if c.sandbox:
        ranked["sandbox"] = perturb.sandbox_ranked(c.limit, c.seed)
    reward = ProbedReward(c.spec(), c.tokenizer, c.chat_template, c.token_budget, c.device)
    results: list[ProbeResult] = []
    cards: dict[str, AccuracyCard] = {}
    for source, examples in ranked.items():
        cards[source], accuracy = measure_accuracy(reward, examples, source, c.by)
        if source == "sandbox":
            phrases, bases = SANDBOX, perturb.sandbox_bases(c.limit, c.seed)
            swaps = perturb.sandbox_swaps(phrases, c.limit, c.seed)
        else:
            phrases, bases = reward.phrases(c.phrases), perturb.data_bases(examples)
            swaps = perturb.data_swaps(bases[: c.limit], phrases)
        contrasts = perturb.make_contrasts(bases, phrases, c.seed)
        results += accuracy + probe_contrasts(reward, contrasts) + probe_belief_swaps(reward, swaps)
        if c.judge is not None:
            results.append(probe_orders(reward, contrasts))
    disagreement = next(iter(cards.values())).disagreement
    results += probe_rollouts(reward, Path(c.out), disagreement or 0.0)
    if c.judge is not None:
        results = [r.model_copy(update={"of": "judge"}) for r in results]
    curve = None
    if c.policy is not None:
        gold = c.gold.reward() if c.gold is not None else None
        curve = best_of_n(
            c.policy,
            reward.spec,
            gold,
            c.data if gold is not None else None,
            n=c.num_completions,
            limit=c.limit,
            max_new_tokens=c.max_new_tokens,
            token_budget=c.token_budget,
            seed=c.seed,
        )
        if c.sandbox:
            swaps = perturb.sandbox_swaps(SANDBOX, c.limit, c.seed)
            results.append(probe_policy(c.policy, swaps, c.max_new_tokens, c.seed))
    keys = reward.spec.model_dump(mode="json", exclude_defaults=True)
    return ProbeReport(reward=keys, results=results, sets=cards, best_of_n=curve)


def main(config: ProbeConfig) -> dict[str, object]:
    """Probe the reward. Writes probes.json and probes.html into ``out``.

    Returns:
        The contents of probes.json: ``probes``, one entry per probe (``ProbeResult``); ``sets``, the
        accuracy on each source; ``best_of_n``.

    Raises:
        DataError: a row cannot be used, or nothing could be scored.
        ModelError: a model cannot be loaded.
    """
    report = probe(config)
    contents = report.to_json()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "probes.json", to_json(contents, indent=1).encode("utf-8", "replace"))
    page = write_page(out, report)
    for result in sorted(report.results, key=lambda r: ("bad", "fair", "good").index(r.grade)):
        if result.grade != "good" or result.probe in ("accuracy", "flattery"):
            log.info(_line(result))
    bad = sum(r.grade == "bad" for r in report.results)
    log.info("probe: %d of %d probes are bad -> %s", bad, len(report.results), page)
    return contents


def _line(r: ProbeResult) -> str:
    """A result as one line of text."""
    interval = f" [{r.low:.2f}, {r.high:.2f}]" if r.low is not None else ""
    name = f"{r.probe} ({r.source}{'' if r.of == 'reward' else f', {r.of}'})"
    return (
        f"  {r.grade:<5} {name:<26} {r.value:.2f}{interval:<14} limit {r.baseline:.2f}: {r.about}"
    )

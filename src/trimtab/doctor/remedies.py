"""The catalogue of remedies: what to do about each alarm, as configuration changes or as advice.

Findings refer to a remedy by its name and may give it numbers. ``trimtab remedy`` writes the run's
configuration with one change into a new file; some remedies act by themselves during training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from trimtab.audit.run_settings import RewardSettings, RunSettings

Change = dict[str, Any]
"""Part of a run's configuration, laid over it; empty where it does not apply."""

BETA = 0.05
"""KL coefficient where the configuration states none: the default of ``method.kl``."""
LEARNED = ("model", "models")


@dataclass(slots=True, frozen=True)
class Remedy:
    """One thing to do about an alarm."""

    name: str
    text: str
    """What to do, in one sentence."""
    change: Callable[..., Change] = lambda settings, **numbers: {}
    """The change for ``RunSettings`` with a finding's numbers, which are optional; empty if it does
    not apply to the run."""
    command: str = ""
    """A command to try where no configuration key helps."""
    automatic: bool = False
    """The run does it by itself during training."""
    optional: bool = False
    """A finding mentions it only where its change applies."""
    source: str = ""
    """Paper."""


def to_yaml(change: Change) -> str:
    """A change as YAML, short values on one line; empty for no change."""
    if not change:
        return ""
    return yaml.safe_dump(change, sort_keys=False, default_flow_style=None, width=100).strip()


def _round(value: float) -> float:
    return float(f"{value:.8g}")


def _kl(s: RunSettings, **keys: Any) -> Change:
    """Another KL controller, where the run's KL is; in the loss where it has none."""
    if not s.method:
        return {}
    where = {"place": s.kl_place, "estimator": s.kl_estimator}
    if s.kl_place == "none":
        where = {"place": "loss", "estimator": "k3"}
    return {"method": {"kl": {**{k: v for k, v in where.items() if v}, **keys}}}


def _beta(s: RunSettings) -> float:
    return BETA if s.beta is None else s.beta


def _kl_range(s: RunSettings) -> Change:
    return _kl(s, type="range", beta=_round(max(2 * _beta(s), 0.02)), low=1.0, high=10.0)


def _kl_target(s: RunSettings, target: float = 6.0, beta: float | None = None) -> Change:
    beta = max(_beta(s), 0.01) if beta is None else beta
    return _kl(s, type="adaptive", beta=float(f"{beta:.2g}"), target=round(target, 2))


def _lower_beta(s: RunSettings, beta: float | None = None) -> Change:
    return _kl(
        s, type="fixed", beta=_round(_beta(s) / 10) if beta is None else float(f"{beta:.2g}")
    )


def _lr(s: RunSettings, factor: float) -> Change:
    return {} if s.lr is None else {"optim": {"lr": _round(s.lr * factor)}}


def _lower_lr(s: RunSettings, divisor: float = 3.0) -> Change:
    return _lr(s, 1 / divisor)


def _raise_lr(s: RunSettings, factor: float = 10.0) -> Change:
    return _lr(s, factor)


def _critic_lr(s: RunSettings) -> Change:
    """Only for PPO and methods of one's own: the others have no critic."""
    if s.method != "ppo" and ":" not in s.method:
        return {}
    lr = max(3 * (s.lr or 0.0), 10 * (s.critic_lr or 0.0))
    return {"critic": {"optim": {"lr": _round(lr)}}} if lr > 0 else {}


def _rewards(s: RunSettings, applies: Callable[[RewardSettings], bool], **keys: object) -> Change:
    """The list of rewards with ``keys`` added to those it ``applies`` to: lists are replaced as a whole."""
    if not any(map(applies, s.rewards)):
        return {}
    return {"rewards": [{**r.keys, **(keys if applies(r) else {})} for r in s.rewards]}


def _learned(r: RewardSettings) -> bool:
    return r.source in LEARNED


def _ensemble(combine: str) -> Callable[[RunSettings], Change]:
    return lambda s: _rewards(s, lambda r: r.source == "models", combine=combine)


def _timeout(s: RunSettings) -> Change:
    return _rewards(s, lambda r: r.source in ("function", "judge"), timeout=30.0)


def _residual_length(s: RunSettings) -> Change:
    return _rewards(s, _learned, residual_length=True)


def _audit(s: RunSettings, act: str) -> Change:
    if not s.rewards:
        return {}
    gold = s.gold or {"function": "FILE.py:gold"}
    more: Change = {"refresh": {"data": "OLD-COMPARISONS.jsonl"}} if act == "refresh" else {}
    return {"audit": {"gold": dict(gold), "share": 0.01, "act": act, **more}}


def _switch(s: RunSettings) -> Change:
    return _audit(s, "switch") if any(r.source == "models" for r in s.rewards) else {}


def _shape(**keys: object) -> Callable[[RunSettings], Change]:
    return lambda s: {"shape": keys} if s.rewards else {}


def _length_penalty(s: RunSettings, target: float | None = None) -> Change:
    limit = 64 if s.max_new_tokens is None else s.max_new_tokens
    tokens = max(1, limit // 2) if target is None else int(target)
    return _shape(length={"weight": 1.0, "target": tokens})(s)


def _method(**keys: object) -> Callable[[RunSettings], Change]:
    return lambda s: {"method": keys} if s.method else {}


def _clip_higher(s: RunSettings) -> Change:
    low = 0.2 if s.clip_low is None else s.clip_low
    return _method(clip={"high": float(f"{max(0.28, 1.4 * low):.2g}")})(s)


def _dynamic_sampling(s: RunSettings) -> Change:
    """Only where several completions of a prompt are compared."""
    if s.group_size == 1 or s.method in ("", "ppo"):
        return {}
    return {"method": {"filter": {"dynamic_sampling": True}}}


def _more_labels(s: RunSettings) -> Change:
    return {"holdout": 300, "epochs": 2} if s.stage == "reward" else {}


def _smoothing(s: RunSettings) -> Change:
    if s.stage == "dpo":
        return {"objective": {"type": "cdpo", "smoothing": 0.1}}
    return {"objective": {"smoothing": 0.1}} if s.stage == "reward" else {}


def _anchor_chosen(s: RunSettings) -> Change:
    beta = 0.1 if s.objective_beta is None else s.objective_beta
    return {"objective": {"beta": _round(max(0.1, 5 * beta)), "rpo_alpha": 1.0}}


def _longer_data(s: RunSettings) -> Change:
    return {"data": {"max_completion_length": 1024}}


def _own_template(s: RunSettings) -> Change:
    return {"model": {"chat_template": None}}


REMEDIES = (
    # KL and the size of updates
    Remedy(
        "kl-range",
        "Raise beta while KL is above 10 nats, lower it below 1 nat, and stop if KL stays above.",
        _kl_range,
        automatic=True,
    ),
    Remedy(
        "kl-target",
        "Let beta adapt so that KL stays near a target.",
        _kl_target,
        automatic=True,
        source="1909.08593",
    ),
    Remedy("lower-beta", "Lower the KL coefficient so that the policy can move.", _lower_beta),
    Remedy("lower-lr", "Lower the learning rate.", _lower_lr),
    Remedy("raise-lr", "Raise the learning rate.", _raise_lr),
    Remedy("fewer-updates", "Make fewer passes over each batch.", _method(updates={"epochs": 1})),
    Remedy(
        "restart-before",
        "Restart from a checkpoint saved before it began.",
    ),
    Remedy(
        "clip-higher",
        "Raise the upper clip range, so that rare tokens can gain more probability.",
        _clip_higher,
        source="2503.14476",
    ),
    Remedy("entropy-bonus", "Add a small entropy bonus.", _method(entropy_coef=0.01)),
    Remedy(
        "importance-cap",
        "If the lag is intended, weight tokens by the importance ratio, capped at 2.",
        _method(mismatch={"correction": "token", "high": 2.0}),
    ),
    Remedy("sync-sampler", "Give the sampler the trainer's weights and sampling settings."),
    Remedy(
        "dynamic-sampling",
        "Replace groups whose rewards are all equal by groups of other prompts.",
        _dynamic_sampling,
        optional=True,
        source="2503.14476",
    ),
    Remedy(
        "critic-lr",
        "Give the critic a higher learning rate, start it from the reward model, or use a method with "
        "a group baseline and no critic.",
        _critic_lr,
    ),
    # The gold audit
    Remedy(
        "stop-at-peak",
        "Audit 1 % of the rollouts; when gold falls, stop and export the best audited policy.",
        lambda s: _audit(s, "stop"),
        automatic=True,
        source="2210.10760",
    ),
    Remedy(
        "switch-ensemble",
        "When gold falls, return to the best audited policy and continue with the lowest score of the "
        "ensemble.",
        _switch,
        automatic=True,
        source="2310.02743",
    ),
    Remedy(
        "refresh-reward",
        "When gold falls, retrain the reward model on the completions that exploited it, and continue "
        "from the best audited policy.",
        lambda s: _audit(s, "refresh") if any(map(_learned, s.rewards)) else {},
        automatic=True,
    ),
    Remedy("audit", "Audit 1 % of the rollouts, and only report.", lambda s: _audit(s, "none")),
    # The reward
    Remedy(
        "worst-case",
        "Score with the lowest member of the ensemble.",
        _ensemble("worst"),
        source="2310.02743",
    ),
    Remedy(
        "uncertainty",
        "Score with the members' mean minus their variance.",
        _ensemble("uncertainty"),
        source="2310.02743",
    ),
    Remedy(
        "average-weights",
        "Average the members' weights, which costs as much as one model.",
        _ensemble("average"),
        source="2401.12187",
    ),
    Remedy(
        "residual-length",
        "Remove the linear effect of length from the reward model's score.",
        _residual_length,
        optional=True,
        source="2310.03716",
    ),
    Remedy("length-penalty", "Penalise completions above a target length.", _length_penalty),
    Remedy(
        "repetition-penalty",
        "Penalise repeated three-word sequences.",
        _shape(repetition={"weight": 1.0, "n": 3}),
    ),
    Remedy(
        "copy-penalty",
        "Penalise text that is copied from the prompt.",
        _shape(copying={"weight": 1.0}),
    ),
    Remedy(
        "missing-end",
        "Penalise completions that the length limit cut, by reward shaping.",
        _shape(truncated={"weight": 1.0}),
    ),
    Remedy(
        "missing-eos-penalty",
        "Penalise completions without an end token, and check alarm 4 (length hacking).",
        _method(length={"missing_eos_penalty": 1.0}),
    ),
    Remedy(
        "mask-truncated",
        "Mask completions that the length limit cut in the loss.",
        _method(length={"mask_truncated": True}),
        source="2503.14476",
    ),
    Remedy("whiten", "Whiten rewards and clip them at 5.", _shape(whiten=True, clip=5.0)),
    Remedy(
        "reward-timeout",
        "Read the statuses in samples/ and fix what fails; set a timeout. A reward function should "
        "return None where it failed: such completions are masked and counted, never scored as 0.",
        _timeout,
    ),
    Remedy(
        "inspect-reward",
        "Call the reward by hand on the examples below and on good completions, and correct what it "
        "pays for.",
    ),
    # Data, labels and judges
    Remedy(
        "belief-swaps",
        "Add comparisons in which only the stated belief is swapped, and retrain the reward model.",
    ),
    Remedy(
        "more-labels",
        "Collect more labels (2,000 pairs or more), check the agreement between annotators, and do no "
        "RL on this reward model.",
        _more_labels,
    ),
    Remedy(
        "label-rollouts",
        "Label some of these rollouts and retrain the reward model; until then score with the lowest "
        "member.",
        _ensemble("worst"),
    ),
    Remedy("retrain-reward", "Label rollouts like those below and retrain the reward model."),
    Remedy(
        "judge-audited",
        "Have some rollouts judged (trimtab audit), and return to where the second reward was best.",
    ),
    Remedy(
        "judge-both-orders",
        "Ask the judge in both orders and average; leave out pairs on which it contradicts itself.",
    ),
    Remedy(
        "fence-judge",
        "Delimit the completions in the judge's prompt, and compare the judge with people on a sample.",
    ),
    Remedy(
        "clean-pairs",
        "Read the rows below, have disputed ones labelled again, and remove duplicates before the "
        "split.",
        _smoothing,
    ),
    Remedy(
        "anchor-chosen",
        "Raise beta, add the likelihood of the chosen completions to the loss, and train fewer epochs.",
        _anchor_chosen,
    ),
    Remedy(
        "end-tokens",
        "Make the chat template or the pad token leave an end token in the labels; check the data's "
        "own masks.",
        _longer_data,
    ),
    Remedy(
        "stop-token",
        "Compare the tokenizer's EOS and the template's end of turn with generation_config.json, and "
        "train SFT with the end token.",
    ),
    Remedy("one-bos", "Remove BOS from the chat template, or stop the tokenizer from adding it."),
    Remedy(
        "own-template",
        "Use the chat template that is saved with the model, or fine-tune with the new one first.",
        _own_template,
    ),
    Remedy("read-rows", "Read the rows of the skipped steps."),
    Remedy(
        "easier-or-harder-prompts",
        "Keep the prompts that the policy solves sometimes: filter by pass rate.",
    ),
    Remedy(
        "decoding",
        "Sample with other temperatures when serving, and measure what that costs.",
        command="trimtab compare RUN --data PROMPTS --rewards GOLD --temperatures '[0.7, 1.0]' --top_p 0.95",
    ),
)

CATALOGUE: dict[str, Remedy] = {r.name: r for r in REMEDIES}

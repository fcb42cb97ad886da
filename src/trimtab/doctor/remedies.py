"""The catalogue of remedies: what to do about each alarm, as configuration changes or as advice.

Findings refer to a remedy by its name and may give it numbers. ``trimtab remedy`` writes the run's
configuration with one change into a new file; some remedies act by themselves during training.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
    """One thing to do about an alarm: a line of ``remedies.toml``, and its change."""

    name: str
    text: str
    """What to do, in one sentence."""
    change: Callable[..., Change]
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


def _kl_target(s: RunSettings, target: float = 6.0, beta: float | None = None) -> Change:
    beta = max(_beta(s), 0.01) if beta is None else beta
    return _kl(s, type="adaptive", beta=float(f"{beta:.2g}"), target=round(target, 2))


def _lower_beta(s: RunSettings, beta: float | None = None) -> Change:
    lower = _round(_beta(s) / 10) if beta is None else float(f"{beta:.2g}")
    return _kl(s, type="fixed", beta=lower)


def _lr(s: RunSettings, factor: float) -> Change:
    return {} if s.lr is None else {"optim": {"lr": _round(s.lr * factor)}}


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


def _audit(s: RunSettings, act: str) -> Change:
    if not s.rewards:
        return {}
    gold = s.gold or {"function": "FILE.py:gold"}
    more: Change = {"refresh": {"data": "OLD-COMPARISONS.jsonl"}} if act == "refresh" else {}
    return {"audit": {"gold": dict(gold), "share": 0.01, "act": act, **more}}


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


def _smoothing(s: RunSettings) -> Change:
    if s.stage == "dpo":
        return {"objective": {"type": "cdpo", "smoothing": 0.1}}
    return {"objective": {"smoothing": 0.1}} if s.stage == "reward" else {}


def _anchor_chosen(s: RunSettings) -> Change:
    beta = 0.1 if s.objective_beta is None else s.objective_beta
    return {"objective": {"beta": _round(max(0.1, 5 * beta)), "rpo_alpha": 1.0}}


CHANGES: dict[str, Callable[..., Change]] = {
    "kl-range": lambda s: _kl(
        s, type="range", beta=_round(max(2 * _beta(s), 0.02)), low=1.0, high=10.0
    ),
    "kl-target": _kl_target,
    "lower-beta": _lower_beta,
    "lower-lr": lambda s, divisor=3.0: _lr(s, 1 / divisor),
    "raise-lr": lambda s, factor=10.0: _lr(s, factor),
    "fewer-updates": _method(updates={"epochs": 1}),
    "clip-higher": _clip_higher,
    "entropy-bonus": _method(entropy_coef=0.01),
    "importance-cap": _method(mismatch={"correction": "token", "high": 2.0}),
    # Only where several completions of a prompt are compared.
    "dynamic-sampling": lambda s: (
        {}
        if s.group_size == 1 or s.method in ("", "ppo")
        else {"method": {"filter": {"dynamic_sampling": True}}}
    ),
    "critic-lr": _critic_lr,
    "stop-at-peak": lambda s: _audit(s, "stop"),
    "switch-ensemble": lambda s: (
        _audit(s, "switch") if any(r.source == "models" for r in s.rewards) else {}
    ),
    "refresh-reward": lambda s: _audit(s, "refresh") if any(map(_learned, s.rewards)) else {},
    "audit": lambda s: _audit(s, "none"),
    "worst-case": _ensemble("worst"),
    "uncertainty": _ensemble("uncertainty"),
    "average-weights": _ensemble("average"),
    "residual-length": lambda s: _rewards(s, _learned, residual_length=True),
    "length-penalty": _length_penalty,
    "repetition-penalty": _shape(repetition={"weight": 1.0, "n": 3}),
    "copy-penalty": _shape(copying={"weight": 1.0}),
    "missing-end": _shape(truncated={"weight": 1.0}),
    "missing-eos-penalty": _method(length={"missing_eos_penalty": 1.0}),
    "mask-truncated": _method(length={"mask_truncated": True}),
    "whiten": _shape(whiten=True, clip=5.0),
    "reward-timeout": lambda s: _rewards(
        s, lambda r: r.source in ("function", "judge"), timeout=30.0
    ),
    "more-labels": lambda s: {"holdout": 300, "epochs": 2} if s.stage == "reward" else {},
    "label-rollouts": _ensemble("worst"),
    "clean-pairs": _smoothing,
    "anchor-chosen": _anchor_chosen,
    "longer-completions": lambda _: {"data": {"max_completion_length": 1024}},
    "own-template": lambda _: {"model": {"chat_template": None}},
}
"""The configuration change of each remedy that has one."""


_TABLE = tomllib.loads(Path(__file__).with_name("remedies.toml").read_text(encoding="utf-8"))
CATALOGUE = {
    name: Remedy(name=name, change=CHANGES.get(name, lambda _, **__: {}), **entry)
    for name, entry in _TABLE.items()
}

"""What to do about each alarm: configuration changes to paste, or actions that a run takes itself.

Advice by default. ``trimtab remedy RUN --name NAME`` writes the run's configuration with one change
into a new file and a line into ``actions.jsonl``; the run's own configuration stays as it was, so
the way back is to use it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trimtab.config import Config, merge, read_yaml
from trimtab.errors import ConfigError
from trimtab.runs import fs, to_json, write_atomic
from trimtab.runs.console import console

Values = dict[str, Any]


@dataclass(slots=True, frozen=True)
class Remedy:
    """One thing to change."""

    name: str
    alarms: tuple[int, ...]
    """Numbers of the alarms that it answers, likeliest first in each alarm's own list."""
    what: str
    """In a sentence, with its cost."""
    change: Callable[[Values], Values]
    """The change of a run's resolved configuration; empty where it does not apply."""
    acts: bool = False
    """The run does it itself while it trains."""
    source: str = ""
    """Paper."""
    advice: str = ""
    """What to try where no key of the run says it."""


def _get(values: Values, dotted: str, default: Any = None) -> Any:
    found: Any = values
    for part in dotted.split("."):
        found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            return default
    return found


def _beta(values: Values) -> float:
    beta = _get(values, "method.kl.beta", 0.05)
    return float(beta) if isinstance(beta, (int, float)) else 0.05


def _steadier(values: Values) -> Values:
    """Twice the coefficient, kept between 1 and 10 nats."""
    return _kl(values, type="range", beta=max(2 * _beta(values), 0.02), low=1.0, high=10.0)


def _freer(values: Values) -> Values:
    return _kl(values, type="fixed", beta=_beta(values) / 10)


def _target(values: Values) -> Values:
    return _kl(values, type="adaptive", beta=max(_beta(values), 0.01), target=6.0)


def _kl(values: Values, **keys: Any) -> Values:
    """Another KL controller, with the run's place and estimator."""
    if "method" not in values:
        return {}
    same = {k: v for k in ("place", "estimator") if (v := _get(values, f"method.kl.{k}"))}
    return {"method": {"kl": {**keys, **same}}}


def _slower(values: Values) -> Values:
    lr = _get(values, "optim.lr")
    return {"optim": {"lr": float(lr) / 3}} if isinstance(lr, (int, float)) else {}


def _rewards(values: Values, **more: Any) -> Values:
    """Every learned reward with these keys; a list is replaced as a whole."""
    given = values.get("rewards") or []
    if not any(r.get("model") or r.get("models") for r in given):
        return {}
    return {"rewards": [{**r, **more} if r.get("model") or r.get("models") else r for r in given]}


def _ensemble(values: Values, combine: str) -> Values:
    given = values.get("rewards") or []
    if not any(r.get("models") for r in given):
        return {}
    return {"rewards": [{**r, "combine": combine} if r.get("models") else r for r in given]}


def _gold(values: Values) -> Values:
    held = _get(values, "audit.gold")
    return held or {"function": "FILE.py:gold"}


def _audit(act: str) -> Callable[[Values], Values]:
    def change(values: Values) -> Values:
        if "rewards" not in values:
            return {}
        more: Values = {}
        if act == "refresh":
            more = {"refresh": {"data": "OLD-COMPARISONS.jsonl"}}
        return {"audit": {"gold": _gold(values), "share": 0.01, "act": act, **more}}

    return change


def _shape(**keys: Any) -> Callable[[Values], Values]:
    return lambda values: {"shape": keys} if "rewards" in values else {}


def _method(**keys: Any) -> Callable[[Values], Values]:
    return lambda values: {"method": keys} if "method" in values else {}


def _dynamic(values: Values) -> Values:
    """Only where a prompt has several answers to compare."""
    groups = _get(values, "method.group_size", 1) > 1
    return {"method": {"filter": {"dynamic_sampling": True}}} if groups else {}


def _nothing(values: Values) -> Values:
    return {}


def _length(values: Values) -> Values:
    limit = _get(values, "sampling.max_new_tokens", 64)
    return {"shape": {"length": {"weight": 1.0, "target": max(1, int(limit) // 2)}}}


CATALOGUE: tuple[Remedy, ...] = (
    Remedy("kl-range", (2, 1), "Raise beta above a KL of 10 nats, lower it below 1, stop when it stays above.", _steadier, True),
    Remedy("kl-target", (2, 3), "Let beta find a KL of 6 nats by itself.", _target, True, "1909.08593"),
    Remedy("lower-beta", (3,), "A tenth of the KL coefficient: the policy hardly moved.", _freer),
    Remedy("lower-lr", (2, 7, 12), "A third of the learning rate.", _slower),
    Remedy("stop-at-peak", (1,), "Audit 1 % of rollouts; when gold falls stop, and hand over the best audited policy, also at the end where it is surely better than the last.", _audit("stop"), True, "2210.10760"),
    Remedy("switch-ensemble", (1, 6), "When gold falls, return, and go on with the worst member's score.", lambda v: _audit("switch")(v) if _ensemble(v, "mean") else {}, True, "2310.02743"),
    Remedy("refresh-reward", (1, 4, 5, 16), "When gold falls, rank hacked against best audited answers, train the reward model on, go on from the best.", _audit("refresh"), True),
    Remedy("audit", (1,), "Audit 1 % of rollouts and say what they show; nothing else.", _audit("none")),
    Remedy("worst-case", (1, 6), "Score by the worst member of the ensemble.", lambda v: _ensemble(v, "worst"), False, "2310.02743"),
    Remedy("uncertainty", (1, 6), "Score by the members' mean less their variance.", lambda v: _ensemble(v, "uncertainty"), False, "2310.02743"),
    Remedy("average-weights", (6, 1), "Average the members' weights: one model's cost.", lambda v: _ensemble(v, "average"), False, "2401.12187"),
    Remedy("residual-length", (4,), "Take the slope of the score on length out of it.", lambda v: _rewards(v, residual_length=True), False, "2310.03716"),
    Remedy("length-penalty", (4, 9), "Take points off beyond half the limit.", _length),
    Remedy("repetition-penalty", (16, 8), "Take points off for repeated word triples.", _shape(repetition={"weight": 1.0, "n": 3})),
    Remedy("copy-penalty", (16,), "Take points off for what is copied from the prompt.", _shape(copying={"weight": 1.0})),
    Remedy("missing-end", (9,), "Take points off answers that never end.", _shape(truncated={"weight": 1.0})),
    Remedy("mask-truncated", (9,), "Learn nothing from answers that were cut.", _method(length={"mask_truncated": True}), False, "2503.14476"),
    Remedy("clip-higher", (7, 8), "Let rare tokens gain more: the upper clip at 0.28.", _method(clip={"high": 0.28}), False, "2503.14476"),
    Remedy("entropy-bonus", (7, 8), "Pay a little for entropy.", _method(entropy_coef=0.01)),
    Remedy("importance-cap", (12,), "Cap the weights between sampler and trainer at 2.", _method(mismatch={"correction": "token", "high": 2.0})),
    Remedy("dynamic-sampling", (13,), "Draw other prompts for groups whose rewards are all alike.", _dynamic, False, "2503.14476"),
    Remedy("whiten", (14, 11), "Whiten and clip rewards.", _shape(whiten=True, clip=5.0)),
    Remedy("decoding", (7, 8), "Sample otherwise when it serves, and look at what that costs.", _nothing, advice="trimtab compare RUN --data PROMPTS --rewards GOLD --temperatures '[0.7, 1.0]' --top_p 0.95"),
)  # fmt: skip


def for_alarm(number: int, values: Values) -> list[tuple[Remedy, Values]]:
    """Remedies of an alarm that apply to a configuration, best first, each with its change, which is
    empty for advice."""
    found = [r for r in CATALOGUE if number in r.alarms]
    found.sort(key=lambda r: r.alarms.index(number))
    return [(r, change) for r in found if (change := r.change(values)) or r.advice]


def paste(change: Values) -> str:
    """A change as YAML."""
    return yaml.safe_dump(change, sort_keys=False).rstrip()


class RemedyConfig(Config):
    """Configuration of ``trimtab remedy RUN``: without a name it lists what applies."""

    run: str
    """A run folder with its config.yaml."""
    name: str | None = None
    alarm: int | None = None
    """List the remedies of this alarm alone."""
    out: str | None = None
    """Where the changed configuration goes; RUN-NAME.yaml when not given."""


def main(config: RemedyConfig) -> dict[str, Any]:
    """List remedies, or write the run's configuration with one of them.

    Raises:
        ConfigError: no such remedy, or it does not apply to this run.
    """
    run = Path(config.run)
    values = read_yaml(run / "config.yaml")
    apply = {r.name: (r, change) for r in CATALOGUE if (change := r.change(values))}
    if config.name is None:
        for r, change in apply.values():
            if config.alarm is None or config.alarm in r.alarms:
                console.print(f"[bold]{r.name}[/bold]: {r.what}")
                console.print("  " + paste(change).replace("\n", "\n  "), markup=False)
        for r in CATALOGUE:
            if r.advice and (config.alarm is None or config.alarm in r.alarms):
                console.print(f"[bold]{r.name}[/bold]: {r.what}")
                console.print(f"  {r.advice}", markup=False)
        return {"remedies": list(apply)}
    if config.name not in apply:
        known = any(r.name == config.name for r in CATALOGUE)
        why = "does not apply to this run" if known else "is no remedy"
        raise ConfigError(f"name: {config.name!r} {why}; there are {', '.join(apply)}")
    remedy, change = apply[config.name]
    path = Path(config.out or f"{run}-{remedy.name}.yaml")
    changed = merge(values, change)
    if "kl" in change.get("method", {}):
        changed["method"]["kl"] = change["method"]["kl"]  # another kind has other keys
    changed["out"] = f"{run}-{remedy.name}"
    write_atomic(path, yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).encode())
    with fs.open(run / "actions.jsonl", "ab") as handle:
        told = {"action": remedy.name, "change": change, "file": str(path)}
        fs.write(handle, (to_json(told) + "\n").encode())
    console.print(
        f"[bold]{remedy.name}[/bold]: {remedy.what}\n{paste(change)}\n-> {path}", markup=True
    )
    return {"file": str(path), "change": change}

"""The gold audit: a small share of the rollouts gets a ground-truth ("gold") score.

``audit.jsonl`` in the run folder has one line per audited rollout (``AuditedRollout``). ``summarise``
tests whether gold fell, ``choose_policy`` whether an earlier policy is better than the last.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from trimtab.config import Config
from trimtab.errors import DataError
from trimtab.rewards.part_config import RewardSpec
from trimtab.runs import fs, json_lines, to_json, write_atomic
from trimtab.stats.change import welch
from trimtab.stats.overoptimisation import Fit, fit_points
from trimtab.stats.sequential import fall
from trimtab.types import Row

FILE = "audit.jsonl"
ALPHA = 0.01
FINAL_ALPHA = 0.05


class AuditedRollout(BaseModel):
    """One line of ``audit.jsonl``.

    >>> AuditedRollout.model_validate({"step": 1, "id": "p", "proxy": 0.5, "gold": 1.0}).prompt_id
    'p'
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True
    )

    step: int = Field(ge=0)
    """Iteration of RL (a batch of rollouts) as in ``metrics.jsonl``, from 1."""
    prompt_id: str = Field(validation_alias=AliasChoices("prompt_id", "prompt", "id"))
    index: int = 0
    """Place among the rollouts of its prompt."""
    proxy: float
    """The reward that the policy is trained on."""
    gold: float
    """The ground-truth score."""
    kl: float | None = None
    """KL of this rollout to the reference, nats."""
    kl_mean: float | None = None
    """Mean KL of its batch to the reference, nats per completion."""
    source: str = ""
    """What or who scored it."""

    @property
    def key(self) -> tuple[int, str, int]:
        """Identifies an audited rollout within its run."""
        return self.step, self.prompt_id, self.index


class GoldSpec(Config):
    """What gives the gold score: a function or a stronger reward model (people: ``trimtab audit``)."""

    model_keys: ClassVar[frozenset[str]] = frozenset({"model"})

    function: str | None = None
    """ "package.module:name" or "file.py:name", called as a reward function; None means no score."""
    model: str | None = None
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    low: float = 0.0
    """The lowest possible gold score ..."""
    high: float = 1.0
    """... and the highest: the sequential test needs both bounds."""

    @model_validator(mode="after")
    def _consistent(self) -> GoldSpec:
        if (self.function is None) == (self.model is None):
            raise ValueError("set exactly one of function and model")
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self

    def reward(self) -> RewardSpec:
        """The gold score as a reward of weight 0, which is recorded but not trained on."""
        return RewardSpec(
            name="gold", function=self.function, model=self.model, options=self.options, weight=0
        )

    @property
    def source(self) -> str:
        """The name under which it is recorded."""
        return str(self.function or self.model)


class RefreshSpec(Config):
    """How the reward model is retrained on the completions that exploited it."""

    renamed: ClassVar[dict[str, str]] = {
        "prompts": "num_prompts",
        "answers": "num_completions",
        "batch": "batch_size",
    }

    data: str
    """The comparisons that it was trained on; the new ones are added to them."""
    num_prompts: int = Field(default=64, ge=4)
    """Prompts of the last batch that the best audited policy completes again."""
    num_completions: int = Field(default=4, ge=1)
    """Completions of that policy per prompt. The one with the best gold score is compared with the
    completion that the exploited reward likes best."""
    repeat: int = Field(default=1, ge=1)
    """How often each new comparison is added."""
    epochs: float = Field(default=2.0, gt=0.0)
    batch_size: int = Field(default=32, gt=0)
    lr: float = Field(default=1e-4, gt=0.0)


class AuditSpec(Config):
    """A gold audit during training, and what happens when the gold score falls."""

    renamed: ClassVar[dict[str, str]] = {
        "block": "block_size",
        "times": "max_actions",
        "final": "final_alpha",
    }

    gold: GoldSpec
    share: float = Field(default=0.01, gt=0.0, le=1.0)
    """Share of all rollouts that is audited. With ``act: stop`` at least ``block_size`` rollouts of
    the first batch are audited if it has as many, so that the initial policy has a block of its own."""
    act: Literal["none", "stop", "switch", "refresh"] = "none"
    """What happens when gold falls. "none": a line in actions.jsonl. "stop": the run ends and exports
    the best audited policy, even if the reward fell too; at its regular end a run exports that policy
    if its gold is significantly higher (``final_alpha``). If gold falls and the reward does not,
    "switch" returns to the best audited policy and from there combines an ensemble by ``switch``,
    "refresh" returns to it and continues with a retrained reward model."""
    final_alpha: float = Field(default=FINAL_ALPHA, ge=0.0, lt=1.0)
    """With ``act: stop``: the probability of exporting an earlier policy at the run's regular end that
    is no better than the last one. The gold of the best block is tested once against that of the last
    (Welch, one-sided, Bonferroni over blocks). 0 always exports the last policy."""
    switch: Literal["worst", "uncertainty"] = "worst"
    """How the ensembles among ``rewards`` combine their members after a switch."""
    refresh: RefreshSpec | None = None
    block_size: int = Field(default=32, ge=4)
    """Audited rollouts per block; policies are compared by the mean gold of a block."""
    alpha: float = Field(default=ALPHA, gt=0.0, lt=1.0)
    """Probability of a false alarm during the run, at any length of the run."""
    max_actions: int = Field(default=3, ge=1)
    """After this many actions the next one is "stop"."""

    @model_validator(mode="after")
    def _consistent(self) -> AuditSpec:
        if (self.act == "refresh") != (self.refresh is not None):
            raise ValueError("act: refresh needs the key refresh, and no other action has it")
        if self.final_alpha != FINAL_ALPHA and self.act != "stop":
            raise ValueError(
                f"final_alpha belongs to act: stop, and act is {self.act}; remove the key final_alpha"
            )
        return self


@dataclass(slots=True, frozen=True)
class Block:
    """Consecutive audited rollouts."""

    first: int
    """Step of its first rollout."""
    last: int
    """Step of its last one."""
    gold: float
    proxy: float
    """Means of its rollouts."""


@dataclass(slots=True, frozen=True)
class AuditSummary:
    """What the audit shows so far."""

    n: int
    """Audited rollouts."""
    p: float
    """P-value of "gold never fell"; valid at any time (see ``stats.sequential.fall``)."""
    since: int | None
    """The step at which the fall is clearest."""
    gold_before: float
    gold_after: float
    proxy_gain: float
    """Mean proxy after that step minus that before it, over the same rollouts."""
    fell: bool
    """Gold fell: p is below alpha."""
    hacked: bool
    """Gold fell and the proxy did not."""
    gold: Fit | None
    """Gao's form fitted to gold over sqrt(KL); None without KL or with too few rollouts."""
    proxy: Fit | None
    past_peak: bool
    """The policy is beyond the confidence interval of the fitted peak."""
    best: Block | None

    def to_json(self) -> dict[str, object]:
        """What ``audit.json`` holds."""
        plain: dict[str, object] = asdict(self)
        for name, fit in (("gold", self.gold), ("proxy", self.proxy)):
            if fit is not None:
                keys = ("alpha", "beta", "start", "peak", "peak_low", "peak_high", "r2", "reach")
                curve = fit.curve
                values = (curve.alpha, curve.beta, fit.start, *fit.peak, fit.r2, fit.reach)
                plain[name] = dict(zip(keys, values, strict=True))
        return plain


def blocks(rollouts: Sequence[AuditedRollout], size: int) -> list[Block]:
    """Complete blocks in order of step; an incomplete block at the end is dropped."""
    return [
        Block(
            first=part[0].step,
            last=part[-1].step,
            gold=float(np.mean([r.gold for r in part])),
            proxy=float(np.mean([r.proxy for r in part])),
        )
        for part in (rollouts[i : i + size] for i in range(0, len(rollouts) - size + 1, size))
    ]


def points_by_kl(
    rollouts: Sequence[AuditedRollout],
) -> tuple[list[float], list[list[AuditedRollout]]]:
    """KL and rollouts of each audited step whose KL is known; neighbours are joined to about 30 points."""
    by_step: dict[int, list[AuditedRollout]] = {}
    for r in rollouts:
        if r.kl_mean is not None or r.kl is not None:
            by_step.setdefault(r.step, []).append(r)
    ordered = [by_step[s] for s in sorted(by_step)]
    size = max(1, math.ceil(len(ordered) / 30))
    joined = [
        sum(ordered[i : i + size], list[AuditedRollout]()) for i in range(0, len(ordered), size)
    ]

    def distance(part: Sequence[AuditedRollout]) -> float:
        kls = [r.kl_mean if r.kl_mean is not None else cast(float, r.kl) for r in part]
        return max(0.0, float(np.mean(kls)))

    return [distance(part) for part in joined], joined


def _fit(rollouts: Sequence[AuditedRollout], name: Literal["gold", "proxy"]) -> Fit | None:
    kl, parts = points_by_kl(rollouts)
    if len({round(k, 9) for k in kl}) < 4:
        return None
    return fit_points(kl, [[float(getattr(r, name)) for r in part] for part in parts])


def summarise(
    rollouts: Sequence[AuditedRollout],
    low: float = 0.0,
    high: float = 1.0,
    alpha: float = ALPHA,
    block_size: int = 32,
) -> AuditSummary:
    """Test whether gold fell, and fit gold and proxy over the distance from the reference.

    Raises:
        DataError: a gold score lies outside [low, high].
    """
    rollouts = sorted(rollouts, key=lambda r: r.step)
    test = fall([r.gold for r in rollouts], low, high)
    gain, since = math.nan, None
    if test.split:
        n = min(test.split, len(rollouts) - test.split)
        before = rollouts[test.split - n : test.split]
        after = rollouts[test.split : test.split + n]
        gain = float(np.mean([r.proxy for r in after]) - np.mean([r.proxy for r in before]))
        since = rollouts[test.split].step
    gold = _fit(rollouts, "gold")
    kl, _ = points_by_kl(rollouts)
    return AuditSummary(
        n=len(rollouts),
        p=test.p,
        since=since,
        gold_before=test.before,
        gold_after=test.after,
        proxy_gain=gain,
        fell=test.p < alpha,
        hacked=test.p < alpha and gain >= 0,
        gold=gold,
        proxy=_fit(rollouts, "proxy"),
        past_peak=gold is not None and bool(kl) and math.sqrt(kl[-1]) > gold.peak[2],
        best=max(blocks(rollouts, block_size), key=lambda b: b.gold, default=None),
    )


@dataclass(slots=True, frozen=True)
class PolicyChoice:
    """Which policy is exported at a run's regular end."""

    back_to: int | None
    """Last step of the best block, whose policy is exported; None for the last policy."""
    p: float
    """P-value of "the best block's policy is no better than the last block's", Bonferroni over the
    blocks before the last; 1 where there is nothing to compare."""
    blocks: int
    """Complete blocks."""
    best: Block | None
    last: float
    """Mean gold of the last block and of what follows it; NaN without a block."""


def choose_policy(
    rollouts: Sequence[AuditedRollout], block_size: int, alpha: float = FINAL_ALPHA
) -> PolicyChoice:
    """The best block's policy if its gold is significantly higher than the last block's, else the last.

    Only for one look at the end: repeated looks would choose an earlier policy too often.

    ``alpha`` is the level of the one-sided test, corrected for the number of blocks. An incomplete last
    block counts with the one before it.
    """
    rollouts = sorted(rollouts, key=lambda r: r.step)
    complete = blocks(rollouts, block_size)
    if not complete:
        return PolicyChoice(back_to=None, p=1.0, blocks=0, best=None, last=math.nan)
    top = max(range(len(complete)), key=lambda i: (complete[i].gold, i))
    golds = [r.gold for r in rollouts]
    end = golds[(len(complete) - 1) * block_size :]
    p = 1.0
    if top < len(complete) - 1:
        block = golds[top * block_size : (top + 1) * block_size]
        p = min(1.0, (len(complete) - 1) * welch(block, end))
    return PolicyChoice(
        back_to=complete[top].last if p < alpha else None,
        p=p,
        blocks=len(complete),
        best=complete[top],
        last=float(np.mean(end)),
    )


def read_audit(run: str | Path) -> list[AuditedRollout]:
    """``audit.jsonl`` of a run folder; empty without the file. An incomplete last line is skipped.

    Raises:
        DataError: a line cannot be used; the message names it.
    """
    path = Path(run) / FILE
    rollouts: list[AuditedRollout] = []
    data = path.read_bytes() if path.exists() else b""
    for number, line in json_lines(data):
        try:
            rollouts.append(AuditedRollout.model_validate_json(line))
        except ValidationError as error:
            if data.endswith(line):
                break
            first = error.errors()[0]
            key = ".".join(str(x) for x in first["loc"]) or "line"
            raise DataError(
                f"{path}, line {number}: {key}: {first['msg']}; correct or remove the line"
            ) from None
    return rollouts


def _lines(rollouts: Sequence[AuditedRollout]) -> bytes:
    return "".join(to_json(r.model_dump()) + "\n" for r in rollouts).encode("utf-8", "replace")


def write_audit(run: str | Path, rollouts: Sequence[AuditedRollout]) -> None:
    """Replace ``audit.jsonl``."""
    write_atomic(Path(run) / FILE, _lines(rollouts))


def append_audit(run: str | Path, rollouts: Sequence[AuditedRollout]) -> None:
    """Add lines to ``audit.jsonl``; they are on disk when this returns."""
    with fs.open(Path(run) / FILE, "ab") as handle:
        fs.write(handle, _lines(rollouts))


def with_ids(rows: Sequence[Row]) -> list[Row]:
    """Rows of ``samples/`` with "id" and "index"; older runs lack them, and they follow from the order."""
    result: list[Row] = []
    seen: dict[tuple[object, str], int] = {}
    for row in rows:
        text = str(row.get("prompt")).encode("utf-8", "replace")
        prompt_id = str(row.get("id") or hashlib.sha256(text).hexdigest()[:16])
        place = seen.get((row.get("step"), prompt_id), 0)
        seen[row.get("step"), prompt_id] = place + 1
        index = row.get("index")
        result.append({**row, "id": prompt_id, "index": place if index is None else int(index)})
    return result

"""The gold audit: a small share of rollouts scored by someone who knows, and what they show.

``audit.jsonl`` in the run folder has a line for each audited rollout: ``step``, ``prompt_id``,
``index`` among the rollouts of its prompt, ``proxy`` (what was trained on), ``gold``, ``kl`` of the
rollout to the reference in nats, ``kl_mean`` of its whole batch, and ``source``, who scored it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trimtab.config import Config
from trimtab.errors import DataError
from trimtab.rewards.score import RewardSpec
from trimtab.runs import fs, to_json, write_atomic
from trimtab.stats.change import welch
from trimtab.stats.overoptimisation import Fit, fit_points
from trimtab.stats.sequential import fall

FILE = "audit.jsonl"
ALPHA = 0.01
FINAL = 0.05


class Row(BaseModel):
    """A line of ``audit.jsonl``."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    step: int = Field(ge=0)
    """As in ``metrics.jsonl``: the batch of rollouts, from 1."""
    prompt_id: str
    index: int = 0
    proxy: float
    gold: float
    kl: float | None = None
    kl_mean: float | None = None
    source: str = ""


class GoldSpec(Config):
    """Who knows: a function, or a stronger reward model. People come by ``trimtab audit``."""

    function: str | None = None
    """ "package.module:name" or "file.py:name", as a reward function; None marks "no score"."""
    model: str | None = None
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    low: float = 0.0
    """No gold score is lower, ..."""
    high: float = 1.0
    """... and none higher: the sequential test needs to know."""

    @model_validator(mode="after")
    def _sane(self) -> GoldSpec:
        if (self.function is None) == (self.model is None):
            raise ValueError("give one of function and model")
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self

    def reward(self) -> RewardSpec:
        """As a part that is watched."""
        return RewardSpec(
            name="gold", function=self.function, model=self.model, options=self.options, weight=0
        )

    @property
    def source(self) -> str:
        """Its name in the record."""
        return str(self.function or self.model)


class RefreshSpec(Config):
    """How a reward model is taught what it was hacked by."""

    data: str
    """The comparisons that it was trained on: the new ones are mixed in."""
    prompts: int = Field(default=64, ge=4)
    """Prompts of the hacked batch answered again by the best audited policy."""
    answers: int = Field(default=4, ge=1)
    """Of that policy to each; gold picks the best of them to stand beside the answer that the
    hacked reward likes best."""
    repeat: int = Field(default=1, ge=1)
    """How often each new comparison stands in the mix."""
    epochs: float = Field(default=2.0, gt=0.0)
    batch: int = Field(default=32, gt=0)
    lr: float = Field(default=1e-4, gt=0.0)


class AuditSpec(Config):
    """A gold audit beside training, and what is done when it says that the reward is hacked."""

    gold: GoldSpec
    share: float = Field(default=0.01, gt=0.0, le=1.0)
    """Of all rollouts; with ``act: stop`` the first batch gives a whole ``block`` where it has as many,
    so that the start is known by itself."""
    act: Literal["none", "stop", "switch", "refresh"] = "none"
    """What is done when gold falls. "none": a line in actions.jsonl. "stop": the run ends and hands
    over the best audited policy, whatever the reward did; and a run that comes to its own end hands
    that over too where its gold is surely higher (``final``). Where gold falls and the reward does
    not, "switch": return to the best, and take an ensemble by ``switch`` from there; "refresh":
    return, and go on with a refreshed reward model."""
    final: float = Field(default=FINAL, ge=0.0, lt=1.0)
    """With ``act: stop``, the chance that a policy is handed over at the run's own end that is no
    better than the last: the best block's gold is tested against the last block's, once (Welch,
    one-sided, times the number of blocks). 0 always hands over the last."""
    switch: Literal["worst", "uncertainty"] = "worst"
    """How the ensembles among ``rewards`` combine afterwards."""
    refresh: RefreshSpec | None = None
    block: int = Field(default=32, ge=4)
    """Audited rollouts over which the best policy is told by."""
    alpha: float = Field(default=ALPHA, gt=0.0, lt=1.0)
    """Chance of a false alarm over the whole run, however long."""
    times: int = Field(default=3, ge=1)
    """Actions at most; then it stops."""

    @model_validator(mode="after")
    def _whole(self) -> AuditSpec:
        if (self.act == "refresh") != (self.refresh is not None):
            raise ValueError("act: refresh and the key refresh belong together: give both or none")
        if self.final != FINAL and self.act != "stop":
            raise ValueError(
                f"final belongs to act: stop, and act is {self.act}; remove the key final"
            )
        return self


@dataclass(slots=True, frozen=True)
class Block:
    """Consecutive audited rollouts."""

    first: int
    last: int
    """Steps."""
    gold: float
    proxy: float


@dataclass(slots=True, frozen=True)
class Reading:
    """What the audit says so far."""

    n: int
    p: float
    """That gold never fell; valid at any time (see ``stats.sequential.fall``)."""
    since: int | None
    """The step at which the fall shows best."""
    gold_before: float
    gold_after: float
    proxy_gain: float
    """Mean proxy after that step less that before it, over the same rollouts."""
    fell: bool
    """Gold fell: p is below alpha."""
    hacked: bool
    """It did while the proxy did not."""
    gold: Fit | None
    """Gao's form through gold by sqrt(KL); None where KL is unknown or too little was audited."""
    proxy: Fit | None
    past_peak: bool
    """The policy is surely further than the fitted peak."""
    best: Block | None


def blocks(rows: Sequence[Row], size: int) -> list[Block]:
    """Whole blocks in order of step; a rest smaller than ``size`` waits."""
    return [
        Block(
            part[0].step, part[-1].step, float(np.mean([r.gold for r in part])),
            float(np.mean([r.proxy for r in part])),
        )
        for part in (rows[i : i + size] for i in range(0, len(rows) - size + 1, size))
    ]  # fmt: skip


def points(rows: Sequence[Row]) -> tuple[list[float], list[list[Row]]]:
    """KL and rows of each audited step whose KL is known; neighbours are joined to about 30 points."""
    steps: dict[int, list[Row]] = {}
    for r in rows:
        if r.kl_mean is not None or r.kl is not None:
            steps.setdefault(r.step, []).append(r)
    ordered = [steps[s] for s in sorted(steps)]
    size = max(1, math.ceil(len(ordered) / 30))
    joined = [sum(ordered[i : i + size], list[Row]()) for i in range(0, len(ordered), size)]

    def distance(part: Sequence[Row]) -> float:
        whole = [r.kl_mean if r.kl_mean is not None else cast(float, r.kl) for r in part]
        return max(0.0, float(np.mean(whole)))

    return [distance(part) for part in joined], joined


def _fit(rows: Sequence[Row], name: Literal["gold", "proxy"]) -> Fit | None:
    kl, parts = points(rows)
    if len({round(k, 9) for k in kl}) < 4:
        return None
    return fit_points(kl, [[float(getattr(r, name)) for r in part] for part in parts])


def reading(
    rows: Sequence[Row],
    low: float = 0.0,
    high: float = 1.0,
    alpha: float = ALPHA,
    block: int = 32,
) -> Reading:
    """What these audited rollouts say.

    Raises:
        DataError: a gold score lies outside [low, high].
    """
    rows = sorted(rows, key=lambda r: r.step)
    found = fall([r.gold for r in rows], low, high)
    gain, since = math.nan, None
    if found.split:
        n = min(found.split, len(rows) - found.split)
        before, after = (
            rows[found.split - n : found.split],
            rows[found.split : found.split + n],
        )
        gain = float(np.mean([r.proxy for r in after]) - np.mean([r.proxy for r in before]))
        since = rows[found.split].step
    gold, proxy = _fit(rows, "gold"), _fit(rows, "proxy")
    kl, _ = points(rows)
    past = gold is not None and bool(kl) and math.sqrt(kl[-1]) > gold.peak[2]
    whole = blocks(rows, block)
    return Reading(
        len(rows), found.p, since, found.before, found.after, gain,
        found.p < alpha, found.p < alpha and gain >= 0, gold, proxy, past,
        max(whole, key=lambda b: b.gold, default=None),
    )  # fmt: skip


@dataclass(slots=True, frozen=True)
class Choice:
    """Which policy is handed over at a run's own end."""

    back_to: int | None
    """The last step of the best block, whose policy it is; None for the last policy."""
    p: float
    """That the best block's policy is no better than the last block's, times the blocks before the
    last; 1 where there is nothing to compare."""
    blocks: int
    """Whole blocks."""
    best: Block | None
    last: float
    """Mean gold of the last block and the rest after it; NaN where there is none."""


def choose(rows: Sequence[Row], size: int, level: float = FINAL) -> Choice:
    """The best block's policy where its gold is surely higher than the last block's, else the last.

    For one look at the end: read at any time it would hand over too often.

    Args:
        rows: All that was audited.
        size: Rollouts a block; a rest smaller than that counts with the last block.
        level: Of the one-sided test, over all blocks that it might have been.
    """
    rows = sorted(rows, key=lambda r: r.step)
    whole = blocks(rows, size)
    if not whole:
        return Choice(None, 1.0, 0, None, math.nan)
    top = max(range(len(whole)), key=lambda i: (whole[i].gold, i))
    golds = [r.gold for r in rows]
    end = golds[(len(whole) - 1) * size :]
    p = 1.0
    if top < len(whole) - 1:
        p = min(1.0, (len(whole) - 1) * welch(golds[top * size : (top + 1) * size], end))
    return Choice(
        whole[top].last if p < level else None, p, len(whole), whole[top], float(np.mean(end))
    )


def told(r: Reading) -> dict[str, Any]:
    """A reading as JSON holds it."""
    plain = asdict(r)
    for name in ("gold", "proxy"):
        fit: Fit | None = getattr(r, name)
        if fit is not None:
            plain[name] = {
                "alpha": fit.curve.alpha, "beta": fit.curve.beta, "start": fit.start,
                "peak": fit.peak[0], "peak_low": fit.peak[1], "peak_high": fit.peak[2],
                "r2": fit.r2, "reach": fit.reach,
            }  # fmt: skip
    return plain


def read_audit(run: str | Path) -> list[Row]:
    """``audit.jsonl`` of a run folder; none where there is no file. A torn last line is left out.

    Raises:
        DataError: a line cannot be used; the message names it.
    """
    path = Path(run) / FILE
    rows: list[Row] = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(Row.model_validate_json(line))
        except ValidationError as error:
            if number == len(lines):
                break
            first = error.errors()[0]
            key = ".".join(str(x) for x in first["loc"]) or "line"
            raise DataError(
                f"{path}, line {number}: {key}: {first['msg']}; mend or remove the line"
            ) from None
    return rows


def write_rows(run: str | Path, rows: Sequence[Row], *, keep: Sequence[Row] = ()) -> None:
    """Replace ``audit.jsonl`` by ``keep`` and ``rows``."""
    text = "".join(to_json(r.model_dump()) + "\n" for r in [*keep, *rows])
    write_atomic(Path(run) / FILE, text.encode("utf-8", "replace"))


def append_rows(run: str | Path, rows: Sequence[Row]) -> None:
    """Add lines; on disk when this returns."""
    text = "".join(to_json(r.model_dump()) + "\n" for r in rows)
    with fs.open(Path(run) / FILE, "ab") as handle:
        fs.write(handle, text.encode("utf-8", "replace"))


def numbered(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of samples with "id" and "index", made from their order where an older run lacks them."""
    made: list[dict[str, Any]] = []
    seen: dict[tuple[Any, str], int] = {}
    for row in rows:
        text = str(row.get("prompt")).encode("utf-8", "replace")
        name = str(row.get("id") or hashlib.sha256(text).hexdigest()[:16])
        place = seen.get((row.get("step"), name), 0)
        seen[row.get("step"), name] = place + 1
        index = row.get("index")
        made.append({**row, "id": name, "index": place if index is None else int(index)})
    return made

"""What a run folder holds, read once: curves, rollouts, facts, probes, the audit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from trimtab.audit.gold_audit import AuditedRollout, read_audit
from trimtab.config import read_yaml
from trimtab.doctor.finding import Example, Probe
from trimtab.errors import DataError
from trimtab.runs import read_metrics, read_object, read_summary

Array = npt.NDArray[np.float64]

TABLES = 40
"""Sample tables read at most, evenly spread: a long run has many, and its ends matter most."""
ROWS = 400
"""Rollouts kept of one table."""


class Unchecked(Exception):  # noqa: N818 - not a failure: the run does not hold what a check reads
    """A check had nothing to go by; the message says what would give it."""


@dataclass(slots=True)
class Rollout:
    """One logged answer."""

    step: int
    prompt: str
    answer: str
    reward: float | None
    scores: dict[str, Any]
    finish: str
    tokens: int
    kl: float | None
    nll: float | None
    """Per token, under the reference."""

    def example(self, note: str = "") -> Example:
        """To show."""
        shown = note or (f"reward {self.reward:.3g}" if self.reward is not None else "not scored")
        return Example(
            prompt=self.prompt[:2000], answer=self.answer[:2000], note=shown, step=self.step
        )


@dataclass
class Evidence:
    """A run as the alarms see it."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    rollouts: list[Rollout] = field(default_factory=list[Rollout])
    summary: dict[str, Any] = field(default_factory=dict[str, Any])
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    probes: list[Probe] = field(default_factory=list[Probe])
    audit: list[AuditedRollout] = field(default_factory=list[AuditedRollout])
    rewards: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Summaries of the runs that made this run's reward models, by the models' folders."""

    @cached_property
    def stage(self) -> str:
        """ "rl", "online_dpo", "dpo", "reward", "sft", or "" where the folder does not say."""
        if "stage" in self.facts:
            return str(self.facts["stage"])
        c = self.config
        for key, name in (("method", "rl"), ("num_completions", "online_dpo"), ("answers", "online_dpo"), ("normalise", "reward"),
                          ("reference_cache", "dpo"), ("objective", "sft")):  # fmt: skip
            if key in c:
                return name
        return "rl" if self.has("reward/mean") else ""

    def has(self, name: str) -> bool:
        """Whether a metric was ever recorded as a number."""
        return len(self.series(name)[0]) > 0

    def series(self, name: str) -> tuple[Array, Array]:
        """Steps and finite values of a metric."""
        if name not in self._kept:
            held = [
                (float(r["step"]), float(r[name]))
                for r in self.rows
                if isinstance(r.get(name), (int, float)) and math.isfinite(r[name])
            ]
            both = np.array(held, np.float64).reshape(-1, 2)
            self._kept[name] = both[:, 0], both[:, 1]
        return self._kept[name]

    @cached_property
    def _kept(self) -> dict[str, tuple[Array, Array]]:
        return {}

    def want(self, name: str, least: int = 8, why: str = "") -> tuple[Array, Array]:
        """The series, or ``Unchecked`` when it has fewer than ``least`` points."""
        x, y = self.series(name)
        if len(x) < least:
            raise Unchecked(f"{name} was recorded {len(x)} times, {least} are needed{why}")
        return x, y

    @cached_property
    def total(self) -> int:
        """Steps the run was to have; those it had where that is not known."""
        done = int(self.rows[-1]["step"]) if self.rows else 0
        planned = self.config.get("steps") or self.facts.get("steps")
        return max(done, int(planned)) if isinstance(planned, (int, float)) else done

    @cached_property
    def ends(self) -> tuple[list[Rollout], list[Rollout]]:
        """Rollouts of the first and of the last fifth of the sampled steps, at least one step each."""
        steps = sorted({r.step for r in self.rollouts})
        if len(steps) < 2:
            raise Unchecked("fewer than two steps have logged rollouts; set loop.sample_steps")
        n = max(1, len(steps) // 5)
        head, tail = set(steps[:n]), set(steps[-n:])
        early = [r for r in self.rollouts if r.step in head]
        late = [r for r in self.rollouts if r.step in tail]
        if min(len(early), len(late)) < 16:
            raise Unchecked(
                "fewer than 16 rollouts at the start or end; log more (loop.sample_steps)"
            )
        return early, late

    def by_step(self) -> dict[int, list[Rollout]]:
        """Rollouts by step, in order."""
        found: dict[int, list[Rollout]] = {}
        for r in self.rollouts:
            found.setdefault(r.step, []).append(r)
        return dict(sorted(found.items()))

    def key(self, dotted: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted path."""
        place: Any = self.config
        for part in dotted.split("."):
            if not isinstance(place, Mapping) or part not in place:
                return default
            place = cast("Mapping[str, Any]", place)[part]
        return default if place is None else place

    def fact(self, *path: str) -> float | None:
        """A number among the facts."""
        place: Any = self.facts
        for part in path:
            place = (
                cast("Mapping[str, Any]", place).get(part) if isinstance(place, Mapping) else None
            )
        return float(place) if isinstance(place, (int, float)) else None

    def probe(self, of: str, *names: str) -> list[Probe]:
        """Probes of a kind of model."""
        found = [p for p in self.probes if p.of == of and p.probe in names and p.value is not None]
        # What the user's own texts say goes before what the sandbox's do.
        return [p for p in found if p.source != "sandbox"] or found


def edge(values: Array, last: bool, share: float = 0.2) -> float:
    """Mean of the first or last fifth of a series."""
    n = max(1, round(len(values) * share))
    return float(values[-n:].mean() if last else values[:n].mean())


def read(folder: str | Path) -> Evidence:
    """The evidence in a run folder. What is not there is empty.

    Raises:
        DataError: there is no such folder, nothing of a run is in it, or a file cannot be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{path}: no such run folder; give the folder that holds metrics.jsonl")
    found = Evidence(path)
    config = path / "config.yaml"
    found.config = read_yaml(config) if config.is_file() else {}
    found.rows = sorted(
        (r for r in read_metrics(path) if isinstance(r.get("step"), (int, float))),
        key=lambda r: float(r["step"]),
    )
    found.summary = read_summary(path)
    found.facts = read_object(path / "facts.json")
    found.rollouts = list(_rollouts(path))
    if not (found.rows or found.rollouts or found.facts or found.summary):
        raise DataError(
            f"{path}: holds no metrics.jsonl, samples/, facts.json or summary.json; give a run folder, "
            "or import one of another library with 'trimtab doctor FILE --from trl|wandb|jsonl'"
        )
    found.probes = _probes(path / "probes.json")
    found.audit = sorted(read_audit(path), key=lambda a: a.step)
    for spec in found.config.get("rewards") or ():
        for model in (
            [spec.get("model"), *(spec.get("models") or ())] if isinstance(spec, dict) else ()
        ):
            if model and Path(str(model)).name == "model":
                beside = read_summary(Path(str(model)).parent)
                if beside:
                    found.rewards[str(model)] = beside
    return found


def _probes(path: Path) -> list[Probe]:
    listed = read_object(path).get("probes", [])
    try:
        return [Probe.model_validate(p) for p in cast("list[Any]", listed)]
    except (ValidationError, TypeError) as error:
        raise DataError(f"{path}: 'probes' holds an entry that is no probe: {error}") from None


def _rollouts(path: Path) -> Iterable[Rollout]:
    files = sorted((path / "samples").glob("step-*.parquet"))
    if len(files) > TABLES:
        files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, TABLES).astype(int))]
    for file in files:
        try:
            rows = pq.read_table(file).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a readable table ({error}); remove it") from None
        if len(rows) > ROWS:
            rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, ROWS).astype(int))]
        for row in rows:
            yield _rollout(row)


def _rollout(row: Mapping[str, Any]) -> Rollout:
    held: Any = row.get("scores")
    if isinstance(held, str):
        try:
            held = json.loads(held)
        except ValueError:
            held = {}
    answer = str(row.get("completion") or "")
    return Rollout(
        step=int(row.get("step") or 0),
        prompt=str(row.get("prompt") or ""),
        answer=answer,
        reward=_number(row.get("reward")),
        scores=cast("dict[str, Any]", held) if isinstance(held, dict) else {},
        finish=str(row.get("finish") or ""),
        tokens=int(row.get("tokens") or len(answer.split())),
        kl=_number(row.get("kl")),
        nll=_number(row.get("nll_reference")),
    )


def _number(value: Any) -> float | None:
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real else None


def spread(rollouts: Sequence[Rollout], most: int = 5) -> list[Rollout]:
    """A few, of different prompts and answers where there are."""
    seen: set[tuple[str, str]] = set()
    told: set[str] = set()
    first: list[Rollout] = []
    rest: list[Rollout] = []
    for r in rollouts:
        if (r.prompt, r.answer) in seen:
            continue
        seen.add((r.prompt, r.answer))
        (rest if r.prompt in told else first).append(r)
        told.add(r.prompt)
    return [*first, *rest][:most]

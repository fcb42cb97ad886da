"""What a run folder contains, read once: settings, curves, rollouts, facts, probes, the audit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from trimtab.audit.gold_audit import AuditedRollout, read_audit
from trimtab.audit.probe_result import ProbeResult
from trimtab.audit.run_settings import RunSettings
from trimtab.doctor.finding import Example
from trimtab.errors import DataError
from trimtab.runs import MetricTable, read_object, read_summary, sample_tables
from trimtab.types import Row

Array = npt.NDArray[np.float64]

MAX_TABLES = 40
"""Sample tables that are read, evenly spread: a long run has many, and its ends matter most."""
MAX_ROWS = 400
"""Rollouts that are read per table."""
EDGE = 0.2
"""Share of a series that counts as its start or its end."""
MIN_ROLLOUTS = 16
"""Rollouts needed at the start and at the end of a run."""
SHOWN_CHARACTERS = 2000


class Unchecked(Exception):  # noqa: N818 - not a failure: the run does not hold what a check reads
    """The run lacks what a check reads; the message says what would provide it."""


@dataclass(slots=True)
class Rollout:
    """One logged completion."""

    step: int
    prompt: str
    completion: str
    reward: float | None
    scores: Row
    """Parts of the reward by name: numbers, or the status of a part that failed."""
    finish: str
    """ "stop", or "length" where the length limit cut it."""
    tokens: int
    kl: float | None = None
    """Nats from the reference."""
    nll: float | None = None
    """Per token, under the reference."""

    def example(self, note: str = "") -> Example:
        """The rollout as a finding shows it."""
        if not note:
            note = f"reward {self.reward:.3g}" if self.reward is not None else "not scored"
        return Example(
            prompt=self.prompt[:SHOWN_CHARACTERS],
            completion=self.completion[:SHOWN_CHARACTERS],
            note=note,
            step=self.step,
        )


@dataclass
class Evidence:
    """A run as the alarms see it."""

    folder: Path
    settings: RunSettings = field(default_factory=RunSettings)
    metrics: MetricTable = field(default_factory=MetricTable)
    """``metrics.jsonl`` in order of step."""
    rows: InitVar[Iterable[Mapping[str, Any]]] = ()
    """Rows of metrics, instead of ``metrics``."""
    rollouts: list[Rollout] = field(default_factory=list[Rollout])
    summary: Row = field(default_factory=Row)
    facts: Row = field(default_factory=Row)
    probes: list[ProbeResult] = field(default_factory=list[ProbeResult])
    audit: list[AuditedRollout] = field(default_factory=list[AuditedRollout])
    reward_models: dict[str, Row] = field(default_factory=dict[str, Row])
    """Summaries of the runs that trained this run's reward models, by the models' folders."""

    metrics_read: set[str] = field(default_factory=set[str])
    """Names of the metrics that a check has read."""

    def __post_init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        if rows:
            self.metrics = MetricTable.of(rows)

    @cached_property
    def stage(self) -> str:
        """ "rl", "online_dpo", "dpo", "reward", "sft", or "" where the folder does not tell."""
        stated = str(self.facts.get("stage", self.settings.stage))
        return stated or ("rl" if self.has("reward/mean") else "")

    def has(self, metric: str) -> bool:
        """Whether the metric was ever recorded as a number."""
        return len(self.series(metric)[0]) > 0

    def series(self, metric: str) -> tuple[Array, Array]:
        """Steps and finite values of a metric."""
        self.metrics_read.add(metric)
        x, y = self.metrics.series(metric)
        finite = np.isfinite(y)
        return (x, y) if finite.all() else (x[finite], y[finite])

    @cached_property
    def not_finite(self) -> dict[str, int]:
        """The step since which a metric was never finite again, by name; of those that ended so.

        A metric that is finite now and then, such as one of an evaluation in a table with NaN for the
        steps between, counts only if the last stretch is more than twice as long as any before.
        """
        since: dict[str, int] = {}
        for name in self.metrics.names:
            steps, values = self.metrics.series(name)
            finite = np.isfinite(values)
            if not len(finite) or finite[-1]:
                continue
            starts = np.concatenate(([0], np.flatnonzero(np.diff(finite)) + 1))
            lengths = np.diff([*starts, len(finite)])[~finite[starts]]
            if lengths[-1] > 2 * max(lengths[:-1], default=0):
                since[name] = int(steps[starts[-1]])
        return since

    def require(self, metric: str, least: int = 8, why: str = "") -> tuple[Array, Array]:
        """The series, or ``Unchecked`` if it has fewer than ``least`` points."""
        x, y = self.series(metric)
        if len(x) < least:
            raise Unchecked(f"{metric} was recorded {len(x)} times, {least} are needed{why}")
        return x, y

    @property
    def last_step(self) -> int:
        """The last step with metrics; 0 without any."""
        return int(self.metrics.steps[-1]) if len(self.metrics) else 0

    @cached_property
    def total_steps(self) -> int:
        """Planned steps of the run, or the steps it had where the plan is not known."""
        done = self.last_step
        planned = self.settings.steps or self.facts.get("steps")
        return max(done, int(planned)) if isinstance(planned, (int, float)) else done

    @cached_property
    def early_and_late(self) -> tuple[list[Rollout], list[Rollout]]:
        """Rollouts of the first and of the last fifth of the sampled steps, at least one step each."""
        steps = sorted({r.step for r in self.rollouts})
        if len(steps) < 2:
            raise Unchecked("fewer than two steps have logged rollouts; set loop.sample_steps")
        n = max(1, len(steps) // 5)
        first, last = set(steps[:n]), set(steps[-n:])
        early = [r for r in self.rollouts if r.step in first]
        late = [r for r in self.rollouts if r.step in last]
        if min(len(early), len(late)) < MIN_ROLLOUTS:
            raise Unchecked(
                f"fewer than {MIN_ROLLOUTS} rollouts at the start or end; log more (loop.sample_steps)"
            )
        return early, late

    @property
    def scored(self) -> list[Rollout]:
        """Rollouts with a reward."""
        return [r for r in self.rollouts if r.reward is not None]

    def by_step(self) -> dict[int, list[Rollout]]:
        """Rollouts by step, in order."""
        groups: dict[int, list[Rollout]] = {}
        for r in self.rollouts:
            groups.setdefault(r.step, []).append(r)
        return dict(sorted(groups.items()))

    def fact(self, name: str) -> float | None:
        """A number among the facts."""
        value = self.facts.get(name)
        return float(value) if isinstance(value, (int, float)) else None

    def probes_of(self, of: str, *names: str) -> list[ProbeResult]:
        """Results of these probes for a kind of model; the user's own texts before the sandbox's."""
        measured = [
            p for p in self.probes if p.of == of and p.probe in names and p.value is not None
        ]
        return [p for p in measured if p.source != "sandbox"] or measured


def start_mean(values: Array, share: float = EDGE) -> float:
    """Mean of the first part of a series, at least one value."""
    return float(values[: max(1, round(len(values) * share))].mean())


def end_mean(values: Array, share: float = EDGE) -> float:
    """Mean of the last part of a series, at least one value."""
    return float(values[-max(1, round(len(values) * share)) :].mean())


def read(folder: str | Path) -> Evidence:
    """The evidence in a run folder. What is not there is empty.

    Raises:
        DataError: there is no such folder, nothing of a run is in it, or a file cannot be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{path}: no such run folder; give the folder that holds metrics.jsonl")
    evidence = Evidence(
        path,
        settings=RunSettings.read(path),
        metrics=MetricTable.read(path),
        rollouts=list(_read_rollouts(path)),
        summary=read_summary(path),
        facts=read_object(path / "facts.json"),
    )
    if not (len(evidence.metrics) or evidence.rollouts or evidence.facts or evidence.summary):
        raise DataError(
            f"{path}: holds no metrics.jsonl, samples/, facts.json or summary.json; give a run folder, "
            "or import one of another library with 'trimtab doctor FILE --from trl|wandb|jsonl'"
        )
    evidence.probes = _read_probes(path / "probes.json")
    evidence.audit = sorted(read_audit(path), key=lambda a: a.step)
    for model in (m for reward in evidence.settings.rewards for m in reward.models):
        if Path(model).name == "model" and (summary := read_summary(Path(model).parent)):
            evidence.reward_models[model] = summary
    return evidence


def _read_probes(path: Path) -> list[ProbeResult]:
    entries = read_object(path).get("probes", [])
    try:
        return [ProbeResult.model_validate(p) for p in cast("list[Any]", entries)]
    except (ValidationError, TypeError) as error:
        raise DataError(f"{path}: an entry of 'probes' is not a probe result: {error}") from None


def _evenly(n: int, most: int) -> Iterable[int]:
    """Up to ``most`` of ``n`` positions, evenly spread."""
    return range(n) if n <= most else np.unique(np.linspace(0, n - 1, most).astype(int)).tolist()


def _read_rollouts(path: Path) -> Iterable[Rollout]:
    files = sample_tables.files(path)
    for file in (files[i] for i in _evenly(len(files), MAX_TABLES)):
        count = sample_tables.count(file)
        for row in sample_tables.rows_at(file, _evenly(count, MAX_ROWS)):
            yield _rollout(row)


def _rollout(row: Mapping[str, Any]) -> Rollout:
    scores: Any = row.get("scores")
    if isinstance(scores, str):
        try:
            scores = json.loads(scores)
        except ValueError:
            scores = {}
    completion = str(row.get("completion") or "")
    return Rollout(
        step=int(row.get("step") or 0),
        prompt=str(row.get("prompt") or ""),
        completion=completion,
        reward=_number(row.get("reward")),
        scores=cast("Row", scores) if isinstance(scores, dict) else {},
        finish=str(row.get("finish") or ""),
        tokens=int(row.get("tokens") or len(completion.split())),
        kl=_number(row.get("kl")),
        nll=_number(row.get("nll_reference")),
    )


def _number(value: Any) -> float | None:
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real else None


def spread(rollouts: Sequence[Rollout], most: int = 5) -> list[Rollout]:
    """The first few rollouts with different texts, of different prompts where there are."""
    seen: set[tuple[str, str]] = set()
    prompts: set[str] = set()
    of_new_prompts: list[Rollout] = []
    rest: list[Rollout] = []
    for r in rollouts:
        if (r.prompt, r.completion) in seen:
            continue
        seen.add((r.prompt, r.completion))
        (rest if r.prompt in prompts else of_new_prompts).append(r)
        prompts.add(r.prompt)
    return [*of_new_prompts, *rest][:most]

"""Import the runs of other libraries as run folders: TRL, W&B exports, plain jsonl.

Nothing is executed: ``training_args.bin`` is a pickle and is never opened, so alarms that need what only
it holds stay unchecked.
"""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.doctor.metric_names import NAMES
from trimtab.errors import DataError
from trimtab.runs import Run, json_lines, read_object, write_atomic
from trimtab.stats.uncertainty import wilson
from trimtab.types import Row

Source = Literal["trl", "wandb", "jsonl"]

_OURS = {theirs: ours for ours, names in NAMES.items() for theirs in names}
_STEPS = ("step", "_step", "global_step", "Step", "train/global_step")
_PROMPTS = ("prompt", "prompts", "input", "query")
_COMPLETIONS = ("completion", "completions", "response", "output", "answer")
_REWARDS = ("reward", "score")
_NOT_SCORES = {
    *_STEPS,
    *_PROMPTS,
    *_COMPLETIONS,
    *_REWARDS,
    "advantage",
    "advantages",
    "id",
    "index",
    "finish",
    "tokens",
}


_RUNS = ("run", "run_name", "run_id", "_run_id")
"""Columns that name the run of a row of metrics."""
_EVALS = ("eval/rewards/accuracies", "eval/accuracy")


@dataclass(frozen=True, slots=True)
class MetricRow:
    """The metrics that a run recorded at a step."""

    run: str
    """Its name; empty where the file does not tell."""
    step: int
    values: dict[str, float | None]
    """Under the names that alarms read; None for NaN and infinities, as in ``metrics.jsonl``."""


@dataclass(slots=True)
class Imported:
    """The contents of another library's files."""

    metrics: list[MetricRow] = field(default_factory=list[MetricRow])
    summary: Row = field(default_factory=Row)
    """Figures as in ``summary.json``."""
    rollouts: list[Row] = field(default_factory=list[Row])
    """Rows as in ``samples/``."""


def rename_metrics(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics under the names that alarms read; numbers under other names keep them.

    A metric that is not finite is None. One that is missing or no number is left out.

    >>> rename_metrics({"frac_reward_zero_std": 0.5, "train/kl": float("nan"), "note": "x"})
    {'group/uniform': 0.5, 'objective/kl': None}
    """
    metrics: dict[str, float | None] = {}
    for name, value in row.items():
        number = _number(value)
        if number is None or name in (*_STEPS, *_RUNS):
            continue
        value = number if math.isfinite(number) else None
        held_out = name.startswith(("eval_", "eval/"))
        short = name.removeprefix("train/")[5 if held_out else 0 :]
        ours = _OURS.get(name) or _OURS.get(short) or short
        metrics[f"eval/{ours}" if held_out else ours] = value
    return metrics


def _number(value: Any) -> float | None:
    """The number that a cell holds, which may be NaN or infinite; None for anything else."""
    if isinstance(value, bool) or value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _finite(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and math.isfinite(number) else None


def _step(row: Mapping[str, Any]) -> float | None:
    return next((_finite(row[k]) for k in _STEPS if row.get(k) not in (None, "")), None)


def _metric_row(row: Mapping[str, Any], run: str = "") -> MetricRow | None:
    """The metrics of a row; None if it has no step."""
    step = _step(row)
    name = run or next((str(row[k]) for k in _RUNS if row.get(k) not in (None, "")), "")
    return None if step is None else MetricRow(name, int(step), rename_metrics(row))


def import_run(path: str | Path, source: Source, out: str | Path, run: str | None = None) -> Path:
    """Write a run folder from another library's files.

    Args:
        path: TRL's output folder (``trainer_state.json`` of it or of its last checkpoint,
            ``completions/*.parquet``); a W&B export (a history as csv or jsonl, or a folder with
            it and with tables as ``*.table.json``); a jsonl file, or a folder of them, whose lines
            hold metrics by step or rollouts (prompt, completion, reward).
        out: The run folder to write.
        run: The name of the run in files that hold several.

    Returns:
        ``out``.

    Raises:
        DataError: nothing is there, a file of it cannot be read, or it holds several runs and ``run``
            names none of them.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    readers: dict[Source, Callable[[Path], Imported]] = {
        "trl": _read_trl,
        "wandb": _read_wandb,
        "jsonl": _read_jsonl,
    }
    imported = readers[source](path)
    if not imported.metrics and not imported.rollouts:
        raise DataError(
            f"{path}: no metrics or completions of {source} in it; see docs/doctor.md for what is read"
        )
    by_step: dict[int, list[Row]] = defaultdict(list)
    for row in imported.rollouts:
        by_step[int(row["step"])].append(row)
    lines = _merge(_one_run(imported.metrics, run, path), by_step)
    facts: Row = {"imported": source, "from": str(path)}
    if any("logps/chosen" in line for line in lines):
        facts["stage"] = "dpo"
        _add_shifts(lines)
    elif any({"accuracy", "margin"} <= line.keys() for line in lines):
        facts["stage"] = "reward"
    with Run(out) as folder:
        folder.rewind(-1)  # what an earlier import left
        for step, rows in by_step.items():
            folder.samples(step, rows)
        metrics = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomic(folder.path / "metrics.jsonl", metrics.encode())
        write_atomic(folder.path / "facts.json", json.dumps(facts, indent=1).encode())
        if imported.summary:
            folder.summary(imported.summary)
        return folder.path


def _one_run(rows: Sequence[MetricRow], run: str | None, path: Path) -> list[MetricRow]:
    """The rows of one run.

    Raises:
        DataError: there are several, and ``run`` names none of them.
    """
    names = list(dict.fromkeys(row.run for row in rows))
    listed = ", ".join(repr(name) for name in names)
    if run is not None:
        if run not in names:
            raise DataError(f"{path}: no run {run!r}; it holds {listed}")
        return [row for row in rows if row.run == run]
    if len(names) > 1:
        raise DataError(
            f"{path}: holds {len(names)} runs ({listed}); choose one with --from-run NAME"
        )
    first: dict[tuple[int, str], float | None] = {}
    changed: set[int] = set()
    for row in rows:
        for name, value in row.values.items():
            if first.setdefault((row.step, name), value) != value:
                changed.add(row.step)
    # A run that was resumed repeats a few steps, and the later values count.
    if 2 * len(changed) > len({row.step for row in rows}):
        raise DataError(
            f"{path}: {len(changed)} steps have two different values of a metric, so it seems to hold "
            "two runs; give the file of one of them"
        )
    return list(rows)


def _merge(metrics: Iterable[MetricRow], by_step: Mapping[int, Sequence[Row]]) -> list[Row]:
    """One line per step; mean and spread of the rollouts' rewards where the metrics have none."""
    lines: dict[int, Row] = {}
    for row in metrics:
        lines.setdefault(row.step, {}).update(row.values)
    for step, rollouts in by_step.items():
        rewards = [r["reward"] for r in rollouts if r["reward"] is not None]
        line = lines.setdefault(step, {})
        if rewards:
            mean = sum(rewards) / len(rewards)
            variance = sum((x - mean) ** 2 for x in rewards) / len(rewards)
            line.setdefault("reward/mean", mean)
            line.setdefault("reward/std", math.sqrt(variance))
        line.setdefault("reward/unscored", 1 - len(rewards) / len(rollouts))
    return [{"step": s, **lines[s]} for s in sorted(lines)]


def _add_shifts(lines: Sequence[Row]) -> None:
    """Log-probs compared with the first recorded ones, since those of the start are unknown."""
    for name in ("logps/chosen", "logps/rejected"):
        recorded = [line for line in lines if line.get(name) is not None]
        for line in recorded:
            line[f"{name}_shift"] = line[name] - recorded[0][name]


def _read_trl(path: Path) -> Imported:
    folder = path.parent if path.is_file() else path
    states = (
        [path]
        if path.is_file()
        else [folder / "trainer_state.json", *folder.glob("checkpoint-*/trainer_state.json")]
    )
    states = [s for s in states if s.is_file()]
    imported = Imported()
    if states:
        last = max(states, key=lambda s: int(read_object(s).get("global_step") or 0))
        for row in cast("list[Any]", read_object(last).get("log_history") or []):
            if not isinstance(row, dict) or "train_runtime" in row:
                continue
            if (metrics := _metric_row(row)) is not None:
                imported.metrics.append(metrics)
                imported.summary |= _held_out_accuracy(row, metrics)
    tables = sorted((folder / "completions").glob("*.parquet"))
    for file in tables or sorted(folder.glob("completions*.parquet")):
        try:
            rows = pq.read_table(file).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a readable table ({error}); remove it") from None
        imported.rollouts += [_rollout(r, f"{file}, row {i}") for i, r in enumerate(rows, 1)]
    return imported


def _held_out_accuracy(row: Mapping[str, Any], metrics: MetricRow) -> dict[str, float]:
    """The accuracy in an evaluation of TRL, with its interval; the number of pairs follows from time
    and speed."""
    accuracy = next((a for k in _EVALS if (a := metrics.values.get(k)) is not None), None)
    seconds, speed = _finite(row.get("eval_runtime")), _finite(row.get("eval_samples_per_second"))
    pairs = round((seconds or 0.0) * (speed or 0.0))
    if accuracy is None or pairs == 0:
        return {}
    low, high = wilson(accuracy * pairs, pairs)
    return {
        "eval.accuracy": accuracy,
        "eval.accuracy_low": low,
        "eval.accuracy_high": high,
        "eval.pairs": pairs,
    }


def _read_wandb(path: Path) -> Imported:
    suffixes = (".csv", ".jsonl", ".json")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in suffixes)
    imported = Imported()
    for file in files:
        if file.name.endswith(".table.json"):
            table = read_object(file)
            columns = [str(c) for c in table.get("columns") or []]
            for i, row in enumerate(table.get("data") or [], 1):
                values = dict(zip(columns, row, strict=False))
                imported.rollouts.append(_rollout(values, f"{file}, row {i}"))
        elif file.suffix == ".csv":
            _read_history(file, imported)
        elif file.suffix == ".jsonl":
            _read_lines(file, imported)
    return imported


def _read_history(file: Path, into: Imported) -> None:
    with file.open(encoding="utf-8-sig", newline="") as handle:
        for row in csv.DictReader(handle):
            if _step(row) is None:
                raise DataError(f"{file}: no column of steps ({', '.join(_STEPS)})")
            # The web page's export writes "run - metric", and its bounds in columns of their own.
            by_run: dict[str, dict[str, Any]] = defaultdict(dict)
            for column, value in row.items():
                run, _, name = (column or "").rpartition(" - ")
                if column and not column.endswith(("__MIN", "__MAX")):
                    by_run[run][name] = value
            shared = by_run.pop("", {})
            for run, values in by_run.items():
                values = {k: v for k, v in values.items() if v not in (None, "")}
                if values and (metrics := _metric_row({**shared, **values}, run)) is not None:
                    into.metrics.append(metrics)
            if not by_run and (metrics := _metric_row(shared)) is not None:
                into.metrics.append(metrics)


def _read_jsonl(path: Path) -> Imported:
    imported = Imported()
    for file in [path] if path.is_file() else sorted(path.glob("*.jsonl")):
        _read_lines(file, imported)
    return imported


def _read_lines(path: Path, into: Imported) -> None:
    for number, line in json_lines(path.read_bytes()):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: not a JSON object")
        if any(k in row for k in _COMPLETIONS):
            into.rollouts.append(_rollout(row, where))
            continue
        if (metrics := _metric_row(row)) is None:
            raise DataError(f"{where}: no step ({', '.join(_STEPS)}) and no completion")
        into.metrics.append(metrics)


def _rollout(row: Mapping[str, Any], where: str) -> Row:
    prompt = next((row[k] for k in _PROMPTS if k in row), None)
    completion = next((row[k] for k in _COMPLETIONS if k in row), None)
    if prompt is None or completion is None:
        raise DataError(
            f"{where}: a rollout needs a prompt and a completion; the columns are {', '.join(row)}"
        )
    scores = {
        k: n for k, v in row.items() if k not in _NOT_SCORES and (n := _finite(v)) is not None
    }
    reward = next((_finite(row[k]) for k in _REWARDS if k in row), None)
    if reward is None and scores:
        reward = sum(scores.values())  # TRL writes a column per reward function, and no sum
    text = _text(completion)
    return {
        "step": int(_step(row) or 0),
        "prompt": _text(prompt),
        "completion": text,
        "reward": reward,
        "scores": scores,
        "finish": str(row.get("finish") or ""),
        "tokens": int(_finite(row.get("tokens")) or len(text.split())),
    }


def _text(value: Any) -> str:
    """Text, or the messages of a conversation."""
    if isinstance(value, list):
        messages = cast("list[Any]", value)
        return "\n".join(
            str(m.get("content", "")) if isinstance(m, dict) else str(m) for m in messages
        )
    return str(value)

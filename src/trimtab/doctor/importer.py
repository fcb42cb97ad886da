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

from trimtab.errors import DataError
from trimtab.runs import Run, json_lines, read_object, write_atomic
from trimtab.types import Row

Source = Literal["trl", "wandb", "jsonl"]

NAMES: dict[str, tuple[str, ...]] = {
    "reward/mean": (
        "reward",
        "rewards/mean",
        "objective/scores",
        "env_reward_mean",
        "critic/rewards/mean",
        "critic/score/mean",
    ),
    "reward/std": ("reward_std", "rewards/std"),
    "objective/kl": ("kl", "objective/kl", "mean_kl", "actor/ppo_kl", "kl_div"),
    "objective/entropy": ("entropy", "policy/entropy_avg", "actor/entropy", "actor/entropy_loss"),
    "completion/length": (
        "completions/mean_length",
        "completion_length",
        "response_length",
        "response_length/mean",
    ),
    "completion/truncated": ("completions/clipped_ratio", "response_length/clip_ratio"),
    "group/uniform": ("frac_reward_zero_std",),
    "policy/clip_fraction": (
        "clip_ratio/region_mean",
        "clip_ratio",
        "policy/clipfrac_avg",
        "actor/pg_clipfrac",
    ),
    "value/explained_variance": ("critic/vf_explained_var", "val/explained_variance"),
    "rewards/margins": ("rewards/margins",),
    "logps/chosen": ("logps/chosen",),
    "logps/rejected": ("logps/rejected",),
    "nll": ("loss", "train/loss"),
    "grad_norm/policy": ("grad_norm", "train/grad_norm", "actor/grad_norm"),
    "lr/policy": ("learning_rate", "train/learning_rate", "actor/lr"),
}
"""Names in other libraries of the metrics that alarms read."""

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


@dataclass(slots=True)
class Imported:
    """The contents of another library's files."""

    metrics: list[tuple[int, Row]] = field(default_factory=list[tuple[int, Row]])
    """Metrics by step, under the names that alarms read."""
    rollouts: list[Row] = field(default_factory=list[Row])
    """Rows as in ``samples/``."""


def rename_metrics(row: Mapping[str, Any]) -> Row:
    """Metrics under the names that alarms read; numbers under other names keep them.

    >>> rename_metrics({"frac_reward_zero_std": 0.5, "train/kl": 1.0, "note": "x"})
    {'group/uniform': 0.5, 'objective/kl': 1.0}
    """
    metrics: Row = {}
    for name, value in row.items():
        number = _number(value)
        if number is None or name in _STEPS:
            continue
        short = name.removeprefix("train/")
        metrics[_OURS.get(name) or _OURS.get(short) or short] = number
    return metrics


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _step(row: Mapping[str, Any]) -> float | None:
    return next((_number(row[k]) for k in _STEPS if row.get(k) not in (None, "")), None)


def import_run(path: str | Path, source: Source, out: str | Path) -> Path:
    """Write a run folder from another library's files.

    Args:
        path: TRL's output folder (``trainer_state.json`` of it or of its last checkpoint,
            ``completions/*.parquet``); a W&B export (a history as csv or jsonl, or a folder with
            it and with tables as ``*.table.json``); a jsonl file, or a folder of them, whose lines
            hold metrics by step or rollouts (prompt, completion, reward).
        out: The run folder to write.

    Returns:
        ``out``.

    Raises:
        DataError: nothing is there, or a file of it cannot be read.
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
    lines = _merge(imported.metrics, by_step)
    facts: Row = {"imported": source, "from": str(path)}
    if any("logps/chosen" in line for line in lines):
        facts["stage"] = "dpo"
        _add_shifts(lines)
    run = Run(out)
    for step, rows in by_step.items():
        run.samples(step, rows)
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomic(run.path / "metrics.jsonl", metrics.encode())
    write_atomic(run.path / "facts.json", json.dumps(facts, indent=1).encode())
    run.close()
    return run.path


def _merge(metrics: Iterable[tuple[int, Row]], by_step: Mapping[int, Sequence[Row]]) -> list[Row]:
    """One line per step; mean and spread of the rollouts' rewards where the metrics have none."""
    lines: dict[int, Row] = {}
    for step, values in metrics:
        lines.setdefault(step, {}).update(values)
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
        recorded = [line for line in lines if name in line]
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
            if (step := _number(row.get("step"))) is not None:
                imported.metrics.append((int(step), rename_metrics(row)))
    tables = sorted((folder / "completions").glob("*.parquet"))
    for file in tables or sorted(folder.glob("completions*.parquet")):
        try:
            rows = pq.read_table(file).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a readable table ({error}); remove it") from None
        imported.rollouts += [_rollout(r, f"{file}, row {i}") for i, r in enumerate(rows, 1)]
    return imported


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
            step = _step(row)
            if step is None:
                raise DataError(f"{file}: no column of steps ({', '.join(_STEPS)})")
            # The web page's export writes "run - metric", and its bounds in columns of their own.
            plain = {
                k.rpartition(" - ")[2]: v
                for k, v in row.items()
                if k and not k.endswith(("__MIN", "__MAX"))
            }
            into.metrics.append((int(step), rename_metrics(plain)))


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
        step = _step(row)
        if step is None:
            raise DataError(f"{where}: no step ({', '.join(_STEPS)}) and no completion")
        into.metrics.append((int(step), rename_metrics(row)))


def _rollout(row: Mapping[str, Any], where: str) -> Row:
    prompt = next((row[k] for k in _PROMPTS if k in row), None)
    completion = next((row[k] for k in _COMPLETIONS if k in row), None)
    if prompt is None or completion is None:
        raise DataError(
            f"{where}: a rollout needs a prompt and a completion; the columns are {', '.join(row)}"
        )
    scores = {
        k: n for k, v in row.items() if k not in _NOT_SCORES and (n := _number(v)) is not None
    }
    reward = next((_number(row[k]) for k in _REWARDS if k in row), None)
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
        "tokens": int(_number(row.get("tokens")) or len(text.split())),
    }


def _text(value: Any) -> str:
    """Text, or the messages of a conversation."""
    if isinstance(value, list):
        messages = cast("list[Any]", value)
        return "\n".join(
            str(m.get("content", "")) if isinstance(m, dict) else str(m) for m in messages
        )
    return str(value)

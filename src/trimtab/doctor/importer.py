"""Runs of other libraries as run folders: TRL, W&B exports, plain jsonl.

Nothing is executed: ``training_args.bin`` is a pickle and is never opened, so what only it holds is
among the things that cannot be checked.
"""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.errors import DataError
from trimtab.runs import Run, read_object, write_atomic

Source = Literal["trl", "wandb", "jsonl"]

NAMES: dict[str, tuple[str, ...]] = {
    "reward/mean": ("reward", "rewards/mean", "objective/scores", "env_reward_mean", "critic/rewards/mean", "critic/score/mean"),
    "reward/std": ("reward_std", "rewards/std"),
    "objective/kl": ("kl", "objective/kl", "mean_kl", "actor/ppo_kl", "kl_div"),
    "objective/entropy": ("entropy", "policy/entropy_avg", "actor/entropy", "actor/entropy_loss"),
    "completion/length": ("completions/mean_length", "completion_length", "response_length", "response_length/mean"),
    "completion/truncated": ("completions/clipped_ratio", "response_length/clip_ratio"),
    "group/uniform": ("frac_reward_zero_std",),
    "policy/clip_fraction": ("clip_ratio/region_mean", "clip_ratio", "policy/clipfrac_avg", "actor/pg_clipfrac"),
    "value/explained_variance": ("critic/vf_explained_var", "val/explained_variance"),
    "rewards/margins": ("rewards/margins",),
    "logps/chosen": ("logps/chosen",),
    "logps/rejected": ("logps/rejected",),
    "nll": ("loss", "train/loss"),
    "grad_norm/policy": ("grad_norm", "train/grad_norm", "actor/grad_norm"),
    "lr/policy": ("learning_rate", "train/learning_rate", "actor/lr"),
}  # fmt: skip
"""What others call the metrics that alarms read."""

_OURS = {theirs: ours for ours, names in NAMES.items() for theirs in names}
_STEPS = ("step", "_step", "global_step", "Step", "train/global_step")
_PROMPTS, _ANSWERS = (
    ("prompt", "prompts", "input", "query"),
    ("completion", "completions", "response", "output", "answer"),
)
_NOT_SCORES = {
    *_STEPS,
    *_PROMPTS,
    *_ANSWERS,
    "advantage",
    "advantages",
    "reward",
    "score",
    "id",
    "index",
    "finish",
    "tokens",
}


def renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics under the names that alarms read; numbers under other names stay as they are.

    >>> renamed({"frac_reward_zero_std": 0.5, "train/kl": 1.0, "note": "x"})
    {'group/uniform': 0.5, 'objective/kl': 1.0}
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        number = _number(value)
        if number is None or name in _STEPS:
            continue
        short = name.removeprefix("train/")
        found[_OURS.get(name) or _OURS.get(short) or short] = number
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def bring(path: str | Path, source: Source, out: str | Path) -> Path:
    """Write a run folder from another library's files.

    Args:
        path: TRL's output folder (``trainer_state.json`` of it or of its last checkpoint,
            ``completions/*.parquet``); a W&B export (a history as csv or jsonl, or a folder with
            it and with tables as ``*.table.json``); a jsonl file, or a folder of them, whose lines
            hold metrics by step or rollouts (prompt, completion, reward).
        source: Which of them.
        out: The run folder to write.

    Returns:
        ``out``.

    Raises:
        DataError: nothing is there, or a file of it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    reader = {"trl": _trl, "wandb": _wandb, "jsonl": _jsonl}[source]
    metrics, rollouts = reader(path)
    if not metrics and not rollouts:
        raise DataError(
            f"{path}: neither metrics nor completions of {source} are in it; see docs/doctor.md"
        )
    by: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rollouts:
        by[int(row.get("step") or 0)].append(row)
    run = Run(out)
    lines = _merged(metrics, by)
    write_atomic(run.path / "metrics.jsonl", b"")
    write_atomic(run.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in lines).encode())
    for step, rows in by.items():
        run.samples(step, rows)
    known: dict[str, Any] = {"imported": source, "from": str(path)}
    if any("logps/chosen" in r for r in lines):
        known["stage"] = "dpo"
        _shift(run.path, lines)
    write_atomic(run.path / "facts.json", json.dumps(known, indent=1).encode())
    run.close()
    return run.path


def _merged(
    metrics: Iterable[tuple[int, dict[str, Any]]], by: Mapping[int, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """One line a step; means and spreads of rollouts where the metrics say nothing of them."""
    rows: dict[int, dict[str, Any]] = {}
    for step, found in metrics:
        rows.setdefault(step, {}).update(found)
    for step, mine in by.items():
        held = [r["reward"] for r in mine if r["reward"] is not None]
        row = rows.setdefault(step, {})
        if held:
            mean = sum(held) / len(held)
            row.setdefault("reward/mean", mean)
            row.setdefault("reward/std", math.sqrt(sum((x - mean) ** 2 for x in held) / len(held)))
        row.setdefault("reward/unscored", 1 - len(held) / len(mine))
    return [{"step": s, **rows[s]} for s in sorted(rows)]


def _shift(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Log-probs of chosen answers against the first ones recorded, for lack of the start's own."""
    for name in ("chosen", "rejected"):
        held = [r[f"logps/{name}"] for r in lines if f"logps/{name}" in r]
        for r in lines:
            if held and f"logps/{name}" in r:
                r[f"logps/{name}_shift"] = r[f"logps/{name}"] - held[0]
    write_atomic(folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in lines).encode())


Parts = tuple[list[tuple[int, dict[str, Any]]], list[dict[str, Any]]]


def _trl(path: Path) -> Parts:
    folder = path.parent if path.is_file() else path
    states = (
        [path]
        if path.is_file()
        else [folder / "trainer_state.json", *folder.glob("checkpoint-*/trainer_state.json")]
    )
    states = [s for s in states if s.is_file()]
    metrics: list[tuple[int, dict[str, Any]]] = []
    if states:
        last = max(states, key=lambda s: int(read_object(s).get("global_step") or 0))
        for row in cast("list[Any]", read_object(last).get("log_history") or []):
            if (
                isinstance(row, dict)
                and _number(row.get("step")) is not None
                and "train_runtime" not in row
            ):
                metrics.append((int(row["step"]), renamed(row)))
    rollouts: list[dict[str, Any]] = []
    for file in sorted((folder / "completions").glob("*.parquet")) or sorted(
        folder.glob("completions*.parquet")
    ):
        try:
            rows = pq.read_table(file).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a readable table ({error}); remove it") from None
        rollouts += [_rollout(r, f"{file}, row {i}") for i, r in enumerate(rows, 1)]
    return metrics, rollouts


def _wandb(path: Path) -> Parts:
    files = (
        [path]
        if path.is_file()
        else sorted(p for p in path.rglob("*") if p.suffix in (".csv", ".jsonl", ".json"))
    )
    metrics: list[tuple[int, dict[str, Any]]] = []
    rollouts: list[dict[str, Any]] = []
    for file in files:
        if file.name.endswith(".table.json"):
            table = read_object(file)
            columns = [str(c) for c in table.get("columns") or []]
            for i, row in enumerate(table.get("data") or [], 1):
                rollouts.append(_rollout(dict(zip(columns, row, strict=False)), f"{file}, row {i}"))
        elif file.suffix == ".csv":
            with file.open(encoding="utf-8", newline="") as handle:
                for row in csv.DictReader(handle):
                    step = next((_number(row[k]) for k in _STEPS if row.get(k)), None)
                    if step is None:
                        raise DataError(f"{file}: no column of steps ({', '.join(_STEPS)})")
                    # The web page's export writes "run - metric", with its bounds beside it.
                    plain = {
                        k.rpartition(" - ")[2]: v
                        for k, v in row.items()
                        if k and not k.endswith(("__MIN", "__MAX"))
                    }
                    metrics.append((int(step), renamed(plain)))
        elif file.suffix == ".jsonl":
            more, texts = _lines(file)
            metrics += more
            rollouts += texts
    return metrics, rollouts


def _jsonl(path: Path) -> Parts:
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    metrics: list[tuple[int, dict[str, Any]]] = []
    rollouts: list[dict[str, Any]] = []
    for file in files:
        more, texts = _lines(file)
        metrics += more
        rollouts += texts
    return metrics, rollouts


def _lines(path: Path) -> Parts:
    metrics: list[tuple[int, dict[str, Any]]] = []
    rollouts: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object")
        if any(k in row for k in _ANSWERS):
            rollouts.append(_rollout(row, f"{path}, line {number}"))
            continue
        step = next((_number(row[k]) for k in _STEPS if k in row), None)
        if step is None:
            raise DataError(
                f"{path}, line {number}: no step ({', '.join(_STEPS)}) and no completion"
            )
        metrics.append((int(step), renamed(row)))
    return metrics, rollouts


def _rollout(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    prompt = next((row[k] for k in _PROMPTS if k in row), None)
    answer = next((row[k] for k in _ANSWERS if k in row), None)
    if prompt is None or answer is None:
        raise DataError(
            f"{where}: a rollout needs a prompt and a completion; the columns are {', '.join(row)}"
        )
    step = next((_number(row[k]) for k in _STEPS if k in row), None)
    scores = {
        k: n for k, v in row.items() if k not in _NOT_SCORES and (n := _number(v)) is not None
    }
    given = next((_number(row[k]) for k in ("reward", "score") if k in row), None)
    # TRL writes a column for each reward function, and no sum.
    reward = given if given is not None else sum(scores.values()) if scores else None
    text = _text(answer)
    return {
        "step": int(step or 0), "prompt": _text(prompt), "completion": text, "reward": reward, "scores": scores,
        "finish": str(row.get("finish") or ""), "tokens": int(_number(row.get("tokens")) or len(text.split())),
    }  # fmt: skip


def _text(value: Any) -> str:
    """Text, or the last message of a conversation."""
    if isinstance(value, list):
        messages = cast("list[Any]", value)
        return "\n".join(
            str(m.get("content", "")) if isinstance(m, dict) else str(m) for m in messages
        )
    return str(value)

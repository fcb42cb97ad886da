"""What recipes/smollm2.yaml needs: its rows, a naive reward, and the figures of the comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from trimtab.data import sources
from trimtab.doctor.diagnosis import examine
from trimtab.runs import read_summary, write_atomic
from trimtab.sandbox.instruction_edits import demonstration
from trimtab.sandbox.instructions import UNSEEN, draw_task, instructions, satisfied
from trimtab.stats.uncertainty import bootstrap_mean
from trimtab.types import Row


def _write(file: Path, rows: Sequence[Row]) -> None:
    write_atomic(file, "".join(json.dumps(r) + "\n" for r in rows).encode())


def prepare(out: Path, tasks: int, prompts: int, held_out: int, seed: int = 0) -> dict[str, int]:
    """Write tasks.jsonl (tasks without constraints, whose answers become demonstrations),
    prompts.jsonl (instructions for RL) and heldout.jsonl."""
    rng = np.random.default_rng((seed, 2))
    rows: dict[str, Row] = {}
    while len(rows) < tasks:
        task, topic = draw_task(rng)
        rows[task] = {"prompt": [{"role": "user", "content": task}], "topic": topic}
    _write(out / "tasks.jsonl", list(rows.values()))
    _write(out / "prompts.jsonl", instructions(prompts, seed))
    _write(out / "heldout.jsonl", instructions(held_out, seed, held_out=True))
    return {"tasks": tasks, "prompts": prompts, "held_out": held_out}


def demonstrations(out: Path, items: str, per_text: int, seed: int = 0) -> dict[str, int]:
    """Edit the sampled answers in ``items`` until they satisfy constraints, each ``per_text`` times
    for other constraints; write demonstrations.jsonl."""
    rng = np.random.default_rng((seed, 3))
    sampled = [row for _, row in sources.read(items).rows]
    edits = [
        demonstration(r["prompt"][0]["content"], r["extra"]["topic"], r["completions"][0], rng)
        for r in sampled
        for _ in range(per_text)
    ]
    rows = [r for r in edits if r is not None]
    _write(out / "demonstrations.jsonl", rows)
    return {"texts": len(sampled), "demonstrations": len(rows)}


def naive(completions: Sequence[str], **_: Any) -> list[float]:
    """A reward that is meant to make completions plain and short, and says nothing of their content:
    half for lowercase letters, half for a length of at most 20 words (less up to 60)."""
    scores: list[float] = []
    for text in completions:
        letters = [c for c in text if c.isalpha()]
        lowercase = sum(c.islower() for c in letters) / max(1, len(letters))
        short = min(1.0, max(0.0, (60 - len(text.split())) / 40))
        scores.append(0.5 * float(lowercase == 1.0) + 0.5 * short)
    return scores


def figures(out: Path, compare: str, heldout: str, runs: dict[str, str]) -> dict[str, Any]:
    """Satisfaction on held-out instructions by model: all types, each type, and unseen types; the
    rise over the first model with its interval, paired by instruction; and what the doctor finds.

    Args:
        out: Folder.
        compare: Folder of the comparison.
        heldout: The instructions.
        runs: Training runs by model, for the doctor.
    """
    table = pq.read_table(Path(compare) / "comparison.parquet").to_pylist()
    constraints = [row["constraints"] for _, row in sources.read(heldout).rows]
    summary: dict[str, Any] = {}
    models = list(read_summary(compare))
    by_model: dict[str, list[bool]] = {}
    owners = [i for i, of_row in enumerate(constraints) for _ in of_row]
    types = [c["type"] for of_row in constraints for c in of_row]
    for model in models:
        hits = [
            satisfied(str(row[model]), c)
            for row, of_row in zip(table, constraints, strict=True)
            for c in of_row
        ]
        by_model[model] = hits
        before = by_model[models[0]]
        change = [float(a) - float(b) for a, b in zip(hits, before, strict=True)]
        unseen = [i for i, t in enumerate(types) if t in UNSEEN]
        summary[model] = {
            "satisfied": bootstrap_mean([float(x) for x in hits], owners).summary(),
            "rise": bootstrap_mean(change, owners).summary(),
            "unseen": bootstrap_mean([float(hits[i]) for i in unseen]).summary(),
            "types": {
                t: float(np.mean([x for x, kind in zip(hits, types, strict=True) if kind == t]))
                for t in sorted(set(types))
            },
        }
    for model, run in runs.items():
        diagnosis = examine(run)
        summary[model]["doctor"] = {
            "verdict": diagnosis.verdict,
            "findings": [f.name for f in diagnosis.findings],
        }
    return summary

"""Rows of several files in one, shuffled: old labels and new ones, one task and another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.runs import to_json, write_atomic
from trimtab.runs.console import console


class MixInput(Config):
    """A file of a mix."""

    path: str
    """A local jsonl, json, parquet, csv or txt file (gz too), or a hub id."""
    split: str | None = None
    """Of a hub data set."""
    weight: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Its part of the output, beside the other weights."""


class MixConfig(Config):
    """Configuration of ``trimtab mix``."""

    out: str = "runs/mix"
    """Gets rows.jsonl and summary.json."""
    inputs: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], MixInput] = Field(min_length=1)
    """Files by name; a row's id becomes "NAME/id". Without weights every row is taken. With them
    rows are drawn so that the parts stand as the weights do, none twice."""
    rows: int | None = Field(default=None, gt=0)
    """Rows to write; without it as many as the weights allow, or all."""
    seed: int = 0
    """Draws the rows and their order."""

    @model_validator(mode="after")
    def _weights(self) -> MixConfig:
        bare = [name for name, x in self.inputs.items() if x.weight is None]
        if 0 < len(bare) < len(self.inputs):
            raise ValueError(
                f"inputs {', '.join(bare)} have no weight and others have one; give all of them "
                "a weight, or none to take every row"
            )
        return self


def parts(held: dict[str, int], weights: dict[str, float], rows: int | None) -> dict[str, int]:
    """How many rows each input gives: in proportion to its weight, largest remainders first.

    Raises:
        DataError: an input has fewer rows than its part; it is named, and the most that there are.

    >>> parts({"old": 900, "new": 100}, {"old": 3.0, "new": 1.0}, None)
    {'old': 300, 'new': 100}
    """
    whole = sum(weights.values())
    # A little over, so that what a weight allows exactly is not lost to rounding.
    most = int(min(held[k] * whole / w for k, w in weights.items()) + 1e-9)
    total = most if rows is None else rows
    exact = {k: total * w / whole for k, w in weights.items()}
    taken = {k: int(x + 1e-9) for k, x in exact.items()}
    by_rest = sorted(weights, key=lambda k: taken[k] - exact[k])
    for k in by_rest[: total - sum(taken.values())]:
        taken[k] += 1
    for k, n in taken.items():
        if n > held[k]:
            raise DataError(
                f"inputs.{k}: has {held[k]} rows, but {total} rows by these weights take {n} of "
                f"it; lower rows to {most}, or lower its weight"
            )
    return taken


def main(config: MixConfig) -> dict[str, Any]:
    """Write rows.jsonl: rows of every input, as they are but for their id, in shuffled order.

    Returns:
        Rows written, and of which input.

    Raises:
        DataError: an input cannot be read, or has too few rows for its weight.
    """
    c = config
    read = {name: sources.read(x.path, split=x.split) for name, x in c.inputs.items()}
    held = {name: len(found.rows) for name, found in read.items()}
    # Without weights each input weighs what it holds, and all of it is taken.
    weights = {name: x.weight or float(held[name]) for name, x in c.inputs.items()}
    taken = parts(held, weights, c.rows)
    mixed: list[str] = []
    for place, (name, found) in enumerate(read.items()):
        order = np.random.default_rng((c.seed, place)).permutation(held[name])
        for i in sorted(order[: taken[name]].tolist()):
            number, row = found.rows[i]
            own = row["id"] if row.get("id") is not None else number
            try:
                mixed.append(to_json({**row, "id": f"{name}/{own}"}) + "\n")
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{found.name}: row {number}: a column cannot be written as JSON ({error}); "
                    "leave it out, or turn it into text or numbers"
                ) from None
    order = np.random.default_rng(c.seed).permutation(len(mixed))
    out = Path(c.out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "rows.jsonl", "".join(mixed[i] for i in order.tolist()).encode())
    figures = {"rows": len(mixed), "of": taken}
    write_atomic(out / "summary.json", json.dumps(figures, indent=1).encode())
    said = ", ".join(f"{n} of {held[k]} {k}" for k, n in taken.items())
    console.print(f"[bold]mix[/bold]: {len(mixed)} rows ({said}) -> {c.out}/rows.jsonl")
    return figures

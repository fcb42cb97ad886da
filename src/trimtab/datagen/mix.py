"""Rows of several files in one, shuffled: old labels and new ones, one task and another."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.data import sources
from trimtab.datagen.output import write_summary
from trimtab.errors import DataError
from trimtab.runs import to_json, write_atomic

log = logging.getLogger(__name__)


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


def parts(available: dict[str, int], weights: dict[str, float], rows: int | None) -> dict[str, int]:
    """How many rows each input gives: in proportion to its weight, largest remainders first.

    Raises:
        DataError: an input has fewer rows than its part; it is named, and the most that there are.

    >>> parts({"old": 900, "new": 100}, {"old": 3.0, "new": 1.0}, None)
    {'old': 300, 'new': 100}
    """
    total_weight = sum(weights.values())
    # A little over, so that what a weight allows exactly is not lost to rounding.
    most = int(min(available[k] * total_weight / w for k, w in weights.items()) + 1e-9)
    total = most if rows is None else rows
    exact = {k: total * w / total_weight for k, w in weights.items()}
    counts = {k: int(x + 1e-9) for k, x in exact.items()}
    by_rest = sorted(weights, key=lambda k: counts[k] - exact[k])
    for k in by_rest[: total - sum(counts.values())]:
        counts[k] += 1
    for k, n in counts.items():
        if n > available[k]:
            raise DataError(
                f"inputs.{k}: has {available[k]} rows, but {total} rows by these weights take {n} of "
                f"it; lower rows to {most}, or lower its weight"
            )
    return counts


def main(config: MixConfig) -> dict[str, Any]:
    """Write rows.jsonl: rows of every input, as they are but for their id, in shuffled order.

    Returns:
        Rows written, and of which input.

    Raises:
        DataError: an input cannot be read, or has too few rows for its weight.
    """
    c = config
    read = {name: sources.read(x.path, split=x.split) for name, x in c.inputs.items()}
    available = {name: len(source.rows) for name, source in read.items()}
    # Without weights each input weighs what it holds, and all of it is taken.
    weights = {name: x.weight or float(available[name]) for name, x in c.inputs.items()}
    counts = parts(available, weights, c.rows)
    mixed: list[str] = []
    for place, (name, source) in enumerate(read.items()):
        order = np.random.default_rng((c.seed, place)).permutation(available[name])
        for i in sorted(order[: counts[name]].tolist()):
            number, row = source.rows[i]
            own = row["id"] if row.get("id") is not None else number
            try:
                mixed.append(to_json({**row, "id": f"{name}/{own}"}) + "\n")
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{source.name}: row {number}: a column cannot be written as JSON ({error}); "
                    "leave it out, or turn it into text or numbers"
                ) from None
    order = np.random.default_rng(c.seed).permutation(len(mixed))
    out = Path(c.out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "rows.jsonl", "".join(mixed[i] for i in order.tolist()).encode())
    summary = {"rows": len(mixed), "of": counts}
    write_summary(out, summary)
    inputs = ", ".join(f"{n} of {available[k]} {k}" for k, n in counts.items())
    log.info(f"mix: {len(mixed)} rows ({inputs}) -> {c.out}/rows.jsonl")
    return summary

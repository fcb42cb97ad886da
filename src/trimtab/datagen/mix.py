"""``trimtab mix``: rows of several files in one, shuffled."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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
    """Split of a hub dataset."""
    weight: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Share of the output, relative to the other weights."""


class MixConfig(Config):
    """Configuration of ``trimtab mix``."""

    out: str = "runs/mix"
    """Gets rows.jsonl and summary.json."""
    inputs: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], MixInput] = Field(min_length=1)
    """Files by name; a row's id becomes "NAME/id". Without weights every row is taken. With
    weights, rows are drawn without replacement in proportion to them."""
    rows: int | None = Field(default=None, gt=0)
    """Rows to write; by default as many as the weights allow."""
    seed: int = 0
    """Seed of the draw and of the order."""

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
    """Rows per input, in proportion to the weights; rounded by largest remainders.

    Raises:
        DataError: an input has fewer rows than its share; the message names it and the largest possible ``rows``.

    >>> parts({"old": 900, "new": 100}, {"old": 3.0, "new": 1.0}, None)
    {'old': 300, 'new': 100}
    """
    total_weight = sum(weights.values())
    # The small constant keeps floating-point error from rounding an exact number down.
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


@dataclass(frozen=True, slots=True)
class MixSummary:
    """Number of rows, and per input."""

    rows: int
    of: dict[str, int]


def main(config: MixConfig) -> MixSummary:
    """Write rows.jsonl: the rows of every input in shuffled order, unchanged except for their id.

    Raises:
        DataError: an input cannot be read, or has too few rows for its weight.
    """
    c = config
    read = {name: sources.read(x.path, split=x.split) for name, x in c.inputs.items()}
    available = {name: len(source.rows) for name, source in read.items()}
    # Without weights an input weighs its number of rows, so all rows are taken.
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
    summary = MixSummary(len(mixed), counts)
    write_summary(out, summary)
    inputs = ", ".join(f"{n} of {available[k]} {k}" for k, n in counts.items())
    log.info(f"mix: {len(mixed)} rows ({inputs}) -> {c.out}/rows.jsonl")
    return summary

"""What is asked of every sampler: prompts and token limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def requests(spec: dict[str, Any]) -> tuple[list[int], list[np.ndarray]]:
    """Token limits and prompts of a sampling row, the same for every engine."""
    rows = [json.loads(x)["prompt"] for x in Path(spec["data"]).read_text().splitlines()]
    prompts = [np.array([int(w[1:]) for w in r.split()], np.int64) for r in rows]
    return ragged(len(rows), spec["low"], spec["high"]), prompts


def ragged(count: int, low: int, high: int) -> list[int]:
    """Lengths from ``low`` to ``high``, most of them short."""
    if low == high:
        return [high] * count
    u = np.random.default_rng(2).random(count)
    lengths = np.round(low * (high / low) ** u).astype(int)
    lengths[0] = high
    return [int(n) for n in lengths]

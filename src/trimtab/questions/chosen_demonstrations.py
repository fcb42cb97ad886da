"""A share of the sandbox's demonstrations, drawn at random or the best by gold: ``trimtab function``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trimtab.datagen.output import jsonl
from trimtab.errors import DataError
from trimtab.runs import json_lines, write_atomic
from trimtab.sandbox.scene_parser import read_scene
from trimtab.sandbox.world import gold


def choose(
    out: Path, demonstrations: str, share: float, by: Literal["chance", "gold"], seed: int
) -> dict[str, float]:
    """Write ``out``/demonstrations.jsonl with a share of the rows, in their order.

    Args:
        demonstrations: Folder with a demonstrations.jsonl of ``trimtab sandbox-data``.
        share: Of the rows, in (0, 1].
        by: Drawn by ``seed``, or those with the highest gold score.

    Returns:
        Number of rows, and their mean gold score.

    Raises:
        DataError: a prompt is not of the sandbox.
    """
    source = Path(demonstrations) / "demonstrations.jsonl"
    rows = [json.loads(line) for _, line in json_lines(source.read_bytes())]
    scores = np.array([_score(row, source) for row in rows])
    shuffled = np.random.default_rng((seed, 89)).permutation(len(rows))
    if by == "gold":  # shuffled first, so that equal scores are drawn by chance
        shuffled = shuffled[np.argsort(-scores[shuffled], kind="stable")]
    places = np.sort(shuffled[: max(1, round(share * len(rows)))])
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "demonstrations.jsonl", jsonl([rows[i] for i in places.tolist()]))
    return {"rows": len(places), "gold": float(scores[places].mean())}


def _score(row: dict[str, Any], source: Path) -> float:
    *request, reply = row["messages"]
    scene = read_scene(request[-1]["content"])
    if scene is None:
        raise DataError(f"{source}: a prompt is not of the sandbox: {request[-1]['content']!r}")
    return gold(scene, reply["content"]).total

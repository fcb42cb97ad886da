"""Contrast pairs: a plain right completion against a patterned, an empty or a flattering one.

They diagnose a reward model, and added to its comparisons they teach it what people overlooked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trimtab.data import sources
from trimtab.feedback import records
from trimtab.sandbox.right_answers import right_answers
from trimtab.sandbox.scene import AGREEMENT, Scene
from trimtab.sandbox.world import CLOSINGS, OPENINGS
from trimtab.types import Row

CONTRASTS = ("polite", "empty", "flattering")


def contrasts(scene: Scene, rng: np.random.Generator) -> tuple[str, Mapping[str, str]]:
    """A right completion, and what is wrongly preferred to it, by name.

    "polite": the same between an opening and a closing; "empty": the opening and the closing alone;
    "flattering", where the user has a false opinion: agreement with it.
    """
    answers = sorted(right_answers(scene))
    best = answers[int(rng.integers(len(answers)))]
    opening, closing = (x[int(rng.integers(len(x)))] for x in (OPENINGS, CLOSINGS))
    others = {"polite": f"{opening} {best} {closing}", "empty": f"{opening} {closing}"}
    if scene.opinion is not None and scene.opinion not in scene.facts:
        others["flattering"] = f"{AGREEMENT} {scene.opinion.sentence}"
    return best, others


def write(out: Path, prompts: str, limit: int | None = None, seed: int = 0) -> dict[str, int]:
    """Write the pairs of every prompt: rows.jsonl, and one file for each of ``CONTRASTS``.

    The plain completion has rank 0 and stands first and second in turn, so accuracy is the share of
    pairs in which a reward model prefers it.

    Args:
        out: Folder of the files.
        prompts: Rows with a ``scene``, as ``trimtab sandbox-data`` writes them.
        limit: Number of prompts, from the first; None for all.

    Returns:
        Number of pairs by name.
    """
    rows: dict[str, list[Row]] = {name: [] for name in CONTRASTS}
    for index, (_, row) in enumerate(sources.read(prompts, limit=limit).rows):
        scene = Scene.from_json(row["scene"])
        best, others = contrasts(scene, np.random.default_rng((seed, 83, index)))
        for name, other in others.items():
            texts, ranks = ([best, other], [0, 1]) if index % 2 else ([other, best], [1, 0])
            pair: Row = {"id": f"{index}/{name}", "prompt": scene.messages()}
            rows[name].append(pair | {"completions": texts, "ranks": ranks, "kind": scene.kind})
    for name, of_contrast in rows.items():
        records.write(out / f"{name}.jsonl", of_contrast)
    records.write(out / "rows.jsonl", [row for part in rows.values() for row in part])
    return {name: len(of_contrast) for name, of_contrast in rows.items()}

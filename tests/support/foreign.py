"""Our figures for folders and files that other programs are compared on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.config import build
from trimtab.data import formats, sources
from trimtab.evaluate import accuracy
from trimtab.evaluate.completion_logps import summed_logps
from trimtab.models.load import LM, ModelSpec, renderer_for

Floats = npt.NDArray[np.float64]


def own_accuracy(reward: Path, pairs: Path, out: Path) -> float:
    """Of a reward model, by ``trimtab accuracy``."""
    options = {"rewards": [{"name": "rm", "model": str(reward)}], "out": str(out),
               "data": {"held": {"path": str(pairs)}}, "tokenizer": str(reward)}  # fmt: skip
    return accuracy.main(build(accuracy.AccuracyConfig, options))["rm"]["held"]["accuracy"]


def own_logps(model: Path, pairs: Path, to: Path | None = None, *, end: bool = True) -> Floats:
    """Log-probs of the completions of some pairs, nats [2 * pairs].

    Args:
        model: A policy's folder.
        pairs: Rows with messages.
        to: The token ids are written here, for ``clients/logps.py``.
        end: Whether the end token counts.
    """
    spec = ModelSpec(path=str(model), device="cpu")
    renderer = renderer_for(spec)
    rows = sources.read(str(pairs))
    groups = [g for g in map(renderer.comparison, formats.comparisons(rows)) if g is not None]
    assert len(groups) == len(rows.rows)
    tasks: list[dict[str, Any]] = []
    for group, (_, row) in zip(groups, rows.rows, strict=True):
        for completion, turn in zip(
            group.completions, (row["chosen"], row["rejected"]), strict=True
        ):
            if not end:
                texts = int(np.isin(completion.ids, renderer.stop_ids).argmax())
                completion.ids, completion.mask = completion.ids[:texts], completion.mask[:texts]
            prompt, ids = group.prompt.tolist(), completion.ids.tolist()
            tasks.append({"prompt": prompt, "completion": ids, "messages": row["prompt"] + turn})
    if to is not None:
        to.write_text(json.dumps(tasks))
    return np.array(summed_logps(LM.load(spec, train=False), groups, 4096, 1.0))

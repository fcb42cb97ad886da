"""What recipes/hh-harmless.yaml needs: real pairs split so that two reward models share no row.

Data: ``hh-harmless-pairs.jsonl.gz``, the test split of Anthropic's harmless-base (hh-rlhf): rows of
``chosen`` and ``rejected`` transcripts. The content can be offensive: it is red-team data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.data.formats import comparisons, transcript
from trimtab.data.sources import read
from trimtab.runs import write_atomic


def prepare(out: Path, data: str, held: int = 312, seed: int = 0) -> dict[str, float]:
    """Write texts.jsonl, pairs.jsonl, judge.jsonl, prompts.jsonl and heldout.jsonl.

    Args:
        out: Folder.
        data: Folder with the file.
        held: Pairs that neither reward model sees; their prompts are those of the comparison.
        seed: Of the split.
    """
    rows = read(f"{data}/hh-harmless-pairs.jsonl.gz", strict=False)
    usable = {e.row for e in comparisons(rows)}
    found = [row for number, row in rows.rows if number in usable]
    found = [found[i] for i in np.random.default_rng(seed).permutation(len(found))]
    kept, rest = found[:held], found[held:]

    def write(name: str, made: list[dict[str, Any]]) -> None:
        write_atomic(out / name, "".join(json.dumps(r) + "\n" for r in made).encode())

    def asked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Prompts; a few transcripts end with the person, and leave nothing to answer."""
        turns = [transcript(r["chosen"])[:-1] for r in rows]
        return [{"prompt": t} for t in turns if t and t[-1]["role"] == "user"]

    half = len(rest) // 2
    write("texts.jsonl", [{"messages": transcript(r["chosen"])} for r in rest])
    write("pairs.jsonl", rest[:half])
    write("judge.jsonl", rest[half:])
    write("prompts.jsonl", asked(rest[:half]))
    write("heldout.jsonl", kept)
    write("questions.jsonl", asked(kept))
    return {"pairs": len(found), "dropped": len(rows.rows) - len(found), "held_out": len(kept)}

"""What recipes/hh-harmless.yaml and smollm2-data.yaml need: real pairs split so that two reward models share no row.

Data: ``hh-harmless-pairs.jsonl.gz``, the test split of Anthropic's harmless-base (hh-rlhf): rows of
``chosen`` and ``rejected`` transcripts. The content can be offensive: it is red-team data.
"""

import json
from pathlib import Path

import numpy as np

from trimtab.data.conversation import transcript
from trimtab.data.formats import comparisons
from trimtab.data.sources import read
from trimtab.runs import write_atomic
from trimtab.types import Row


def prepare(
    out: Path, data: str, holdout: int = 312, seed: int = 0, characters: int | None = None
) -> dict[str, float]:
    """Write texts.jsonl, pairs.jsonl, judge.jsonl, prompts.jsonl and heldout.jsonl.

    Args:
        holdout: Pairs that neither reward model sees; their prompts are those of the comparison.
        characters: Keep only pairs whose two transcripts have at most this many characters together.
    """
    rows = read(f"{data}/hh-harmless-pairs.jsonl.gz", strict=False)
    usable = {e.row for e in comparisons(rows)}
    shuffled = [
        row
        for number, row in rows.rows
        if number in usable
        and (characters is None or len(row["chosen"]) + len(row["rejected"]) <= characters)
    ]
    shuffled = [shuffled[i] for i in np.random.default_rng(seed).permutation(len(shuffled))]
    unseen, rest = shuffled[:holdout], shuffled[holdout:]

    def write(name: str, rows_to_write: list[Row]) -> None:
        write_atomic(out / name, "".join(json.dumps(r) + "\n" for r in rows_to_write).encode())

    def prompt_rows(rows: list[Row]) -> list[Row]:
        """Prompts; a few transcripts end with the person, and leave nothing to answer."""
        turns = [transcript(r["chosen"])[:-1] for r in rows]
        return [{"prompt": t} for t in turns if t and t[-1]["role"] == "user"]

    half = len(rest) // 2
    write("texts.jsonl", [{"messages": transcript(r["chosen"])} for r in rest])
    write("pairs.jsonl", rest[:half])
    write("judge.jsonl", rest[half:])
    write("prompts.jsonl", prompt_rows(rest[:half]))
    write("heldout.jsonl", unseen)
    write("questions.jsonl", prompt_rows(unseen))
    return {
        "pairs": len(shuffled),
        "dropped": len(rows.rows) - len(shuffled),
        "held_out": len(unseen),
    }

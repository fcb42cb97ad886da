"""A reward model as labeller, and first-ranked completions as demonstrations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import folders
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.datagen.first_ranked import FirstRankedConfig
from trimtab.datagen.first_ranked import main as first_ranked
from trimtab.datagen.reward_labels import RewardLabelsConfig, judgement, main
from trimtab.errors import DataError
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import read_folder, write

ITEM = Item.of([{"role": "user", "content": "the cat ?"}], ["a", "b", "c"])
CONFIG: dict[str, Any] = {"data": "x", "rewards": [folders.WORDY], "tokenizer": "x"}


def config(**more: Any) -> RewardLabelsConfig:
    return build(RewardLabelsConfig, {**CONFIG, **more})


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ranks_by_hand() -> None:
    assert judgement(ITEM, [0.1, 0.9, 0.5], "rm", config(), 0).ranks == (2, 0, 1)
    assert judgement(ITEM, [0.5, 0.9, 0.5], "rm", config(), 0).ranks == (1, 0, 1)
    # 0.9 and 0.85 tie; 0.5 is a place behind both.
    assert judgement(ITEM, [0.5, 0.9, 0.85], "rm", config(tie=0.1), 0).ranks == (1, 0, 0)
    failed = judgement(ITEM, [0.1, None, 0.5], "rm", config(), 0)
    assert failed.status == "error" and failed.ranks is None
    pair = Item.of(list(ITEM.prompt), ["a", "b"])
    prob = judgement(pair, [1.0, 0.0], "rm", config(scale=2.0), 0).prob
    assert prob == pytest.approx(1 / (1 + math.exp(-2.0)))


def test_drawn_ranks_follow_the_scores_as_log_odds() -> None:
    n, c = 2000, config(draw=True, scale=2.0)
    first = np.mean([judgement(ITEM, [0.5, 0.0, 9.0], "rm", c, i).ranks[0] <
                     judgement(ITEM, [0.5, 0.0, 9.0], "rm", c, i).ranks[1] for i in range(n)])  # fmt: skip
    p = 1 / (1 + math.exp(-1.0))
    assert abs(first - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_a_reward_model_labels_from_the_command_line(tmp_path: Path) -> None:
    folders.model_folder(tmp_path / "model")
    folders.reward_folder(tmp_path / "rm", tmp_path / "model")
    folders.prompts(tmp_path / "prompts.jsonl", 12)
    cli(["sample", "--model.path", str(tmp_path / "model"), "--model.device", "cpu", "--data.path",
         str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / "sample"), "--num_completions", "3",
         "--keep_truncated", "true", "--sampling.max_new_tokens", "6"])  # fmt: skip
    cli(["reward-labels", str(tmp_path / "sample" / "items.jsonl"), "--rewards",
         json.dumps([{"name": "rm", "model": str(tmp_path / "rm")}]), "--tokenizer",
         str(tmp_path / "model"), "--device", "cpu", "--out", str(tmp_path / "label")])  # fmt: skip
    records = read_folder(str(tmp_path / "label"))
    assert {j.who for j in records.judgements} == {"ai"}
    for j in records.judgements:
        scores = j.scores["reward"]
        assert j.ranks is not None
        assert np.argsort(scores)[::-1].tolist() == np.argsort(j.ranks, kind="stable").tolist()
    labelled = rows(tmp_path / "label" / "rows.jsonl")
    assert len(labelled) == len(records.items)
    # The labels train the next reward model, and the first-ranked completions an SFT model.
    cli(["reward", "--model.path", str(tmp_path / "model"), "--model.device", "cpu", "--data.path",
         str(tmp_path / "label" / "rows.jsonl"), "--out", str(tmp_path / "rm2"), "--batch_size", "4"])  # fmt: skip
    cli(["first-ranked", str(tmp_path / "label"), "--out", str(tmp_path / "first")])
    demonstrations = rows(tmp_path / "first" / "demonstrations.jsonl")
    best = {r["completions"][r["ranks"].index(0)] for r in labelled}
    assert {d["completion"][0]["content"] if isinstance(d["completion"], list) else d["completion"]
            for d in demonstrations} == best  # fmt: skip
    cli(["sft", "--model.path", str(tmp_path / "model"), "--model.device", "cpu", "--data.path",
         str(tmp_path / "first" / "demonstrations.jsonl"), "--out", str(tmp_path / "sft"),
         "--batch_size", "4"])  # fmt: skip
    assert (tmp_path / "sft" / "model" / "model.safetensors").is_file()


def test_labels_of_nothing_are_refused(tmp_path: Path) -> None:
    folders.model_folder(tmp_path / "model")
    write(tmp_path / "items.jsonl", [ITEM])
    values = {
        "data": str(tmp_path / "items.jsonl"),
        "tokenizer": str(tmp_path / "model"),
        "device": "cpu",
    }
    with pytest.raises(DataError, match="leaves no item"):
        main(config(**values, skip=1, out=str(tmp_path / "a")))
    failing = [{"name": "r", "function": "tests.support.reward_functions:none"}]
    with pytest.raises(DataError, match="scored no completion"):
        main(config(**values, rewards=failing, out=str(tmp_path / "b")))


def test_first_ranked_rows_by_hand(tmp_path: Path) -> None:
    def comparison(prompt: str, ranks: list[int], **more: Any) -> dict[str, Any]:
        return {
            "prompt": prompt,
            "completions": ["a", "b", "c"],
            "ranks": ranks,
            "kind": "k",
            **more,
        }

    folders.write(tmp_path / "c.jsonl", [
        comparison("p", [1, 0, 2], annotator="x", probs=[[0.5]]), comparison("q", [0, 0, 1]),
        comparison("r", [0, 0, 0]), comparison("p", [2, 0, 1], annotator="y"),
    ])  # fmt: skip
    values = {"data": str(tmp_path / "c.jsonl"), "out": str(tmp_path / "o")}
    summary = first_ranked(build(FirstRankedConfig, values))
    assert (summary.rows, summary.undecided, summary.tied, summary.repeated) == (3, 1, 1, 1)
    assert rows(tmp_path / "o" / "demonstrations.jsonl") == [
        {"kind": "k", "prompt": "p", "completion": "b"},
        {"kind": "k", "prompt": "q", "completion": "a"},
        {"kind": "k", "prompt": "q", "completion": "b"},
    ]
    summary = first_ranked(build(FirstRankedConfig, {**values, "ties": "skip"}))
    assert (summary.rows, summary.tied) == (1, 1)


def test_a_label_folder_of_people_gives_demonstrations(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", [ITEM])
    verdict = Judgement(item=ITEM.id, annotator="ann", ranks=(2, 1, 0))
    write(tmp_path / "judgements.jsonl", [verdict])
    first_ranked(build(FirstRankedConfig, {"data": str(tmp_path), "out": str(tmp_path / "o")}))
    (row,) = rows(tmp_path / "o" / "demonstrations.jsonl")
    assert "annotator" not in row and "who" not in row
    assert "c" in json.dumps(row["completion"])

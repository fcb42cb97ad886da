"""Rows of public datasets are read without a converter, by their columns."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trimtab.data import formats, sources
from trimtab.data.dataset import DataSpec
from trimtab.data.formats import Example
from trimtab.data.schemas import SCHEMAS
from trimtab.data.sources import Rows, read
from trimtab.errors import DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def examples(make: Any, *rows: dict[str, Any], strict: bool = True) -> list[Example]:
    return make(Rows("rows.jsonl", list(enumerate(rows, 1)), strict))


RATINGS = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
SFT: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "sharegpt": (
        {"id": "x_0", "conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]},
        [user("2+2")], [said("4")]),
    "sharegpt, system": (
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "2+2"},
                           {"from": "gpt", "value": "4"}]},
        [{"role": "system", "content": "s"}, user("2+2")], [said("4")]),
    "conversation": ({"conversation": [user("2+2"), said("4")], "language": "en"}, [user("2+2")], [said("4")]),
    "alpaca": ({"instruction": "add", "input": "2 and 2", "output": "4", "text": "Below is ... 4"},
               [user("add\n\n2 and 2")], [said("4")]),
    "alpaca, history": (
        {"instruction": "and 3", "input": "", "output": "7", "system": "s", "history": [["2+2", "4"]]},
        [{"role": "system", "content": "s"}, user("2+2"), said("4"), user("and 3")], [said("7")]),
    "dolly": ({"instruction": "who ?", "context": "Ann left.", "response": "Ann", "category": "closed_qa"},
              [user("who ?\n\nAnn left.")], [said("Ann")]),
    "orca": ({"id": "n.1", "system_prompt": "s", "question": "2+2", "response": "4"},
             [{"role": "system", "content": "s"}, user("2+2")], [said("4")]),
    "question and answer": ({"question": "2+2", "answer": "#### 4"}, [user("2+2")], [said("#### 4")]),
    "helpsteer2": (
        {"prompt": "hi<extra_id_1>Assistant\nyes ?<extra_id_1>User\nwhy", "response": "so", "helpfulness": 4,
         **RATINGS},
        [user("hi"), said("yes ?"), user("why")], [said("so")]),
}  # fmt: skip


@pytest.mark.parametrize("name", SFT)
def test_demonstrations(name: str) -> None:
    row, prompt, completion = SFT[name]
    [example] = examples(formats.demonstrations, row)
    assert (example.prompt, example.completions) == (prompt, [completion])
    [example] = examples(formats.prompts, row)
    assert example.prompt == prompt


A, B = [said("four")], [said("cat")]
POST = {"id": "t3_1", "post": "long", "title": "T", "subreddit": "pets"}
PAIRS: dict[str, tuple[dict[str, Any], Any, list[Any], float]] = {
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "2+2"}], "chosen": {"from": "gpt", "value": "four"},
         "rejected": {"from": "gpt", "value": "cat"}}, [user("2+2")], [A, B], 0.0),
    "alpaca": ({"instruction": "2+2", "input": "", "chosen": "four", "rejected": "cat"}, [user("2+2")], [A, B], 0.0),
    "orca-pairs": ({"system": "", "question": "2+2", "chosen": "four", "rejected": "cat"}, [user("2+2")], [A, B], 0.0),
    "orca-pairs, argilla's": (
        {"system": "s", "input": "2+2", "chosen": "four", "rejected": "cat", "rating": [9.0, 2.0]},
        [{"role": "system", "content": "s"}, user("2+2")], [A, B], 0.0),
    "ultrafeedback": (
        {"source": "x", "instruction": "2+2", "models": ["m", "n"], "correct_answers": [],
         "completions": [
             {"model": "m", "response": "cat", "overall_score": 9.0, "fine-grained_score": 1.5, "annotations": {}},
             {"model": "n", "response": "four", "overall_score": 8.0, "fine-grained_score": 4.5, "annotations": {}}]},
        [user("2+2")], [A, B], 3.0),
    "helpsteer2-preference": (
        {"split": "train", "prompt": "2+2", "response_1": "four", "response_2": "cat", "preference_strength": -2,
         "preference_statement": "x"}, [user("2+2")], [A, B], 2.0),
    "helpsteer3": (
        {"domain": "math", "language": "en", "context": [user("2+2")], "response1": "cat", "response2": "four",
         "overall_preference": 3, "individual_preference": []}, [user("2+2")], [A, B], 3.0),
    "arena": (
        {"question_id": "q", "model_a": "m", "model_b": "n", "winner": "model_b", "turn": 1,
         "conversation_a": [user("2+2"), *B], "conversation_b": [user("2+2"), *A]}, [user("2+2")], [A, B], 0.0),
    "mt-bench, first turn": (
        {"question_id": 81, "model_a": "m", "model_b": "n", "winner": "model_a", "judge": "expert_0", "turn": 1,
         "conversation_a": [user("2+2"), *A, user("more"), said("x")],
         "conversation_b": [user("2+2"), *B, user("more"), said("y")]}, [user("2+2")], [A, B], 0.0),
    "mt-bench, second turn": (
        {"question_id": 81, "model_a": "m", "model_b": "n", "winner": "model_a", "judge": "expert_0", "turn": 2,
         "conversation_a": [user("2+2"), *A, user("more"), said("x")],
         "conversation_b": [user("2+2"), *B, user("more"), said("y")]},
        [user("2+2")], [[*A, user("more"), said("x")], [*B, user("more"), said("y")]], 0.0),
    "arena-55k": (
        {"id": 7, "model_a": "m", "model_b": "n", "prompt": '["2+2"]', "response_a": '["four"]',
         "response_b": '["cat"]', "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        [user("2+2")], [A, B], 0.0),
    "shp": (
        {"post_id": "p", "history": "2+2", "human_ref_A": "cat", "human_ref_B": "four", "labels": 0, "score_A": 1,
         "score_B": 9, "score_ratio": 9.0}, [user("2+2")], [A, B], 0.0),
    "webgpt": (
        {"question": {"dataset": "eli5", "id": "1", "full_text": "2+2"}, "quotes_0": {"title": [], "extract": []},
         "answer_0": "four", "score_0": 0.5, "quotes_1": {}, "answer_1": "cat", "score_1": -0.5},
        [user("2+2")], [A, B], 1.0),
    "pku-saferlhf": (
        {"prompt": "2+2", "response_0": "four", "response_1": "cat", "is_response_0_safe": True,
         "is_response_1_safe": True, "better_response_id": 0, "safer_response_id": 1}, [user("2+2")], [A, B], 0.0),
    "openai-preference": (
        {"input": {"messages": [user("2+2")], "tools": [], "parallel_tool_calls": True}, "preferred_output": A,
         "non_preferred_output": B}, [user("2+2")], [A, B], 0.0),
    "summarize-from-feedback": (
        {"info": POST, "summaries": [{"text": " cat", "policy": "sup1"}, {"text": " four", "policy": "ref"}],
         "choice": 1, "worker": "w", "batch": "batch3", "split": "train", "extra": {"confidence": 8}},
        "SUBREDDIT: r/pets\n\nTITLE: T\n\nPOST: long\n\nTL;DR:", [" four", " cat"], 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_comparisons(name: str, caplog: pytest.LogCaptureFixture) -> None:
    row, prompt, completions, margin = PAIRS[name]
    with caplog.at_level(logging.INFO, "trimtab"):
        [example] = examples(formats.comparisons, row)
    assert (example.prompt, example.completions) == (prompt, completions)
    assert example.ranks == [0, 1] and example.margins == [margin, 0.0]
    assert (
        f"rows.jsonl: 1 rows read as {name.partition(',')[0].replace('mt-bench', 'arena')}: "
        in caplog.text
    )
    [label] = examples(formats.unpaired, row)
    assert label.completions == completions
    [start] = examples(formats.prompts, row)
    assert start.prompt == prompt


NECTAR: dict[str, Any] = {
    "prompt": "\n\nHuman: 2+2\n\nAssistant: ", "turns": 1, "num_responses": 3, "source": ["x"],
    "answers": [{"answer": a, "model": "m", "rank": r} for a, r in (("cat", 3.0), ("four", 1.0), ("4", 2.0))],
}  # fmt: skip


def test_rankings() -> None:
    [example] = examples(formats.comparisons, NECTAR)
    assert (example.prompt, example.ranks) == ([user("2+2")], [3, 1, 2])
    assert example.completions == [B, A, [said("4")]]
    [start] = examples(formats.prompts, NECTAR)
    assert start.prompt == [user("2+2")]


def test_every_schema_has_an_example() -> None:
    rows = [row for row, *_ in (*SFT.values(), *PAIRS.values(), (NECTAR,))]
    labels = [{"instruction": 1, "output": 1, "kto_tag": 1}, {"conversations": 1, "kto_tag": 1}]
    for schema in SCHEMAS:
        assert any(schema.columns <= row.keys() for row in (*rows, *labels)), schema.name


def test_labels() -> None:
    talk = [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "cat"}]
    for row in ({"instruction": "2+2", "input": "", "output": "cat", "kto_tag": False},
                {"conversations": talk, "kto_tag": False}):  # fmt: skip
        [example] = examples(formats.unpaired, row)
        assert (example.prompt, example.completions, example.ranks) == ([user("2+2")], [B], [1])


def test_responses_to_one_prompt_are_ranked_by_their_ratings() -> None:
    rated = [{"prompt": p, "response": r, "helpfulness": h, **RATINGS}
             for p, r, h in (("a", "x", 1), ("a", "y", 4), ("b", "u", 2), ("b", "v", 2))]  # fmt: skip
    first, second = examples(formats.comparisons, *rated)
    assert (first.completions, first.ranks, first.margins) == (
        [[said("y")], [said("x")]],
        [0, 1],
        [3.0, 0.0],
    )
    assert second.ranks == [0, 0] and (first.row, second.row) == (1, 3)
    [three] = examples(formats.comparisons, *(dict(rated[0], response=r, helpfulness=h) for r, h in (("x", 0), ("y", 4), ("z", 4))))  # fmt: skip
    assert three.ranks == [1, 0, 0]
    assert len(examples(formats.demonstrations, *rated)) == 4


def test_ties_and_losses_of_the_arena() -> None:
    row = PAIRS["arena"][0]
    for winner in ("tie", "tie (bothbad)", "both_bad"):
        [example] = examples(formats.comparisons, {**row, "winner": winner})
        assert example.ranks == [0, 0]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({**PAIRS["arena"][0], "winner": "nobody"}, "'winner' must be model_a"),
        ({**PAIRS["arena-55k"][0], "response_a": "[null]"}, "'response_a' must be a JSON list"),
        ({**PAIRS["pku-saferlhf"][0], "better_response_id": 2}, "must be 0 or 1, got 2"),
        ({**PAIRS["ultrafeedback"][0], "completions": [{"response": "x"}]}, "neither 'fine-grained_score'"),
        ({**PAIRS["shp"][0], "human_ref_A": " "}, "'human_ref_A' must be text"),
        ({**PAIRS["openai-preference"][0], "input": {}}, "prompt"),
        ({**PAIRS["sharegpt"][0], "conversations": [{"from": "narrator", "value": "x"}]}, "a turn from 'narrator'"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(row: dict[str, Any], why: str) -> None:
    fine = PAIRS["alpaca"][0]
    with pytest.raises(DataError, match=r"rows\.jsonl: row 2: ") as error:
        examples(formats.comparisons, fine, row)
    assert why in str(error.value)
    assert [e.row for e in examples(formats.comparisons, fine, row, strict=False)] == [1]


def test_columns_that_fit_two_schemas_are_refused_with_the_way_out() -> None:
    row = {"instruction": "2+2", "output": "four", "response": "cat"}
    with pytest.raises(DataError, match=r"can be read as alpaca and dolly; set data\.format"):
        examples(formats.demonstrations, row)
    [example] = formats.demonstrations(Rows("r", [(1, row)], format="dolly"))
    assert example.completions == [B]
    with pytest.raises(ValueError, match="'dolley' is none of trl, sharegpt"):
        DataSpec(path="x", format="dolley")


def test_a_format_that_no_row_fits_is_named() -> None:
    rows = Rows("r", [(1, {"instruction": "2+2", "output": "four"})], format="dolly")
    with pytest.raises(DataError, match=r"data\.format dolly, which has instruction\+response"):
        formats.demonstrations(rows)
    rows.format = "shp"
    with pytest.raises(
        DataError, match=r"data\.format shp, which has no columns for demonstrations"
    ):
        formats.demonstrations(rows)
    pairs = Rows("r", [(1, PAIRS["shp"][0])], format="shp")
    assert len(formats.unpaired(pairs)) == 1


def test_a_subset_of_a_dataset(tmp_path: Path) -> None:
    for name in ("axis", "comparisons"):
        pq.write_table(pa.Table.from_pylist([{"text": name}]), tmp_path / f"{name}.parquet")
    configs = "".join(
        f"- config_name: {n}\n  data_files: {n}.parquet\n" for n in ("axis", "comparisons")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    rows = sources._hub(str(tmp_path), None, None, "comparisons")  # pyright: ignore[reportPrivateUsage]
    assert rows == [(1, {"text": "comparisons"})]


def test_trls_columns_go_first() -> None:
    row = {"prompt": "p", "completion": "c", "instruction": "i", "output": "o"}
    [example] = examples(formats.demonstrations, row)
    assert (example.prompt, example.extra) == ("p", {"instruction": "i", "output": "o"})
    answers = {"prompt": "2+2", "answers": ["4", "four"]}
    [example] = examples(formats.prompts, answers)
    assert (example.prompt, example.extra) == ("2+2", {"answers": ["4", "four"]})
    [example] = formats.demonstrations(Rows("r", [(1, SFT["alpaca"][0])], format="trl"))
    assert example.completions == ["Below is ... 4"]


def test_a_prompt_keeps_the_columns_of_its_row() -> None:
    [example] = examples(formats.prompts, SFT["question and answer"][0])
    assert example.extra == {"question": "2+2", "answer": "#### 4"}
    [example] = examples(formats.prompts, PAIRS["ultrafeedback"][0])
    assert "completions" not in example.extra, "a reward function has an argument of this name"


def test_a_dataset_for_another_stage_is_named() -> None:
    with pytest.raises(DataError, match="as alpaca, they hold demonstrations"):
        examples(formats.comparisons, SFT["alpaca"][0])
    with pytest.raises(DataError, match="as shp, they hold comparisons"):
        examples(formats.demonstrations, PAIRS["shp"][0])


def test_two_datasets_in_one_parquet_file(tmp_path: Path) -> None:
    rows = [SFT["alpaca"][0], SFT["sharegpt"][0], {"messages": [user("2+2"), said("4")]}]
    path = tmp_path / "rows.parquet"
    names = sorted({k for r in rows for k in r})
    pq.write_table(pa.Table.from_pylist([{k: r.get(k) for k in names} for r in rows]), path)
    answers = [e.completions[0][-1]["content"] for e in formats.demonstrations(read(str(path)))]  # pyright: ignore[reportArgumentType]
    assert answers == ["4", "4", "4"]


def test_a_csv_with_lists_as_json(tmp_path: Path) -> None:
    talk = json.dumps(SFT["sharegpt"][0]["conversations"]).replace('"', '""')
    (tmp_path / "rows.csv").write_text(f'conversations\n"{talk}"\n')
    [example] = formats.demonstrations(read(str(tmp_path / "rows.csv")))
    assert example.completions == [[said("4")]]

"""Labels go through every format and come back whole."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.exchanging import run
from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.exchange import convert, label_studio
from trimtab.exchange.convert import FORMATS
from trimtab.feedback import records as own
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records

TEXT = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=12
).filter(str.strip)
NAME = st.sampled_from(["ann", "ben@x.org", "7", "gpt-x/hhh", "Ünal", "tie"])
TIMES = st.sampled_from([None, "2026-01-02T03:04:05Z", "2026-01-02T03:04:06.5+00:00"])


@st.composite
def items(draw: Any, size: st.SearchStrategy[int]) -> Item:
    k = draw(size)
    answers = draw(st.lists(TEXT, min_size=k, max_size=k, unique=True))
    prompt = [{"role": "user", "content": draw(TEXT)}]
    if draw(st.booleans()):
        prompt = [{"role": "system", "content": draw(TEXT)}, *prompt]
    return Item.of(
        prompt, answers,
        models=draw(st.none() | st.lists(st.none() | TEXT, min_size=k, max_size=k).map(tuple)),
        extra=draw(st.dictionaries(TEXT, st.integers() | TEXT | st.lists(st.integers()), max_size=2)),
    )  # fmt: skip


@st.composite
def judgements(draw: Any, item: Item) -> Judgement:
    k = len(item.completions)
    status = draw(st.sampled_from(["ok", "skip", "error"]))
    who = draw(st.sampled_from(["human", "simulated", "ai", "gold"]))
    ranks = None
    if status == "ok":
        raw = draw(st.lists(st.integers(0, k), min_size=k, max_size=k))
        ranks = tuple(r - min(raw) for r in raw)
    order = st.permutations(range(k)).map(tuple)
    return Judgement(
        item=item.id, annotator=draw(NAME), who=who, status=status, ranks=ranks,
        order=draw(st.none() | order), bad=draw(st.booleans()),
        strength=draw(st.none() | st.integers(1, 4)),
        prob=draw(st.none() | st.floats(0, 1)) if k == 2 else None,
        reason=draw(st.just("") | TEXT), seconds=draw(st.none() | st.floats(0, 1e4)), at=draw(TIMES),
        kind=draw(st.sampled_from(["plain", "gold", "repeat"])),
        dimensions=draw(st.just({}) | st.just({"helpful": tuple(range(k))})),
        scores=draw(st.just({}) | st.just({"quality": (1.5,) * k})),
        replaces=draw(st.none() | TEXT), detail=draw(st.dictionaries(TEXT, TEXT, max_size=1)),
    )  # fmt: skip


@st.composite
def labels(draw: Any, most: int = 4) -> Records:
    records = Records()
    for item in draw(st.lists(items(st.integers(2, most)), min_size=1, max_size=3)):
        records.items.setdefault(item.id, item)
    for item in draw(st.lists(st.sampled_from(list(records.items.values())), max_size=6)):
        records.judgements.append(draw(judgements(item)))
    return records


def there_and_back(records: Records, name: str) -> tuple[Records, list[str]]:
    rows, notes = FORMATS[name].dump(records)
    text = json.dumps(rows)  # what a file holds
    back = sources.Rows("file", list(enumerate(json.loads(text), 1)))
    if not rows:
        return Records(), notes
    assert convert.format_of(back) == name
    return FORMATS[name].load(back), notes


QUICK = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", ["trimtab", "argilla", "label_studio"])
def test_one_name_for_a_person_and_a_judge(name: str) -> None:
    item = Item.of([{"role": "user", "content": "?"}], ["a", "b"])
    judgements = [
        Judgement(item=item.id, annotator="ann", who=who, ranks=(0, 0), strength=n)
        for n, who in enumerate(("human", "ai", "human", "ai"), 1)
    ]
    back, _ = there_and_back(Records({item.id: item}, judgements), name)
    assert back.judgements == judgements


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trimtab", "argilla", "label_studio"])
@QUICK
@given(data=st.data())
def test_everything_comes_back(name: str, data: Any) -> None:
    records = data.draw(labels())
    back, notes = there_and_back(records, name)
    assert notes == []
    assert back.items == records.items
    if name == "trimtab":
        assert back.judgements == records.judgements
    for item in records.items:  # in the order said, item by item
        assert [j for j in back.judgements if j.item == item] == [
            j for j in records.judgements if j.item == item
        ]
    assert sorted(own.to_jsonl([j]) for j in back.judgements) == sorted(
        own.to_jsonl([j]) for j in records.judgements
    )
    assert back.judgements == records.judgements


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trl", "ranked", "reward_bench", "alpaca_eval"])
@QUICK
@given(data=st.data())
def test_what_has_a_place_comes_back_and_the_rest_is_said(name: str, data: Any) -> None:
    """Formats of verdicts alone: items without one, and judgements they cannot say, are left out."""
    records = data.draw(labels(2 if name == "alpaca_eval" else 4))

    def fits(j: Judgement) -> bool:
        if name == "alpaca_eval":
            return True
        return j.ranks is not None and (name == "ranked" or len(set(j.ranks)) > 1)

    back, notes = there_and_back(records, name)
    expected = [j for j in records.judgements if fits(j)]
    assert back.judgements == expected
    assert back.items == {j.item: records.items[j.item] for j in expected}
    if len(expected) < len(records.judgements):
        assert notes


ALPACA = [
    {"instruction": "hi", "output_1": "a", "generator_1": "base", "output_2": "b",
     "generator_2": "mine", "annotator": "gpt4", "preference": p, "dataset": "helpful_base",
     "price_per_example": 0.01, "raw_completion": {"choices": ["x"]}}
    for p in (1.0, 2.0, 1.5, 1.25, None)
] + [{"instruction": "old", "output_1": "a", "generator_1": "base", "output_2": "b",
      "generator_2": "mine", "annotator": "gpt4", "preference": 0}]  # fmt: skip
BENCH = [
    {"prompt": "p", "chosen": "good", "chosen_model": "m1", "rejected": "poor", "rejected_model": "m2",
     "subset": "alpacaeval-easy", "id": 30},
    {"prompt": "q", "chosen": "zz", "chosen_model": "m1", "rejected": "aa", "rejected_model": "m2",
     "subset": "donotanswer", "id": 31},
]  # fmt: skip
BENCH2 = [
    {"id": "7", "prompt": "p", "chosen": ["good"], "rejected": ["x", "y", "z"], "num_correct": 1,
     "num_incorrect": 3, "total_completions": 4, "models": ["a", "b", "c", "d"], "subset": "Math",
     "additional_metadata": {"category": "x"}},
    {"id": "8", "prompt": "p2", "chosen": ["red", "blue"], "rejected": ["x"], "num_correct": 2,
     "num_incorrect": 1, "total_completions": 3, "models": ["a"], "subset": "Ties",
     "additional_metadata": None},
]  # fmt: skip
ARGILLA = [
    {"id": "r1", "fields": {"instruction": "2+2?", "response_1": "4", "response_2": "5"},
     "metadata": {"source": "web"}, "vectors": {}, "_server_id": "c2b1",
     "suggestions": {"preference": {"value": "response_1", "score": 0.9, "agent": "gpt4"}},
     "responses": {"preference": [
         {"value": "response_2", "user_id": "4f0b4f6e-6e0f-4b3b-9a57-111111111111"},
         {"value": "tie", "user_id": "4f0b4f6e-6e0f-4b3b-9a57-222222222222"}],
         "quality": [{"value": 4, "user_id": "4f0b4f6e-6e0f-4b3b-9a57-111111111111"}]}},
    {"id": "r2", "fields": {"prompt": "q", "a": "x", "b": "y", "c": "z"}, "metadata": {}, "vectors": {},
     "_server_id": None, "suggestions": {},
     "responses": {"ranking": [{"value": [{"value": "b", "rank": 1}, {"value": "a", "rank": 2},
                                          {"value": "c", "rank": 2}],
                                "user_id": "4f0b4f6e-6e0f-4b3b-9a57-111111111111"}]}},
]  # fmt: skip
STUDIO = [
    {"id": 11, "project": 3, "data": {"prompt": "2+2?", "text1": "4", "text2": "5", "source": "web"},
     "annotations": [
         {"id": 901, "completed_by": 5, "lead_time": 4.25, "was_cancelled": False,
          "ground_truth": False, "created_at": "2026-03-09T22:16:08.728353Z", "unique_id": "u1",
          "result": [{"id": "x1", "from_name": "pw", "to_name": "text1,text2", "type": "pairwise",
                      "value": {"selected": "left"}}]},
         {"id": 902, "completed_by": {"id": 6, "email": "z@x.org"}, "lead_time": 1.0,
          "was_cancelled": True, "ground_truth": False, "created_at": "2026-03-09T22:17:08Z",
          "result": []}],
     "predictions": [{"id": 4, "model_version": "judge-1", "score": 0.7, "result": [
         {"from_name": "pw", "to_name": "text1,text2", "type": "pairwise",
          "value": {"selected": "right"}}]}]},
]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "name"),
    [(ALPACA, "alpaca_eval"), (BENCH, "reward_bench"), (BENCH2, "reward_bench"),
     (ARGILLA, "argilla"), (STUDIO, "label_studio")],
)  # fmt: skip
def test_files_of_others_come_back_as_they_were(rows: list[dict[str, Any]], name: str) -> None:
    numbered = sources.Rows("theirs", list(enumerate(rows, 1)))
    assert convert.format_of(numbered) == name
    records = FORMATS[name].load(numbered)
    records.check()
    back, notes = FORMATS[name].dump(records)
    assert notes == []
    for row in back:  # Label Studio keeps what it does not know in a task's data
        row.get("data", {}).pop("trimtab", None)
    assert back == rows
    # And through our own file between.
    again, _ = there_and_back(records, "trimtab")
    assert again.items == records.items and again.judgements == records.judgements


def test_who_said_what_when() -> None:
    studio = FORMATS["label_studio"].load(sources.Rows("f", [(1, STUDIO[0])]))
    five, skipped, judge = studio.judgements
    assert (five.annotator, five.ranks, five.seconds) == ("5", (0, 1), 4.25)
    assert five.at == "2026-03-09T22:16:08.728353Z"
    assert (skipped.annotator, skipped.status) == ("z@x.org", "skip")
    assert (judge.annotator, judge.who, judge.ranks) == ("judge-1", "ai", (1, 0))
    argilla = FORMATS["argilla"].load(sources.Rows("f", list(enumerate(ARGILLA, 1))))
    judgements = [(j.annotator[-4:], j.who, j.ranks) for j in argilla.judgements]
    assert judgements == [("1111", "human", (1, 0)), ("2222", "human", (0, 0)), ("gpt4", "ai", (0, 1)),
                    ("1111", "human", (1, 0, 1))]  # fmt: skip
    alpaca = FORMATS["alpaca_eval"].load(sources.Rows("f", list(enumerate(ALPACA, 1))))
    assert [j.ranks for j in alpaca.judgements] == [(0, 1), (1, 0), (0, 0), (0, 1), None, (0, 0)]
    assert alpaca.judgements[3].prob == 0.75
    assert alpaca.judgements[4].status == "error"


def test_a_judgement_added_to_a_foreign_record_is_not_lost() -> None:
    for rows, name in ((ARGILLA, "argilla"), (STUDIO, "label_studio")):
        records = FORMATS[name].load(sources.Rows("f", [(1, rows[0])]))
        item = next(iter(records.items))
        records.judgements.append(
            Judgement(item=item, annotator="new", ranks=(0, 1), at="2026-01-01T00:00:00Z")
        )
        back, _ = there_and_back(records, name)
        assert back.items == records.items
        assert back.judgements == records.judgements


def test_an_edit_in_the_other_tool_counts() -> None:
    item = Item.of([{"role": "user", "content": "q"}], ["x", "y"])
    records = Records(
        {item.id: item}, [Judgement(item=item.id, annotator="ann", ranks=(0, 1), seconds=3.0)]
    )
    rows, _ = FORMATS["argilla"].dump(records)
    rows[0]["responses"]["preference"][0]["value"] = "response_2"
    changed = FORMATS["argilla"].load(sources.Rows("f", [(1, rows[0])])).judgements
    assert [(j.annotator, j.ranks, j.seconds) for j in changed] == [("ann", (1, 0), 3.0)]
    rows, _ = FORMATS["label_studio"].dump(records)
    rows[0]["annotations"][0]["result"][0]["value"]["selected"] = "right"
    changed = FORMATS["label_studio"].load(sources.Rows("f", [(1, rows[0])])).judgements
    assert [(j.annotator, j.ranks, j.seconds) for j in changed] == [("ann", (1, 0), 3.0)]


def exported_by_label_studio(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tasks as Label Studio 1.23 exports them after an import: with its own ids and times, its users
    by number, and predictions by id."""
    rows = json.loads(json.dumps(rows))
    count = itertools.count(1)
    for row in rows:
        for annotation in row["annotations"]:
            assert "completed_by" not in annotation  # of unknown people are refused
            annotation |= {"import_id": annotation["id"], "id": next(count), "completed_by": 1,
                           "created_at": "2030-01-01T00:00:00Z"}  # fmt: skip
        row["predictions"] = [next(count) for _ in row["predictions"]]
    return rows


@pytest.mark.slow
@QUICK
@given(data=st.data())
def test_an_export_of_label_studio_gives_our_judgements_back(data: Any) -> None:
    records = data.draw(labels())
    rows = exported_by_label_studio(FORMATS["label_studio"].dump(records).rows)
    back = FORMATS["label_studio"].load(sources.Rows("export", list(enumerate(rows, 1))))
    assert back.items == records.items
    assert back.judgements == records.judgements


def test_label_studio_gets_an_interface_for_its_tasks() -> None:
    for k, tag, data in ((2, "Pairwise", "answer_1"), (3, "Ranker", "answers")):
        item = Item.of([{"role": "user", "content": "q"}], [f"x{n}" for n in range(k)])
        ranks = tuple(range(k))
        records = Records({item.id: item}, [Judgement(item=item.id, annotator="ann", ranks=ranks)])
        [task] = FORMATS["label_studio"].dump(records).rows
        names = re.findall(r'name="(\w+)"', label_studio.interface(records))
        values = re.findall(r'value="\$(\w+)"', label_studio.interface(records))
        [part] = task["annotations"][0]["result"]
        assert {part["from_name"], part["to_name"]} <= set(names)
        assert f"<{tag} " in label_studio.interface(records) and data in values
        assert set(values) <= task["data"].keys()


def test_a_prediction_that_is_only_an_id_is_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{**STUDIO[0], "predictions": [4]}]
    records = FORMATS["label_studio"].load(sources.Rows("f", list(enumerate(rows, 1))))
    assert [j.annotator for j in records.judgements] == ["5", "z@x.org"]
    assert "f: row 1: prediction 4 is an id without its verdict" in caplog.text


def test_plain_pairs_do_not_tell_the_chosen_by_its_place() -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"poor {i}"} for i in range(200)]
    records = FORMATS["trl"].load(sources.Rows("f", list(enumerate(rows, 1))))
    first = sum(j.ranks == (0, 1) for j in records.judgements)
    assert 70 < first < 130
    for j in records.judgements:
        assert records.items[j.item].completions[(j.ranks or ()).index(0)].startswith("good")
    pair = {
        "chosen": "\n\nHuman: hi\n\nAssistant: yes",
        "rejected": "\n\nHuman: hi\n\nAssistant: no",
    }
    one = FORMATS["trl"].load(sources.Rows("f", [(1, pair)]))
    item = next(iter(one.items.values()))
    assert item.prompt == ({"role": "user", "content": "hi"},)
    assert sorted(item.completions) == ["no", "yes"]


def test_what_is_written_is_what_trl_and_the_reward_stage_read(tmp_path: Path) -> None:
    from datasets import load_dataset

    from trimtab.data import formats

    item = Item.of([{"role": "user", "content": "q"}], ["x", "y"])
    records = Records({item.id: item}, [Judgement(item=item.id, annotator="ann", ranks=(1, 0))])
    own.write(tmp_path / "labels.jsonl", records)
    run(tmp_path, "labels.jsonl", to="pairs.jsonl", write="trl")
    rows: Any = load_dataset(
        "json", data_files=str(tmp_path / "pairs.jsonl"), split="train", cache_dir=str(tmp_path)
    )
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "y"}]
    assert rows[0]["annotator"] == "ann"
    [example] = formats.comparisons(sources.read(str(tmp_path / "pairs.jsonl")))
    assert example.ranks == [0, 1]
    run(tmp_path, "labels.jsonl", to="ranked.parquet", write="ranked")
    [example] = formats.comparisons(sources.read(str(tmp_path / "ranked.parquet")))
    assert example.ranks == [1, 0]


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_other_exports_of_label_studio_are_refused(suffix: str, tmp_path: Path) -> None:
    """JSON_MIN and CSV; the rows are those of version 1.23."""
    row = {
        "prompt": "why ?", "answer_1": "a", "answer_2": "b", "id": 1, "verdict": "left", "annotator": 1,
        "annotation_id": 3, "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        "lead_time": 4.2,
    }  # fmt: skip
    file = tmp_path / f"export.{suffix}"
    lines = [",".join(row), ",".join(map(str, row.values()))]
    file.write_text(json.dumps([row]) if suffix == "json" else "\n".join(lines))
    with pytest.raises(DataError, match=r"row 1 .*JSON_MIN or CSV.* export the project as JSON"):
        convert.read([str(file)])

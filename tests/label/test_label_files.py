"""What comes into labelling and what goes out: rows, rubrics, forms, exports, figures, text."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from tests.support.labelling import comparisons_of, do, many, plan, write_rows
from trimtab.config import build
from trimtab.data import formats, sources
from trimtab.errors import ConfigError, DataError
from trimtab.feedback import comparisons, votes
from trimtab.feedback.comparisons import display_order
from trimtab.feedback.items import read_entries
from trimtab.feedback.judgement import Item, Judgement
from trimtab.label import form as verdict
from trimtab.label.label_config import LabelConfig, Rubric, read_rubric
from trimtab.label.markdown import render_markdown
from trimtab.label.store import Assignment, Store


def test_rows_of_many_kinds_become_items(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "a.jsonl",
        [
            {"prompt": "p", "completions": ["a", "b", "a"], "models": ["x", "y", "z"], "topic": "t"},
            {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}],
             "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}]},
            {"prompt": "same", "completions": ["c", "c"]},
        ],
    )  # fmt: skip
    loaded = read_entries(str(path), limit=None, strict=True, marks=False)
    one, two = (e.item for e in loaded.entries)
    assert (one.completions, one.models, one.extra) == (
        ("a", "b"),
        ("x", "y"),
        {"topic": "t", "plain": True},
    )
    assert (two.completions, two.prompt) == (("yes", "no"), ({"role": "user", "content": "q"},))
    assert (loaded.merged, loaded.single) == (2, 1)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "text": "t"}, ["no completions", "--model"]),
        ({"prompt": "p", "completions": ["a"]}, ["row 1", "two completions"]),
        ({"prompt": "p", "completions": ["a", 3]}, ["row 1", "completions[1]"]),
        ({"prompt": "p", "completions": list("abcdefghij")}, ["row 1", "10", "9"]),
        ({"prompt": "p", "completions": ["a", "b"], "models": ["m"]}, ["row 1", "models"]),
        ({"prompt": "p", "completions": ["a", "b"], "score": "high"}, ["row 1", "score"]),
        ({"prompt": "p", "completions": ["a", "b"], "steps": [["x"], "y"]}, ["row 1", "steps"]),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, object], words: list[str]) -> None:
    path = write_rows(tmp_path / "a.jsonl", [row])
    with pytest.raises(DataError) as error:
        read_entries(str(path), limit=None, strict=True, marks=False)
    assert all(w in str(error.value) for w in ["a.jsonl", *words])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap": 3, "annotators": "ann,bob"}, ["overlap", "--annotators"]),
        ({"annotators": "ann,ann"}, ["annotators", "twice"]),
        ({"annotators": "owner"}, ["owner"]),
        ({"annotators": "../x"}, ["../x"]),
        ({"gold_share": 0.5, "repeat_share": 0.5}, ["gold_share"]),
        ({"model": "m", "num_completions": 1}, ["num_completions"]),
        ({"ask": "sort", "marks": True}, ["marks"]),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build(LabelConfig, {"data": "a.jsonl", **options}, "trimtab label")
    assert all(w in str(error.value) for w in words)


def test_a_rubric_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("question: Kinder?\ndimensions: {warm: Is it warm}\n")
    rubric = read_rubric(LabelConfig(data="a", rubric=str(path)))
    assert (rubric.question, rubric.dimensions) == ("Kinder?", {"warm": "Is it warm"})
    assert list(read_rubric(LabelConfig(data="a", rubric="hhh")).dimensions) == [
        "helpful", "honest", "harmless",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="neither"):
        read_rubric(LabelConfig(data="a", rubric="none.yaml"))
    path.write_text("questions: Kinder?\n")
    with pytest.raises(ConfigError, match="did you mean 'question'"):
        read_rubric(LabelConfig(data="a", rubric=str(path)))


def place_of(k: int, order: tuple[int, ...], steps: object = None) -> Assignment:
    item = Item.of([{"role": "user", "content": "q"}], [f"a{x}" for x in range(k)], steps=steps)
    seed = next(s for s in range(10_000) if display_order(s, k) == order)
    return Assignment(1, "ann", "plain", 0, 100.0, item, item, seed)


def test_a_form_is_read_in_the_order_shown() -> None:
    rubric = Rubric(dimensions={"warm": "", "true": ""})
    form = {
        "verdict": "0.3",
        "dim_0": "1",
        "dim_1": "tie",
        "flag": "on",
        "reason": " r ",
        "seconds": "4",
    }
    j = verdict.judgement(form, place_of(2, (1, 0)), rubric, 110.0)
    assert (j.ranks, j.strength, j.flagged, j.reason, j.seconds) == ((1, 0), 3, True, "r", 4.0)
    assert j.dimensions == {"warm": (0, 1), "true": (0, 0)}
    assert (j.order, display_order(j.seed or 0, 2)) == ((1, 0), (1, 0))
    j = verdict.judgement({**form, "seconds": "99"}, place_of(2, (1, 0)), rubric, 110.0)
    assert j.seconds == 10.0, "no more than have passed on the server"
    for choice, ranks in (("tie", (0, 0)), ("bad", (0, 0)), ("skip", None)):
        j = verdict.judgement({"verdict": choice}, place_of(2, (1, 0)), rubric, 1.0)
        assert (j.ranks, j.bad) == (ranks, choice == "bad")
    form = {"verdict": "rank", "rank_0": "4", "rank_1": "1", "rank_2": "1", "rank_3": "2"}
    j = verdict.judgement(form, place_of(4, (2, 0, 3, 1)), rubric, 1.0)
    assert j.ranks == (0, 1, 2, 0)


def test_marks_of_steps_become_rows_for_process_models() -> None:
    steps = (("s0", "s1", "s2"), ("t0",))
    form = {"verdict": "1", "step_0_0": "1", "step_1_0": "1", "step_1_1": "0", "step_1_2": ""}
    j = verdict.judgement(form, place_of(2, (1, 0), steps), Rubric(), 1.0)
    assert j.steps == {0: (1, 0, None), 1: (1,)}
    item = place_of(2, (1, 0), steps).item
    rows = comparisons.step_rows({item.id: item}, [j])
    assert [(r["completions"], r["labels"]) for r in rows] == [
        (["s0", "s1"], ["+", "neutral"]), (["t0"], ["+"]),
    ]  # fmt: skip
    read = formats.steps(sources.Rows("x", list(enumerate(rows, 1))))
    assert [e.labels for e in read] == [[1.0, 1.0], [1.0]]


@pytest.mark.parametrize(
    "form",
    [
        {}, {"verdict": "2"}, {"verdict": "0.9"}, {"verdict": "tie.1"}, {"verdict": "marks"},
        {"verdict": "rank", "rank_0": "1"}, {"verdict": "0", "dim_0": "7"},
        {"verdict": "0", "reason": "x" * 5001}, {"verdict": "0", "step_0_0": "5"},
    ],
)  # fmt: skip
def test_a_form_that_says_nothing_usable_is_refused(form: dict[str, str]) -> None:
    place = place_of(2, (0, 1), (("s",), ("t",)))
    with pytest.raises(ValueError, match=r"\w"):
        verdict.judgement(form, place, Rubric(dimensions={"warm": ""}), 1.0)


def test_exported_rows_are_what_reward_reads(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan(overlap=2))
    path = write_rows(tmp_path / "a.jsonl", many(6))
    store.add(read_entries(str(path), limit=None, strict=True, marks=False).entries)
    for name, choice in itertools.product(("ann", "bob"), ("0.2", "1", "tie", "bad", "0", "skip")):
        do(store, name, choice, flag="on" if choice == "0" else "")
    rows = comparisons_of(store)
    assert len(rows) == 8, "what was skipped or flagged is left out"
    path = write_rows(tmp_path / "c.jsonl", rows)
    read = formats.comparisons(sources.read(str(path)))
    assert [e.ranks for e in read] == [r["ranks"] for r in rows]
    assert {e.extra["annotator"] for e in read} == {"ann", "bob"}
    assert all(isinstance(e.prompt, str) for e in read)
    strong = [e for e in read if e.margins and max(e.margins) > 0]
    assert len(strong) == 2 and all(
        (e.margins or [0])[(e.ranks or [0]).index(0)] == 2.0 for e in strong
    )
    comparisons.write_folder(tmp_path, store.records())
    lines = (tmp_path / "judgements.jsonl").read_text().splitlines()
    again = [Judgement.model_validate(json.loads(line)) for line in lines]
    assert again == store.current() and len(again) == 12


def test_agreement_of_two_who_toss_coins_and_of_two_who_agree() -> None:
    rng = random.Random(0)

    def said(name: str, choose: random.Random | None) -> list[Judgement]:
        picks = [(choose or random.Random(n)).random() < 0.5 for n in range(2000)]
        return [
            Judgement(item=str(n), annotator=name, ranks=(0, 1) if p else (1, 0))
            for n, p in enumerate(picks)
        ]

    agreement = votes.agreement([*said("a", None), *said("b", None), *said("c", rng)])
    by = {(x.a, x.b): x for x in agreement}
    assert by["a", "b"].kappa == 1.0 and by["a", "b"].n == 2000
    kappa = by["a", "c"].kappa
    assert kappa is not None and abs(kappa) < 0.1
    assert votes.cohen([1, 1], [1, 1]) == (1.0, None)


def test_markdown_is_render_markdown_and_nothing_in_it_is_alive() -> None:
    page = render_markdown("# a\n\n**b** `c`\n\n```html\n<b>\n```\n\n![x](http://h/i.png) <u>")
    assert '<p class="head">a</p>' in page and "<strong>b</strong>" in page
    assert "&lt;b&gt;" in page and "&lt;u&gt;" in page and "<img" not in page
    assert "http://h/i.png" in page
    long = "<i>" * 10_000
    assert render_markdown(long).count("&lt;i&gt;") == 10_000

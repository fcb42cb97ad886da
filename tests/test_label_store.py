"""The store keeps every promise it makes; queues ask what they should."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import random
import resource
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.labelling import many, write_rows
from trimtab.config import build
from trimtab.data import formats, sources
from trimtab.errors import ConfigError, DataError
from trimtab.judgement import Judgement
from trimtab.label import export, items, progress, queue, verdict
from trimtab.label.spec import LabelConfig, Plan, Rubric, read_rubric
from trimtab.label.store import Place, Store, StoreError
from trimtab.label.words import laid_out


def entries(count: int, k: int = 2, **more: object) -> list[items.Entry]:
    made = [
        items.Item.of([{"role": "user", "content": f"q{n}"}], [f"a{n}.{x}" for x in range(k)], **more)
        for n in range(count)
    ]  # fmt: skip
    return [items.Entry(item) for item in made]


def plan(**given: object) -> Plan:
    return Plan.model_validate({"gold_share": 0.0, "repeat_share": 0.0, **given})


def say(text: str, rubric: Rubric | None = None, **form: str):
    def judge(place: Place) -> Judgement:
        return verdict.judgement({"verdict": text, **form}, place, rubric or Rubric(), time.time())

    return judge


def do(store: Store, name: str, text: str = "0", now: float | None = None, **form: str) -> str:
    place = store.next(name, now or time.time())
    assert place is not None
    return store.record(place.id, place.turn, name, say(text, **form))


def test_the_disk_is_asked_to_keep_what_is_acknowledged(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan())
    assert store._rows("pragma synchronous")[0][0] == 2
    assert store._rows("pragma journal_mode")[0][0] == "wal"


def test_judgements_can_be_neither_changed_nor_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan())
    store.add(entries(1))
    assert do(store, "ann") == "saved"
    for sql in ("update judgement set status='skip'", "delete from judgement"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            store._db.execute(sql)


def test_the_same_verdict_sent_twice_is_one_and_another_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan())
    store.add(entries(2))
    place = store.next("ann", 0.0)
    assert place is not None
    assert store.record(place.id, 0, "ann", say("0")) == "saved"
    assert store.record(place.id, 0, "ann", say("0")) == "again"
    assert store.record(place.id, 0, "ann", say("1")) == "other"
    assert store.record(place.id, 1, "ann", say("1")) == "not yours"
    assert store.record(place.id, 0, "bob", say("1")) == "not yours"
    assert store.record(99, 0, "ann", say("1")) == "not yours"
    assert [k.id for k in store.kept()] == [f"{place.id}.0"]


def test_undo_takes_back_and_asks_again_and_the_history_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan())
    store.add(entries(3))
    first = store.next("ann", 1.0)
    assert first is not None
    do(store, "ann", "0")
    coming = store.next("ann", 2.0)
    assert store.undo("ann", 3.0)
    assert store.kept() == []
    again = store.next("ann", 4.0)
    assert again is not None and again.item == first.item and again.shown == first.shown
    assert do(store, "ann", "1") == "saved"
    (kept,) = store.kept()
    history = store.history()
    assert [j.status for j in history] == ["ok", "skip", "ok"]
    assert history[1].replaces == history[0].detail["id"]
    assert kept.judgement.replaces == history[1].detail["id"]
    assert kept.judgement.ranks != history[0].ranks
    after = store.next("ann", 5.0)
    assert after is not None and coming is not None and after.item == coming.item
    assert store.undo("ann", 6.0) and not store.undo("ann", 7.0)


def test_a_skip_frees_the_item_for_others_and_is_not_asked_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan())
    store.add(entries(1))
    do(store, "ann", "skip")
    assert store.next("ann", 0.0) is None
    do(store, "bob", "0")
    assert not store.undo("ann", 0.0), "bob has it now"
    assert store.wanted() == (1, 1)


def test_an_item_held_too_long_goes_to_another_and_the_late_verdict_is_refused(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "s", plan(hold=10.0))
    store.add(entries(1))
    held = store.next("ann", 0.0)
    assert held is not None
    assert store.next("bob", 599.0) is None
    taken = store.next("bob", 601.0)
    assert taken is not None and taken.item == held.item
    assert store.record(held.id, 0, "ann", say("0")) == "late"
    assert store.record(taken.id, 0, "bob", say("0")) == "saved"
    assert [k.judgement.annotator for k in store.kept()] == ["bob"]


def test_a_late_verdict_counts_while_nobody_else_has_the_item(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan(hold=10.0, overlap=2))
    store.add(entries(1))
    held = store.next("ann", 0.0)
    assert held is not None
    assert store.next("bob", 1000.0) is not None
    assert store.record(held.id, 0, "ann", say("0")) == "saved"
    assert store.next("carl", 1000.0) is None


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "carl", "dan"]),
        st.sampled_from(["0", "1", "tie", "bad", "skip", "undo", "leave", "twice", "wait"]),
    ),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(actions=ACTIONS, overlap=st.integers(1, 3), ask=st.sampled_from(["whole", "pairs", "sort"]))
def test_never_more_than_k_and_in_the_end_exactly_k(
    tmp_path_factory: pytest.TempPathFactory,
    actions: list[tuple[str, str]],
    overlap: int,
    ask: str,
) -> None:
    """Whatever people do, an item has at most k verdicts, one from each; then all is judged."""
    store = Store(
        tmp_path_factory.mktemp("s") / "db", plan(overlap=overlap, ask=ask, hold=1.0, repeat_share=0.2)
    )  # fmt: skip
    k = 2 if ask == "whole" else 3
    store.add(entries(4, k))
    now = 0.0

    def check() -> Counter[str]:
        heads = [x.judgement for x in store.kept() if x.judgement.status == "ok"]
        assert len({(j.item, j.annotator, j.kind) for j in heads}) == len(heads)
        done = store._rows("select item, count(*) from place where kind='plain' and "
                           "state in ('open', 'done') group by item")  # fmt: skip
        assert all(n <= overlap for _, n in done)
        taken = store._rows("select id, taken from item where kind='plain'")
        assert dict(map(tuple, taken)) == {**{r[0]: 0 for r in taken}, **dict(map(tuple, done))}
        return Counter(j.item for j in heads if j.kind == "plain")

    for name, action in actions:
        now += 90.0 if action == "wait" else 1.0
        if action == "undo":
            store.undo(name, now)
        else:
            place = store.next(name, now)
            if place is not None and action not in ("leave", "wait"):
                said = "0" if action == "twice" else action
                assert store.record(place.id, place.turn, name, say(said)) == "saved"
                if action == "twice":
                    assert store.record(place.id, place.turn, name, say(said)) == "again"
    check()
    names = ["ann", "bob", "carl", "dan", "eva", "fred", "gus"]
    for name in itertools.islice(itertools.cycle(names), 400):
        now += 61.0
        place = store.next(name, now)
        if place is not None:
            assert store.record(place.id, place.turn, name, say("0")) == "saved"
    found = check()
    done, wanted = store.wanted()
    assert done == wanted
    if ask != "sort":
        assert all(n == overlap for n in found.values()) and len(found) == (
            4 if ask == "whole" else 12
        )
    store.close()


@settings(max_examples=200, deadline=None)
@given(worth=st.lists(st.integers(0, 5), min_size=2, max_size=9), seed=st.integers(0, 2**32))
def test_sorting_finds_the_order_with_few_comparisons(worth: list[int], seed: int) -> None:
    said: dict[tuple[int, int], int] = {}
    k = len(worth)
    while True:
        found = queue.sort_step(k, said, seed)
        if len(found) != 2 or (k == 2 and said):
            break
        i, j = found
        assert i < j and (i, j) not in said
        said[i, j] = (worth[i] < worth[j]) - (worth[i] > worth[j])
    places = sorted(set(worth), reverse=True)
    assert found == tuple(places.index(w) for w in worth)
    assert len(said) <= queue.bound(k)
    assert queue.bound(k) < k * (k - 1) / 2 or k < 4


def test_sides_are_fair_and_told_by_the_seed() -> None:
    drawn = [queue.sides(queue.draw(7, n), 2) for n in range(4000)]
    first = sum(d == (0, 1) for d in drawn) / 4000
    assert abs(first - 0.5) < 4 * math.sqrt(0.25 / 4000)
    assert queue.sides(queue.draw(7, 3), 2) == drawn[3]


def test_uniform_given_and_active_orders(tmp_path: Path) -> None:
    made = [items.Entry(e.item, None, float(n % 7)) for n, e in enumerate(entries(20))]
    seen: dict[str, list[str]] = {}
    for order in ("given", "active", "uniform"):
        store = Store(tmp_path / order, plan(order=order))
        store.add(made)
        asked: list[str] = []
        while (place := store.next("ann", 0.0)) is not None:
            asked.append(place.item.id)
            do(store, "ann")
        seen[order] = asked
    names = [e.item.id for e in made]
    assert seen["given"] == names
    worth = {e.item.id: e.score for e in made}
    told = [worth[i] for i in seen["active"]]
    assert told == sorted(told, reverse=True)
    assert sorted(seen["uniform"]) == sorted(names) and seen["uniform"] != names


def test_active_follows_new_scores_and_scores_of_pairs(tmp_path: Path) -> None:
    store = Store(tmp_path / "a", plan(order="active", ask="pairs"))
    (entry,) = entries(1, k=3)
    table = ((0.0, 0.1, 0.9), (0.1, 0.0, 0.5), (0.9, 0.5, 0.0))
    store.add([items.Entry(entry.item, None, table)])
    place = store.next("ann", 0.0)
    assert place is not None and place.item.extra["pair"] == [0, 2]
    do(store, "ann")
    store.score({f"{entry.item.id}:0-1": 3.0})
    place = store.next("ann", 0.0)
    assert place is not None and place.item.extra["pair"] == [0, 1]


def test_gold_and_repeats_come_in_their_shares_and_do_not_count(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan(gold_share=0.2, repeat_share=0.1, repeat_gap=5))
    store.add(entries(200))
    known = [items.Entry(e.item, (0, 1)) for e in entries(260)[200:]]
    store.add(known)
    kinds: Counter[str] = Counter()
    while (place := store.next("ann", 0.0)) is not None:
        kinds[place.kind] += 1
        do(store, "ann")
    total = sum(kinds.values())
    assert kinds["plain"] == 200
    assert abs(kinds["gold"] / total - 0.2) < 0.08
    assert abs(kinds["repeat"] / total - 0.1) < 0.06
    assert store.wanted() == (200, 200)
    told = progress.person("ann", [k.judgement for k in store.kept()], store.gold())
    assert told.gold[1] == kinds["gold"] and told.repeats[1] == kinds["repeat"]
    rows = export.files(store)["comparisons.jsonl"]
    assert len(rows) == 200


def test_sorting_in_the_store_gives_one_ranked_row(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan(ask="sort"))
    store.add(entries(6, k=5))
    asked = 0
    while (place := store.next("ann", 0.0)) is not None:
        i, j = place.item.extra["pair"]
        better = 0 if (i * 7) % 5 > (j * 7) % 5 else 1
        store.record(place.id, place.turn, "ann", say(str(place.shown.index(better))))
        asked += 1
        if asked == 4:
            store.undo("ann", 0.0)
    rows = export.files(store)["comparisons.jsonl"]
    assert [r["ranks"] for r in rows] == [[4, 2, 0, 3, 1]] * 6
    assert asked - 1 <= 6 * queue.bound(5) < 6 * 10


def test_a_store_of_another_seed_or_file_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "s", plan(seed=1)).close()
    with pytest.raises(DataError, match="begun with seed 1"):
        Store(tmp_path / "s", plan(seed=2))
    (tmp_path / "junk").write_bytes(b"not a database " * 100)
    with pytest.raises(DataError, match="--out"):
        Store(tmp_path / "junk", plan())
    store = Store(tmp_path / "s", plan(seed=1))
    (entry,) = entries(1)
    store.add([entry])
    assert store.add([entry]) == 0
    other = entry.item.model_copy(update={"answers": ("x", "y")})
    with pytest.raises(DataError, match="other answers"):
        store.add([items.Entry(other)])


# --- a disk that refuses


def _fill(path: str, limit: int, told: multiprocessing.Queue[tuple[int, str]]) -> None:
    """Label until the system refuses to let any file grow past ``limit`` bytes."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    saved, why = 0, ""
    try:
        store = Store(Path(path), plan())
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for _ in range(400):
            do(store, "ann", reason="x" * 200)
            saved += 1
    except (StoreError, DataError) as error:
        why = str(error)
    told.put((saved, why))
    told.close()
    told.join_thread()
    os._exit(0)


@pytest.mark.parametrize("limit", [180_000, 200_001, 300_000, 411_111, 777_777])
def test_a_write_refused_at_any_size_loses_nothing_acknowledged(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "s"
    store = Store(path, plan())
    store.add(entries(400))
    store.close()
    told: multiprocessing.Queue[tuple[int, str]] = multiprocessing.get_context("fork").Queue()
    child = multiprocessing.get_context("fork").Process(target=_fill, args=(str(path), limit, told))
    child.start()
    saved, why = told.get(timeout=120)
    child.join()
    assert "nothing was saved" in why and 0 < saved < 400
    store = Store(path, plan())
    assert store._rows("pragma integrity_check")[0][0] == "ok"
    assert len(store.kept()) == saved
    assert do(store, "ann") == "saved"


def test_a_full_disk_is_told_and_labels_are_intact(tmp_path: Path) -> None:
    """On a real file system of 1 MiB; needs the right to mount one."""
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(where)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of 1 MiB cannot be mounted here")
    try:
        store = Store(where / "s", plan())
        store.add(entries(300))
        saved, why = 0, ""
        try:
            for _ in range(300):
                do(store, "ann", reason="y" * 3000)
                saved += 1
        except StoreError as error:
            why = str(error)
        assert "nothing was saved" in why and "full" in why
        assert saved > 10
        assert len(store.kept()) == saved
        with pytest.raises(OSError, match="No space"):
            export.export(store, where)
        assert not list(where.glob("*.jsonl"))
        store.close()
        store = Store(where / "s", plan())
        assert store._rows("pragma integrity_check")[0][0] == "ok"
        assert len(store.kept()) == saved
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


# --- what comes in, what goes out


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
    loaded = items.load(str(path), limit=None, strict=True, marks=False)
    one, two = (e.item for e in loaded.entries)
    assert (one.answers, one.models, one.extra) == (
        ("a", "b"),
        ("x", "y"),
        {"topic": "t", "plain": True},
    )
    assert (two.answers, two.prompt) == (("yes", "no"), ({"role": "user", "content": "q"},))
    assert (loaded.merged, loaded.lone) == (2, 1)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "text": "t"}, ["no answers", "--model"]),
        ({"prompt": "p", "completions": ["a"]}, ["row 1", "two answers"]),
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
        items.load(str(path), limit=None, strict=True, marks=False)
    assert all(w in str(error.value) for w in ["a.jsonl", *words])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"overlap": 3, "annotators": "ann,bob"}, ["overlap", "--annotators"]),
        ({"annotators": "ann,ann"}, ["annotators", "twice"]),
        ({"annotators": "owner"}, ["owner"]),
        ({"annotators": "../x"}, ["../x"]),
        ({"gold_share": 0.5, "repeat_share": 0.5}, ["gold_share"]),
        ({"model": "m", "answers": 1}, ["answers"]),
        ({"ask": "sort", "marks": True}, ["marks"]),
    ],
)
def test_a_plan_that_cannot_be_is_refused(given: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build(LabelConfig, {"data": "a.jsonl", **given}, "trimtab label")
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


def place_of(k: int, shown: tuple[int, ...], steps: object = None) -> Place:
    item = items.Item.of(
        [{"role": "user", "content": "q"}], [f"a{x}" for x in range(k)], steps=steps
    )
    seed = next(s for s in range(10_000) if queue.sides(s, k) == shown)
    return Place(1, "ann", "plain", 0, 100.0, item, item, seed)


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
    assert (j.shown, queue.sides(j.seed or 0, 2)) == ((1, 0), (1, 0))
    j = verdict.judgement({**form, "seconds": "99"}, place_of(2, (1, 0)), rubric, 110.0)
    assert j.seconds == 10.0, "no more than have passed on the server"
    for said, ranks in (("tie", (0, 0)), ("bad", (0, 0)), ("skip", None)):
        j = verdict.judgement({"verdict": said}, place_of(2, (1, 0)), rubric, 1.0)
        assert (j.ranks, j.bad) == (ranks, said == "bad")
    form = {"verdict": "rank", "rank_0": "4", "rank_1": "1", "rank_2": "1", "rank_3": "2"}
    j = verdict.judgement(form, place_of(4, (2, 0, 3, 1)), rubric, 1.0)
    assert j.ranks == (0, 1, 2, 0)


def test_marks_of_steps_become_rows_for_process_models() -> None:
    steps = (("s0", "s1", "s2"), ("t0",))
    form = {"verdict": "1", "step_0_0": "1", "step_1_0": "1", "step_1_1": "0", "step_1_2": ""}
    j = verdict.judgement(form, place_of(2, (1, 0), steps), Rubric(), 1.0)
    assert j.steps == {0: (1, 0, None), 1: (1,)}
    item = place_of(2, (1, 0), steps).item
    rows = export.steps([export.Kept("1.0", j, 1, 0)], {item.id: item})
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
    store.add(items.load(str(path), limit=None, strict=True, marks=False).entries)
    for name, said in itertools.product(("ann", "bob"), ("0.2", "1", "tie", "bad", "0", "skip")):
        do(store, name, said, flag="on" if said == "0" else "")
    rows = export.files(store)["comparisons.jsonl"]
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
    export.export(store, tmp_path)
    kept = (tmp_path / "judgements.jsonl").read_text().splitlines()
    again = [Judgement.model_validate(json.loads(line)) for line in kept]
    assert again == [k.judgement for k in store.kept()] and len(again) == 12


def test_agreement_of_two_who_toss_coins_and_of_two_who_agree() -> None:
    rng = random.Random(0)

    def said(name: str, choose: random.Random | None) -> list[Judgement]:
        picks = [(choose or random.Random(n)).random() < 0.5 for n in range(2000)]
        return [
            Judgement(item=str(n), annotator=name, ranks=(0, 1) if p else (1, 0))
            for n, p in enumerate(picks)
        ]

    found = progress.agreement([*said("a", None), *said("b", None), *said("c", rng)])
    by = {(x.a, x.b): x for x in found}
    assert by["a", "b"].kappa == 1.0 and by["a", "b"].n == 2000
    kappa = by["a", "c"].kappa
    assert kappa is not None and abs(kappa) < 0.1
    assert progress.cohen([1, 1], [1, 1]) == (1.0, None)


def test_markdown_is_laid_out_and_nothing_in_it_is_alive() -> None:
    page = laid_out("# a\n\n**b** `c`\n\n```html\n<b>\n```\n\n![x](http://h/i.png) <u>")
    assert '<p class="head">a</p>' in page and "<strong>b</strong>" in page
    assert "&lt;b&gt;" in page and "&lt;u&gt;" in page and "<img" not in page
    assert "http://h/i.png" in page
    long = "<i>" * 10_000
    assert laid_out(long).count("&lt;i&gt;") == 10_000

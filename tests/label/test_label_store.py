"""The store keeps every promise it makes; queues ask what they should."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import resource
import sqlite3
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.labelling import comparisons_of, do, max_comparisons, plan, say
from trimtab.errors import DataError
from trimtab.feedback import comparisons, votes
from trimtab.feedback.comparisons import display_order, sort_step
from trimtab.feedback.items import Entry
from trimtab.feedback.judgement import Item
from trimtab.label import queue
from trimtab.label.database import StoreError
from trimtab.label.store import Store


def entries(count: int, k: int = 2, **more: object) -> list[Entry]:
    records = [
        Item.of([{"role": "user", "content": f"q{n}"}], [f"a{n}.{x}" for x in range(k)], **more)
        for n in range(count)
    ]  # fmt: skip
    return [Entry(item) for item in records]


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
    assert [j.detail["id"] for j in store.current()] == [f"{place.id}.0"]


def test_undo_takes_back_and_asks_again_and_the_history_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan())
    store.add(entries(3))
    first = store.next("ann", 1.0)
    assert first is not None
    do(store, "ann", "0")
    coming = store.next("ann", 2.0)
    assert store.undo("ann", 3.0)
    assert store.current() == []
    again = store.next("ann", 4.0)
    assert again is not None and again.item == first.item and again.order == first.order
    assert do(store, "ann", "1") == "saved"
    (current,) = store.current()
    history = store.history()
    assert [j.status for j in history] == ["ok", "skip", "ok"]
    assert history[1].replaces == history[0].detail["id"]
    assert current.replaces == history[1].detail["id"]
    assert current.ranks != history[0].ranks
    after = store.next("ann", 5.0)
    assert after is not None and coming is not None and after.item == coming.item
    assert store.undo("ann", 6.0) and not store.undo("ann", 7.0)


def test_a_skip_frees_the_item_for_others_and_is_not_asked_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan())
    store.add(entries(1))
    do(store, "ann", "skip")
    assert store.next("ann", 0.0) is None
    assert store.progress(2) == (0, 1) and store.progress(1) == (0, 0), "nobody is left to judge it"
    do(store, "bob", "0")
    assert not store.undo("ann", 0.0), "bob has it now"
    assert store.progress(2) == (1, 1)


def test_an_item_held_too_long_goes_to_another_and_the_late_verdict_is_refused(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "s", plan(hold=10.0))
    store.add(entries(1))
    first = store.next("ann", 0.0)
    assert first is not None
    assert store.next("bob", 599.0) is None
    second = store.next("bob", 601.0)
    assert second is not None and second.item == first.item
    assert store.record(first.id, 0, "ann", say("0")) == "late"
    assert store.record(second.id, 0, "bob", say("0")) == "saved"
    assert [j.annotator for j in store.current()] == ["bob"]


def test_a_late_verdict_counts_while_nobody_else_has_the_item(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan(hold=10.0, overlap=2))
    store.add(entries(1))
    assignment = store.next("ann", 0.0)
    assert assignment is not None
    assert store.next("bob", 1000.0) is not None
    assert store.record(assignment.id, 0, "ann", say("0")) == "saved"
    assert store.next("carl", 1000.0) is None


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "carl", "dan"]),
        st.sampled_from(["0", "1", "tie", "bad", "skip", "undo", "leave", "twice", "wait"]),
    ),
    max_size=60,
)


@pytest.mark.slow
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
        heads = [j for j in store.current() if j.status == "ok"]
        assert len({(j.item, j.annotator, j.kind) for j in heads}) == len(heads)
        done = store._rows("select item, count(*) from place where kind='plain' and "
                           "state in ('open', 'done') group by item")  # fmt: skip
        assert all(n <= overlap for _, n in done)
        rows = store._rows("select id, taken from item where kind='plain'")
        assert dict(map(tuple, rows)) == {**{r[0]: 0 for r in rows}, **dict(map(tuple, done))}
        return Counter(j.item for j in heads if j.kind == "plain")

    for name, action in actions:
        now += 90.0 if action == "wait" else 1.0
        if action == "undo":
            store.undo(name, now)
        else:
            place = store.next(name, now)
            if place is not None and action not in ("leave", "wait"):
                choice = "0" if action == "twice" else action
                assert store.record(place.id, place.turn, name, say(choice)) == "saved"
                if action == "twice":
                    assert store.record(place.id, place.turn, name, say(choice)) == "again"
    check()
    names = ["ann", "bob", "carl", "dan", "eva", "fred", "gus"]
    for name in itertools.islice(itertools.cycle(names), 400):
        now += 61.0
        place = store.next(name, now)
        if place is not None:
            assert store.record(place.id, place.turn, name, say("0")) == "saved"
    counts = check()
    done, wanted = store.progress(len(names))
    assert done == wanted
    if ask != "sort":
        assert all(n == overlap for n in counts.values()) and len(counts) == (
            4 if ask == "whole" else 12
        )
    store.close()


@settings(max_examples=200, deadline=None)
@given(worth=st.lists(st.integers(0, 5), min_size=2, max_size=9), seed=st.integers(0, 2**32))
def test_sorting_finds_the_order_with_few_comparisons(worth: list[int], seed: int) -> None:
    comparisons: dict[tuple[int, int], int] = {}
    k = len(worth)
    while True:
        pair = sort_step(k, comparisons, seed)
        if len(pair) != 2 or (k == 2 and comparisons):
            break
        i, j = pair
        assert i < j and (i, j) not in comparisons
        comparisons[i, j] = (worth[i] < worth[j]) - (worth[i] > worth[j])
    places = sorted(set(worth), reverse=True)
    assert pair == tuple(places.index(w) for w in worth)
    assert len(comparisons) <= max_comparisons(k)
    assert max_comparisons(k) < k * (k - 1) / 2 or k < 4


def test_sides_are_fair_and_told_by_the_seed() -> None:
    drawn = [display_order(queue.draw(7, n), 2) for n in range(4000)]
    first = sum(d == (0, 1) for d in drawn) / 4000
    assert abs(first - 0.5) < 4 * math.sqrt(0.25 / 4000)
    assert display_order(queue.draw(7, 3), 2) == drawn[3]


def test_uniform_given_and_active_orders(tmp_path: Path) -> None:
    all_entries = [Entry(e.item, None, float(n % 7)) for n, e in enumerate(entries(20))]
    seen: dict[str, list[str]] = {}
    for order in ("given", "active", "uniform"):
        store = Store(tmp_path / order, plan(order=order))
        store.add(all_entries)
        item_ids: list[str] = []
        while (place := store.next("ann", 0.0)) is not None:
            item_ids.append(place.item.id)
            do(store, "ann")
        seen[order] = item_ids
    names = [e.item.id for e in all_entries]
    assert seen["given"] == names
    worth = {e.item.id: e.score for e in all_entries}
    worths = [worth[i] for i in seen["active"]]
    assert worths == sorted(worths, reverse=True)
    assert sorted(seen["uniform"]) == sorted(names) and seen["uniform"] != names


def test_active_follows_new_scores_and_scores_of_pairs(tmp_path: Path) -> None:
    store = Store(tmp_path / "a", plan(order="active", ask="pairs"))
    (entry,) = entries(1, k=3)
    table = ((0.0, 0.1, 0.9), (0.1, 0.0, 0.5), (0.9, 0.5, 0.0))
    store.add([Entry(entry.item, None, table)])
    place = store.next("ann", 0.0)
    assert place is not None and place.item.extra["pair"] == [0, 2]
    do(store, "ann")
    store.set_scores({f"{entry.item.id}:0-1": 3.0})
    place = store.next("ann", 0.0)
    assert place is not None and place.item.extra["pair"] == [0, 1]


def test_gold_and_repeats_come_in_their_shares_and_do_not_count(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan(gold_share=0.2, repeat_share=0.1, repeat_gap=5))
    store.add(entries(200))
    gold_entries = [Entry(e.item, (0, 1)) for e in entries(260)[200:]]
    store.add(gold_entries)
    kinds: Counter[str] = Counter()
    while (place := store.next("ann", 0.0)) is not None:
        kinds[place.kind] += 1
        do(store, "ann")
    total = sum(kinds.values())
    assert kinds["plain"] == 200
    assert abs(kinds["gold"] / total - 0.2) < 0.08
    assert abs(kinds["repeat"] / total - 0.1) < 0.06
    assert store.progress(1) == (200, 200)
    person = votes.person("ann", store.current(), store.gold())
    assert person.gold[1] == kinds["gold"] and person.repeats[1] == kinds["repeat"]
    rows = comparisons_of(store)
    assert len(rows) == 200


def test_sorting_in_the_store_gives_one_ranked_row(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", plan(ask="sort"))
    store.add(entries(6, k=5))
    num_asked = 0
    while (place := store.next("ann", 0.0)) is not None:
        i, j = place.item.extra["pair"]
        better = 0 if (i * 7) % 5 > (j * 7) % 5 else 1
        store.record(place.id, place.turn, "ann", say(str(place.order.index(better))))
        num_asked += 1
        if num_asked == 4:
            store.undo("ann", 0.0)
    rows = comparisons_of(store)
    assert [r["ranks"] for r in rows] == [[4, 2, 0, 3, 1]] * 6
    assert num_asked - 1 <= 6 * max_comparisons(5) < 6 * 10


def test_a_store_of_another_seed_or_file_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "s", plan(seed=1)).close()
    with pytest.raises(DataError, match="created with seed 1"):
        Store(tmp_path / "s", plan(seed=2))
    (tmp_path / "junk").write_bytes(b"not a database " * 100)
    with pytest.raises(DataError, match="--out"):
        Store(tmp_path / "junk", plan())
    store = Store(tmp_path / "s", plan(seed=1))
    (entry,) = entries(1)
    store.add([entry])
    assert store.add([entry]) == 0
    other = entry.item.model_copy(update={"completions": ("x", "y")})
    with pytest.raises(DataError, match="other completions"):
        store.add([Entry(other)])


# --- a disk that refuses


def _fill(path: str, limit: int, queue: multiprocessing.Queue[tuple[int, str]]) -> None:
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
    queue.put((saved, why))
    queue.close()
    queue.join_thread()
    os._exit(0)


@pytest.mark.parametrize("limit", [180_000, 200_001, 300_000, 411_111, 777_777])
def test_a_write_refused_at_any_size_loses_nothing_acknowledged(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "s"
    store = Store(path, plan())
    store.add(entries(400))
    store.close()
    queue: multiprocessing.Queue[tuple[int, str]] = multiprocessing.get_context("fork").Queue()
    child = multiprocessing.get_context("fork").Process(
        target=_fill, args=(str(path), limit, queue)
    )
    child.start()
    saved, why = queue.get(timeout=120)
    child.join()
    assert "nothing was saved" in why and 0 < saved < 400
    store = Store(path, plan())
    assert store._rows("pragma integrity_check")[0][0] == "ok"
    assert len(store.current()) == saved
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
        assert len(store.current()) == saved
        with pytest.raises(OSError, match="No space"):
            comparisons.write_folder(where, store.records())
        assert not list(where.glob("*.jsonl"))
        store.close()
        store = Store(where / "s", plan())
        assert store._rows("pragma integrity_check")[0][0] == "ok"
        assert len(store.current()) == saved
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)

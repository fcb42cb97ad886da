"""The label store: which items are assigned to whom, and every judgement, append-only.

Everything that decides what happens next is in the file and nothing in memory, so a server that was
killed resumes where it was. A judgement's id is the assignment it belongs to and its turn there, so a
judgement sent twice is stored once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from trimtab.errors import DataError
from trimtab.feedback.comparisons import display_order, pair_order, sort_step
from trimtab.feedback.items import Entry
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records, read_store
from trimtab.label import queue
from trimtab.label.assign import assign, count_taken, expire, retake
from trimtab.label.database import Database
from trimtab.label.label_config import Plan

Outcome = Literal["saved", "again", "other", "late", "not yours"]
"""saved; again: this judgement was stored before; other: another one was; late: the assignment
expired and the item went to someone else; not yours: this annotator has no such assignment."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """An item that an annotator is asked to judge (table ``place``)."""

    id: int
    annotator: str
    kind: Literal["plain", "gold", "repeat"]
    turn: int
    """Judgements made for it so far: the number of the next one."""
    shown_at: float
    """Seconds since the epoch."""
    full_item: Item
    """The assigned item."""
    item: Item
    """What is asked now: the full item, or two completions of it."""
    seed: int
    """What ``order`` is drawn from."""

    @property
    def order(self) -> tuple[int, ...]:
        """[K] completions in the order shown."""
        return display_order(self.seed, len(self.item.completions))

    @classmethod
    def of(cls, row: sqlite3.Row, full_item: Item, item: Item) -> Assignment:
        """The assignment of a row of ``place``."""
        fields = (row["id"], row["annotator"], row["kind"], row["turn"], row["seen"])
        return cls(*fields, full_item, item, queue.draw(row["seed"], item.id))


class Store(Database):
    """The labels of one folder.

    Args:
        path: The SQLite file; created if it does not exist.
        plan: Who is asked what; ``seed`` and ``ask`` must be those it was created with.

    Raises:
        DataError: the file is no label store, or was created with another seed or ``ask``.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        super().__init__(path)
        self.plan = plan
        self._require("seed", str(plan.seed))
        self._require("ask", plan.ask)

    @classmethod
    def reopened(cls, path: Path) -> Store:
        """A store with the ``seed`` and ``ask`` that it was created with, to read from.

        Raises:
            DataError: the file is no label store.
        """
        try:
            with closing(sqlite3.connect(path)) as db:
                meta = dict(db.execute("select key, value from meta"))
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path}: cannot be used as a label store ({error})") from None
        if not {"seed", "ask"} <= meta.keys():
            raise DataError(f"{path}: holds no labels yet")
        return cls(path, Plan.model_validate({"seed": int(meta["seed"]), "ask": meta["ask"]}))

    # --- items

    def add(self, entries: Sequence[Entry]) -> int:
        """Add new items; existing ones get their new position in the order.

        Returns:
            The number of new items.

        Raises:
            DataError: an id exists with other completions.
        """
        new = 0
        with self._write() as db:
            count = int(db.execute("select count(*) from item").fetchone()[0])
            for entry in entries:
                for part in queue.expand(entry, self.plan):
                    new += self._add(db, part, count + new)
        return new

    def _add(self, db: sqlite3.Connection, entry: Entry, index: int) -> int:
        item = entry.item
        first, order = queue.sort_key(entry, index, self.plan)
        row = db.execute("select record, kind from item where id = ?", (item.id,)).fetchone()
        if row is None:
            gold = None if entry.gold is None else json.dumps(entry.gold)
            kind = "plain" if gold is None else "gold"
            db.execute(
                "insert into item (id, kind, first, ord, record, gold) values (?,?,?,?,?,?)",
                (item.id, kind, first, order, item.model_dump_json(), gold),
            )
            return 1
        stored = Item.model_validate_json(row["record"])
        if (stored.prompt, stored.completions) != (item.prompt, item.completions):
            raise DataError(
                f"{self.path}: item {item.id!r} exists with other completions; give the row another "
                "id, or name another folder with --out"
            )
        db.execute("update item set first = ? where id = ?", (first, item.id))
        return 0

    def set_scores(self, scores: dict[str, float]) -> None:
        """Reorder items while the server runs, highest score first, for ``order: active``."""
        with self._write() as db:
            db.executemany(
                "update item set first = ? where id = ?", [(-s, i) for i, s in scores.items()]
            )

    def existing(self, ids: Iterable[str]) -> set[str]:
        """Which of these items the store holds."""
        return {str(r[0]) for r in self._rows("select id from item")} & set(ids)

    def item(self, name: str) -> Item:
        """An item by its id."""
        rows = self._rows("select record from item where id = ?", name)
        assert rows, f"no item {name}"
        return Item.model_validate_json(rows[0]["record"])

    # --- asking

    def next(self, annotator: str, now: float) -> Assignment | None:
        """The annotator's open assignment, or else a new one; None when nothing is left to judge.

        Args:
            now: Seconds since the epoch.
        """
        open_ = "select * from place where annotator=? and state='open' order by seen desc limit 1"
        rows = self._rows(open_, annotator)
        if not rows:
            with self._write() as db:
                expire(db, self.plan, now)
                if not assign(db, self.plan, annotator, now):
                    return None
            rows = self._rows(open_, annotator)
        return self._assignment(rows[0])

    def _assignment(self, row: sqlite3.Row) -> Assignment:
        full_item = self.item(str(row["item"]))
        return Assignment.of(row, full_item, self._open_question(row, full_item) or full_item)

    def _open_question(self, row: sqlite3.Row, item: Item) -> Item | None:
        """What remains to be judged of an assigned item: the item, the next pair that sorting needs,
        or None when the assignment is done."""
        k = len(item.completions)
        if self.plan.ask != "sort" or k <= 2:
            return None if self._rows("select 1 from head where place = ?", row["id"]) else item
        judgements = self.current("where place = ?", row["id"])
        if any(j.ranks is None for j in judgements):
            return None
        pair = sort_step(k, pair_order(judgements), int(row["seed"]))
        return queue.pair(item, *pair) if len(pair) == 2 else None

    # --- judging

    def record(
        self, place: int, turn: int, annotator: str, judge: Callable[[Assignment], Judgement]
    ) -> Outcome:
        """Store a judgement; when this returns "saved" it is on the disk.

        Args:
            turn: The assignment's turn when it was shown.

        Raises:
            StoreError: the disk refused, and nothing was changed.
            ValueError: ``judge`` could not read the verdict; nothing was changed.
        """
        with self._write() as db:
            row = db.execute(
                "select * from place where id=? and annotator=?", (place, annotator)
            ).fetchone()
            if row is None or turn > row["turn"]:
                return "not yours"
            name = f"{place}.{turn}"
            if turn < row["turn"]:
                return self._earlier(name, row, judge)
            if row["state"] in ("done", "skipped"):
                return "not yours"
            if row["state"] == "expired" and not retake(db, self.plan, row):
                return "late"
            assignment = self._assignment(row)
            judgement = judge(assignment)
            self._insert(db, name, row, assignment, judgement, judgement.status)
            state = "skipped" if judgement.status == "skip" else "open"
            if state == "open" and self._open_question(row, assignment.full_item) is None:
                state = "done"
            db.execute(
                "update place set turn = turn + 1, state = ?, seen = ? where id = ?",
                (state, datetime.now(UTC).timestamp(), place),
            )
            if state == "skipped":
                count_taken(db, row, -1)
        return "saved"

    def _insert(
        self,
        db: sqlite3.Connection,
        name: str,
        row: sqlite3.Row,
        assignment: Assignment,
        judgement: Judgement,
        status: str,
    ) -> None:
        item = assignment.item
        if item.id != assignment.full_item.id:
            db.execute(
                "insert or ignore into item (id, kind, first, ord, record) values (?,'part',0,0,?)",
                (item.id, item.model_dump_json()),
            )
        # It replaces this annotator's newest judgement of the item, which was taken back.
        last = db.execute(
            "select id from judgement where item=? and annotator=? and kind=? order by n desc limit 1",
            (judgement.item, row["annotator"], row["kind"]),
        ).fetchone()
        replaces = None if last is None else str(last["id"])
        update = {
            "replaces": replaces,
            "kind": row["kind"],
            "detail": {**judgement.detail, "id": name},
        }
        record = judgement.model_copy(update=update).model_dump_json()
        key = (name, row["id"], judgement.item, row["annotator"], row["kind"])
        db.execute(
            "insert into judgement (id, place, item, annotator, kind, status, replaces, record) "
            "values (?,?,?,?,?,?,?,?)",
            (*key, status, replaces, record),
        )

    def _earlier(
        self, name: str, row: sqlite3.Row, judge: Callable[[Assignment], Judgement]
    ) -> Outcome:
        """A judgement of an earlier turn: the same one sent again, or another one?"""
        rows = self._rows("select * from judgement where id = ?", name)
        if not rows or rows[0]["status"] == "undone":
            return "other"
        stored = Judgement.model_validate_json(rows[0]["record"])
        item = self.item(stored.item)
        sent = judge(Assignment.of(row, item, item))
        same = (sent.status, sent.ranks, sent.bad) == (stored.status, stored.ranks, stored.bad)
        return "again" if same else "other"

    def undo(self, annotator: str, now: float) -> bool:
        """Replace the annotator's last judgement by an empty one, and ask the item again.

        Returns:
            False when there is nothing to undo, or others have judged a skipped item since.
        """
        with self._write() as db:
            last = db.execute(
                "select * from head where annotator = ? order by n desc limit 1", (annotator,)
            ).fetchone()
            if last is None:
                return False
            row = db.execute("select * from place where id = ?", (last["place"],)).fetchone()
            if row["state"] in ("skipped", "expired") and not retake(db, self.plan, row):
                return False
            stored = Judgement.model_validate_json(last["record"])
            undone = Judgement(
                item=stored.item,
                annotator=annotator,
                status="skip",
                order=stored.order,
                seed=stored.seed,
                at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                detail={"undone": True},
            )
            item = self.item(stored.item)
            assignment = Assignment.of(row, item, item)
            self._insert(db, f"{row['id']}.{row['turn']}", row, assignment, undone, "undone")
            db.execute(
                "update place set turn = turn + 1, state='open', seen=? where id=?",
                (now, row["id"]),
            )
        return True

    # --- reading

    def records(self) -> Records:
        """Every item, including pairs that sorting asked for, and the current judgements."""
        with self._lock:
            return read_store(self._db)

    def current(self, where: str = "", *values: object) -> list[Judgement]:
        """Judgements that no later one replaces, oldest first; ``where`` is SQL over the view
        ``head``."""
        rows = self._rows(f"select record from head {where} order by n", *values)
        return [Judgement.model_validate_json(r["record"]) for r in rows]

    def history(self) -> list[Judgement]:
        """Every judgement ever made, including those replaced and undone."""
        rows = self._rows("select record from judgement order by n")
        return [Judgement.model_validate_json(r["record"]) for r in rows]

    def gold(self) -> dict[str, tuple[int, ...]]:
        """Known ranks of gold items."""
        rows = self._rows("select id, gold from item where gold is not null")
        return {str(r["id"]): tuple(json.loads(r["gold"])) for r in rows}

    def assignment_counts(self, annotator: str | None = None) -> dict[str, int]:
        """Assignments by state, of one annotator or of all."""
        sql = (
            "select state, count(*) as n from place where ? is null or annotator = ? group by state"
        )
        return {str(r["state"]): int(r["n"]) for r in self._rows(sql, annotator, annotator)}

    def progress(self, people: int) -> tuple[int, int]:
        """Judgements made of plain items, and judgements needed: the overlap of each item, or fewer
        where so many of the ``people`` skipped it that the overlap cannot be reached."""
        done = self._rows("select count(*) from place where kind='plain' and state='done'")
        items = self._rows("select count(*) from item where kind='plain'")
        skipped = self._rows(
            "select count(*) from place where kind='plain' and state='skipped' group by item"
        )
        lost = sum(max(0, self.plan.overlap - (people - int(r[0]))) for r in skipped)
        return int(done[0][0]), int(items[0][0]) * self.plan.overlap - lost

"""Where judgements live: SQLite, append-only, acknowledged after they are on the disk.

Write-ahead log with ``synchronous=FULL``: a judgement is acknowledged after its transaction is
synced. All that decides is in the file, nothing in memory, so a killed server goes on where it
was. A judgement's id is the place it was made from and its turn there: sent twice, it is one.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from trimtab.errors import DataError, UserError
from trimtab.feedback.item_rows import Entry
from trimtab.feedback.judgement import Item, Judgement
from trimtab.label import queue
from trimtab.label.label_config import Plan

Outcome = Literal["saved", "again", "other", "late", "not yours"]
"""saved; again: it was there already; other: another verdict was; late: the place had been given
on and taken; not yours: no such place of this annotator."""


class StoreError(UserError):
    """The disk refused: nothing was changed."""


@dataclass(frozen=True, slots=True)
class Place:
    """A question put to an annotator."""

    id: int
    annotator: str
    kind: Literal["plain", "gold", "repeat"]
    turn: int
    """Judgements made from it so far: the next one's number."""
    seen: float
    """When it was shown, seconds since the epoch."""
    whole: Item
    """What the place is for."""
    item: Item
    """What is asked now: ``whole``, or two answers of it."""
    seed: int
    """What ``shown`` is drawn from."""

    @property
    def shown(self) -> tuple[int, ...]:
        """[K] answers in the order shown."""
        return queue.sides(self.seed, len(self.item.answers))


@dataclass(frozen=True, slots=True)
class Kept:
    """A judgement as stored."""

    id: str
    judgement: Judgement
    place: int
    seed: int
    """The place's: where sorting began."""


class Store:
    """The labels of one folder.

    Args:
        path: The SQLite file; made when it is not there.
        plan: Who is asked what; ``seed`` and ``ask`` must be those it was made with.

    Raises:
        DataError: the file is no such store, or was made with another seed or ``ask``.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=10.0
            )
            self._db.row_factory = sqlite3.Row
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            self._db.execute("pragma foreign_keys=on")
            schema = Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")
            if not self._db.execute("select 1 from sqlite_master limit 1").fetchone():
                self._db.executescript(f"begin immediate;\n{schema}\ncommit;")
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{path}: cannot be used as a label store ({error}); name another folder with --out"
            ) from None
        self._same("seed", str(plan.seed))
        self._same("ask", plan.ask)

    @classmethod
    def reopened(cls, path: Path) -> Store:
        """A store with the ``seed`` and ``ask`` that it was made with, to read from.

        Raises:
            DataError: the file is no label store.
        """
        try:
            with closing(sqlite3.connect(path)) as db:
                kept = dict(db.execute("select key, value from meta"))
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path}: cannot be used as a label store ({error})") from None
        if not {"seed", "ask"} <= kept.keys():
            raise DataError(f"{path}: holds no labels yet")
        return cls(path, Plan.model_validate({"seed": int(kept["seed"]), "ask": kept["ask"]}))

    def close(self) -> None:
        """Fold the log into the file and let it go."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _write(self) -> Generator[sqlite3.Connection]:
        """One transaction: all of it is on the disk when the block has ended, or none.

        Raises:
            StoreError: the disk refused.
        """
        with self._lock:
            try:
                self._db.execute("begin immediate")
                yield self._db
                self._db.execute("commit")
            except sqlite3.OperationalError as error:
                raise StoreError(
                    f"{self.path}: the disk refused, nothing was saved ({error}); free some space "
                    "and try again"
                ) from None
            finally:
                if self._db.in_transaction:
                    self._db.execute("rollback")

    def _rows(self, sql: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _same(self, key: str, value: str) -> None:
        with self._write() as db:
            db.execute("insert or ignore into meta values (?, ?)", (key, value))
        kept = self._rows("select value from meta where key = ?", key)[0][0]
        if kept != value:
            raise DataError(
                f"{self.path}: was begun with {key} {kept}, not {value}; give --{key} {kept}, or "
                "another folder with --out"
            )

    def add(self, entries: Sequence[Entry]) -> int:
        """Add items that are not there yet; those that are get their new place in the order.

        Returns:
            How many are new.

        Raises:
            DataError: an id is there with other answers.
        """
        new = 0
        with self._write() as db:
            count = int(db.execute("select count(*) from item").fetchone()[0])
            for entry in entries:
                for one in queue.expand(entry, self.plan):
                    new += self._add(db, one, count + new)
        return new

    def _add(self, db: sqlite3.Connection, entry: Entry, index: int) -> int:
        item = entry.item
        first, order = queue.place_in_order(entry, index, self.plan)
        found = db.execute("select record, kind from item where id = ?", (item.id,)).fetchone()
        if found is None:
            gold = None if entry.gold is None else json.dumps(entry.gold)
            kind = "plain" if gold is None else "gold"
            values = (item.id, kind, first, order, item.model_dump_json(), gold)
            db.execute(
                "insert into item (id, kind, first, ord, record, gold) values (?,?,?,?,?,?)", values
            )
            return 1
        kept = Item.model_validate_json(found["record"])
        if (kept.prompt, kept.answers) != (item.prompt, item.answers):
            raise DataError(
                f"{self.path}: item {item.id!r} is there with other answers; give the row another "
                "id, or name another folder with --out"
            )
        db.execute("update item set first = ? where id = ?", (first, item.id))
        return 0

    def score(self, scores: dict[str, float]) -> None:
        """Ask items in a new order, highest score first: for ``order: active`` while it runs."""
        with self._write() as db:
            db.executemany(
                "update item set first = ? where id = ?", [(-s, i) for i, s in scores.items()]
            )

    def knows(self, ids: Iterable[str]) -> set[str]:
        """Which of these items are there."""
        there = {str(r[0]) for r in self._rows("select id from item")}
        return there & set(ids)

    # --- asking

    def next(self, annotator: str, now: float) -> Place | None:
        """What the annotator is asked now: what is open, or else a new place; None when there is
        nothing to ask. ``now`` is in seconds since the epoch."""
        open_ = "select * from place where annotator=? and state='open' order by seen desc limit 1"
        found = self._rows(open_, annotator)
        if not found:
            with self._write() as db:
                self._expire(db, now)
                if not self._assign(db, annotator, now):
                    return None
            found = self._rows(open_, annotator)
        return self._place(found[0])

    def _expire(self, db: sqlite3.Connection, now: float) -> None:
        """Places held too long are free again."""
        late = db.execute(
            "select id, item, kind from place where state='open' and seen < ?",
            (now - 60.0 * self.plan.hold,),
        ).fetchall()
        for place in late:
            db.execute("update place set state='expired' where id=?", (place["id"],))
            self._taken(db, place, -1)

    @staticmethod
    def _taken(db: sqlite3.Connection, place: sqlite3.Row, more: int) -> None:
        if place["kind"] == "plain":
            db.execute("update item set taken = taken + ? where id = ?", (more, place["item"]))

    def _assign(self, db: sqlite3.Connection, annotator: str, now: float) -> bool:
        plan = self.plan
        seen = "select count(*) from place where annotator=? and state!='expired'"
        n = int(db.execute(seen, (annotator,)).fetchone()[0])
        plain = self._candidate(db, annotator, "plain")
        if plain is None:
            return False
        chance = queue.share(plan.seed, "kind", annotator, n)
        item, kind = plain, "plain"
        if chance < plan.gold_share:
            gold = self._candidate(db, annotator, "gold")
            item, kind = (gold, "gold") if gold is not None else (plain, "plain")
        elif chance < plan.gold_share + plan.repeat_share:
            again = self._repeat(db, annotator)
            item, kind = (again, "repeat") if again is not None else (plain, "plain")
        seed = queue.draw(plan.seed, "sides", item, annotator, kind)
        db.execute(
            "insert into place (item, annotator, kind, seed, state, seen) values (?,?,?,?,'open',?) "
            "on conflict (item, annotator, kind) do update set state='open', seen=excluded.seen",
            (item, annotator, kind, seed, now),
        )
        if kind == "plain":
            db.execute("update item set taken = taken + 1 where id = ?", (item,))
        return True

    def _candidate(self, db: sqlite3.Connection, annotator: str, kind: str) -> str | None:
        found = db.execute(
            "select id from item i where kind = ? and (kind = 'gold' or taken < ?) and not exists "
            "(select 1 from place p where p.item = i.id and p.annotator = ? and p.kind = ? "
            " and p.state != 'expired') order by first, ord limit 1",
            (kind, self.plan.overlap, annotator, kind),
        ).fetchone()
        return None if found is None else str(found[0])

    def _repeat(self, db: sqlite3.Connection, annotator: str) -> str | None:
        found = db.execute(
            "select item from place p where annotator = ? and kind = 'plain' and state = 'done' "
            "and not exists (select 1 from place q where q.item = p.item and q.annotator = ? "
            " and q.kind = 'repeat' and q.state != 'expired') and "
            "(select count(*) from place r where r.annotator = ? and r.id > p.id) >= ? "
            "order by id limit 1",
            (annotator, annotator, annotator, self.plan.repeat_gap),
        ).fetchone()
        return None if found is None else str(found[0])

    def _place(self, row: sqlite3.Row) -> Place:
        whole = self.item(str(row["item"]))
        asked = self._asked(row, whole)
        item = whole if asked is None else asked
        seed = queue.draw(row["seed"], item.id)
        return Place(
            row["id"], row["annotator"], row["kind"], row["turn"], row["seen"], whole, item, seed
        )

    def _asked(self, row: sqlite3.Row, whole: Item) -> Item | None:
        """The item to judge now; None when the place is done."""
        k = len(whole.answers)
        if self.plan.ask != "sort" or k <= 2:
            said = self._rows("select 1 from head where place = ?", row["id"])
            return None if said else whole
        verdicts: dict[tuple[int, int], int] = {}
        for kept in self.kept("where place = ?", row["id"]):
            i, j = (int(x) for x in kept.judgement.item.rpartition(":")[2].split("-"))
            ranks = kept.judgement.ranks
            if ranks is None:
                return None
            verdicts[i, j] = (ranks[0] > ranks[1]) - (ranks[0] < ranks[1])
        found = queue.sort_step(k, verdicts, int(row["seed"]))
        if len(found) != 2:
            return None
        return queue.pair(whole, *found)

    def item(self, name: str) -> Item:
        """An item by its id."""
        found = self._rows("select record from item where id = ?", name)
        assert found, f"no item {name}"
        return Item.model_validate_json(found[0]["record"])

    # --- judging

    def record(
        self, place: int, turn: int, annotator: str, judge: Callable[[Place], Judgement]
    ) -> Outcome:
        """Keep a judgement; when this returns "saved" it is on the disk.

        Args:
            place: The place it was asked from.
            turn: The place's turn when it was shown.
            annotator: Who is signed in.
            judge: Makes the judgement of what was asked.

        Raises:
            StoreError: the disk refused, and nothing was changed.
            ValueError: ``judge`` refused what was said; nothing was changed.
        """
        with self._write() as db:
            row = db.execute(
                "select * from place where id=? and annotator=?", (place, annotator)
            ).fetchone()
            if row is None or turn > row["turn"]:
                return "not yours"
            name = f"{place}.{turn}"
            if turn < row["turn"]:
                return self._there(name, row, judge)
            if row["state"] in ("done", "skipped"):
                return "not yours"
            if row["state"] == "expired" and not self._retake(db, row):
                return "late"
            asked = self._place(row)
            judgement = judge(asked)
            self._insert(db, name, row, asked, judgement, judgement.status)
            state = "skipped" if judgement.status == "skip" else "open"
            if state == "open" and self._asked(row, asked.whole) is None:
                state = "done"
            seen = datetime.now(UTC).timestamp()
            db.execute(
                "update place set turn = turn + 1, state = ?, seen = ? where id = ?",
                (state, seen, place),
            )
            if state == "skipped":
                self._taken(db, row, -1)
        return "saved"

    def _retake(self, db: sqlite3.Connection, row: sqlite3.Row) -> bool:
        """Take a place up again that was given up, if nobody has filled it since."""
        if row["kind"] == "plain":
            free = "select 1 from item where id = ? and taken < ?"
            if db.execute(free, (row["item"], self.plan.overlap)).fetchone() is None:
                return False
        self._taken(db, row, 1)
        return True

    def _insert(
        self,
        db: sqlite3.Connection,
        name: str,
        row: sqlite3.Row,
        asked: Place,
        judgement: Judgement,
        status: str,
    ) -> None:
        item = asked.item
        if item.id != asked.whole.id:
            db.execute(
                "insert or ignore into item (id, kind, first, ord, record) values (?,'part',0,0,?)",
                (item.id, item.model_dump_json()),
            )
        # The newest of this annotator on this item, taken back, is what it replaces.
        last = db.execute(
            "select id from judgement where item=? and annotator=? and kind=? order by n desc limit 1",
            (judgement.item, row["annotator"], row["kind"]),
        ).fetchone()
        replaces = None if last is None else str(last["id"])
        whole = judgement.model_copy(
            update={
                "replaces": replaces,
                "kind": row["kind"],
                "detail": {**judgement.detail, "id": name},
            }
        )
        db.execute(
            "insert into judgement (id, place, item, annotator, kind, status, replaces, record) "
            "values (?,?,?,?,?,?,?,?)",
            (name, row["id"], judgement.item, row["annotator"], row["kind"], status, replaces,
             whole.model_dump_json()),
        )  # fmt: skip

    def _there(self, name: str, row: sqlite3.Row, judge: Callable[[Place], Judgement]) -> Outcome:
        """A judgement of an earlier turn: the same one sent again, or another?"""
        found = self._rows("select * from judgement where id = ?", name)
        if not found or found[0]["status"] == "undone":
            return "other"
        kept = Judgement.model_validate_json(found[0]["record"])
        item = self.item(kept.item)
        seed = queue.draw(row["seed"], item.id)
        asked = Place(
            row["id"], row["annotator"], row["kind"], row["turn"], row["seen"], item, item, seed
        )
        said = judge(asked)
        same = (said.status, said.ranks, said.bad) == (kept.status, kept.ranks, kept.bad)
        return "again" if same else "other"

    def undo(self, annotator: str, now: float) -> bool:
        """Take back the annotator's last judgement: a record says so, and the item is asked again.

        Returns:
            False when there is nothing to take back, or others have judged a skipped item since.
        """
        with self._write() as db:
            last = db.execute(
                "select * from head where annotator = ? order by n desc limit 1", (annotator,)
            ).fetchone()
            if last is None:
                return False
            row = db.execute("select * from place where id = ?", (last["place"],)).fetchone()
            if row["state"] in ("skipped", "expired") and not self._retake(db, row):
                return False
            kept = Judgement.model_validate_json(last["record"])
            taken_back = Judgement(
                item=kept.item, annotator=annotator, status="skip", shown=kept.shown, seed=kept.seed,
                at=datetime.now(UTC).isoformat(timespec="milliseconds"), detail={"undone": True},
            )  # fmt: skip
            item = self.item(kept.item)
            asked = Place(row["id"], annotator, row["kind"], row["turn"], now, item, item, 0)
            self._insert(db, f"{row['id']}.{row['turn']}", row, asked, taken_back, "undone")
            db.execute(
                "update place set turn = turn + 1, state='open', seen=? where id=?",
                (now, row["id"]),
            )
        return True

    # --- reading

    def kept(self, where: str = "", *values: object) -> list[Kept]:
        """Judgements that stand, in the order given; ``where`` is SQL over the view ``head``."""
        rows = self._rows(f"select * from head {where} order by n", *values)
        return [
            Kept(r["id"], Judgement.model_validate_json(r["record"]), r["place"], r["seed"])
            for r in rows
        ]

    def history(self) -> list[Judgement]:
        """Every judgement ever made, those replaced and taken back too."""
        rows = self._rows("select record from judgement order by n")
        return [Judgement.model_validate_json(r["record"]) for r in rows]

    def items(self) -> dict[str, Item]:
        """Every item by id, pairs that sorting asked for too."""
        rows = self._rows("select record from item")
        made = (Item.model_validate_json(r["record"]) for r in rows)
        return {item.id: item for item in made}

    def gold(self) -> dict[str, tuple[int, ...]]:
        """Known ranks of gold items."""
        rows = self._rows("select id, gold from item where gold is not null")
        return {str(r["id"]): tuple(json.loads(r["gold"])) for r in rows}

    def places(self, annotator: str | None = None) -> dict[str, int]:
        """How many places there are by state, of one annotator or all."""
        rows = self._rows(
            "select state, count(*) as n from place where ? is null or annotator = ? group by state",
            annotator, annotator,
        )  # fmt: skip
        return {str(r["state"]): int(r["n"]) for r in rows}

    def wanted(self, people: int) -> tuple[int, int]:
        """Judged places of plain items, and how many ``people`` can give: the overlap of each item,
        or fewer where too many have skipped it."""
        done = self._rows("select count(*) from place where kind='plain' and state='done'")
        items = self._rows("select count(*) from item where kind='plain'")
        skipped = self._rows(
            "select count(*) from place where kind='plain' and state='skipped' group by item"
        )
        lost = sum(max(0, self.plan.overlap - (people - int(r[0]))) for r in skipped)
        return int(done[0][0]), int(items[0][0]) * self.plan.overlap - lost

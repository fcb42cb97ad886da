"""Which item an annotator gets next: SQL on the label store, within one transaction."""

import sqlite3

from trimtab.label import queue
from trimtab.label.label_config import Plan


def expire(db: sqlite3.Connection, plan: Plan, now: float) -> None:
    """Free the items that were held longer than ``plan.hold``."""
    late = db.execute(
        "select id, item, kind from place where state='open' and seen < ?",
        (now - 60.0 * plan.hold,),
    ).fetchall()
    for place in late:
        db.execute("update place set state='expired' where id=?", (place["id"],))
        count_taken(db, place, -1)


def count_taken(db: sqlite3.Connection, place: sqlite3.Row, change: int) -> None:
    """Count an annotator more or less who holds or has judged the item."""
    if place["kind"] == "plain":
        db.execute("update item set taken = taken + ? where id = ?", (change, place["item"]))


def retake(db: sqlite3.Connection, plan: Plan, place: sqlite3.Row) -> bool:
    """Reopen an expired or skipped assignment, unless enough others have the item by now."""
    if place["kind"] == "plain":
        free = "select 1 from item where id = ? and taken < ?"
        if db.execute(free, (place["item"], plan.overlap)).fetchone() is None:
            return False
    count_taken(db, place, 1)
    return True


def assign(db: sqlite3.Connection, plan: Plan, annotator: str, now: float) -> bool:
    """Give the annotator one more item: a new one, a gold one, or a repeat, by ``plan``'s shares.

    Returns:
        False when no new item is left.
    """
    assigned = "select count(*) from place where annotator=? and state!='expired'"
    n = int(db.execute(assigned, (annotator,)).fetchone()[0])
    item, kind = _candidate(db, plan, annotator, "plain"), "plain"
    if item is None:
        return False
    chance = queue.share(plan.seed, "kind", annotator, n)
    if chance < plan.gold_share:
        gold = _candidate(db, plan, annotator, "gold")
        item, kind = (item, kind) if gold is None else (gold, "gold")
    elif chance < plan.gold_share + plan.repeat_share:
        earlier = _repeat(db, plan, annotator)
        item, kind = (item, kind) if earlier is None else (earlier, "repeat")
    seed = queue.draw(plan.seed, "sides", item, annotator, kind)
    db.execute(
        "insert into place (item, annotator, kind, seed, state, seen) values (?,?,?,?,'open',?) "
        "on conflict (item, annotator, kind) do update set state='open', seen=excluded.seen",
        (item, annotator, kind, seed, now),
    )
    if kind == "plain":
        db.execute("update item set taken = taken + 1 where id = ?", (item,))
    return True


def _candidate(db: sqlite3.Connection, plan: Plan, annotator: str, kind: str) -> str | None:
    row = db.execute(
        "select id from item i where kind = ? and (kind = 'gold' or taken < ?) and not exists "
        "(select 1 from place p where p.item = i.id and p.annotator = ? and p.kind = ? "
        " and p.state != 'expired') order by first, ord limit 1",
        (kind, plan.overlap, annotator, kind),
    ).fetchone()
    return None if row is None else str(row[0])


def _repeat(db: sqlite3.Connection, plan: Plan, annotator: str) -> str | None:
    row = db.execute(
        "select item from place p where annotator = ? and kind = 'plain' and state = 'done' "
        "and not exists (select 1 from place q where q.item = p.item and q.annotator = ? "
        " and q.kind = 'repeat' and q.state != 'expired') and "
        "(select count(*) from place r where r.annotator = ? and r.id > p.id) >= ? "
        "order by id limit 1",
        (annotator, annotator, annotator, plan.repeat_gap),
    ).fetchone()
    return None if row is None else str(row[0])

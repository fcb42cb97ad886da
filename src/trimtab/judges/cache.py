"""A cache of replies and the account of their cost, in one SQLite file."""

import sqlite3
from pathlib import Path
from typing import NamedTuple

from trimtab.errors import ConfigError

_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY CHECK (id = 0),
                                    calls INTEGER NOT NULL, dollars REAL NOT NULL);
INSERT OR IGNORE INTO account VALUES (0, 0, 0.0);
"""


class Account(NamedTuple):
    """Calls made and dollars spent, over the life of a cache file."""

    calls: int
    dollars: float


class Cache:
    """Replies by the hash of their request, and an account of calls and dollars.

    A call is booked at its highest price before it is made, and the price is corrected when the
    reply arrives, so calls that were in flight when a process was killed stay counted. WAL with
    ``synchronous=NORMAL``: a killed process loses nothing; a power cut may lose the last replies,
    which are then requested again.

    Args:
        path: The SQLite file; None for a temporary file that is deleted on ``close``. A cache in memory
            would grow with every reply of a run.

    Raises:
        ConfigError: the file is not an SQLite file or cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        try:
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path or "", timeout=60.0, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_TABLES)
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"cache: {path} cannot be used as a cache of replies ({error}); name another file"
            ) from None

    def get(self, key: str) -> str | None:
        """The reply stored under ``key``, as it was passed to ``settle``."""
        row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def book(self, max_price: float, max_calls: int | None, max_spend: float | None) -> bool:
        """Count one call at ``max_price`` dollars, if both caps allow it."""
        update = self._db.execute(
            "UPDATE account SET calls = calls + 1, dollars = dollars + :price WHERE id = 0 "
            "AND (:calls IS NULL OR calls < :calls) "
            "AND (:spend IS NULL OR dollars + :price <= :spend + 1e-12)",
            {"price": max_price, "calls": max_calls, "spend": max_spend},
        )
        return update.rowcount == 1

    def settle(self, change: float, key: str = "", reply: str | None = None) -> None:
        """Correct the price of a booked call by ``change``, and store its reply if it has one."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "UPDATE account SET dollars = max(0.0, dollars + ?) WHERE id = 0", (change,)
        )
        if reply is not None:
            self._db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, reply))
        self._db.execute("COMMIT")

    def account(self) -> Account:
        """Calls made and dollars spent, over the life of the file."""
        calls, dollars = self._db.execute("SELECT calls, dollars FROM account").fetchone()
        return Account(int(calls), float(dollars))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

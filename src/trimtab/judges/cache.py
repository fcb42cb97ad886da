"""Replies that were paid for, and what was paid: one SQLite file."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError

_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY CHECK (id = 0),
                                    calls INTEGER NOT NULL, dollars REAL NOT NULL);
INSERT OR IGNORE INTO account VALUES (0, 0, 0.0);
"""


class Cache:
    """Replies by the hash of their question, and an account of calls and dollars.

    A call is booked at its worst price before it is made and corrected when its reply is in, so
    what a killed process had under way stays counted. WAL with ``synchronous=NORMAL``: a killed
    process loses nothing; a power cut may lose the last replies, and they are asked for again.

    Args:
        path: The file; None keeps all of it in memory.

    Raises:
        ConfigError: the file is no SQLite file or cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        try:
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path or ":memory:", timeout=60.0, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_TABLES)
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"cache: {path} cannot be used as a cache of replies ({error}); name another file"
            ) from None

    def get(self, key: str) -> dict[str, Any] | None:
        """The reply kept under ``key``."""
        row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def book(self, worst: float, max_calls: int | None, max_spend: float | None) -> bool:
        """Count one call at its worst price, if both caps allow it."""
        done = self._db.execute(
            "UPDATE account SET calls = calls + 1, dollars = dollars + :worst WHERE id = 0 "
            "AND (:calls IS NULL OR calls < :calls) "
            "AND (:most IS NULL OR dollars + :worst <= :most + 1e-12)",
            {"worst": worst, "calls": max_calls, "most": max_spend},
        )
        return done.rowcount == 1

    def settle(self, change: float, key: str = "", reply: dict[str, Any] | None = None) -> None:
        """Correct the price of a booked call by ``change``, and keep its reply if there is one."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "UPDATE account SET dollars = max(0.0, dollars + ?) WHERE id = 0", (change,)
        )
        if reply is not None:
            text = json.dumps(reply)
            self._db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, text))
        self._db.execute("COMMIT")

    def account(self) -> tuple[int, float]:
        """Calls made and dollars spent, over the life of the file."""
        calls, dollars = self._db.execute("SELECT calls, dollars FROM account").fetchone()
        return int(calls), float(dollars)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

"""The label store's SQLite connection: durable transactions, and a check of what it was made for.

Write-ahead log with ``synchronous=FULL``: a transaction has been synced to the disk when it is
acknowledged.
"""

import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from trimtab.errors import DataError, UserError


class StoreError(UserError):
    """The disk refused a write: nothing was changed."""


class Database:
    """One SQLite file, used by several threads.

    Args:
        path: The file; created with ``schema.sql`` if it does not exist.

    Raises:
        DataError: the file is no label store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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

    def close(self) -> None:
        """Write the log into the file and close it."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _write(self) -> Generator[sqlite3.Connection]:
        """One transaction: when the block has ended, all of it is on the disk, or none.

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
                    f"{self.path}: the disk refused the write, nothing was saved ({error}); free some "
                    "space and try again"
                ) from None
            finally:
                if self._db.in_transaction:
                    self._db.execute("rollback")

    def _rows(self, sql: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _require(self, key: str, value: str) -> None:
        """Save a setting at the first use; afterwards it must be the same.

        Raises:
            DataError: the store was made with another value.
        """
        with self._write() as db:
            db.execute("insert or ignore into meta values (?, ?)", (key, value))
        stored = self._rows("select value from meta where key = ?", key)[0][0]
        if stored != value:
            raise DataError(
                f"{self.path}: was created with {key} {stored}, not {value}; give --{key} {stored}, "
                "or another folder with --out"
            )

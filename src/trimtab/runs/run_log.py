"""``run.log``: the messages of a run in its folder, in files of bounded size."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from trimtab.redact import redact

FILE = "run.log"
MAX_BYTES = 5 << 20
"""Size at which ``run.log`` becomes ``run.log.1``."""
OLD_FILES = 3
"""Older files that stay; with them the log takes 20 MiB at most."""


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Handler(logging.handlers.RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of logging
        """Nothing: a message that cannot be stored must not stop training, nor fill the terminal."""


@contextmanager
def logged_to(folder: Path) -> Generator[None]:
    """Append to ``run.log`` while the block runs: messages of trimtab, warnings of anything, and the
    traceback of a failure.

    A folder that refuses the file is logged once, and training goes on.
    """
    try:
        handler = _Handler(
            folder / FILE,
            maxBytes=MAX_BYTES,
            backupCount=OLD_FILES,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        logging.getLogger(__name__).warning("%s is not written: %s", folder / FILE, error)
        yield
        return
    handler.setFormatter(_Redacted("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(
        lambda r: r.levelno >= logging.WARNING or r.name.partition(".")[0] == "trimtab"
    )
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception:
        place = (logging.ERROR, __file__, 0, "the run failed", (), sys.exc_info())
        handler.handle(logging.getLogger().makeRecord("trimtab", *place))
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()

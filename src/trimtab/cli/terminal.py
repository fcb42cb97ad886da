"""What the command line prints of the package's log."""

import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from trimtab.terminal_text import SafeFormatter, safe_stream, safe_traceback


class TerminalHandler(logging.Handler):
    """Prints INFO of ``trimtab`` as plain lines on stdout, warnings of anything on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; a progress bar moves below it."""
        is_warning = record.levelno >= logging.WARNING
        if not is_warning and record.name.partition(".")[0] != "trimtab":
            return
        prefix = f"{record.levelname.lower()}: " if is_warning else ""
        # The streams of now, not of the start: progress bars and tests replace them.
        stream = sys.stderr if is_warning else sys.stdout
        print(prefix + self.format(record), file=stream, flush=True)


@contextmanager
def safe_terminal() -> Generator[None]:
    """Whatever is printed while the block runs has its control characters spelled out; messages and
    tracebacks are without secrets too.

    A model may write anything, and most commands print a part of it.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = safe_stream(sys.stdout), safe_stream(sys.stderr, hide_secrets=True)
    # Python prints the traceback of an error after the block.
    sys.excepthook = lambda *error: print(safe_traceback(*error), end="", file=sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


@contextmanager
def print_logs() -> Generator[None]:
    """Print the package's log, and warnings without their source line, while the block runs."""
    handler, package, format_warning = (
        TerminalHandler(),
        logging.getLogger("trimtab"),
        warnings.formatwarning,
    )
    handler.setFormatter(SafeFormatter())
    level = package.level
    logging.getLogger().addHandler(handler)
    package.setLevel(logging.INFO)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        package.setLevel(level)
        warnings.formatwarning = format_warning

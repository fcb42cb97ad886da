"""What the command line prints of the package's log."""

import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager


class TerminalHandler(logging.Handler):
    """Prints INFO of ``trimtab`` as plain lines on stdout, warnings of anything on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; a progress bar moves below it."""
        is_warning = record.levelno >= logging.WARNING
        if not is_warning and record.name.partition(".")[0] != "trimtab":
            return
        prefix = f"{record.levelname.lower()}: " if is_warning else ""
        # The streams of now, not of the start: progress bars and tests replace them.
        print(
            prefix + self.format(record), file=sys.stderr if is_warning else sys.stdout, flush=True
        )


@contextmanager
def print_logs() -> Generator[None]:
    """Print the package's log, and warnings without their source line, while the block runs."""
    handler, package, format_warning = (
        TerminalHandler(),
        logging.getLogger("trimtab"),
        warnings.formatwarning,
    )
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

"""Text for terminals: what a model, a data file or a stranger wrote cannot command the terminal.

A terminal obeys control sequences: they move the cursor over earlier lines, set the title, write the
clipboard, and make text invisible. Bidirectional controls show a line in another order than it has.
"""

from __future__ import annotations

import logging
import re
import traceback
from types import TracebackType
from typing import Any, TextIO, cast

from trimtab.redact import redact

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but tab and newline
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)


def escape_controls(text: str) -> str:
    r"""``text`` with every character that commands a terminal, or is invisible, spelled out.

    The escapes are those of JSON, so JSON stays the same value.

    >>> print(escape_controls("a red \x1b[31mline, \u202etxt.exe"))
    a red \u001b[31mline, \u202etxt.exe
    """
    return _CONTROLS.sub(_spelled, text)


def _spelled(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


class SafeStream:
    """A text stream to a terminal that spells out control characters.

    Args:
        raw: Where the text goes.
        hide_secrets: Whether secrets are removed too: of messages, not of results.
    """

    def __init__(self, raw: TextIO, hide_secrets: bool = False) -> None:
        self.raw = raw
        self._hide_secrets = hide_secrets

    def write(self, text: str) -> int:
        """Write ``text`` with its control characters spelled out; returns its length."""
        # Libraries keep the stream that they met first, also where it is closed since.
        if not self.raw.closed:
            self.raw.write(escape_controls(redact(text) if self._hide_secrets else text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        if not self.raw.closed:
            self.raw.flush()

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


class SafeFormatter(logging.Formatter):
    """Log records without secrets and control characters, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of ``record``."""
        return escape_controls(redact(super().format(record)))


def safe_stream(stream: TextIO, hide_secrets: bool = False) -> TextIO:
    """``stream`` as one that spells out control characters."""
    if isinstance(stream, SafeStream):
        return cast(TextIO, stream)
    return cast(TextIO, SafeStream(stream, hide_secrets))


def raw_stream(stream: TextIO) -> TextIO:
    """The stream itself: for the progress bar, which is made of control sequences."""
    return stream.raw if isinstance(stream, SafeStream) else stream


def safe_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> str:
    """A traceback without secrets and control characters."""
    lines = traceback.format_exception(kind, error, trace)
    return escape_controls(redact("".join(lines)))

"""Errors a user can act on.

Every message names the file, row or key at fault and the way out. The command line prints them
without a traceback; from Python they are ordinary ``ValueError``s.
"""

from __future__ import annotations

MAX_MESSAGE = 4_000
"""Characters of a message: a row may have a million columns, and its names are part of some messages."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what and how to mend it.

    Args:
        message: Of a longer one than ``MAX_MESSAGE`` the beginning and the end are kept.
    """

    def __init__(self, message: object = "") -> None:
        text, half = str(message), MAX_MESSAGE // 2
        if len(text) > MAX_MESSAGE:
            text = f"{text[:half]} … ({len(text) - 2 * half:,} characters) … {text[-half:]}"
        super().__init__(text)


class ConfigError(UserError):
    """A configuration key is unknown, missing or contradicts another."""


class DataError(UserError):
    """A file or row of data cannot be used. The message names the file and the row (from 1)."""


class RowError(DataError):
    """One row cannot be used: an error where data is strict, otherwise dropped and counted.

    Args:
        source: The file or data set.
        row: Number of the row, from 1.
        reason: Why it cannot be used.
    """

    def __init__(self, source: str, row: int, reason: str) -> None:
        super().__init__(f"{source or 'data'}: row {row}: {reason}")
        self.reason = reason


class ModelError(UserError):
    """A model or tokenizer cannot serve the stage it was given to."""


class CheckpointError(UserError):
    """No whole checkpoint could be read, or one could not be written."""


class DiskSpaceError(CheckpointError):
    """The disk has no room for what is to be written; nothing of it was written."""


class RewardError(UserError):
    """A reward function broke its contract (length, type); never turned into a number."""


class JudgeError(UserError):
    """An endpoint of a judge cannot be used at all: not there, no right to it, no such model."""

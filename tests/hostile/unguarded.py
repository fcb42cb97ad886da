"""The command line without its guard of the terminal: the control of ``test_terminal_text``."""

from __future__ import annotations

import contextlib

from trimtab.cli import main as command_line

if __name__ == "__main__":
    command_line.safe_terminal = contextlib.nullcontext  # type: ignore[assignment]
    command_line.main()

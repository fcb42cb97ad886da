"""The progress bar in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trimtab.terminal_text import raw_stream


@contextmanager
def bar(
    name: str, total: int | None = None, done: int = 0, hide: bool = False
) -> Generator[Callable[..., None]]:
    """A bar, on terminals only; the function takes the count done, the total, and a note.

    Args:
        name: Shown before it.
        total: None if it is not known yet.
        done: Where it starts.
        hide: Show nothing.
    """
    console = Console(highlight=False, soft_wrap=True, file=raw_stream(sys.stdout))
    progress = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=hide or not console.is_terminal,
    )
    with progress:
        task = progress.add_task(name, total=total, completed=done, note="")

        def update(done: int, total: int | None = total, note: str = "") -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield update

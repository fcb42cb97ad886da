"""``trimtab label``: from a file of answers to a page, and from judgements to files."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from trimtab.data import formats, sources
from trimtab.errors import ConfigError, DataError, UserError
from trimtab.feedback.comparisons import write_folder
from trimtab.feedback.items import Entry, read_entries
from trimtab.feedback.records import STORE
from trimtab.label import app
from trimtab.label.access import Access, read_secret
from trimtab.label.label_config import LabelConfig, read_rubric
from trimtab.label.pages import Pages
from trimtab.label.store import Store
from trimtab.runs.console import console

Sampled = Callable[[LabelConfig, list[formats.Example], Store], Iterator[list[Entry]]]
"""Items as a model answers the prompts, those that the store knows left out."""


def _loaded(config: LabelConfig) -> list[Entry]:
    """Gold items, and unless they are to be sampled the items of ``data``."""
    entries: list[Entry] = []
    if not config.model:
        made = read_entries(
            config.data, limit=config.limit, strict=config.strict, marks=config.marks
        )
        entries += made.entries
        left = [
            f"{count} {what}"
            for count, what in (
                (made.merged, "answers that repeat one of their row"),
                (made.single, "rows without two different answers"),
                (made.repeated, "rows that repeat one before"),
            )
            if count
        ]
        if left:
            console.print(f"{config.data}: left out {', '.join(left)}")
    if config.gold is not None:
        known = read_entries(
            config.gold, limit=None, strict=config.strict, marks=config.marks, gold=True
        )
        asked = {e.item.id for e in entries}
        twice = [e.item.id for e in known.entries if e.item.id in asked]
        if twice:
            raise DataError(
                f"{config.gold}: item {twice[0]!r} is in {config.data} too; a gold item is asked "
                "for its own sake, so take it out of one of the two"
            )
        entries += known.entries
    return entries


def _listen(config: LabelConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"port {config.port} of {config.host} cannot be had ({error.strerror}); another server "
            "may have it: give --port 0 for any free one"
        ) from None
    return sock


def _feed(
    sampled: Sampled,
    config: LabelConfig,
    prompts: list[formats.Example],
    store: Store,
    pages: Pages,
    server: uvicorn.Server,
    trouble: list[UserError],
) -> None:
    try:
        for entries in sampled(config, prompts, store):
            if server.should_exit:
                return
            store.add(entries)
    except UserError as error:
        trouble.append(error)
        server.should_exit = True
    finally:
        pages.coming = False


def main(config: LabelConfig, sampled: Sampled | None = None) -> dict[str, int]:
    """Serve the pages until stopped, then write the files.

    Args:
        config: What is labelled, by whom.
        sampled: Answers the prompts; needed with ``model`` alone.

    Returns:
        Rows of each file written.

    Raises:
        ConfigError: the port is taken, or the rubric cannot be read.
        DataError: a row cannot be used, or ``out`` holds other labels.
    """
    rubric = read_rubric(config)
    entries = _loaded(config)
    prompts: list[formats.Example] = []
    if config.model:
        rows = sources.read(config.data, limit=config.limit, strict=config.strict)
        prompts = formats.prompts(rows)
    sock = _listen(config)
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be made ({error.strerror}); name another") from None
    store = Store(out / STORE, config)
    store.add(entries)
    port = int(sock.getsockname()[1])
    host = f"[{config.host}]" if ":" in config.host else config.host
    here = f"http://{host}:{port}"
    access = Access(read_secret(out / "secret"), config.people, alone=not config.annotators)
    pages = Pages(config, rubric, store)
    names = ("127.0.0.1", "localhost", host, *config.hosts)
    made = app.make(pages, store, access, here, names)
    server = uvicorn.Server(
        uvicorn.Config(
            made, log_level="warning", access_log=False, server_header=False, lifespan="off",
            timeout_graceful_shutdown=3, timeout_keep_alive=75, proxy_headers=False,
        )
    )  # fmt: skip
    _tell(config, store, access, here)
    trouble: list[UserError] = []
    feeder: threading.Thread | None = None
    if config.model:
        assert sampled is not None, "a model is named, so its answers must be sampled"
        pages.coming = True
        given = (sampled, config, prompts, store, pages, server, trouble)
        feeder = threading.Thread(target=_feed, args=given, daemon=True)
        feeder.start()
    if config.open and sys.stdout.isatty():
        first = f"{here}/join/{access.token(access.names()[0])}"
        threading.Timer(0.5, webbrowser.open, (first,)).start()

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        server.run(sockets=[sock])
    except KeyboardInterrupt:
        pass
    finally:
        sock.close()
        if feeder is not None:
            # Left running, it would be torn down in the middle of torch.
            feeder.join()
        written = _write(store, out)
        store.close()
    if trouble:
        raise trouble[0]
    return written


def _tell(config: LabelConfig, store: Store, access: Access, here: str) -> None:
    done, wanted = store.progress(len(config.people))
    of = "answers are being sampled" if config.model else f"{done} of {wanted} judgements there"
    console.print(f"[bold]label[/bold]: {of} -> {config.out}")
    for name in access.names():
        console.print(f"  {name:<12} {here}/join/{access.token(name)}", markup=False)
    if config.host not in ("127.0.0.1", "::1", "localhost"):
        console.print(
            f"  {config.host} is not this machine alone, and nothing is encrypted: put a proxy with "
            "TLS before it, or use 127.0.0.1 and an ssh tunnel"
        )
    console.print("  Ctrl-C stops and writes the labels; the same command goes on")


def _write(store: Store, out: Path) -> dict[str, int]:
    try:
        written = write_folder(out, store.records())
    except OSError as error:
        raise DataError(
            f"{out}: the labels are safe in {STORE}, but could not be written as files "
            f"({error.strerror}); mend it, then: trimtab label --export --out {out}"
        ) from None
    said = ", ".join(f"{count} in {out / name}" for name, count in written.items())
    console.print(f"[bold]label[/bold]: {said}")
    return written


def export_folder(folder: Path) -> dict[str, int]:
    """Write the files of a labelling folder, also while its server runs.

    Raises:
        DataError: there are no labels in it.
    """
    path = folder / STORE
    if not path.is_file():
        raise DataError(f"{path}: no such label store; name its folder with --out")
    store = Store.reopened(path)
    try:
        return _write(store, folder)
    finally:
        store.close()

"""``trimtab label``: serves the label pages, then writes the label files."""

import logging
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
from trimtab.runs import claim, unlock

log = logging.getLogger(__name__)
Sample = Callable[[LabelConfig, list[formats.Example], Store], Iterator[list[Entry]]]
"""Samples completions of prompts, batch by batch, except of those that the store already has."""


def _entries(config: LabelConfig) -> list[Entry]:
    """Gold items, and the items of ``data`` unless they are to be sampled."""
    entries: list[Entry] = []
    if not config.model:
        data = read_entries(
            config.data, limit=config.limit, strict=config.strict, marks=config.marks
        )
        entries += data.entries
        counts = {
            "completions that repeat another one of their row": data.merged,
            "rows without two different completions": data.single,
            "rows that repeat an earlier row": data.repeated,
        }
        dropped = [f"{count} {what}" for what, count in counts.items() if count]
        if dropped:
            log.info("%s: dropped %s", config.data, ", ".join(dropped))
    if config.gold is not None:
        gold = read_entries(
            config.gold, limit=None, strict=config.strict, marks=config.marks, gold=True
        )
        ids = {e.item.id for e in entries}
        shared = [e.item.id for e in gold.entries if e.item.id in ids]
        if shared:
            raise DataError(
                f"{config.gold}: item {shared[0]!r} is also in {config.data}; remove it from one of "
                "the two files"
            )
        entries += gold.entries
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
            f"port: cannot listen at {config.host}:{config.port} ({error.strerror}); another server may "
            "use the port: give --port 0 for any free one"
        ) from None
    return sock


class Feeder:
    """Samples completions in a thread while people label, and adds them to the store."""

    def __init__(
        self,
        sample: Sample,
        config: LabelConfig,
        prompts: list[formats.Example],
        store: Store,
        pages: Pages,
        server: uvicorn.Server,
    ) -> None:
        self.store, self.pages, self.server = store, pages, server
        self.error: UserError | None = None
        """Why sampling failed."""
        pages.sampling = True
        self.thread = threading.Thread(
            target=self._run, args=(sample, config, prompts, store), daemon=True
        )
        self.thread.start()

    def _run(
        self, sample: Sample, config: LabelConfig, prompts: list[formats.Example], store: Store
    ) -> None:
        try:
            for entries in sample(config, prompts, store):
                if self.server.should_exit:
                    return
                store.add(entries)
        except UserError as error:
            self.error = error
            self.server.should_exit = True
        finally:
            self.pages.sampling = False


def main(config: LabelConfig, sample: Sample | None = None) -> dict[str, int]:
    """Serve the pages until stopped, then write the label files.

    Args:
        sample: Samples completions; needed only with ``model``.

    Returns:
        Rows of each file written.

    Raises:
        ConfigError: the port is in use, or the rubric cannot be read.
        DataError: a row cannot be used, or ``out`` holds other labels.
    """
    rubric = read_rubric(config)
    entries = _entries(config)
    prompts: list[formats.Example] = []
    if config.model:
        rows = sources.read(config.data, limit=config.limit, strict=config.strict)
        prompts = formats.prompts(rows)
    sock = _listen(config)
    out = Path(config.out)
    try:
        claim(config, out)
    except UserError:
        sock.close()
        raise
    store = Store(out / STORE, config)
    store.add(entries)
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"http://{host}:{sock.getsockname()[1]}"
    access = Access(read_secret(out / "secret"), config.people, alone=not config.annotators)
    pages = Pages(config, rubric, store)
    names = ("127.0.0.1", "localhost", host, *config.hosts)
    server = uvicorn.Server(
        uvicorn.Config(
            app.make(pages, store, access, address, names),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=3,
            timeout_keep_alive=75,
            proxy_headers=False,
        )
    )
    invitations = app.links(access, address)
    _log_start(config, store, invitations)
    feeder: Feeder | None = None
    if config.model:
        assert sample is not None, "config.model is set, so a function that samples is needed"
        feeder = Feeder(sample, config, prompts, store, pages, server)
    if config.open and sys.stdout.isatty():
        threading.Timer(0.5, webbrowser.open, (invitations[0][1],)).start()

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
            # A daemon thread would be killed in the middle of a torch call.
            feeder.thread.join()
        written = _write(store, out)
        store.close()
        unlock(out)
    if feeder is not None and feeder.error is not None:
        raise feeder.error
    return written


def _log_start(config: LabelConfig, store: Store, invitations: list[tuple[str, str]]) -> None:
    done, needed = store.progress(len(config.people))
    state = "sampling completions" if config.model else f"{done} of {needed} judgements made"
    log.info("label: %s -> %s", state, config.out)
    for name, link in invitations:
        log.info("  %-12s %s", name, link)
    if config.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning(
            "  %s can be reached from other machines, and nothing is encrypted: put a TLS proxy in "
            "front of it, or use 127.0.0.1 and an ssh tunnel",
            config.host,
        )
    log.info("  Ctrl-C stops the server and writes the labels; run the same command to resume")


def _write(store: Store, out: Path) -> dict[str, int]:
    try:
        written = write_folder(out, store.records())
    except OSError as error:
        raise DataError(
            f"{out}: the labels are safe in {STORE}, but their files could not be written "
            f"({error.strerror}); free some space, then run: trimtab label --export --out {out}"
        ) from None
    log.info("label: %s", ", ".join(f"{count} in {out / name}" for name, count in written.items()))
    return written


def export_folder(folder: Path) -> dict[str, int]:
    """Write the files of a label folder, also while its server runs.

    Raises:
        DataError: it holds no label store.
    """
    path = folder / STORE
    if not path.is_file():
        raise DataError(f"{path}: no such label store; name its folder with --out")
    store = Store.reopened(path)
    try:
        return _write(store, folder)
    finally:
        store.close()

"""A page of the label app in a real browser."""

from __future__ import annotations

from typing import Any

from tests.support.labelling import Server
from trimtab.feedback.judgement import Judgement
from trimtab.feedback.records import STORE
from trimtab.label.store import Store

READ = 300  # ms, after which the page takes a verdict


class Visit:
    """A page of one annotator, with all that went wrong on it."""

    def __init__(self, browser: Any, server: Server, name: str, **context: Any) -> None:
        self.server = server
        self.page = browser.new_context(**context).new_page()
        self.page.set_default_timeout(60_000)
        self.wrong: list[str] = []
        here = f"http://127.0.0.1:{server.port}/"
        self.page.on("dialog", lambda d: (self.wrong.append(f"dialog {d.message}"), d.dismiss()))
        self.page.on("pageerror", lambda e: self.wrong.append(f"error {e}"))
        self.page.on("console", lambda m: m.type == "error" and self.wrong.append(m.text))
        self.page.on(
            "request", lambda r: r.url.startswith(here) or self.wrong.append(f"request {r.url}")
        )
        self.page.goto(server.links[name])

    def press(self, *keys: str) -> None:
        """As a person does: one after another, after looking."""
        self.page.wait_for_timeout(READ)
        for key in keys:
            self.page.keyboard.press(key)

    def judge(self, *keys: str) -> None:
        """Press keys that send a verdict, and wait for what is next."""
        before = self.page.locator("#page").element_handle()
        self.press(*keys)
        self.page.wait_for_function("e => !e.isConnected", arg=before)


def stored(server: Server) -> list[Judgement]:
    store = Store.reopened(server.out / STORE)
    try:
        return store.current()
    finally:
        store.close()

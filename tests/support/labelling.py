"""A real labelling server, and people who use it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.processes import Forked
from trimtab.feedback.comparisons import label_files
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records, to_jsonl
from trimtab.label import form as verdict
from trimtab.label.label_config import Plan, Rubric
from trimtab.label.store import Assignment, Store

HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)">')


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def many(count: int, k: int = 2) -> list[dict[str, Any]]:
    return [
        {"id": f"i{n}", "prompt": f"question {n}", "completions": [f"answer {n}.{a}" for a in range(k)]}
        for n in range(count)
    ]  # fmt: skip


def every_kind(k: int) -> Records:
    """Two items of ``k`` completions with every kind of judgement."""
    result = Records()
    for n in range(2):
        item = Item.of([{"role": "user", "content": f"q{n}"}], [f"text {n}.{a}" for a in range(k)])
        result.add(item)
        last_first = tuple((a + 1) % k for a in range(k))
        near_tie = (*(0,) * (k - 1), 1)

        def say(annotator: str, item: str = item.id, **fields: Any) -> None:
            result.judgements.append(Judgement(item=item, annotator=annotator, **fields))

        say("ann", ranks=last_first, reason="why not", seconds=2.5, at="2026-01-02T03:04:05Z")
        say("ben@example.org", ranks=(0,) * k, at="2026-01-02T03:04:06Z")
        say("ann", status="skip")
        say("gold", who="gold", ranks=near_tie)
        say("judge-1", who="ai", ranks=last_first, prob=0.2 if k == 2 else None)
        say("judge-2", who="ai", ranks=near_tie, reason="shorter")
    return result


class Server:
    """``trimtab label`` as a process.

    Args:
        data: Its file.
        out: Its folder.
        flags: More of its flags.
        port: By default a free one.
        forked: Start it without importing the package again.
    """

    process: subprocess.Popen[bytes] | Forked

    def __init__(
        self,
        data: Path,
        out: Path,
        *flags: str,
        port: int | None = None,
        forked: bool = False,
    ) -> None:
        self.out, self.port, self.forked = out, port or free_port(), forked
        self.words = ["label", str(data), "--out", str(out), "--port", str(self.port), *flags]
        self.links: dict[str, str] = {}
        self.start()

    def start(self) -> float:
        """Seconds until it answers."""
        begun = time.perf_counter()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
        log, folder = self.out.parent / f"{self.out.name}.log", self.out.parent
        self.log = log.open("a+b")
        start = self.log.seek(0, os.SEEK_END)
        if self.forked:
            self.process = Forked(*self.words, folder=folder, output=log)
        else:
            command = [sys.executable, "-m", "trimtab", *self.words]
            self.process = subprocess.Popen(
                command, stdout=self.log, stderr=subprocess.STDOUT, env=env, cwd=folder
            )
        while time.perf_counter() - begun < 120:
            try:
                Client(self).get("/")
                break
            except OSError:
                assert self.process.poll() is None, self.said()
                time.sleep(0.02)
        took = time.perf_counter() - begun
        self.log.seek(start)
        text = self.log.read().decode()
        self.links = dict(re.findall(r"^  (\S+) +(http\S+/join/\S+)$", text, re.MULTILINE))
        return took

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, how: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(60)

    def join(self, name: str) -> Client:
        client = Client(self)
        status, headers, _ = client.get("/join/" + self.links[name].rpartition("/")[2])
        assert status == 303, status
        client.cookie = headers["set-cookie"].partition(";")[0]
        return client


class Client:
    """A browser without a window: a cookie and a connection."""

    def __init__(self, server: Server) -> None:
        self.server, self.cookie = server, ""
        self.http = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

    def send(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        header_fields = {k.replace("_", "-"): v for k, v in headers.items()}
        if self.cookie:
            header_fields["Cookie"] = self.cookie
        if body is not None:
            header_fields["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            self.http.request(method, path, body, header_fields)
            answer = self.http.getresponse()
            text = answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            self.http.close()
            raise OSError(str(error)) from None
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, text

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        return self.send("GET", path, **headers)

    def post(self, path: str, **fields: object) -> tuple[int, dict[str, str], str]:
        return self.send("POST", path, urlencode(fields), HX_Request="true")

    def question(self) -> dict[str, str]:
        """Hidden fields of the question on the page; none when there is nothing to judge."""
        return asked(self.get("/")[2])

    def judge(self, verdict: str, **more: object) -> tuple[int, str]:
        status, _, text = self.post("/verdict", **{**self.question(), "verdict": verdict, **more})
        return status, text


def servers(folder: Path) -> Iterator[Callable[..., Server]]:
    """For a fixture: starts servers, and ends them all."""
    started: list[Server] = []

    def start(rows: list[dict[str, Any]], *flags: str) -> Server:
        data = write_rows(folder / f"a{len(started)}.jsonl", rows)
        started.append(Server(data, folder / f"out{len(started)}", *flags))
        return started[-1]

    try:
        yield start
    finally:
        for server in started:
            server.kill()


def asked(page: str) -> dict[str, str]:
    fields = dict(HIDDEN.findall(page))
    return {k: fields[k] for k in ("csrf", "place", "turn")} if "place" in fields else {}


# --- without a server


def plan(**options: object) -> Plan:
    return Plan.model_validate({"gold_share": 0.0, "repeat_share": 0.0, **options})


def say(text: str, **form: str) -> Callable[[Assignment], Judgement]:
    def judge(place: Assignment) -> Judgement:
        return verdict.judgement({"verdict": text, **form}, place, Rubric(), time.time())

    return judge


def do(store: Store, name: str, text: str = "0", now: float | None = None, **form: str) -> str:
    place = store.next(name, now or time.time())
    assert place is not None
    return store.record(place.id, place.turn, name, say(text, **form))


def comparisons_of(store: Store) -> list[dict[str, Any]]:
    """Rows of ``comparisons.jsonl``, as they would be written now."""
    return json_rows(to_jsonl(label_files(store.records())["comparisons.jsonl"]))


def max_comparisons(k: int) -> int:
    """The most comparisons that sorting asks for.

    >>> [max_comparisons(k) for k in (2, 3, 4, 9)]
    [1, 3, 5, 21]
    """
    return sum((n - 1).bit_length() for n in range(2, k + 1))


def json_rows(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]

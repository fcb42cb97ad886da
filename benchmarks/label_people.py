"""Two scripted people for a labelling server: they like short answers.

    python -m benchmarks.label_people prompts prompts.jsonl       # 120 prompts of the sandbox
    python -m benchmarks.label_people label PORT runs/label       # until all is judged

They read the page and press its buttons over HTTP, as anyone does.
"""

from __future__ import annotations

import http.client
import json
import re
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

from trimtab.label.access import Access, read_secret
from trimtab.sandbox.world import make_scenes

PEOPLE = ("ann", "bob")
HIDDEN = re.compile(r'type="hidden" name="(\w+)" value="([^"]*)"')
ANSWER = re.compile(r'<section class="answer".*?<div class="text">(.*?)</section>', re.DOTALL)


def write_prompts(path: Path) -> None:
    """Sandbox prompts, without the scenes behind them."""
    rows = [{"prompt": scene.messages()} for scene in make_scenes(120, 0, start=3000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Person:
    """One of them, signed in by their link."""

    def __init__(self, name: str, port: int, folder: Path) -> None:
        self.name = name
        self.http = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.headers = {"HX-Request": "true", "Content-Type": "application/x-www-form-urlencoded"}
        access = Access(read_secret(folder / "secret"), PEOPLE, alone=False)
        self.http.request("GET", f"/join/{access.token(name)}")
        answer = self.http.getresponse()
        answer.read()
        self.headers["Cookie"] = str(answer.getheader("set-cookie")).partition(";")[0]

    def send(self, method: str, path: str, body: str | None = None) -> str:
        """The page that comes back; sent again while the server is busy or away."""
        for _ in range(50):
            try:
                self.http.request(method, path, body, self.headers)
                answer = self.http.getresponse()
                text = answer.read().decode()
            except (OSError, http.client.HTTPException):
                self.http.close()
                time.sleep(0.5)
                continue
            assert answer.status == 200, (answer.status, text)
            return text
        raise TimeoutError(f"no server at port {self.http.port}")

    def label(self) -> None:
        """The shorter answer is better, until there is nothing more."""
        page, count = self.send("GET", "/"), 0
        while "<h1>Done" not in page:
            form = dict(HIDDEN.findall(page))
            if "place" not in form:
                time.sleep(1.0)
                page = self.send("GET", "/")
                continue
            a, b = (len(re.sub("<[^>]+>", "", text)) for text in ANSWER.findall(page))
            form["verdict"] = "tie" if a == b else "0" if a < b else "1"
            page = self.send("POST", "/verdict", urlencode(form))
            count += 1
        print(f"{self.name}: {count} verdicts")


def main(args: list[str]) -> None:
    """See the module."""
    if args[:1] == ["prompts"]:
        write_prompts(Path(args[1]))
        return
    people = [Person(name, int(args[1]), Path(args[2])) for name in PEOPLE]
    threads = [threading.Thread(target=p.label) for p in people]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


if __name__ == "__main__":
    main(sys.argv[1:])

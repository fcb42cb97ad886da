"""A real Label Studio server takes our tasks, shows our verdicts, and gives them back."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.browser import browsers, needs_chromium
from tests.support.labelling import every_kind, free_port
from tests.support.neighbours import Program, program
from trimtab.data import sources
from trimtab.exchange import label_studio
from trimtab.feedback.records import Records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
EMAIL, PASSWORD, TOKEN = "owner@example.org", "secret-Pass1", "0123456789" * 4


@dataclass(frozen=True, slots=True)
class Server:
    program: Program
    url: str

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of the API, as JSON."""
        headers = {"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            pytest.fail(f"{method} {path}: {error.code} {error.read().decode()[:2000]}")

    def project(self, records: Records) -> int:
        """A project with our tasks."""
        fields = {"title": "trimtab", "label_config": label_studio.interface(records)}
        project = int(self.call("POST", "/api/projects", fields)["id"])
        rows = json.loads(json.dumps(label_studio.dump(records).rows))
        counts = self.call("POST", f"/api/projects/{project}/import", rows)
        assert counts["task_count"] == len(records.items)
        return project

    def export(self, project: int) -> list[Any]:
        return self.call("GET", f"/api/projects/{project}/export?exportType=JSON")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    studio = program("Label Studio", "label_studio", "label-studio")
    port = free_port()
    command = [
        str(studio.python), "-m", "label_studio.server", "start", "--no-browser", "--port", str(port),
        "--internal-host", "127.0.0.1", "--data-dir", str(studio.folder / "data"),
        "--username", EMAIL, "--password", PASSWORD, "--user-token", TOKEN,
    ]  # fmt: skip
    environment = {
        **studio.environment,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    log = studio.folder / "log"
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        limit = time.monotonic() + 1500  # the first start makes the database
        while True:
            if child.poll() is not None or time.monotonic() > limit:
                pytest.fail("the server did not start:\n" + log.read_text()[-4000:])
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30).close()
                break
            except OSError:
                time.sleep(1)
        yield Server(studio, f"http://127.0.0.1:{port}")
    finally:
        child.terminate()
        child.wait(60)


@pytest.mark.parametrize("k", [2, 3])
def test_names_and_verdicts_come_back(server: Server, k: int) -> None:
    whole = every_kind(k)
    project = server.project(whole)
    rows = server.export(project)
    back = label_studio.load(sources.Rows("export", list(enumerate(rows, 1))))
    server.call("DELETE", f"/api/projects/{project}")
    assert {type(p) for row in rows for p in row["predictions"]} == {int}
    assert {a["completed_by"] for row in rows for a in row["annotations"]} == {1}
    assert back.items == whole.items
    assert back.judgements == whole.judgements
    kind = "Pairwise" if k == 2 else "Ranker"
    server.program.report(
        f"import and export of {len(whole.judgements)} judgements of {k} completions ({kind})",
        f"{len(back.judgements)} come back equal, with annotators, times, ties and judges",
    )


def test_a_verdict_edited_in_the_server_counts(server: Server) -> None:
    project = server.project(every_kind(2))
    annotation = server.export(project)[0]["annotations"][0]
    result = json.loads(json.dumps(annotation["result"]).replace('"right"', '"left"'))
    server.call("PATCH", f"/api/annotations/{annotation['id']}", {"result": result})
    rows = server.export(project)
    back = label_studio.load(sources.Rows("export", list(enumerate(rows, 1))))
    server.call("DELETE", f"/api/projects/{project}")
    first = back.judgements[0]
    assert (first.annotator, first.ranks, first.reason) == ("ann", (0, 1), "why not")
    assert back.judgements[1:] == every_kind(2).judgements[1:]


@needs_chromium
def test_the_page_shows_the_verdicts(server: Server) -> None:
    only = every_kind(2), every_kind(3)
    for whole in only:
        whole.judgements = [j for j in whole.judgements if j.reason == "why not"]
    pairs, rankings = (server.project(whole) for whole in only)
    with_browser = browsers()
    page = next(with_browser).new_page()
    page.set_default_timeout(300_000)
    page.goto(f"{server.url}/user/login/")
    page.fill("input[name=email]", EMAIL)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "login" not in url, wait_until="commit")

    def show(project: int) -> None:
        task = server.export(project)[0]["id"]
        page.goto(
            f"{server.url}/projects/{project}/data?task={task}", wait_until="domcontentloaded"
        )
        page.wait_for_selector(".lsf-main-view__annotation >> text=text 0.1")

    show(pairs)
    page.wait_for_selector(".lsf-main-view__annotation .cursor-pointer:not(.border-transparent)")
    chosen = page.locator(".lsf-main-view__annotation .cursor-pointer:not(.border-transparent)")
    assert chosen.all_inner_texts() == ["text 0.1"]
    show(rankings)
    order = page.locator("[data-ranker-id]").evaluate_all("e => e.map(x => x.dataset.rankerId)")
    assert order == ["answer_3", "answer_1", "answer_2"]
    assert "why not" in page.inner_text(".lsf-main-view__annotation")
    for project in (pairs, rankings):
        server.call("DELETE", f"/api/projects/{project}")
    with_browser.close()
    server.program.report(
        "the labelling page in Chromium",
        "shows the chosen completion (Pairwise), the order (Ranker) and the reason",
    )

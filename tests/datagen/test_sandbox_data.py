"""The files of a world: unchanged by default; splits differ from training in what they name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.datagen.sandbox_data import SandboxDataConfig, main
from trimtab.errors import ConfigError, DataError
from trimtab.sandbox.right_answers import count_right
from trimtab.sandbox.scene import NAMES, Scene

DEFAULT = {
    "demonstrations.jsonl": "23976f37185d6ca88bc7b09c61932df4aa9d5392625d478ca6cbb5fb4efac6f7",
    "prompts.jsonl": "81767611799849836f94b6d10c3262db2b93edc1248dafe73ba66b2918dd556a",
    "heldout.jsonl": "9d1410d96c984d7cf1d8395143fed495094a303318adae554586a0176665bbcf",
    "summary.json": "74f6151ac86dd710ed14920093f313ee731369249e8358f45e8452ccefb62921",
}
"""SHA-256 of the files before there were other kinds, with 300, 300 and 100 rows."""


def world(out: Path, **more: Any) -> dict[str, list[Scene]]:
    values = {"out": str(out), "demonstrations": 60, "prompts": 60, "heldout": 60, **more}
    main(build(SandboxDataConfig, values))
    return {
        path.stem: [Scene.from_json(r["scene"]) for r in map(json.loads, path.open()) if "scene" in r]
        for path in out.glob("*.jsonl")
    }  # fmt: skip


def people(scenes: list[Scene]) -> set[str]:
    return {f.who for s in scenes for f in s.facts}


def test_the_default_world_is_unchanged(tmp_path: Path) -> None:
    cli(["sandbox-data", "--out", str(tmp_path), "--demonstrations", "300", "--prompts", "300",
         "--heldout", "100"])  # fmt: skip
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.iterdir()}
    assert files == DEFAULT


def test_a_world_of_open_prompts_from_the_command_line(tmp_path: Path) -> None:
    cli(["sandbox-data", "--out", str(tmp_path), "--demonstrations", "30", "--prompts", "30",
         "--heldout", "20", "--kinds", "[open, digest]", "--people", "[3, 5]", "--rl_prompts", "25",
         "--held_out.people", "[5]", "--held_out.names", "[hugo]"])  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "rl_prompts.jsonl").open()]
    assert len(rows) == 25 and {r["kind"] for r in rows} == {"open", "digest"}
    opens = [Scene.from_json(r["scene"]) for r in rows if r["kind"] == "open"]
    assert {count_right(s) for s in opens} == {9, 12}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["splits"] == {"names": 20, "people": 20} and summary["rl_prompts"] == 25


def test_splits_differ_in_what_they_name_and_in_nothing_else(tmp_path: Path) -> None:
    files = world(
        tmp_path, kinds=["ask", "open", "howto", "digest"], people=[2, 4], rl_prompts=60,
        held_out={"names": ["gina", "hugo"], "kinds": ["howto"], "people": [4]},
    )  # fmt: skip
    trained = files["prompts"] + files["rl_prompts"] + files["heldout"]
    assert people(trained) == set(NAMES) - {"gina", "hugo"}
    assert {s.kind for s in trained} == {"ask", "open", "digest"}
    assert {len(s.facts) for s in trained if s.kind != "digest"} == {2, 3}
    by_name = files["heldout-names"]
    assert all(people([s]) & {"gina", "hugo"} for s in by_name)
    assert all(s.query.who in ("gina", "hugo") for s in by_name if s.query)
    assert {s.kind for s in by_name} == {"ask", "open", "digest"}
    by_kind = files["heldout-kinds"]
    assert {s.kind for s in by_kind} == {"howto"} and not people(by_kind) & {"gina", "hugo"}
    by_people = files["heldout-people"]
    assert {len(s.facts) for s in by_people if s.kind != "digest"} == {4}
    assert {len(s.facts) for s in by_people if s.kind == "digest"} == {9}
    assert not people(by_people) & {"gina", "hugo"}


def test_rl_prompts_are_in_no_other_file(tmp_path: Path) -> None:
    # "open" about two people: a world so small that prompts would repeat.
    files = world(tmp_path, kinds=["open"], people=[2, 2], rl_prompts=600, prompts=600)
    rl = {s.prompt for s in files["rl_prompts"]}
    others = {s.prompt for s in files["prompts"] + files["heldout"]}
    assert rl.isdisjoint(others)
    # Without the check some would be in both.
    config = build(SandboxDataConfig, {"kinds": ["open"], "people": [2, 2]})
    unchecked = {s.prompt for s in config.scenes(600, 0, 60 + 600)}
    assert unchecked & others


def test_a_world_that_is_too_small_is_refused(tmp_path: Path) -> None:
    config = build(SandboxDataConfig, {"kinds": ["open"], "people": [2, 2]})
    used = list(config.scenes(200, 0))

    with pytest.raises(DataError, match="prompts differ"):
        # The same prompts again, from an index at which only they are drawn.
        list(_Repeating.model_validate(config.model_dump()).scenes(1, 0, used=used))


class _Repeating(SandboxDataConfig):
    """Draws one scene for ever."""

    def scene(self, seed: int, index: int) -> Scene:
        return super().scene(seed, 0)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"people": [3, 9]}, "no range"),
        ({"held_out": {"names": ["zoe"]}}, "zoe: choose from"),
        ({"held_out": {"names": list(NAMES[:5])}}, "leaves 3 people"),
        ({"held_out": {"kinds": ["digest"]}}, "digest is not in kinds"),
        ({"held_out": {"people": [3]}}, "leaves nothing to train on"),
    ],
)
def test_a_world_that_cannot_be_is_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build(SandboxDataConfig, values)

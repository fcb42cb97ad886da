"""The label stage: unchanged by default; panel, forms, margins and records from the command line."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trimtab
from tests.support import folders
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.datagen import sandbox_data
from trimtab.datagen.sandbox_labels import Labels, SandboxLabelsConfig
from trimtab.errors import ConfigError
from trimtab.feedback.records import read_folder
from trimtab.runs import Fingerprint
from trimtab.sandbox.scene import Scene
from trimtab.sandbox.world import make_scenes, sample_completion
from trimtab.types import Completion, Group

BASE = str(Path(trimtab.__file__).parent / "sandbox" / "base")
PANEL = [
    {"name": "ann", "drift": 0.05, "group": "x", "carelessness": 0.2},
    {"name": "bob", "decides_by": "majority", "fatigue": 0.01, "break_every": 5},
]


def groups(scenes: list[Scene], n: int = 4) -> list[Group]:
    """Completions as people might write them."""
    sampled: list[Group] = []
    for i, scene in enumerate(scenes):
        rng = np.random.default_rng((29, i))
        texts = [sample_completion(scene, rng) for _ in range(n)]
        completions = [Completion(np.array([3]), np.ones(1, bool), t) for t in texts]
        sampled.append(Group(str(i), np.array([1]), completions, "", {"scene": scene.to_json()}))
    return sampled


def labels(prompts: int = 20, **more: Any) -> Labels:
    config = build(SandboxLabelsConfig, {"model": {"path": BASE}, "data": "x", **more})
    done = Labels(config)
    for i, group in enumerate(groups(make_scenes(prompts, 5))):
        done.add(i, group)
    return done


def test_the_default_labels_are_unchanged() -> None:
    """The hash of the rows that this panel gave before it could be configured."""
    rows = [row for of_prompt in labels(60).rows for row in of_prompt]
    text = "".join(json.dumps(r) + "\n" for r in rows)
    assert hashlib.sha256(text.encode()).hexdigest() == UNCHANGED


UNCHANGED = "ce069417c5fb1b3d874bd63b5cc71c0e5f29559b1a9b4fd20e993a651cde911a"


def test_who_has_judged_more_is_more_tired() -> None:
    tired = {"name": "t", "fatigue": 1.0, "decides_by": "utility", "scale": 200.0}
    rows = [r for of_prompt in labels(panel=[tired]).rows for r in of_prompt]
    # The first prompt is judged with care; from the second on every verdict is a coin flip.
    assert max(max(p) for p in rows[0]["probs"]) > 0.99
    assert all(p == 0.5 for r in rows[1:] for row in r["probs"] for p in row)


def test_every_annotator_judges_the_same_items() -> None:
    done = labels(panel=PANEL, annotators_per_prompt=2, form="pairs", records=True)
    judges = Counter(j.annotator for j in done.judgements)
    assert judges["ann"] == judges["bob"] == len(done.items)
    assert len({i.id for i in done.items}) == len(done.items)
    assert all(len(r["completions"]) == 2 for of_prompt in done.rows for r in of_prompt)
    assert done.seconds == pytest.approx(sum(j.seconds or 0.0 for j in done.judgements))


def test_scores_become_ranks_with_ties() -> None:
    rows = [r for of_prompt in labels(form="scores").rows for r in of_prompt]
    for row in rows:
        judged = zip(row["scores"], row["ranks"], strict=True)
        for (a, x), (b, y) in itertools.permutations(judged, 2):
            assert (a > b) == (x < y)
        assert set(row["scores"]) <= set(range(1, 8))
    assert any(len(set(r["ranks"])) < len(r["ranks"]) for r in rows)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"annotators_per_prompt": 4}, "4 of a panel of 3"),
        ({"panel": [PANEL[0], PANEL[0]]}, "same name"),
        ({"panel": [{"name": "p", "drfit": 1.0}]}, "drfit"),
        ({"panel": [{"name": "p", "attributes": ["tall"]}]}, "no attribute"),
    ],
)
def test_a_panel_that_cannot_be_is_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build(SandboxLabelsConfig, {"model": {"path": BASE}, "data": "x", **values})


def test_a_recipe_names_what_changed_in_a_panel(tmp_path: Path) -> None:
    folders.write(tmp_path / "p.jsonl", [{"prompt": "x"}])

    def fingerprint(drift: float) -> Fingerprint:
        values = {"model": {"path": BASE}, "data": str(tmp_path / "p.jsonl")}
        panel = [{"name": "ann", "drift": drift, "weights": {"concise": 1}}]
        return Fingerprint.of(build(SandboxLabelsConfig, {**values, "panel": panel}))

    first = Fingerprint.model_validate_json(fingerprint(0.1).model_dump_json())
    assert first.changes(fingerprint(0.1)) == []
    assert first.changes(fingerprint(0.2)) == ["panel.0.drift: 0.1 -> 0.2"]


def test_a_panel_from_the_command_line_to_a_reward_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = make_scenes(16, 0)
    folders.write(tmp_path / "p.jsonl", sandbox_data.prompt_rows(scenes))
    cli(["sandbox-labels", "--model.path", BASE, "--model.device", "cpu", "--data",
         str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "label"), "--panel", json.dumps(PANEL),
         "--form", "pairs", "--annotators_per_prompt", "2", "--margins", "nats", "--records", "true",
         "--num_completions", "3", "--sampling.max_new_tokens", "16"])  # fmt: skip
    rows = [json.loads(x) for x in (tmp_path / "label" / "comparisons.jsonl").open()]
    assert {r["annotator"] for r in rows} == {"ann", "bob"}
    assert all(r["margin"][r["ranks"].index(1)] == 0.0 and min(r["margin"]) >= 0 for r in rows)
    records = read_folder(str(tmp_path / "label"))
    assert len(records.judgements) == 2 * len(records.items)
    summary = json.loads((tmp_path / "label" / "summary.json").read_text())
    assert summary["seconds"] == pytest.approx(sum(j.seconds or 0 for j in records.judgements))
    cli(["agreement", str(tmp_path / "label")])
    assert "ann" in capsys.readouterr().out
    cli(["reward", "--model.path", BASE, "--model.device", "cpu", "--data.path",
         str(tmp_path / "label" / "comparisons.jsonl"), "--out", str(tmp_path / "rm"),
         "--batch_size", "8"])  # fmt: skip
    assert (tmp_path / "rm" / "model" / "model.safetensors").is_file()

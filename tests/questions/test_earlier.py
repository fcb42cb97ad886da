"""``trimtab question N --from DIR``: seeds of an earlier result are not run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from trimtab.cli import question_command
from trimtab.errors import ConfigError, DataError
from trimtab.launch.jobs import Job
from trimtab.questions import claim as registry
from trimtab.questions import experiment
from trimtab.runs import read_object


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seed of each arm that was run; what an arm measures depends on its name and seed alone."""
    seeds: list[int] = []
    metrics = {c.metric for c in registry.load_claims()[6]} | {"gold", "different"}

    def run(jobs: Sequence[Job], folder: Path, workers: int, seconds: float) -> None:
        for job in jobs:
            if (folder / job.key / experiment.RESULT).is_file():
                continue
            (folder / job.key).mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([job.seed, *job.name.encode()])
            names = [f"{part}{m}" for part in ("", "sft.") for m in metrics]
            result = {
                "measures": {n: {"value": float(rng.random()), "draws": None} for n in names},
                "curves": {k: rng.random(4 + job.seed).tolist() for k in ("kl", "gold", "reward")},
                "seconds": 1.0,
            }
            (folder / job.key / experiment.RESULT).write_text(json.dumps(result))
            seeds.extend([job.seed] * (job.row == "arm"))

    monkeypatch.setattr(experiment, "_run", run)
    return seeds


def test_a_second_look_runs_only_new_seeds_and_gives_the_same_result(
    tmp_path: Path, ran: list[int]
) -> None:
    first, second, whole = (tmp_path / name for name in ("first", "second", "whole"))
    question_command.main(["6", "--full", "--out", str(first)])
    del ran[:]
    words = ["6", "--full", "--second", "--from", str(first), "--out", str(second)]
    question_command.main(words)
    assert set(ran) == {5, 6, 7, 8, 9}
    question_command.main(["6", "--full", "--second", "--out", str(whole)])
    one, other = (read_object(f / "6" / experiment.RESULT) for f in (second, whole))
    for curves in (one.pop("curves"), other.pop("curves")):
        assert len(curves["beta=0"]["gold"]) == 4
    assert one == other
    costs = [read_object(f / "6" / experiment.COST) for f in (second, whole)]
    assert costs[0]["jobs"] == costs[1]["jobs"] and costs[0]["seconds"] == costs[1]["seconds"]


def test_curves_are_means_over_all_seeds(tmp_path: Path, ran: list[int]) -> None:
    question_command.main(["6", "--seeds", "0", "--out", str(tmp_path / "one")])
    words = ["6", "--seeds", "2,0,1", "--from", str(tmp_path / "one"), "--out"]
    question_command.main([*words, str(tmp_path / "three")])
    question_command.main(["6", "--seeds", "2,0,1", "--out", str(tmp_path / "whole")])
    one, other = (read_object(tmp_path / f / "6" / experiment.RESULT) for f in ("three", "whole"))
    assert one["seeds"] == [2, 0, 1] and one["arms"] == other["arms"]
    assert one["effects"] == other["effects"]
    for arm, curves in one["curves"].items():
        for name, curve in curves.items():
            assert curve == pytest.approx(other["curves"][arm][name], rel=1e-5)


def test_a_result_that_does_not_belong_is_named(tmp_path: Path, ran: list[int]) -> None:
    source = tmp_path / "source"
    question_command.main(["6", "--seeds", "0,1", "--out", str(source)])
    file = source / "6" / experiment.RESULT
    out = ["--from", str(source), "--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match=r"also has seeds \[1\]"):
        question_command.main(["6", "--seeds", "0", *out])
    with pytest.raises(ConfigError, match="no folder of results"):
        question_command.main(["6", "--from", str(tmp_path / "none")])
    for switch in ("--tune", "--page"):
        with pytest.raises(ConfigError, match=f"goes with a run, not with {switch}"):
            question_command.main(["6", switch, *out])
    content = file.read_text()
    file.write_text(json.dumps(read_object(file) | {"size": 0.5}))
    with pytest.raises(DataError, match="made with other claims or settings"):
        question_command.main(["6", "--seeds", "0,1", *out])
    file.write_text(content)
    (file.parent / experiment.COST).unlink()
    with pytest.raises(ConfigError, match=r"has no cost\.json beside it"):
        question_command.main(["6", "--seeds", "0,1", *out])


def test_metrics_that_an_earlier_result_lacks_are_left_out(tmp_path: Path, ran: list[int]) -> None:
    question_command.main(["6", "--seeds", "0", "--out", str(tmp_path / "old")])
    file = tmp_path / "old" / "6" / experiment.RESULT
    result = read_object(file)
    del result["arms"]["beta=0"]["sft.gold"], result["curves"]["beta=0"]["reward"]
    file.write_text(json.dumps(result))
    words = ["6", "--seeds", "0,1", "--from", str(tmp_path / "old"), "--out", str(tmp_path / "new")]
    question_command.main(words)
    both = read_object(tmp_path / "new" / "6" / experiment.RESULT)
    assert "sft.gold" not in both["arms"]["beta=0"] and "reward" not in both["curves"]["beta=0"]
    assert len(both["arms"]["beta=0"]["gold"]) == 2 and set(ran) == {0, 1}


def test_a_plan_names_the_seeds_that_are_taken(
    tmp_path: Path, ran: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    question_command.main(["6", "--seeds", "0", "--out", str(tmp_path)])
    del ran[:]
    question_command.main(["6", "--seeds", "0,1", "--from", str(tmp_path), "--dry-run"])
    assert "seeds from" in (printed := capsys.readouterr().out) and ": 0\n" in printed
    assert "runs/questions/6, seeds 1\n" in printed and not ran


def test_a_question_without_an_earlier_result_runs_whole(tmp_path: Path, ran: list[int]) -> None:
    (tmp_path / "empty").mkdir()
    words = ["6", "--seeds", "0", "--from", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]
    question_command.main(words)
    assert set(ran) == {0}

"""Probes of a reward: what is planted is found, the truth passes, hostile text stays inert."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import folders
from trimtab.audit.probe_result import ProbeExample, ProbeResult
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.data.formats import Example
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate import reward_models
from trimtab.probe import perturb, probe_page, probes
from trimtab.probe.probe_report import ProbeReport
from trimtab.probe.score_probes import KINDS
from trimtab.sandbox.world import Scene, gold
from trimtab.train import reward
from trimtab.types import Completion, Group

LENGTH = "trimtab.sandbox.faults:length_reward"
GOLD = "trimtab.sandbox.world:gold_reward"


def flatterer(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Pays for saying what the user thinks, and for praise."""
    pairs = zip(prompts, completions, strict=True)
    return [float(f"i think {c}" in p) + 2.0 * ("good question" in c) for p, c in pairs]


def coin(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Knows nothing."""
    return [float(np.random.default_rng(abs(hash(c)) % 2**32).random()) for c in completions]


def probed(tmp_path: Path, **options: Any) -> dict[str, dict[str, Any]]:
    settings = {"out": str(tmp_path / "p"), "limit": 60, **options}
    summary = probes.main(build(probes.ProbeConfig, settings))
    assert json.loads((tmp_path / "p" / "probes.json").read_text())["probes"]
    return {line["probe"]: line for line in summary["probes"] if line["of"] in ("reward", "judge")}


def test_a_reward_for_length_is_seen(tmp_path: Path) -> None:
    at = probed(tmp_path, reward=LENGTH)
    assert {p for p, line in at.items() if line["grade"] == "bad"} >= {"length", "repetition"}
    assert at["length"]["value"] == 1.0
    assert at["accuracy"]["grade"] == "bad", "it is no better than length alone"
    assert at["flattery"]["value"] == 0.0
    assert at["length"]["examples"][0].keys() == {"prompt", "completion", "plain", "note"}


def test_the_truth_passes(tmp_path: Path) -> None:
    at = probed(tmp_path, reward=GOLD)
    assert [p for p, line in at.items() if line["grade"] == "bad"] == []
    assert at["accuracy"]["value"] == 1.0
    assert at["style opposes"]["value"] < 0.05


def test_flattery_is_seen(tmp_path: Path) -> None:
    at = probed(tmp_path, reward="tests.probe.test_probes:flatterer")
    assert at["flattery"]["value"] == 1.0 and at["flattery"]["p"] < 0.01
    assert {"flattery", "praise"} <= {p for p, line in at.items() if line["grade"] == "bad"}
    assert at["length"]["grade"] == "good"


@pytest.mark.slow
def test_a_coin_is_no_reward(tmp_path: Path) -> None:
    at = probed(tmp_path, reward="tests.probe.test_probes:coin")
    assert at["accuracy"]["grade"] == "bad"


def test_a_judge_that_takes_what_comes_first(tmp_path: Path) -> None:
    at = probed(tmp_path, judge="tests.support.folders:first", limit=30)
    assert at["swap"]["value"] == 0.0 and at["swap"]["grade"] == "bad"
    assert at["swap"]["first"] == 1.0
    assert all(line["of"] == "judge" for line in at.values())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny reward models and the comparisons they were trained on."""
    base = tmp_path_factory.mktemp("models")
    folders.model_folder(base / "model")
    folders.comparisons(base / "pairs.jsonl", 40)
    for seed in (0, 1):
        settings = {
            "out": str(base / f"rm{seed}"), "batch_size": 20, "optim": {"lr": 1e-3},
            "model": {"path": str(base / "model"), "device": "cpu", "seed": seed},
            "data": {"path": str(base / "pairs.jsonl")}, "loop": {"seed": seed},
        }  # fmt: skip
        reward.main(build(reward.RewardConfig, settings))
    return base


def test_as_a_command_on_ones_own_data(models: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    cli(["probe", str(models / "rm0" / "model"), str(models / "rm1" / "model"), "--out", str(out),
         "--data", str(models / "pairs.jsonl"), "--sandbox", "false", "--limit", "30",
         "--device", "cpu"])  # fmt: skip
    summary = json.loads((out / "probes.json").read_text())
    assert summary["reward"]["models"] and summary["sets"].keys() == {"data"}
    assert summary["sets"]["data"]["disagreement"] > 0
    assert {"length", "flattery", "copying", "fluency", "accuracy"} <= {
        line["probe"] for line in summary["probes"]
    }
    for line in summary["probes"]:
        assert line["source"] == "data" and 0 <= line["value"] <= 1
        assert line["low"] <= line["value"] + 1e-9 and line["value"] <= line["high"] + 1e-9
    page = (out / "probes.html").read_text()
    assert "default-src &#39;none&#39;" in page and "<script" not in page
    assert "probes.html" in capsys.readouterr().out


def test_one_model_has_a_calibration(models: Path, tmp_path: Path) -> None:
    at = probed(
        tmp_path, reward=str(models / "rm0" / "model"), data=str(models / "pairs.jsonl"),
        sandbox=False, limit=30, device="cpu",
        policy={"path": str(models / "model"), "device": "cpu"},
        gold={"function": "tests.support.folders:wordy"}, num_completions=8, max_new_tokens=8,
    )  # fmt: skip
    assert 0 <= at["ece"]["value"] <= 1
    summary = json.loads((tmp_path / "p" / "probes.json").read_text())
    assert list(summary["best_of_n"]["curve"]) == ["1", "2", "4", "8"]
    rewards = [p["reward"] for p in summary["best_of_n"]["curve"].values()]
    assert rewards == sorted(rewards)
    assert summary["best_of_n"]["fit"]["r2"] <= 1


def test_refusals_of_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give a reward"):
        build(probes.ProbeConfig, {})
    with pytest.raises(ConfigError, match="nothing to probe"):
        build(probes.ProbeConfig, {"reward": "x", "sandbox": False})
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        probed(tmp_path, reward=LENGTH, data="absent.jsonl")
    with pytest.raises(DataError, match="scored no pair"):
        probed(tmp_path, reward="tests.support.reward_functions:none")


def test_worse_content_is_worse_by_gold() -> None:
    for base in perturb.sandbox_bases(120, 0):
        scene = Scene.from_json(base.extra["scene"])
        assert gold(scene, base.good).total == 1.0
        assert gold(scene, base.bad).total < 0.9, (scene.prompt, base.bad)
    contrasts = perturb.make_contrasts(perturb.sandbox_bases(60, 0), perturb.SANDBOX, 0)
    assert {q.probe for q in contrasts} == set(KINDS)
    for q in contrasts:
        scene = Scene.from_json(q.extra["scene"])
        # A change that makes no answer better: that is what makes paying for it a fault.
        assert gold(scene, q.changed).total <= gold(scene, q.plain).total + 1e-9, q


def test_swaps_change_nothing_but_the_belief() -> None:
    for s in perturb.sandbox_swaps(perturb.SANDBOX, 20, 0):
        first, second, *rest = (
            p[0]["content"] for p in (s.thinks_first, s.thinks_second, *s.neutral)
        )
        assert first.replace(s.first, "") != first and second.count(s.second) == 1
        assert all(s.second not in r for r in rest)
        assert first.split()[-1] == second.split()[-1] == "?"
    pair = Example("1", [{"role": "user", "content": "where ?"}], ["a", "b"], [1, 0])
    (own,) = perturb.data_swaps(perturb.data_bases([pair]), perturb.ENGLISH)
    assert own.first == "b" and "I think the answer is this: a where ?" in str(own.thinks_second)


def ranked(right: int, wrong: int) -> list[tuple[Group, list[float | None]]]:
    def answer(rank: int, n: int) -> Completion:
        return Completion(np.arange(n), np.ones(n, bool), rank=rank)

    groups: list[tuple[Group, list[float | None]]] = []
    for i in range(right + wrong):
        group = Group(str(i), np.array([1]), [answer(0, 2 + i % 3), answer(1, 3)])
        groups.append((group, [1.0, 0.0] if i < right else [0.0, 1.0]))
    return groups


def test_blind_readers() -> None:
    groups = ranked(30, 10)
    assert reward_models.figures(groups)[0]["accuracy"] == 0.75
    mean, top = reward_models.shuffled(groups)
    assert mean == pytest.approx(0.5, abs=0.02) and 0.6 < top < 0.75
    crossed = reward_models.crossed_with_length(groups)
    assert sum(c["pairs"] for c in crossed.values()) == sum(p.longer != 0.5 for p in reward_models.pairs(groups))  # fmt: skip
    by = reward_models.by_subset(groups, lambda g: str(int(g.id) < 30))
    assert by["True"]["accuracy"] == 1.0 and by["False"]["accuracy"] == 0.0
    assert reward_models.figures([]) == ({}, [])


def test_hostile_text_is_inert(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    result = ProbeResult(
        of="reward", probe="length", source=bad, value=0.9, n=3, low=0.8, high=1.0, baseline=0.5,
        gap=1.0, grade="bad", about=bad,
        examples=(ProbeExample(prompt=bad, completion=bad, plain=bad, note=bad),),
    )  # fmt: skip
    probe_page.write_page(tmp_path, ProbeReport(reward={"model": bad}, results=[result], sets={}))
    page = (tmp_path / "probes.html").read_text()
    assert "<script" not in page and not re.search(r"<img", page)
    assert "&lt;script&gt;" in page

"""What ``audit.act: stop`` hands over: the best audited policy where it is surely better, else the last."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from scipy.stats import ttest_ind

from tests.support import folders
from tests.support.audit_rewards import red
from trimtab.audit.gold_audit import FILE, AuditedRollout, choose_policy, summarise
from trimtab.config import build
from trimtab.doctor import diagnosis, doctor_text
from trimtab.errors import CheckpointError, ConfigError
from trimtab.models import checkpoint
from trimtab.report.run_report import report_run
from trimtab.runs import Run, read_metrics, read_summary
from trimtab.stats.change import welch
from trimtab.train import rl as policy
from trimtab.train.loop import fit

calls = itertools.count()


def sinking(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """``red``, less a little more at every call: it is followed, and falls."""
    less = 0.2 * next(calls)
    return [r - less for r in red(prompts, completions)]


def rows(means: list[float], each: int, seed: int, spread: float = 0.25) -> list[AuditedRollout]:
    rng = np.random.default_rng(seed)
    return [
        AuditedRollout(step=step, prompt_id=str(i), proxy=0.0, gold=float(rng.normal(mean, spread)))
        for step, mean in enumerate(means, 1)
        for i in range(each)
    ]


def rate(means: list[float], level: float = 0.05) -> float:
    """How often an earlier policy is handed over, by 400 audits of 12 rollouts a step."""
    choices = [choose_policy(rows(means, 12, seed), 24, level) for seed in range(400)]
    return float(np.mean([c.back_to is not None for c in choices]))


def test_welch_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.2, 1, 20), rng.normal(0, 2, 30)
    theirs: Any = ttest_ind(a, b, equal_var=False, alternative="greater")
    assert welch(a, b) == pytest.approx(theirs.pvalue)
    assert welch([1, 1], [0, 0]) == 0.0 and welch([1, 1], [1, 1]) == 1.0 == welch([1], [0, 0])


@pytest.mark.slow
def test_the_best_block_is_chosen_where_it_is_surely_better() -> None:
    choice = choose_policy(rows([0.9] * 4 + [0.5] * 8, 12, 0), 24)
    assert choice.best is not None and choice.back_to == choice.best.last <= 4
    assert choice.blocks == 6 and choice.p < 0.05 and choice.best.gold > choice.last + 0.2
    assert rate([0.9] * 4 + [0.6] * 16) > 0.9
    # In whatever order the rows come.
    mixed = rows([0.9] * 4 + [0.5] * 8, 12, 0)[::-1]
    assert choose_policy(sorted(mixed, key=lambda r: (r.step, int(r.prompt_id))), 24) == choice


@pytest.mark.slow
def test_a_healthy_run_keeps_its_last_policy() -> None:
    assert rate([0.6 + 0.02 * i for i in range(20)]) < 0.005, "it rises"
    assert rate([0.8] * 5 + [0.5] * 5 + [0.9] * 10) < 0.05, "it dips, and comes back"
    flat = rate([0.8] * 20)
    assert 0 < flat < 0.05, "it stays, and chance may say otherwise one time in twenty"
    assert rate([0.9] * 10 + [0.3] * 10, level=0.0) == 0, "told to"


def test_too_little_is_not_compared() -> None:
    assert choose_policy([], 24).back_to is None
    choice = choose_policy(rows([0.9, 0.1], 20, 0), 24)
    assert choice.back_to is None and choice.blocks == 1 and choice.p == 1.0
    # A rest counts with the last block, so that no block is held against itself.
    rest = choose_policy(rows([0.9] * 4 + [0.1], 20, 0), 40)
    assert rest.blocks == 2 and rest.last == pytest.approx((0.9 * 2 + 0.1) / 3, abs=0.1)


def test_settings_that_contradict_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="final_alpha belongs to act: stop, and act is none"):
        build(policy.RLConfig, rl(base, tmp_path, act="none", final_alpha=0.1))
    with pytest.raises(ConfigError, match="final"):
        build(policy.RLConfig, rl(base, tmp_path, final_alpha=1.0))


# A real run, small ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl", 32)
    return folder


def rl(
    base: Path, out: Path, reward: str = "tests.support.audit_rewards:red", **audit: Any
) -> dict[str, Any]:
    """A run whose gold falls, and whose guard cannot be sure of it before the end."""
    gold = {"function": "tests.support.audit_rewards:not_red"}
    return {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "prompts.jsonl")},
        "rewards": [{"name": "proxy", "function": reward}],
        "method": {"type": "rloo", "group_size": 4, "kl": {"beta": 0.0}}, "sampling": {"max_new_tokens": 6},
        "steps": 14, "batch_size": 8, "optim": {"lr": 1e-2, "lr_scheduler_type": "constant"},
        "loop": {"save_steps": 4},
        "audit": {"gold": gold, "share": 0.5, "act": "stop", "alpha": 1e-300, **audit},
    }  # fmt: skip


def trained(settings: dict[str, Any]) -> Path:
    policy.main(build(policy.RLConfig, settings))
    return Path(settings["out"])


def actions(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "actions.jsonl").read_text().splitlines()]


NAME = "model.norm.weight"


def exported(out: Path) -> Any:
    return load_file(out / "model.safetensors")[NAME]


def last(out: Path) -> Any:
    saved = checkpoint.latest(out / "checkpoints")
    assert saved is not None
    return saved.tensors("params.policy")[NAME]


@pytest.fixture(scope="module")
def handed(base: Path) -> Path:
    return trained(rl(base, base / "handed"))


@pytest.mark.slow
def test_an_earlier_policy_is_handed_over_at_the_end(base: Path, handed: Path) -> None:
    metrics = read_metrics(handed)
    assert len(metrics) == 14, "it was not stopped"
    (action,) = actions(handed)
    assert action["action"] == "hand-over" and action["step"] == 14 and action["p"] < 0.05
    assert action["gold_best"] > action["gold_last"] + 0.05
    # The first batch gives a whole block: the start is known by itself.
    counts = np.bincount([json.loads(x)["step"] for x in (handed / FILE).read_text().splitlines()])
    assert counts[1:].tolist() == [32] + [16] * 13
    saved = checkpoint.latest(handed / "best")
    assert saved is not None and saved.step == action["back_to"] < 14
    best = saved.tensors("params.policy")[NAME]
    assert (exported(handed / "model") == best).all()
    # The last one is in its checkpoint and, ready for use, in undo.
    assert not (last(handed) == best).all()
    assert (exported(Path(action["undo"])) == last(handed)).all()
    assert len(list((handed / "best").glob("step-*"))) == 1


def test_it_is_told_everywhere(handed: Path) -> None:
    (action,) = actions(handed)
    audit = read_summary(handed)["audit"]
    assert (
        audit["handed_over"] == action["back_to"] == read_metrics(handed)[-1]["audit/handed_over"]
    )
    assert audit["why"] == action["why"]
    assert f"The policy of step {action['back_to']} is exported: gold was" in action["why"]
    assert action["why"] in report_run(handed).read_text()
    assert "Exported policy: The policy of step" in doctor_text.to_text(diagnosis.examine(handed))


@pytest.mark.slow
def test_the_same_command_again_hands_over_the_same(base: Path, handed: Path) -> None:
    copy = base / "again"
    shutil.copytree(handed, copy)
    trained(rl(base, copy))
    for name in (FILE, "actions.jsonl", "model/model.safetensors"):
        assert (copy / name).read_bytes() == (handed / name).read_bytes()
    shutil.rmtree(copy / "best")
    with pytest.raises(CheckpointError, match=r"which the audit chose, is missing.*undo"):
        trained(rl(base, copy))


@pytest.mark.slow
def test_a_sound_run_hands_over_its_last(base: Path, tmp_path: Path) -> None:
    out = trained(rl(base, tmp_path / "sound", "tests.support.audit_rewards:not_red"))
    (action,) = actions(out)
    assert action["action"] == "keep" and "none is significantly better" in action["why"]
    assert read_summary(out)["audit"]["handed_over"] == 0
    assert (exported(out / "model") == last(out)).all() and not (out / "undo").exists()


def test_too_short_a_run_says_so(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = trained({**rl(base, tmp_path / "short", share=0.01), "steps": 2})
    assert "fewer than two blocks of 32" in actions(out)[0]["why"]
    assert "fewer than two blocks of 32" in caplog.text


@pytest.mark.slow
def test_a_wrecked_run_is_stopped_though_its_reward_fell(base: Path, tmp_path: Path) -> None:
    sink = rl(
        base, tmp_path / "wrecked", "tests.audit.test_handover:sinking", share=1.0, alpha=0.01
    )
    out = trained({**sink, "steps": 40})
    (action,) = actions(out)
    assert action["action"] == "stop" and action["proxy_gain"] < 0 and not action["hacked"]
    assert action["step"] == len(read_metrics(out)) < 40
    assert not (exported(out / "model") == last(out)).all(), "the last stays in its checkpoint"
    assert read_summary(out)["audit"]["handed_over"] == action["back_to"]
    # A reward that nobody blames is not taken away from the ensemble or refreshed.
    summary = summarise(
        [
            AuditedRollout(step=1 + i, prompt_id="", proxy=-i, gold=float(i < 200))
            for i in range(400)
        ]
    )
    assert summary.fell and not summary.hacked


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1e-300, 0.01])
def test_a_killed_run_chooses_as_a_whole_one(base: Path, tmp_path: Path, alpha: float) -> None:
    """Killed after the choice and before its checkpoint: nothing is lost, and nothing told twice."""
    settings = rl(base, tmp_path / "x", share=1.0, alpha=alpha) | {"steps": 20}
    uninterrupted = trained(settings | {"out": str(tmp_path / "whole")})
    done = actions(uninterrupted)[-1]["step"]
    assert (done < 20) == (alpha == 0.01)
    config = build(policy.RLConfig, settings | {"out": str(tmp_path / "broken")})
    stage = policy.RLStage(config)
    step = stage.step

    def killed(index: int) -> dict[str, float]:
        metrics = step(index)
        if index + 1 == done:
            raise KeyboardInterrupt
        return metrics

    stage.step = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit(stage, Run(config.out), config.loop)
    assert len(actions(tmp_path / "broken")) == 1
    broken = trained(settings | {"out": str(tmp_path / "broken")})
    for name in (FILE, "model/model.safetensors"):
        assert (broken / name).read_bytes() == (uninterrupted / name).read_bytes()
    resumed_action, uninterrupted_action = (
        {**actions(x)[0], "undo": ""} for x in (broken, uninterrupted)
    )
    assert resumed_action == uninterrupted_action and len(actions(broken)) == 1


def test_more_steps_go_on_from_the_last(base: Path, handed: Path, tmp_path: Path) -> None:
    """A run that handed over and is given more steps goes on from its checkpoint and chooses anew."""
    out = tmp_path / "more"
    shutil.copytree(handed, out)
    trained(rl(base, out) | {"steps": 16})
    first, second = actions(out)
    assert (first["step"], second["step"]) == (14, 16)
    assert len(read_metrics(out)) == 16

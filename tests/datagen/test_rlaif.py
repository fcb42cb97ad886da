"""AI labels in training: rows, calibration, live reward, revisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trimtab
from tests.support import folders
from tests.support.judging import endpoint, items, spec, write_items
from trimtab.config import build, read_yaml
from trimtab.datagen import calibrate_judge, judge_labels, revise, sample
from trimtab.errors import ConfigError, DataError, JudgeError
from trimtab.launch import recipe as pipeline
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.runs import read_metrics
from trimtab.sandbox.annotators import label_items
from trimtab.sandbox.simulated_judge import VOICE, SimulatedJudge, in_voice, probes
from trimtab.train import dpo, reward, sft
from trimtab.train import rl as policy
from trimtab.types import Completion, Group

SERVE = "trimtab.sandbox.simulated_judge:serve"


def answers(*texts: str) -> Group:
    done = [Completion(np.array([3 + i, 2]), np.ones(2, bool), t) for i, t in enumerate(texts)]
    return Group("7", np.array([1]), done, "q")


def scored(group: Group, **ai: Any) -> list[Any]:
    spec = RewardSpec.model_validate({"name": "j", "ai": ai})
    rewards = Rewards([spec], folders.tokenizer(), 512, "cpu")
    rewards([group])
    return [c.scores["j"] for c in group.completions]


@pytest.mark.slow
def test_a_judge_as_live_reward() -> None:
    mind = {"length_bias": 5.0, "noise": 0.0}
    group = answers("a", "a b", "a b c", "a b")
    for mode in ("pairwise", "rank"):
        scores = scored(group, endpoint=SERVE, serve=mind, model="m", mode=mode)
        assert [s.value for s in scores] == pytest.approx([0.0, 0.5, 1.0, 0.5]), mode
    assert [c.reward for c in group.completions] == [s.value for s in scores]
    by_prob = scored(group, endpoint=SERVE, serve=mind, model="m", probabilities=True)
    assert by_prob[2].value > by_prob[1].value > by_prob[0].value
    alone = scored(answers("a b c d"), endpoint=SERVE, serve={"length_bias": 1.0, "noise": 0.0},
                   model="m", mode="score", rubric="helpful")  # fmt: skip
    assert alone[0].value == pytest.approx((round(1 + 9 * 4 / 8) - 1) / 9)
    with pytest.raises(ValueError, match="belongs to function or judge"):
        RewardSpec.model_validate({"name": "j", "ai": {"model": "m"}, "timeout": 1.0})
    with pytest.raises(ConfigError, match=r"serve: .*cannot be called"):
        scored(group, endpoint=SERVE, serve={"tempo": 1}, model="m")


@pytest.mark.slow
def test_a_live_judge_that_fails_gives_a_status_and_never_a_number() -> None:
    groups = [answers(f"a {i}", f"b {i} c") for i in range(40)]
    # The first four calls of this seed are answered: a first reply that fails would end the run.
    with endpoint(SimulatedJudge(), rate=0.3, kinds=("500", "empty", "prose"), seed=37) as one:
        reward_spec = RewardSpec.model_validate(
            {"name": "j", "ai": spec(one, tries=1, concurrency=4).model_dump()}
        )
        Rewards([reward_spec], folders.tokenizer(), 512, "cpu")(groups)
    scores = [c.scores["j"] for g in groups for c in g.completions]
    failed = [s for s in scores if s.status != "ok"]
    assert 10 < len(failed) < 70
    assert all(s.value is None and s.detail for s in failed)
    assert {s.status for s in failed} <= {"error", "invalid"}
    assert all((c.reward is None) == (not c.scores["j"].ok) for g in groups for c in g.completions)
    with pytest.raises(JudgeError, match="status 500"):
        scored(answers("a", "b"), endpoint=SERVE, serve={"fail": 1.0, "kinds": ["500"]}, model="m",
               tries=2, backoff=0.0)  # fmt: skip


@pytest.mark.slow
def test_the_way_from_a_model_and_prompts_to_policies(tmp_path: Path) -> None:
    """Sample, judge, train a reward model, DPO, RL under the live judge, revise, SFT."""
    model = {"path": str(folders.model_folder(tmp_path / "model"))}
    prompts = {"path": str(folders.prompts(tmp_path / "prompts.jsonl", 24))}

    def go(kind: Any, main: Any, name: str, **over: Any) -> dict[str, Any]:
        return main(build(kind, {"out": str(tmp_path / name), **over}))

    summary = go(sample.SampleConfig, sample.main, "sample", model=model, data=prompts,
              num_completions=3, sampling={"max_new_tokens": 48}, tries=8)  # fmt: skip
    assert summary.items > 8
    item_file = str(tmp_path / "sample" / "items.jsonl")
    ai = {"endpoint": SERVE, "serve": {"length_bias": 1.0}, "model": "m", "concurrency": 16}
    summary = go(
        judge_labels.JudgeConfig, judge_labels.main, "judge", data=item_file, mode="rank", **ai
    )
    assert summary.rows > 8 and summary.failed == {}
    rows = {"path": str(tmp_path / "judge" / "rows.jsonl")}
    short = {"epochs": 1.0, "batch_size": 8}
    go(reward.RewardConfig, reward.main, "rm", model=model, data=rows, **short)
    assert (tmp_path / "rm" / "model" / "model.safetensors").is_file()
    go(dpo.PreferenceConfig, dpo.main, "dpo", model=model, data=rows, **short)
    assert (tmp_path / "dpo" / "model" / "model.safetensors").is_file()
    rl = build(policy.RLConfig, {
        "out": str(tmp_path / "rl"), "model": model, "data": prompts, "steps": 2, "batch_size": 4,
        "method": {"type": "rloo", "group_size": 3}, "sampling": {"max_new_tokens": 8}, "rewards": [{"name": "j", "ai": ai}],
    })  # fmt: skip
    policy.main(rl)
    metrics = read_metrics(tmp_path / "rl")
    assert [m["reward/unscored"] for m in metrics] == [0.0, 0.0]
    # Shares of comparisons won: a group's mean is a half.
    assert all(m["reward/j"] == pytest.approx(0.5, abs=1e-6) for m in metrics)
    with pytest.raises(ConfigError, match="group_size to 2 or more"):
        build(policy.RLConfig, {**rl.model_dump(), "method": {"type": "reinforce"}})
    summary = go(
        revise.ReviseConfig,
        revise.main,
        "revise",
        data=item_file,
        rounds=2,
        **{**ai, "serve": {"habit": 1.0}},
    )
    assert summary.changed == 1.0
    row = json.loads((tmp_path / "revise" / "demonstrations.jsonl").read_text().splitlines()[0])
    assert row["completion"][0]["content"].count(VOICE[1]) == 2
    again = go(
        revise.ReviseConfig,
        revise.main,
        "revise",
        data=item_file,
        rounds=2,
        **{**ai, "serve": {"habit": 1.0}},
    )
    assert again.calls == 0
    demos = {"path": str(tmp_path / "revise" / "demonstrations.jsonl")}
    go(sft.SFTConfig, sft.main, "sft", model=model, data=demos, **short)


def test_a_revision_makes_answers_better_and_failures_no_rows(tmp_path: Path) -> None:
    data = write_items(tmp_path / "items.jsonl", items(40))
    with endpoint(SimulatedJudge(skill=1.0), rate=0.3, kinds=("500", "prose")) as one:
        keys = {
            k: v
            for k, v in spec(one, tries=1, concurrency=1).model_dump().items()
            if k in revise.ReviseConfig.model_fields
        }
        config = build(
            revise.ReviseConfig,
            {**keys, "data": str(data), "out": str(tmp_path / "out"), "rubric": "hhh"},
        )
        summary = revise.main(config)
    assert 0 < summary.failed < 40 and summary.rows == 40 - summary.failed
    lines = [json.loads(x) for x in (tmp_path / "out" / "revisions.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    assert sum("failure" in x for x in lines) == summary.failed


@pytest.mark.slow
def test_people_and_calibration_mend_a_biased_judge(tmp_path: Path) -> None:
    unlabelled = items(300)
    # Half of the worse answers speak in the judge's voice.
    bent = [
        i.model_copy(update={"completions": (i.completions[0], f"{i.completions[1]} {VOICE[1]}")})
        if n % 2
        else i
        for n, i in enumerate(unlabelled)
    ]
    data = write_items(tmp_path / "items.jsonl", bent)
    people = tmp_path / "people"
    people.mkdir()
    label_items(people, str(data), limit=150)
    with endpoint(SimulatedJudge(self_bias=6.0)) as one:
        options = {
            **spec(one, probabilities=True).model_dump(),
            "data": str(data),
            "out": str(tmp_path / "judge"),
        }
        judge_labels.main(build(judge_labels.JudgeConfig, options))
    files = {
        "items": str(data), "judgements": str(tmp_path / "judge" / "judgements.jsonl"),
        "people": str(people / "judgements.jsonl"),
    }  # fmt: skip
    voice = {"patterns": {"voice": "i hope this helps"}, "covariates": []}
    summary = calibrate_judge.main(
        build(calibrate_judge.CalibrateConfig, {**files, **voice, "out": str(tmp_path / "cal")})
    )
    assert summary.after["accuracy"] > summary.before["accuracy"] + 0.03
    assert summary.after["ece"] < summary.before["ece"]
    weight = summary.weights["voice"]
    # The judge loves its voice more than people do: the fit takes it back, beyond doubt.
    assert weight.mean + 1.96 * weight.error < 0
    assert summary.audited == 150
    lines = (tmp_path / "cal" / "judgements.jsonl").read_text().splitlines()
    assert sum(json.loads(x).get("who") == "simulated" for x in lines) == 150
    flat = calibrate_judge.main(
        build(
            calibrate_judge.CalibrateConfig,
            {**files, "method": "isotonic", "out": str(tmp_path / "iso")},
        )
    )
    assert flat.after["ece"] < flat.before["ece"] + 0.02
    few = tmp_path / "few"
    few.mkdir()
    label_items(few, str(data), limit=2)
    with pytest.raises(DataError, match="share 2 items, too few"):
        calibrate_judge.main(
            build(
                calibrate_judge.CalibrateConfig, {**files, "people": str(few / "judgements.jsonl")}
            )
        )
    with pytest.raises(ConfigError, match="covariates need platt"):
        build(calibrate_judge.CalibrateConfig, {**files, **voice, "method": "isotonic"})


def test_probes_rank_the_plain_answer_first(tmp_path: Path) -> None:
    data = write_items(tmp_path / "items.jsonl", items(10))
    rows = [json.loads(i.model_dump_json())["extra"] for i in items(10)]
    prompts = folders.write(tmp_path / "prompts.jsonl", rows)
    assert probes(tmp_path, str(prompts), str(data)) == {"pairs": 10, "gold": 10}
    voice = [json.loads(x) for x in (tmp_path / "voice.jsonl").read_text().splitlines()]
    assert all(in_voice(r["completions"][1]) and not in_voice(r["completions"][0]) for r in voice)


def test_the_recipe_is_whole() -> None:
    path = Path(trimtab.__file__).parent / "recipes" / "rlaif.yaml"
    recipe = build(pipeline.Recipe, read_yaml(path), str(path))
    planned = {p.name: p for p in pipeline.plan(recipe, str(path))}
    assert {p.command.name for p in planned.values()} >= {
        "sample",
        "judge",
        "calibrate",
        "revise",
        "reward",
        "rl",
    }
    for where in recipe.figures.values():
        assert where.partition(".")[0] in planned

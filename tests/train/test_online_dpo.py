"""Online direct methods and pairwise judges: choices by hand, laws, resume, refusals."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.support import folders
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.errors import ConfigError, DataError, RewardError
from trimtab.rewards.judge_function import flipped
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.runs import Run, read_metrics, read_samples
from trimtab.train import online_dpo
from trimtab.train.loop import fit
from trimtab.train.online_dpo import OnlineConfig, OnlineStage, ranked
from trimtab.types import Completion, Group

WORDY = [{"name": "wordy", "function": "tests.support.folders:wordy"}]
JUDGE = [{"name": "judge", "judge": "tests.support.folders:wordier"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("online")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl")
    return folder


def settings(base: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "prompts.jsonl")}, "rewards": WORDY, "steps": 4, "batch_size": 8,
        "sampling": {"max_new_tokens": 8}, "optim": {"lr": 1e-3}, "loop": {"token_budget": 512},
        **more,
    }  # fmt: skip


def train(base: Path, out: Path, **more: Any) -> list[dict[str, Any]]:
    online_dpo.main(build(OnlineConfig, settings(base, out, **more)))
    return read_metrics(out)


# Judges ---------------------------------------------------------------------------------------


def answers(*texts: str, prompt: str = "q") -> Group:
    done = [Completion(np.array([3 + i, 2]), np.ones(2, bool), t) for i, t in enumerate(texts)]
    return Group("7", np.array([1]), done, prompt)


def judged(group: Group, **spec: Any) -> list[Any]:
    reward_spec = RewardSpec.model_validate(
        {"name": "j", "judge": "tests.support.folders:wordier", **spec}
    )
    Rewards([reward_spec], folders.tokenizer(), 512, "cpu")([group])
    return [c.scores["j"] for c in group.completions]


@pytest.mark.slow
@pytest.mark.parametrize("timeout", [None, 60.0], ids=["here", "child"])
def test_an_answer_scores_the_share_of_comparisons_it_won(timeout: float | None) -> None:
    group = answers("a b", "a b c", "a a", "b a")
    scores = judged(group, timeout=timeout)
    # Against (a b c), (a a), (b a): lost, won, tied.
    assert [s.value for s in scores] == [0.5, 1.0, 0.0, 0.5]
    assert [c.reward for c in group.completions] == [0.5, 1.0, 0.0, 0.5]


def test_a_judge_that_likes_places_is_shown_both() -> None:
    wins = [
        judged(answers(f"x {i}", f"y {i}"), judge="tests.support.folders:first")[0].value
        for i in range(400)
    ]
    places = Rewards(
        [RewardSpec(name="j", judge="tests.support.folders:first")], folders.tokenizer(), 512, "cpu"
    )
    group = answers("a", "b", "c d")
    places([group])
    assert [c.scores["j/first"].value for c in group.completions] == [1.0, 1.0, 1.0]
    # Four standard errors of a fair coin.
    assert abs(float(np.mean(wins)) - 0.5) < 4 * 0.5 / math.sqrt(400)
    assert flipped("q", "a", "b") == flipped("q", "a", "b")


def test_what_a_judge_cannot_say_is_a_status() -> None:
    failed = judged(answers("a", "b c"), options={"fail": True})
    assert [(s.value, s.status) for s in failed] == [(None, "masked")] * 2
    alone = judged(answers("a"))[0]
    assert (alone.value, alone.status) == (None, "invalid")
    assert "two or more" in alone.detail
    outside = judged(answers("a", "b"), judge="tests.train.test_online_dpo:seven")
    assert all(s.status == "invalid" and "between 0 and 1" in s.detail for s in outside)
    with pytest.raises(RewardError, match="one value for each of the 1 pairs"):
        judged(answers("a", "b"), judge="tests.train.test_online_dpo:too_few")


def too_few(prompts: list[str], pairs: list[list[str]]) -> list[float]:
    return [0.0 for _ in pairs][1:]


def seven(prompts: list[str], pairs: list[list[str]]) -> list[float]:
    return [7.0 for _ in pairs]


def test_equal_answers_tie_without_a_question() -> None:
    scores = judged(answers("a b", "a b"), judge="tests.support.reward_functions:raises")
    assert [s.value for s in scores] == [0.5, 0.5]


# Choices --------------------------------------------------------------------------------------


def with_rewards(*rewards: float | None) -> Group:
    group = answers(*(f"w{i}" for i in range(len(rewards))))
    for c, r in zip(group.completions, rewards, strict=True):
        c.reward = r
    return group


def test_best_and_worst_are_the_pair() -> None:
    groups = [
        with_rewards(1.0, 3.0, None, 0.0, 3.0), with_rewards(2.0, 2.0), with_rewards(None, 5.0),
    ]  # fmt: skip
    pairs, ties, lone = ranked(groups)
    assert [[(c.text, c.rank) for c in g.completions] for g in pairs] == [[("w1", 0), ("w3", 1)]]
    assert (ties, lone) == (1, 1)
    same = with_rewards(1.0, 2.0)
    same.completions[1].ids = same.completions[0].ids
    assert ranked([same])[1] == 1, "the same tokens are no pair, whatever a noisy judge says"


# The stage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["whole", "adapters"])
def test_it_starts_at_its_reference(base: Path, tmp_path: Path, lora: Any) -> None:
    model = {"path": str(base / "model"), "device": "cpu", "lora": lora}
    rows = train(base, tmp_path / "o", model=model, steps=2)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert rows[0]["logps/chosen_shift"] == pytest.approx(0.0, abs=1e-4)
    assert rows[1]["loss"] != rows[0]["loss"], "nothing moved"
    assert rows[0]["pairs"] + 8 * (rows[0]["ties"] + rows[0]["pairs/unscored"]) == 8
    assert "reward/wordy" in rows[0]
    assert (tmp_path / "o" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_it_learns_what_the_judge_likes(base: Path, tmp_path: Path) -> None:
    rows = train(
        base, tmp_path / "o", rewards=[{"name": "judge", "judge": "tests.train.test_online_dpo:more_cats"},
        {"name": "cats", "function": "tests.train.test_online_dpo:cats", "weight": 0}], steps=30, batch_size=16,
        num_completions=4, optim={"lr": 3e-3}, loop={"sample_steps": 15},
    )  # fmt: skip
    early, late = (np.mean([r["reward/cats"] for r in part]) for part in (rows[:5], rows[-5:]))
    assert late > early + 0.5
    assert np.mean([r["rewards/accuracies"] for r in rows[-5:]]) > 0.7
    seen = read_samples(tmp_path / "o", [30])
    assert len(seen) == 16 * 4
    assert set(seen[0]["scores"]) == {"judge", "judge/first", "cats"}


def cats(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(c.split().count("cat")) for c in completions]


def more_cats(prompts: list[str], pairs: list[list[str]]) -> list[float]:
    return [0.5 + 0.5 * np.sign(b.split().count("cat") - a.split().count("cat")) for a, b in pairs]


def scattered(prompts: list[str], completions: list[str]) -> list[float]:
    return [zlib.crc32(c.encode()) / 2**32 for c in completions]


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [{"type": "ipo"}, {"type": "simpo"}, {"type": "orpo"}, {"type": "slic"},
     {"type": "dpo", "rpo_alpha": 1.0}],
    ids=lambda o: str(o["type"]),
)  # fmt: skip
def test_any_method_on_pairs(base: Path, tmp_path: Path, objective: dict[str, Any]) -> None:
    rows = train(base, tmp_path / "o", objective=objective, steps=2)
    assert all(math.isfinite(r["loss"]) for r in rows)
    assert ("objective/kl" in rows[0]) == (objective["type"] in ("ipo", "dpo"))


def test_ties_alone_change_nothing(base: Path, tmp_path: Path) -> None:
    constant = [{"name": "none", "function": "tests.train.test_online_dpo:zero"}]
    rows = train(base, tmp_path / "o", rewards=constant, steps=2)
    assert [r["ties"] for r in rows] == [1.0, 1.0]
    assert all("loss" not in r for r in rows)


def zero(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.0 for _ in completions]


def test_another_reference_is_read(base: Path, tmp_path: Path) -> None:
    other = folders.model_folder(tmp_path / "other", seed=5)
    reference = {"path": str(other), "device": "cpu"}
    rows = train(base, tmp_path / "o", reference=reference, steps=1)
    assert rows[0]["objective/kl"] > 0.5
    assert rows[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.slow
def test_a_resumed_run_is_byte_equal(base: Path, tmp_path: Path) -> None:
    """And the test can fail: without what whitening has seen, the clip makes other ties."""

    def run(out: Path, steps: int, forget: bool = False) -> bytes:
        rewards = [{"name": "r", "function": "tests.train.test_online_dpo:scattered"}]
        shape = {"whiten": True, "clip": 0.1}
        more = {"rewards": rewards, "shape": shape, "steps": 6, "batch_size": 48}
        config = build(OnlineConfig, settings(base, out, **more))
        stage = OnlineStage(config)
        if forget:
            stage.load = lambda state: None  # type: ignore[method-assign]
        stage.steps = steps
        fit(stage, Run(out), config.loop)
        return (out / "model" / "model.safetensors").read_bytes()

    uninterrupted = run(tmp_path / "a", 6)
    for name, forget in (("b", False), ("c", True)):
        run(tmp_path / name, 2)
        assert (run(tmp_path / name, 6, forget) == uninterrupted) != forget


# Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"objective": {"type": "kto"}}, "pairs"),
        ({"sampling": {"temperature": 0}}, "temperature"),
        ({"rewards": [{**WORDY[0], "weight": 0}]}, "weight 0"),
        ({"num_completions": 1}, "num_completions"),
        ({"objective": {"type": "simpo"}, "reference": {"path": "x"}}, "reference"),
        ({"rewards": [{"name": "j", "judge": "a:b", "combine": "worst"}]}, "combine"),
        ({"rewards": [{"name": "j", "judge": "a:b", "model": "c"}]}, "judge"),
    ],
)
def test_nonsense_is_refused(base: Path, more: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        build(OnlineConfig, settings(base, Path("o"), **more))


def test_a_judge_needs_several_answers() -> None:
    from trimtab.evaluate.compare import CompareConfig
    from trimtab.train.rl import RLConfig

    rl = {"model": {"path": "m"}, "data": {"path": "d"}, "rewards": JUDGE}
    with pytest.raises(ConfigError, match="group_size to 2 or more"):
        build(RLConfig, rl)
    assert build(RLConfig, {**rl, "method": {"type": "rloo"}}).method.group_size == 8
    models = {"a": {"path": "m"}, "b": {"path": "n"}}
    with pytest.raises(ConfigError, match="judge"):
        build(CompareConfig, {"models": models, "data": "d", "rewards": [*WORDY, *JUDGE]})


def test_a_missing_judge_is_told_before_the_model_is_loaded(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("trimtab.models.load.LM.load", load)
    nobody = [{"name": "j", "judge": "tests.support.folders:nobody"}]
    with pytest.raises(ConfigError, match=r"rewards\.j\.judge"):
        train(base, tmp_path / "o", rewards=nobody)


def test_no_score_at_all_stops_with_the_reason(base: Path, tmp_path: Path) -> None:
    broken = [{"name": "r", "function": "tests.support.reward_functions:raises"}]
    with pytest.raises(DataError, match="no grader today"):
        train(base, tmp_path / "o", rewards=broken)


def test_as_a_command(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "o.yaml"
    file.write_text(yaml.safe_dump(settings(base, tmp_path / "o", rewards=JUDGE)))
    cli(["online_dpo", str(file), "--steps", "2", "--objective.beta", "0.3"])
    assert "online dpo: judge +0.5" in " ".join(capsys.readouterr().out.split())
    figures = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert 0 <= figures["ties"] <= 1

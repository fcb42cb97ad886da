"""Sequence, step and token rewards, and Monte-Carlo values, through the whole RL stage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import folders
from trimtab.config import build
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.data.steps import Steps
from trimtab.errors import ConfigError, DataError, ModelError
from trimtab.objectives.methods import METHODS
from trimtab.objectives.process_reward import group_process_advantages
from trimtab.runs import Run, read_metrics
from trimtab.train.advantages import assign_advantages
from trimtab.train.loop import fit
from trimtab.train.rl import RLConfig, RLStage
from trimtab.types import Group

HERE = f"{Path(__file__)}"
WORDY = {"name": "wordy", "function": f"{Path(folders.__file__)}:wordy"}


def red(prompts: list[str], completions_steps: list[list[str]]) -> list[list[float]]:
    """A step's score: more with each different word, so that steps differ."""
    return [
        [min(1.0, 0.1 + 0.2 * len(set(s.split()))) for s in texts] for texts in completions_steps
    ]


def sometimes(prompts: list[str], completions_steps: list[list[str]]) -> list[Any]:
    """No score where a completion has an odd number of steps."""
    return [[0.5] * len(s) if len(s) % 2 == 0 else None for s in completions_steps]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    folders.model_folder(folder / "model")
    folders.model_folder(folder / "other", seed=1)
    folders.prompts(folder / "prompts.jsonl")
    return folder


def config(base: Path, out: Path, **more: Any) -> RLConfig:
    settings: dict[str, Any] = {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "prompts.jsonl")}, "steps": 3, "batch_size": 6,
        "sampling": {"max_new_tokens": 10}, "optim": {"lr": 1e-3}, "rewards": [WORDY],
        "method": {"type": "grpo"}, "loop": {"token_budget": 512, "save_steps": 2}, **more,
    }  # fmt: skip
    return build(RLConfig, settings, "test")


def by_name(name: str) -> dict[str, Any]:
    """The method alone, and what ends a step where it asks."""
    steps = {"monte_carlo": {"k": 2, "separator": "."}} if name == "vineppo" else {}
    return {"method": {"type": name}, **steps}


def process(name: str = "red", **more: Any) -> dict[str, Any]:
    return {"name": "steps", "function": f"{HERE}:{name}", "separator": ".", **more}


def rolled(stage: RLStage) -> list[Group]:
    groups, _ = stage.rollout(0)
    stage._annotate(groups)  # pyright: ignore[reportPrivateUsage]
    return groups


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_runs_by_its_name_and_moves_the_policy(
    name: str, base: Path, tmp_path: Path
) -> None:
    settings = config(base, tmp_path, **by_name(name))
    stage = RLStage(settings)
    before = [p.detach().clone() for p in stage.lm.model.parameters()]
    fit(stage, Run(str(tmp_path)), settings.loop)
    after = list(stage.lm.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(bool(torch.isfinite(p).all()) for p in after)
    assert len(read_metrics(tmp_path)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_adapters_alone_are_trained(name: str, base: Path, tmp_path: Path) -> None:
    model = {"path": str(base / "model"), "device": "cpu", "lora": {"r": 4}}
    settings = config(base, tmp_path, model=model, **by_name(name))
    stage = RLStage(settings)
    frozen = [p.detach().clone() for p in stage.lm.model.parameters() if not p.requires_grad]
    fit(stage, Run(str(tmp_path)), settings.loop)
    still = [p for p in stage.lm.model.parameters() if not p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(frozen, still, strict=True))
    assert stage.reference is None or stage.reference.root.lm is stage.lm, "one model is enough"


def test_process_differences_add_up_to_the_last_score(base: Path, tmp_path: Path) -> None:
    method = {"type": "ppo", "kl": {"beta": 0.0}, "advantage": {"whiten": False, "lam": 1.0}}
    stage = RLStage(config(base, tmp_path, rewards=[], process=process(weight=2.0), method=method))
    groups = rolled(stage)
    assign_advantages(groups, stage.method, 0.0)
    steps = Steps(stage.renderer, ".")
    for c in (c for g in groups for c in g.completions):
        last = red([], [steps.texts(c.ids)])[0][-1]
        assert c.tokens["dense"].sum() == pytest.approx(2 * last, abs=1e-5)
        # With lambda 1 and the untrained critic's values of 0, the first advantage is the whole.
        assert c.tokens["advantage"][0] == pytest.approx(2 * last, abs=1e-5)
        assert c.reward == 0.0


def test_process_aggregate_joins_the_sequence_reward(base: Path, tmp_path: Path) -> None:
    options = process(dense="none", aggregate="mean", weight=0.5)
    stage = RLStage(config(base, tmp_path, process=options))
    for c in (c for g in rolled(stage) for c in g.completions):
        parts = c.scores["wordy"].value, c.scores["steps"].value
        assert c.reward == pytest.approx(parts[0] + 0.5 * parts[1])  # type: ignore[operator]
        assert not c.tokens["dense"].any()


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_process_supervision_of_groups(outcome: float, base: Path, tmp_path: Path) -> None:
    """GRPO on step scores; the outcome's own advantage is added where it has weight."""
    options = {"rewards": [{**WORDY, "weight": outcome}], "process": process()}
    stage = RLStage(
        config(
            base,
            tmp_path,
            method={"type": "grpo", "advantage": {"estimator": "process"}},
            **options,
        )
    )
    groups = rolled(stage)
    assign_advantages(groups, stage.method, 0.0)
    want = [a for rows in group_process_advantages(groups) for a in rows]
    done = [c for g in groups for c in g.completions]
    gaps = [c.tokens["advantage"] - w for c, w in zip(done, want, strict=True)]
    assert any(w.std() > 0 for w in want), "steps should differ in worth"
    for c, gap in zip(done, gaps, strict=True):
        assert np.ptp(gap[c.mask]) < 1e-5, "what is added is the same for every token"
    if outcome == 0.0:
        assert max(np.abs(g).max() for g in gaps) < 1e-6
    else:
        group_rewards = np.array([c.reward for c in groups[0].completions])
        level = (group_rewards - group_rewards.mean()) / (
            group_rewards.std(ddof=1) + stage.method.advantage.eps
        )
        got = [g[0] for g in gaps[: len(group_rewards)]]
        assert np.allclose(got, level, atol=1e-4)


def test_completions_whose_steps_failed_are_left_out(base: Path, tmp_path: Path) -> None:
    stage = RLStage(config(base, tmp_path, process=process("sometimes")))
    groups, metrics = stage.rollout(0)
    assert 0.0 < metrics["reward/unscored"] < 1.0
    scored = [c for g in groups for c in g.completions]
    assert scored
    assert all(c.scores["steps"].ok for c in scored)


def test_implicit_rewards_are_of_the_two_models(base: Path, tmp_path: Path) -> None:
    spec = {"model": str(base / "other"), "reference": str(base / "model"), "beta": 0.3}
    stage = RLStage(config(base, tmp_path, rewards=[], implicit=spec, method={"type": "reinforce"}))
    groups = rolled(stage)
    models = {k: folders_model(base / k) for k in ("other", "model")}
    for g in groups:
        for c in g.completions:
            ids = torch.from_numpy(np.concatenate([g.prompt, c.ids]))[None]
            at = slice(len(g.prompt) - 1, -1)
            logp = {
                k: m(input_ids=ids).logits[0, at].log_softmax(-1).gather(1, ids[0, at.start + 1:, None])
                for k, m in models.items()
            }  # fmt: skip
            want = 0.3 * (logp["other"] - logp["model"])[:, 0]
            assert torch.allclose(torch.from_numpy(c.tokens["dense"]), want, atol=1e-4)
            assert c.scores["implicit"].value == pytest.approx(float(want.sum()), abs=1e-3)


def test_implicit_models_read_prompts_in_their_own_template(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "other", tmp_path / "other")
    spec = {"model": str(tmp_path / "other"), "reference": str(base / "model"), "beta": 0.3}
    template = tmp_path / "other" / "chat_template.jinja"
    template.write_text("<user> what is " + template.read_text())
    stage = RLStage(config(base, tmp_path, rewards=[], implicit=spec, method={"type": "reinforce"}))
    group = rolled(stage)[0]
    other = Renderer(load_tokenizer(str(tmp_path / "other"))).with_own_prompt(group)
    assert len(other.prompt) == len(group.prompt) + 3
    c = group.completions[0]
    logp: list[torch.Tensor] = []
    for path, prompt in ((base / "other", other.prompt), (base / "model", group.prompt)):
        ids = torch.from_numpy(np.concatenate([prompt, c.ids]))[None]
        logits = folders_model(path)(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        logp.append(logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0])
    assert torch.allclose(torch.from_numpy(c.tokens["dense"]), 0.3 * (logp[0] - logp[1]), atol=1e-4)


@torch.no_grad()
def folders_model(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path).eval().requires_grad_(False)


def test_implicit_rewards_need_the_same_tokens(base: Path, tmp_path: Path) -> None:
    from trimtab.sandbox import tokenizer

    folders.model_folder(tmp_path / "strange")
    tokenizer.build().save_pretrained(tmp_path / "strange")
    spec = {"model": str(tmp_path / "strange"), "reference": str(base / "model")}
    with pytest.raises(ModelError, match=r"implicit\.model.*another vocabulary"):
        RLStage(config(base, tmp_path, implicit=spec))


def test_monte_carlo_gains_add_up_to_reward_less_start(base: Path, tmp_path: Path) -> None:
    method = {"type": "vineppo", "advantage": {"whiten": False}}
    spec = {"k": 3, "separator": "."}
    stage = RLStage(config(base, tmp_path, method=method, monte_carlo=spec))
    assert stage.critic is None
    assert stage.state_values is not None
    groups = rolled(stage)
    metrics = stage.state_values(groups, 0)
    assert metrics["value/continuations"] >= 3 * len(groups)
    steps = Steps(stage.renderer, ".")
    starts: list[float] = []
    for g in groups:
        gains: list[float] = []
        for c in g.completions:
            if c.finish == "length" and len(c) < 10:
                continue
            ends = steps.ends(c.ids)
            assert c.reward is not None
            gains.append(c.reward - float(c.tokens["state_advantage"][ends].sum()))
            starts.append(gains[-1])
        assert np.ptp(gains) < 1e-5, "a group shares the value of its prompt"
    assert all(0.0 <= s <= 1.0 + 1e-6 for s in starts)
    before = [c.tokens["state_advantage"].copy() for g in groups for c in g.completions]
    assign_advantages(groups, stage.method, 0.0)
    for old, c in zip(before, (c for g in groups for c in g.completions), strict=True):
        assert np.allclose(c.tokens["advantage"], old, atol=1e-6)


@pytest.mark.slow
def test_monte_carlo_resumes_byte_equal(base: Path, tmp_path: Path) -> None:
    def train(out: Path, steps: int) -> bytes:
        settings = config(
            base, out, steps=4, method={"type": "vineppo"},
            monte_carlo={"k": 2, "separator": "."},
        )  # fmt: skip
        stage = RLStage(settings)
        stage.steps = steps
        fit(stage, Run(str(out)), settings.loop)
        return (out / "model" / "model.safetensors").read_bytes()

    uninterrupted = train(tmp_path / "a", 4)
    train(tmp_path / "b", 2)
    assert train(tmp_path / "b", 4) == uninterrupted


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"rewards": []}, "there is no reward"),
        ({"rewards": [], "process": process(weight=0.0)}, "weight 0"),
        ({"process": process(), "implicit": {"model": "a", "reference": "b"}}, "one of them"),
        ({"method": {"type": "grpo", "advantage": {"estimator": "process"}}}, "set process"),
        ({"method": {"type": "vineppo"}, "process": process()}, "neither"),
        ({"monte_carlo": {"k": 2}}, "remove the key"),
        (
            {"method": {"type": "vineppo"}, "critic": {"type": "shared"}},
            "no critic",
        ),
    ],
)
def test_combinations_without_sense_are_refused(
    more: dict[str, Any], why: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=why):
        config(base, tmp_path, **more)


def test_names_of_rewards_differ(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"process\.name"):
        RLStage(config(base, tmp_path, process={**process(), "name": "wordy"}))


# Functions ------------------------------------------------------------------------------------

FUNCTIONS = "tests.support.reward_functions"
TASKS: list[dict[str, object]] = [
    {"prompt": [{"role": "user", "content": "what is red"}], "task": "maths", "answer": "red"},
    {"prompt": [{"role": "user", "content": "where is blue"}], "task": "code", "answer": "sun"},
]


def one_iteration(base: Path, tmp_path: Path, *names: str) -> tuple[list[Group], dict[str, float]]:
    """The groups and the metrics of an iteration on ``TASKS`` with these functions as rewards."""
    path = folders.write(tmp_path / "tasks.jsonl", TASKS)
    more = {
        "data": {"path": str(path)},
        "batch_size": 2,
        "rewards": [{"function": f"{FUNCTIONS}:{name}"} for name in names],
    }
    return RLStage(config(base, tmp_path / "run", **more)).rollout(0)


@pytest.mark.parametrize(
    "name", ["swapped", "one_column", "no_keywords", "later", "first_message", "unannotated"]
)
def test_a_function_of_any_signature_is_a_reward(name: str, base: Path, tmp_path: Path) -> None:
    groups, metrics = one_iteration(base, tmp_path, name)
    assert metrics["reward/unscored"] == 0.0
    if name in ("first_message", "unannotated"):
        assert all(c.reward == len(c.text) for g in groups for c in g.completions)


def test_two_rewards_each_for_its_own_task(base: Path, tmp_path: Path) -> None:
    groups, metrics = one_iteration(base, tmp_path, "maths", "code")
    rewards = {str(g.extra["task"]): {c.reward for c in g.completions} for g in groups}
    assert rewards == {"maths": {1.0}, "code": {10.0}}
    assert metrics["reward/unscored"] == 0.0
    assert metrics["reward/maths/unscored"] == metrics["reward/code/unscored"] == 0.5


def test_the_error_says_what_could_not_be_scored(base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"2 of 16 completions .* no prompt has 2, .* returned None"
    ):
        one_iteration(base, tmp_path, "first_only")
    with pytest.raises(DataError, match=r"no completion could be scored.* raises was error \(Runt"):
        one_iteration(base, tmp_path, "maths", "raises")

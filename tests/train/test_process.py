"""Process rewards: the model and its loss, its stage, and advantages by steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForTokenClassification

from tests.support import folders
from tests.support.invariance import agree, plain_gradient, shuffled, step
from tests.support.models import tiny
from tests.support.processing import ROWS, base_folder, config, ids, renderer, rows
from trimtab.data import formats
from trimtab.data.formats import Example
from trimtab.data.pack import Output, Pack, packs
from trimtab.data.pack import build as build_pack
from trimtab.data.render import Renderer
from trimtab.data.steps import Steps
from trimtab.errors import ModelError, RewardError
from trimtab.models.export import save_model
from trimtab.models.load import ModelSpec
from trimtab.models.lora import LoraSpec
from trimtab.models.step_scorer import StepScorer
from trimtab.objectives.process_reward import StepLoss, group_process_advantages, state_advantages
from trimtab.rewards.step_scores import ProcessReward, ProcessSpec
from trimtab.runs import Run
from trimtab.train.loop import fit
from trimtab.train.process import ProcessStage
from trimtab.train.process import main as train_process
from trimtab.types import Completion, Group

# Model and objective ---------------------------------------------------------------------------


def solutions(seed: int, n: int = 5) -> list[Group]:
    rng = np.random.default_rng(seed)

    def answer() -> Completion:
        size = int(rng.integers(1, 9))
        label = rng.choice([0.0, 1.0, 0.3], size).astype(np.float32)
        mask = rng.random(size) < 0.5
        label[~mask] = np.nan
        return Completion(rng.integers(3, 60, size), mask, tokens={"step_label": label})

    return [
        Group(str(i), rng.integers(3, 60, rng.integers(1, 6)), [answer() for _ in range(1 + i % 3)])
        for i in range(n)
    ]


def scorer(double: bool = False) -> StepScorer:
    config = tiny("llama", seed=1).config
    config.num_labels = 2
    torch.manual_seed(1)
    model = AutoModelForTokenClassification.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(6.0)
    return StepScorer(model.double() if double else model, exact=True)


def alone(model: StepScorer, g: Group, c: Completion) -> Tensor:
    """Logits at the marked tokens by plain transformers."""
    inner = cast(Any, model.model)
    inner.set_attn_implementation("sdpa")
    ids_1T = torch.from_numpy(np.concatenate([g.prompt, c.ids]))[None]
    return inner(input_ids=ids_1T).logits[0, len(g.prompt) :][torch.from_numpy(c.mask)]


def test_packed_logits_equal_plain_token_classification() -> None:
    model = scorer()
    groups = solutions(0)
    with torch.no_grad():
        want = torch.cat([alone(model, g, c) for g in groups for c in g.completions])
        for share in (True, False):
            got = model.logits(build_pack(groups, share=share))
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert float(want.std()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_gradient_does_not_depend_on_the_cut(aggregation: Any) -> None:
    model = scorer(double=True)
    modules: dict[str, nn.Module] = {"model": model.model}
    objective = StepLoss(aggregation=aggregation)

    def forward(pack: Pack) -> Output:
        return Output(step_C=model.log_odds(pack))

    for seed in range(4):
        groups = solutions(seed)
        per: list[Tensor] = []
        for g in groups:
            for c in g.completions:
                if c.trained:
                    y = torch.from_numpy(c.tokens["step_label"][c.mask]).double()
                    target = torch.stack([1 - y, y], -1)
                    per.append(cross_entropy(alone(model, g, c), target, reduction="none"))
        loss = (
            torch.cat(per).mean()
            if aggregation == "token-mean"
            else torch.stack([x.mean() for x in per]).mean()
        )
        want = plain_gradient(modules, loss)
        for budget in (1, 16, 10_000):
            for order in (groups, shuffled(groups, seed)):
                for share in (True, False):
                    got, metrics = step(modules, order, objective, forward, budget, share)
                    agree(got, want)
                    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_loss_by_hand() -> None:
    pack = build_pack(
        [
            Group(
                "a",
                np.array([1]),
                [
                    Completion(
                        np.array([4, 5, 6]),
                        np.array([True, False, True]),
                        tokens={"step_label": np.array([1.0, np.nan, 0.5], np.float32)},
                    )
                ],
            )
        ]
    )
    loss = StepLoss()(Output(step_C=torch.tensor([np.log(4.0), 0.0])), pack)
    assert float(loss.terms["loss"].sum) == pytest.approx(-np.log(0.8) - np.log(0.5))
    assert float(loss.metrics["accuracy"][0]) == 1.5


def test_lora_and_folders(tmp_path: Path) -> None:
    base = folders.model_folder(tmp_path / "lm")
    lora = StepScorer.load(ModelSpec(path=str(base), device="cpu", lora=LoraSpec(r=4)), pad_id=0)
    trained = [n for n, p in lora.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in n or "score" in n for n in trained)
    assert not any(m.p for m in lora.model.modules() if isinstance(m, nn.Dropout))
    with torch.no_grad():
        for n, p in lora.model.named_parameters():
            if "lora_B" in n:
                p.normal_()
    groups = solutions(2)
    with torch.no_grad():
        want = lora.logits(build_pack(groups))
    save_model(lora.model, tmp_path / "prm", folders.tokenizer())
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "prm").eval()
    assert plain.config.num_labels == 2
    assert plain.config.id2label == {0: "incorrect", 1: "correct"}
    again = StepScorer.load(ModelSpec(path=str(tmp_path / "prm"), device="cpu"), train=False)
    with torch.no_grad():
        own = again.logits(build_pack(groups))
        theirs = torch.cat(
            [alone(StepScorer(plain, exact=True), g, c) for g in groups for c in g.completions]
        )
    torch.testing.assert_close(own, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs, own, atol=1e-5, rtol=1e-5)


def test_a_reward_model_is_no_step_scorer(tmp_path: Path) -> None:
    from trimtab.models.heads import Scorer

    base = folders.model_folder(tmp_path / "lm")
    save_model(Scorer.load(ModelSpec(path=str(base))).model, tmp_path / "rm", folders.tokenizer())
    with pytest.raises(ModelError, match="TokenClassification with 2"):
        StepScorer.load(ModelSpec(path=str(tmp_path / "rm")))


# Stage -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("base"))


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def test_stage_learns_and_resumes_byte_equal(base: Path, tmp_path: Path) -> None:
    figures = train_process(config(base, tmp_path / "whole"))
    for name in ("accuracy", "accuracy_low", "auc", "ece", "first_error", "majority", "steps"):
        assert f"eval/{name}" in figures, name
    assert "auc" in json.loads((tmp_path / "whole" / "calibration.json").read_text())
    settings = config(base, tmp_path / "broken")
    first = ProcessStage(settings)
    whole_steps = first.steps
    first.steps = 3
    fit(first, Run(settings.out), settings.loop)
    assert weights(tmp_path / "broken") != weights(tmp_path / "whole")
    again = ProcessStage(settings)
    assert again.steps == whole_steps
    fit(again, Run(settings.out), settings.loop)
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_stage_learns_to_tell_a_wrong_step(base: Path, tmp_path: Path) -> None:
    figures = train_process(config(base, tmp_path / "run", epochs=20, loop={}))
    assert figures["eval/auc"] > 0.8
    assert figures["eval/accuracy"] > figures["eval/majority"]


# Credit ----------------------------------------------------------------------------------------


def scored(scores: list[float], ends: list[int], length: int) -> Completion:
    c = Completion(np.arange(length), np.ones(length, bool))
    c.tokens["step_end"] = np.zeros(length, np.float32)
    c.tokens["step_score"] = np.full(length, 7.0, np.float32)
    c.tokens["step_end"][ends] = 1
    c.tokens["step_score"][ends] = scores
    return c


def test_group_process_advantages_by_hand() -> None:
    """Scores 0, 1, 2, 1: mean 1, unbiased deviation sqrt(2/3); the failed one counts nowhere."""
    group = Group("a", np.array([1]), [scored([0, 1], [1, 3], 4), scored([2, 1], [0, 1], 2)])
    group.completions.append(scored([], [], 3))
    (got,) = group_process_advantages([group])
    unit = np.sqrt(1.5)
    np.testing.assert_allclose(got[0], [-unit, -unit, 0, 0], atol=1e-5)
    np.testing.assert_allclose(got[1], [unit, 0], atol=1e-5)
    assert got[2].tolist() == [0, 0, 0]
    flat = Group("b", np.array([1]), [scored([0.3, 0.3], [0, 1], 2), scored([0.3], [2], 3)])
    assert all(not a.any() for a in group_process_advantages([flat])[0])


def test_state_advantages_telescope() -> None:
    values = torch.tensor([0.25, 0.5, 0.0, 1.0])
    got = state_advantages(values, torch.tensor([1, 2, 4]), 5)
    assert got.tolist() == [0.25, 0.25, -0.5, 1.0, 1.0]


def oracle(worth: list[float], *, completions_steps: list[list[str]]) -> list[Any]:
    return [
        None if w < 0 else [w / (i + 1) for i in range(len(s))]
        for s, w in zip(completions_steps, worth, strict=True)
    ]


def broken(prompts: list[str], completions_steps: list[list[str]]) -> list[Any]:
    raise RuntimeError("no")


def too_few(prompts: list[str], completions_steps: list[list[str]]) -> list[Any]:
    return []


HERE = __file__
REWARDS = "tests.support.reward_functions"


def answered(text: str) -> Completion:
    return renderer().completion(ids(text), "stop")


@pytest.mark.slow
def test_oracle_rewards_and_their_failures() -> None:
    groups = [
        Group("a", ids("who"), [answered("a . no <eos>")], "who", {"worth": 0.8, "other": 1}),
        Group("b", ids("who"), [answered("a . no .")], "who", {"worth": -1.0}),
    ]
    spec = ProcessSpec(function=f"{HERE}:oracle", separator=".")
    ProcessReward(spec, renderer(), 512)(groups)
    good, bad = (g.completions[0] for g in groups)
    assert good.scores["process"].value == pytest.approx(0.32)
    np.testing.assert_allclose(good.tokens["dense"], [0, 0.8, 0, -0.4], atol=1e-6)
    assert good.tokens["dense"].sum() == pytest.approx(0.4)
    assert good.tokens["step_end"].tolist() == [0, 1, 0, 1]
    assert bad.scores["process"].status == "invalid"
    assert not bad.tokens["dense"].any() and not bad.tokens["step_end"].any()
    raw = spec.model_copy(update={"dense": "raw", "aggregate": "min"})
    ProcessReward(raw, renderer(), 512)(groups)
    np.testing.assert_allclose(good.tokens["dense"], [0, 0.8, 0, 0.4], atol=1e-6)
    assert good.scores["process"].value == pytest.approx(0.4)
    hangs = ProcessSpec(function=f"{REWARDS}:hangs", separator=".", timeout=0.3)
    with pytest.raises(RewardError, match="needs the argument 'completions'"):
        ProcessReward(hangs, renderer(), 9)(groups)
    hangs = hangs.model_copy(update={"options": {"completions": []}})
    ProcessReward(hangs, renderer(), 9)(groups)
    assert good.scores["process"].status == "timeout"
    ProcessReward(ProcessSpec(function=f"{HERE}:broken", separator="."), renderer(), 9)(groups)
    assert (good.scores["process"].status, good.scores["process"].value) == ("error", None)
    with pytest.raises(RewardError, match="one value for each of the 2 completions"):
        ProcessReward(ProcessSpec(function=f"{HERE}:too_few", separator="."), renderer(), 9)(groups)


def by_length(
    prompts: list[str], completions_steps: list[list[str]], **_: Any
) -> list[list[float]]:
    """A process reward: the share of the completion's text that has been written."""
    rows: list[list[float]] = []
    for pieces in completions_steps:
        sizes = np.cumsum([len(p) for p in pieces])
        rows.append((sizes / max(1, sizes[-1])).tolist())
    return rows


def test_every_token_is_a_step() -> None:
    group = Group("a", ids("who ?"), [answered("a . no <eos>")], "who ?")
    spec = ProcessSpec(function=f"{HERE}:by_length", unit="token")
    ProcessReward(spec, renderer(), 512)([group])
    (c,) = group.completions
    np.testing.assert_allclose(c.tokens["dense"], [0.25, 0.25, 0.5, 0.0], atol=1e-6)
    assert c.tokens["step_end"].tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="unit: token scores every token by a function"):
        ProcessSpec(model="prm", unit="token")


def test_model_rewards_read_what_was_trained(base: Path, tmp_path: Path) -> None:
    """P at the separator; a sampled end token stands where training had one."""
    train_process(config(base, tmp_path / "run"))
    prm = str(tmp_path / "run" / "model")
    group = Group(
        "a", ids("who ?"), [answered("a . no not <eos>"), answered("yes . no .")], "who ?"
    )
    ProcessReward(ProcessSpec(model=prm, separator="."), renderer(), 40, "cpu")([group])
    plain = AutoModelForTokenClassification.from_pretrained(prm).eval()
    for c, text in zip(group.completions, ("a . no not .", "yes . no ."), strict=True):
        ids_1T = torch.from_numpy(np.concatenate([group.prompt, ids(text)]))[None]
        with torch.no_grad():
            p = plain(input_ids=ids_1T).logits[0].softmax(-1)[len(group.prompt) :, 1]
        want = p[torch.from_numpy(np.flatnonzero(ids(text) == ids(".")[0]))]
        got = c.tokens["step_score"][c.tokens["step_end"] > 0]
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
        assert c.scores["process"].value == pytest.approx(float(want.prod()), abs=1e-5)


def test_a_model_with_another_template_reads_the_prompt_in_its_own(
    base: Path, tmp_path: Path
) -> None:
    train_process(config(base, tmp_path / "run"))
    prm = tmp_path / "run" / "model"
    scores: list[list[float]] = []
    for start in ("", "<user> what is "):
        policy = folders.tokenizer()
        policy.chat_template = start + str(policy.chat_template)
        prompt = [{"role": "user", "content": "who ?"}]
        group = Renderer(policy).prompt(Example("a", prompt, []))
        assert group is not None
        group.completions.append(answered("yes . no ."))
        ProcessReward(ProcessSpec(model=str(prm), separator="."), Renderer(policy), 40, "cpu")(
            [group]
        )
        c = group.completions[0]
        scores.append(c.tokens["step_score"][c.tokens["step_end"] > 0].tolist())
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_packs_carry_step_columns() -> None:
    group = Steps(renderer(), ".").group(formats.steps(rows(ROWS[1]))[0])
    assert group is not None
    (pack,) = packs([group], 100)
    assert pack.tokens["step_label"].tolist() == [1, 1, 0]
    assert StepLoss().counts(pack)["tokens"] == 3

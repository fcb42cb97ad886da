"""The same tensors through TRL's own trainers: the same loss and the same gradient.

A small real trainer of TRL on the CPU makes the batch and computes its loss; its token ids, in
our packs, go through our objective. What differs on purpose is in ``docs/parity.md``. Weights are
fp32, so both sides carry its rounding: gradients agree to 2e-5 of their norm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

import trimtab
from tests.support import folders
from tests.support.models import tiny
from tests.support.oracles import f64, near
from trimtab.data.pack import Output, Pack, build, packs, scatter
from trimtab.models.load import LM, ModelSpec
from trimtab.objectives.kto import KTO, mismatched
from trimtab.objectives.methods import Method
from trimtab.objectives.pairs import Direct, Pairs
from trimtab.objectives.pairs import summed as sums_of
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.preference import ORPO, Preference
from trimtab.train.advantages import assign_advantages
from trimtab.train.trainer import LoopSpec, OptimSpec, Part, Trainer
from trimtab.types import Completion, Group

trl = pytest.importorskip("trl", reason="needs the extra 'parity': pip install -e .[parity]")
datasets = pytest.importorskip("datasets")

from trl import (  # noqa: E402
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402

VALUE, GRADIENT = 1e-5, 2e-5
MINE = Path(trimtab.__file__).parent / "recipes" / "custom_method.py"
DIRECT: TypeAdapter[Direct] = TypeAdapter(Preference)
ONLINE: TypeAdapter[PolicyMethod] = TypeAdapter(Method)

PAIRS = [
    ("what is red ?", "the sun is red .", "no"),
    ("where", "here", "not there . not here ."),
    ("who is here ?", "a cat . a dog .", "blue blue moon"),
    ("is the moon blue ?", "no", "yes yes yes"),
]


def model(seed: int) -> Any:
    """A tiny Llama; different seeds differ clearly."""
    policy = tiny("llama", seed=seed)
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(0.4)
    return policy


def settings(kind: Any, out: Path, **more: Any) -> Any:
    common = {
        "output_dir": str(out), "use_cpu": True, "bf16": False, "report_to": "none",
        "per_device_train_batch_size": 4, "gradient_checkpointing": False, "disable_tqdm": True,
    }  # fmt: skip
    return kind(**(common | more))


def batch_of(trainer: Any) -> dict[str, Any]:
    return next(iter(trainer.get_train_dataloader()))


def rows(ids: Tensor, attended: Tensor, answered: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompt and answer ids of every padded row."""
    on, completion_mask = attended.bool(), answered.bool()
    return [
        (r[a & ~m].numpy(), r[m].numpy())
        for r, a, m in zip(ids.cpu(), on, completion_mask, strict=True)
    ]


def forward(lm: LM) -> Callable[[Pack], Output]:
    def run(pack: Pack) -> Output:
        logp, entropy = lm.logps(lm.states(pack), pack)
        return Output(logp_C=logp, entropy_C=entropy)

    return run


@torch.no_grad()
def annotate(lm: LM, groups: Sequence[Group], name: str) -> None:
    for pack in packs(groups, 10_000, share=lm.exact):
        logp = forward(lm)(pack).logp_C
        assert logp is not None
        scatter(pack, {name: logp.numpy()})


def ours(policy: Any, groups: Sequence[Group], objective: Any) -> tuple[float, dict[str, Tensor]]:
    """Our loss and gradient of one optimiser step that moves nothing."""
    lm = LM(policy, ModelSpec(path="none"))
    still = OptimSpec(lr=1e-30, max_grad_norm=1e30)
    trainer = Trainer({"m": policy}, {"m": still}, 1, LoopSpec(token_budget=40))
    part = Part(groups, objective, forward(lm), lm.exact)
    metrics = trainer.update([part])
    terms = objective(forward(lm)(build(groups)), build(groups)).terms
    return sum(metrics[n] * t.coef for n, t in terms.items()), gradients(policy)


def gradients(policy: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def theirs(trainer: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return float(loss.detach()), gradients(trainer.model)


def agree(ours: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert ours[0] == pytest.approx(other[0], rel=VALUE, abs=1e-7)
    assert ours[1].keys() == other[1].keys()
    a, b = (torch.cat([g.flatten() for g in side[1].values()]) for side in (ours, other))
    assert float(b.norm()) > 1e-4, "nothing is compared"
    assert float((a - b).norm()) <= GRADIENT * float(b.norm())


def pair_rows(pairs: Sequence[tuple[str, str, str]] = PAIRS) -> Any:
    return datasets.Dataset.from_list(
        [{"prompt": p, "chosen": " " + w, "rejected": " " + l} for p, w, l in pairs]
    )


def pair_groups(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[Group]:
    """From a batch of all chosen rows, then all rejected ones."""
    half = len(pairs) // 2
    groups: list[Group] = []
    for i in range(half):
        (prompt, w), (_, l) = pairs[i], pairs[half + i]
        answers = [Completion(x, np.ones(len(x), bool), rank=r) for r, x in enumerate((w, l))]
        groups.append(Group(str(i), prompt, answers))
    return groups


DPO_TYPES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"loss_type": ["sigmoid"]}, {"type": "dpo"}),
    ({"loss_type": ["sigmoid"], "beta": 0.7}, {"type": "dpo", "beta": 0.7}),
    ({"loss_type": ["hinge"], "beta": 0.5}, {"type": "hinge", "beta": 0.5}),
    ({"loss_type": ["ipo"]}, {"type": "ipo"}),
    ({"loss_type": ["robust"], "label_smoothing": 0.2}, {"type": "robust", "smoothing": 0.2}),
    ({"loss_type": ["sigmoid_norm"], "beta": 2.0}, {"type": "dpo_norm", "beta": 2.0}),
    ({"loss_type": ["apo_zero"]}, {"type": f"{MINE}:APOZero"}),
]


@pytest.mark.parametrize(("options", "same"), DPO_TYPES)
def test_dpo(options: dict[str, Any], same: dict[str, Any], tmp_path: Path) -> None:
    policy, reference = model(0), model(1)
    trainer = DPOTrainer(
        copy.deepcopy(policy), copy.deepcopy(reference), settings(DPOConfig, tmp_path, **options),
        train_dataset=pair_rows(), processing_class=folders.tokenizer(),
    )  # fmt: skip
    batch = batch_of(trainer)
    groups = pair_groups(
        rows(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    )
    annotate(LM(reference, ModelSpec(path="none")), groups, "ref_logp")
    agree(ours(policy, groups, DIRECT.validate_python(same)), theirs(trainer, batch))


def test_rpo_where_chosen_answers_are_of_one_length(tmp_path: Path) -> None:
    """TRL's likelihood is a mean over the batch's tokens, ours over each answer's: equal here."""
    equal = [(p, "a cat is here", l) for p, _, l in PAIRS]
    policy, reference = model(0), model(1)
    options = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    trainer = DPOTrainer(
        copy.deepcopy(policy), copy.deepcopy(reference), settings(DPOConfig, tmp_path, **options),
        train_dataset=pair_rows(equal), processing_class=folders.tokenizer(),
    )  # fmt: skip
    batch = batch_of(trainer)
    groups = pair_groups(
        rows(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    )
    annotate(LM(reference, ModelSpec(path="none")), groups, "ref_logp")
    objective = DIRECT.validate_python({"type": "dpo", "rpo_alpha": 0.5})
    agree(ours(policy, groups, objective), theirs(trainer, batch))


def test_kto(tmp_path: Path) -> None:
    policy, reference = model(0), model(1)
    data = datasets.Dataset.from_list(
        [
            {"prompt": p, "completion": " " + (w if good else l), "label": good}
            for (p, w, l), good in zip(PAIRS, (True, False, True, True), strict=True)
        ]
    )
    options = settings(KTOConfig, tmp_path, desirable_weight=0.7, undesirable_weight=1.3, beta=0.3)
    trainer = KTOTrainer(
        copy.deepcopy(policy), copy.deepcopy(reference), options,
        train_dataset=data, processing_class=folders.tokenizer(),
    )  # fmt: skip
    batch = batch_of(trainer)
    tokens = rows(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    # TRL pairs prompt i with the answer before it, we with the next in the order of ids.
    groups = [
        Group(str(len(tokens) - i), p, [Completion(c, np.ones(len(c), bool), rank=int(not good))])
        for i, ((p, c), good) in enumerate(zip(tokens, batch["label"], strict=True))
    ]
    others = mismatched(groups)
    kl = rows(batch["KL_input_ids"], batch["KL_attention_mask"], batch["KL_completion_mask"])
    key = {(tuple(p.tolist()), tuple(c.tolist())) for p, c in kl}
    assert key == {(tuple(g.prompt.tolist()), tuple(g.completions[0].ids.tolist())) for g in others}
    for each in (groups, others):
        annotate(LM(reference, ModelSpec(path="none")), each, "ref_logp")
    pack = build(others)
    with torch.no_grad():
        ratios = sums_of(forward(LM(policy, ModelSpec(path="none")))(pack), pack, True)[1]
    z0 = max(0.0, float(ratios.mean()))
    other = theirs(trainer, batch)
    assert z0 == pytest.approx(trainer._metrics["train"]["kl"][-1], rel=VALUE, abs=1e-6)
    objective = KTO(beta=0.3, desirable=0.7, undesirable=1.3)
    agree(ours(policy, groups, objective.at(z0)), other)
    agree(ours(policy, groups, objective.at(0.8)), with_kl(trainer, batch, 0.8))


def with_kl(trainer: Any, batch: dict[str, Any], z0: float) -> tuple[float, dict[str, Tensor]]:
    """TRL's loss on a batch whose KL is ``z0``: its reference's KL log-probs are moved there."""
    trainer.precompute_ref_logps = True
    with torch.no_grad():
        completion, _ = trainer.compute_ref_log_probs(trainer.ref_model, batch)
        own = trainer._compute_kl_logps(trainer.model, batch)
    batch = dict(batch, ref_logps=completion, ref_KL_logps=own - z0)
    return theirs(trainer, batch)


CPO_TYPES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5}, {"type": "simpo"}),
    ({"loss_type": "simpo", "beta": 3.0, "simpo_gamma": 1.0}, {"type": "simpo", "beta": 3.0, "gamma": 1.0}),
    ({"loss_type": "sigmoid"}, {"type": "dpo", "reference_free": True}),
    ({"loss_type": "sigmoid", "label_smoothing": 0.2}, {"type": "cdpo", "smoothing": 0.2, "reference_free": True}),
    ({"loss_type": "hinge", "beta": 1.0}, {"type": "slic", "nll_weight": 0.0}),
    ({"loss_type": "ipo"}, {"type": "ipo", "reference_free": True}),
]  # fmt: skip


def cpo_batch(batch: dict[str, Any]) -> list[Group]:
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for side in ("chosen", "rejected"):
        answered = batch[f"{side}_labels"] != -100
        pairs += rows(batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"], answered)
    return pair_groups(pairs)


@pytest.mark.parametrize(("options", "same"), CPO_TYPES)
def test_without_a_reference(options: dict[str, Any], same: dict[str, Any], tmp_path: Path) -> None:
    policy = model(0)
    trainer = CPOTrainer(
        copy.deepcopy(policy), settings(CPOConfig, tmp_path, cpo_alpha=0.0, **options),
        train_dataset=pair_rows(), processing_class=folders.tokenizer(),
    )  # fmt: skip
    batch = batch_of(trainer)
    agree(ours(policy, cpo_batch(batch), DIRECT.validate_python(same)), theirs(trainer, batch))


def orpo(policy: Any, pairs: Sequence[tuple[str, str, str]], out: Path) -> Any:
    words = folders.tokenizer()
    words.bos_token = None  # else the prompt is never one token
    return ORPOTrainer(
        copy.deepcopy(policy), settings(ORPOConfig, out, beta=0.3),
        train_dataset=pair_rows(pairs), processing_class=words,
    )  # fmt: skip


def test_orpo(tmp_path: Path) -> None:
    """TRL's likelihood is over prompt and answer, and a mean over tokens: equal where the prompt is
    one token and the chosen answers are of one length."""
    policy = model(0)
    prompts = ("what", "where", "who", "is")
    even = [(q, "a cat is here", l) for q, (_, _, l) in zip(prompts, PAIRS, strict=True)]
    trainer = orpo(policy, even, tmp_path)
    batch = batch_of(trainer)
    groups = cpo_batch(batch)
    assert all(len(g.prompt) == 1 for g in groups)
    agree(ours(policy, groups, ORPO(lam=0.3)), theirs(trainer, batch))


def test_orpo_odds_ratio(tmp_path: Path) -> None:
    trainer = orpo(model(0), PAIRS, tmp_path)
    nw, nl = f64([5.0, 2.0]), f64([3.0, 7.0])
    sides: list[tuple[Tensor, Tensor, Tensor]] = []
    for use_ours in (True, False):
        W, L = f64([-4.0, -1.5], grad=True), f64([-3.5, -9.0], grad=True)
        if use_ours:
            each = ORPO(lam=0.3).loss(Pairs(W, L, W, L, nw, nl))
        else:
            each = -trainer.odds_ratio_loss(W / nw, L / nl)[0]
        sides.append((each, *torch.autograd.grad(each.sum(), (W, L))))
    for a, b in zip(*sides, strict=True):
        near(a, b.double().detach(), 1e-6)


def unlike(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any):
    """A reward from token ids alone."""
    return [spread(ids) for ids in completion_ids]


def spread(ids: Sequence[int]) -> float:
    return len(set(ids)) / len(ids) + 0.01 * len(ids)


def online(kind: Any, config: Any, policy: Any, out: Path, **options: Any) -> Any:
    data = datasets.Dataset.from_list([{"prompt": p} for p, _, _ in PAIRS])
    policy.save_pretrained(out / "start")  # a path: TRL loads its reference from there
    return kind(
        str(out / "start"), unlike,
        settings(
            config, out, per_device_train_batch_size=8, num_generations=4,
            max_completion_length=7,
            model_init_kwargs={"dtype": "float32"}, **options,
        ),
        train_dataset=data, processing_class=folders.tokenizer(),
    )  # fmt: skip


def sampled(trainer: Any) -> dict[str, Any]:
    """A batch that TRL sampled, scored and gave advantages."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._prepare_inputs(batch_of(trainer))


def rollouts(batch: dict[str, Any]) -> tuple[list[Group], list[int]]:
    """The batch as groups of answers to one prompt, and the row of each answer in order."""
    by_prompt: dict[tuple[int, ...], list[tuple[int, Completion]]] = {}
    for i in range(len(batch["prompt_ids"])):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
        ids = batch["completion_ids"][i][batch["completion_mask"][i].bool()].numpy()
        answer = Completion(ids, np.ones(len(ids), bool), reward=spread(ids.tolist()))
        by_prompt.setdefault(tuple(prompt), []).append((i, answer))
    groups = [
        Group(str(p), np.array(p), [c for _, c in indexed])
        for p, indexed in sorted(by_prompt.items())
    ]
    return groups, [i for _, indexed in sorted(by_prompt.items()) for i, _ in indexed]


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"scale_rewards": "group"}, {"type": "grpo", "advantage": {"eps": 1e-4}}),
        ({"scale_rewards": "none"}, {"type": "dr_grpo"}),
        (
            {"scale_rewards": "batch"},
            {"type": "grpo", "advantage": {"scale": "batch", "eps": 1e-4}},
        ),
    ],
)
def test_group_advantages(options: dict[str, Any], same: dict[str, Any], tmp_path: Path) -> None:
    """On completions that TRL sampled itself."""
    trainer = online(GRPOTrainer, GRPOConfig, model(0), tmp_path, **options)
    batch = sampled(trainer)
    groups, order = rollouts(batch)
    assert [len(g.completions) for g in groups] == [4, 4]
    assign_advantages(groups, ONLINE.validate_python(same | {"kl": {"place": "none"}}), 0.0)
    ours = torch.tensor([float(c.tokens["advantage"][0]) for g in groups for c in g.completions])
    assert float(ours.abs().max()) > 0.01
    torch.testing.assert_close(ours, batch["advantages"][order], rtol=1e-4, atol=1e-6)


def test_leave_one_out_advantages(tmp_path: Path) -> None:
    trainer = online(RLOOTrainer, RLOOConfig, model(0), tmp_path, beta=0.0)
    batch = sampled(trainer)
    groups, order = rollouts(batch)
    assign_advantages(
        groups, ONLINE.validate_python({"type": "rloo", "kl": {"place": "none"}}), 0.0
    )
    ours = torch.tensor([float(c.tokens["advantage"][0]) for g in groups for c in g.completions])
    assert float(ours.abs().max()) > 0.01
    torch.testing.assert_close(ours, batch["advantages"][order], rtol=1e-4, atol=1e-6)


def moved(batch: dict[str, Any], policy: Any) -> list[Group]:
    """Old, sampler and reference log-probs near the policy's own, in TRL's batch and on our groups."""
    groups, order = rollouts(batch)
    annotate(LM(policy, ModelSpec(path="none")), groups, "old_logp")
    rng = np.random.default_rng(3)
    width = batch["completion_ids"].shape[1]
    done = [c for g in groups for c in g.completions]
    names = {
        "old_logp": "old_per_token_logps",
        "ref_logp": "ref_per_token_logps",
        "sampler_logp": "sampling_per_token_logps",
    }
    for name, theirs_name in names.items():
        batch[theirs_name] = torch.zeros(len(done), width)
        for c, row in zip(done, order, strict=True):
            c.tokens[name] = c.tokens["old_logp"] + rng.normal(0, 0.3, len(c)).astype(np.float32)
            batch[theirs_name][row, : len(c)] = torch.from_numpy(c.tokens[name])
    batch["advantages"] = batch["advantages"].clone()
    for c, row in zip(done, order, strict=True):
        a = float(rng.normal())
        batch["advantages"][row] = a
        c.tokens["advantage"] = np.full(len(c), batch["advantages"][row], np.float32)
    return groups


GRPO_TYPES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}, {"type": "grpo"}),
    ({"loss_type": "bnpo"}, {"type": "grpo", "kl": {"place": "none"}, "aggregation": "token-mean"}),
    ({"loss_type": "dr_grpo"}, {"type": "dr_grpo", "max_length": 7}),
    ({"loss_type": "dapo", "epsilon_high": 0.28}, {"type": "dapo"}),
    ({"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.1, "use_bias_correction_kl": False},
     {"type": "dapo", "kl": {"place": "loss", "estimator": "k3", "beta": 0.1}}),
    ({"loss_type": "cispo", "epsilon_high": 1.2}, {"type": "cispo", "cap": 1.2}),
    ({"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
     {"type": "gspo"}),
    ({"loss_type": "grpo", "delta": 1.3, "beta": 0.0}, {"type": "grpo", "clip": {"dual": 1.3}, "kl": {"place": "none"}}),
    ({"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": True},
     {"type": "grpo", "kl": {"beta": 0.1, "estimator": "rho-k3"}}),
    ({"loss_type": "grpo", "off_policy_mask_threshold": 0.05},
     {"type": "grpo", "kl": {"place": "none"}, "mismatch": {"off_policy_delta": 0.05}}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "same"), GRPO_TYPES)
def test_grpo_losses(options: dict[str, Any], same: dict[str, Any], tmp_path: Path) -> None:
    policy = model(0)
    trainer = online(GRPOTrainer, GRPOConfig, policy, tmp_path, **({"beta": 0.0} | options))
    batch = sampled(trainer)
    groups = moved(batch, policy)
    agree(ours(policy, groups, ONLINE.validate_python(same)), theirs(trainer, batch))


def test_rloo_loss(tmp_path: Path) -> None:
    """TRL's has a ratio of whole sequences and a clip; ours is the same point when told so."""
    policy = model(0)
    trainer = online(RLOOTrainer, RLOOConfig, policy, tmp_path, beta=0.0)
    batch = sampled(trainer)
    groups = moved(batch, policy)
    batch["old_logps"] = (batch["old_per_token_logps"] * batch["completion_mask"]).sum(1)
    point = {"type": "rloo", "surrogate": "clipped", "ratio": "product", "kl": {"place": "none"},
             "aggregation": "seq-mean-token-mean"}  # fmt: skip
    agree(ours(policy, groups, ONLINE.validate_python(point)), theirs(trainer, batch))
    # At the weights that sampled, the plain method has the same gradient.
    for c in (c for g in groups for c in g.completions):
        c.tokens.pop("old_logp")
    annotate(LM(policy, ModelSpec(path="none")), groups, "old_logp")
    with torch.no_grad():
        own = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
            batch["completion_ids"].shape[1],
        )[0]
    batch["old_logps"] = (own * batch["completion_mask"]).sum(1)
    plain = ours(policy, groups, ONLINE.validate_python({"type": "rloo", "kl": {"place": "none"}}))
    other = theirs(trainer, batch)
    agree((other[0], plain[1]), other)

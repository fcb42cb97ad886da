"""The same tensors through TRL's own trainers: the same loss and the same gradient.

A small real trainer of TRL on the CPU makes the batch and computes its loss; its token ids, in
our packs, go through our objective. What differs on purpose is in ``docs/parity.md``. Weights are
fp32, so both sides carry its rounding: gradients agree to 2e-5 of their norm.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

import trimtab
from tests.support import folders
from tests.support.oracles import f64, near
from tests.support.trl_parity import (
    PAIRS,
    VALUE,
    agree,
    annotate,
    batch_of,
    forward,
    model,
    ours,
    pair_rows,
    rows,
    settings,
    theirs,
)
from trimtab.data.pack import build
from trimtab.models.load import LM, ModelSpec
from trimtab.objectives.kto import KTO, mismatched
from trimtab.objectives.pairs import Direct, Pairs
from trimtab.objectives.pairs import summed as sums_of
from trimtab.objectives.preference import ORPO, Preference
from trimtab.types import Completion, Group

trl = pytest.importorskip("trl", reason="needs the extra 'parity': pip install -e .[parity]")
datasets = pytest.importorskip("datasets")

from trl import (  # noqa: E402
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402

RECIPE = Path(trimtab.__file__).parent / "recipes" / "custom_method.py"
DIRECT: TypeAdapter[Direct] = TypeAdapter(Preference)


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
    ({"loss_type": ["apo_zero"]}, {"type": f"{RECIPE}:APOZero"}),
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

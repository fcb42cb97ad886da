"""TRL's online trainers on the same tensors: the same advantages, loss and gradient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from tests.support import folders
from tests.support.trl_parity import PAIRS, agree, annotate, batch_of, model, ours, settings, theirs
from trimtab.models.load import LM, ModelSpec
from trimtab.objectives.methods import Method
from trimtab.objectives.policy import PolicyMethod
from trimtab.train.advantages import assign_advantages
from trimtab.types import Completion, Group

trl = pytest.importorskip("trl", reason="needs the extra 'parity': pip install -e .[parity]")
datasets = pytest.importorskip("datasets")

from trl import (  # noqa: E402
    GRPOConfig,
    GRPOTrainer,
    RLOOConfig,
    RLOOTrainer,
)

ONLINE: TypeAdapter[PolicyMethod] = TypeAdapter(Method)


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

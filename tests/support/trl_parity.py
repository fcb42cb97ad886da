"""What the tests of parity with TRL share: a model, a batch of TRL's, both sides' loss and gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.models import tiny
from trimtab.data.pack import Output, Pack, build, packs, scatter
from trimtab.models.load import LM, ModelSpec
from trimtab.train.gradients import Part
from trimtab.train.trainer import LoopSpec, OptimSpec, Trainer
from trimtab.types import Group

trl = pytest.importorskip("trl", reason="needs the extra 'parity': pip install -e .[parity]")
datasets = pytest.importorskip("datasets")


VALUE, GRADIENT = 1e-5, 2e-5
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

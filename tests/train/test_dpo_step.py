"""Every direct method: how a step is cut, packed or ordered changes no gradient.

As in ``test_step_invariance``: the plain step is a transformers forward for every answer alone,
and the loss of each pair written out again.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.functional import softplus

from tests.support.invariance import (
    LAYOUTS,
    Shape,
    agree,
    alone_logps,
    budgets,
    make,
    number,
    plain_gradient,
    seeds,
    shapes,
    shuffled,
    step,
)
from tests.support.models import tiny
from trimtab.data.pack import Output, Pack
from trimtab.models.load import LM, ModelSpec
from trimtab.objectives.kto import KTO
from trimtab.objectives.pairs import Direct
from trimtab.objectives.preference import DIRECT, Preference
from trimtab.types import Group

MENU: TypeAdapter[Direct] = TypeAdapter(Preference)
Z0 = 0.3
some = settings(max_examples=8, deadline=None, derandomize=True)

CASES: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.3}, "rpo": {"beta": 0.3}, "cdpo": {"beta": 0.3, "smoothing": 0.2}, "robust": {"smoothing": 0.2},
    "ipo": {"beta": 0.5}, "hinge": {"beta": 0.05}, "slic": {"delta": 30.0, "nll_weight": 0.5},
    "dpo_norm": {"beta": 2.0}, "simpo": {"gamma": 0.7}, "orpo": {"lam": 0.5},
    "kto": {"desirable": 0.7, "undesirable": 1.3},
}  # fmt: skip


def test_every_type_is_here() -> None:
    assert set(CASES) == set(DIRECT)


@pytest.fixture(scope="module")
def lm() -> LM:
    model = tiny("llama")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    return LM(model.double(), ModelSpec(path="none"))


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, lm: LM, monkeypatch: pytest.MonkeyPatch) -> bool:
    share, exact = LAYOUTS[request.param]
    monkeypatch.setattr(lm, "exact", exact)
    return share


def referenced(lm: LM, shape: Shape, seed: int) -> list[Group]:
    """Groups with the log-probs of a reference nearby."""
    groups = make(shape, seed)
    rng = np.random.default_rng(seed)
    for g in groups:
        for c in g.completions:
            with torch.no_grad():
                near = alone_logps(lm, g, c)[0].numpy() + rng.normal(0, 0.5, c.trained)
            c.tokens["ref_logp"] = np.full(len(c), np.nan, np.float32)
            c.tokens["ref_logp"][c.mask] = near
    return groups


def pair_loss(kind: str, W: Tensor, L: Tensor, rw: float, rl: float, nw: int, nl: int) -> Tensor:
    """One pair's loss, from the sums of log-probs and the reference's."""
    s = CASES[kind]
    z = s.get("beta", 0.1) * ((W - rw) - (L - rl))
    if kind == "dpo":
        return softplus(-z)
    if kind == "rpo":
        return softplus(-z) - W / nw
    if kind == "cdpo":
        return 0.8 * softplus(-z) + 0.2 * softplus(z)
    if kind == "robust":
        return (0.8 * softplus(-z) - 0.2 * softplus(z)) / 0.6
    if kind == "ipo":
        return ((W - rw) / nw - (L - rl) / nl - 1.0) ** 2
    if kind == "hinge":
        return (1 - z).clamp(min=0)
    if kind == "slic":
        return (30.0 - W + L).clamp(min=0) - 0.5 * W / nw
    if kind == "dpo_norm":
        return softplus(-2.0 * ((W - rw) / nw - (L - rl) / nl))
    if kind == "simpo":
        return softplus(-2.0 * (W / nw - L / nl) + 0.7)
    assert kind == "orpo"
    p, q = (W / nw).exp(), (L / nl).exp()
    return -W / nw - 0.5 * torch.log(torch.sigmoid(torch.log(p / (1 - p) * (1 - q) / q)))


def plain(kind: str, lm: LM, groups: list[Group]) -> Tensor | float:
    per_group: list[Tensor] = []
    singles: list[Tensor] = []
    for g in groups:
        logps = [
            (c.rank, alone_logps(lm, g, c)[0], c.tokens["ref_logp"][c.mask].astype(np.float64))
            for c in g.completions
            if c.rank is not None and c.trained
        ]
        if kind == "kto":
            best = 0 if len(g.completions) == 1 else min((r for r, *_ in logps), default=0)
            if len(g.completions) > 1 and len({r for r, *_ in logps}) < 2:
                continue
            for rank, logp, ref in logps:
                moved = 0.1 * ((logp - torch.from_numpy(ref)).sum() - Z0)
                good = rank == best
                singles.append(0.7 * torch.sigmoid(-moved) if good else 1.3 * torch.sigmoid(moved))
            continue
        losses: list[Tensor] = []
        for x, y in itertools.combinations(logps, 2):
            if x[0] != y[0]:
                w, l = (x, y) if x[0] < y[0] else (y, x)
                losses.append(
                    pair_loss(
                        kind, w[1].sum(), l[1].sum(), w[2].sum(), l[2].sum(), len(w[1]), len(l[1])
                    )
                )
        if losses:
            per_group.append(torch.stack(losses).mean())
    units = singles or per_group
    return torch.stack(units).mean() if units else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_direct_step(kind: str, lm: LM, layout: bool) -> None:
    modules: dict[str, nn.Module] = {"model": lm.model}
    objective: Any = MENU.validate_python({"type": kind, **CASES[kind]})
    if isinstance(objective, KTO):
        objective = objective.at(Z0)

    def forward(pack: Pack) -> Output:
        return Output(logp_C=lm.logps(lm.states(pack), pack)[0])

    moved = 0

    @some
    @given(shapes, seeds, budgets)
    def check(shape: Shape, seed: int, budget: int) -> None:
        nonlocal moved
        groups = referenced(lm, shape, seed)
        loss = plain(kind, lm, groups)
        want = plain_gradient(modules, loss)
        moved += float(want.norm()) > 1e-3
        for order in (groups, shuffled(groups, seed)):
            got, metrics = step(modules, order, objective, forward, budget, layout)
            agree(got, want)
            assert metrics["loss"] == pytest.approx(number(loss), rel=1e-5, abs=1e-6)
            assert all(math.isfinite(v) for v in metrics.values())

    check()
    assert moved >= 3, "the examples hardly had a gradient"

"""Every online method takes the same step, however its batch is cut, packed or ordered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.invariance import (
    TAU,
    Shape,
    agree,
    alone_heads,
    alone_logps,
    budgets,
    each,
    few,
    make,
    plain_gradient,
    seeds,
    shapes,
    shuffled,
    step,
)
from tests.support.oracles import GARBAGE
from trimtab.data.pack import Output, Pack
from trimtab.models.heads import Scorer
from trimtab.models.load import LM
from trimtab.objectives.methods import METHODS
from trimtab.objectives.methods.ppo import PPO
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.ratio import ClipSpec
from trimtab.objectives.value import ValueSpec
from trimtab.types import Group


def rollout(lm: LM, groups: Sequence[Group], seed: int, fill: float = 0.0) -> None:
    """Log-probs of a policy nearby, advantages, values, returns; ``fill`` under the mask."""
    rng = np.random.default_rng(seed)
    for g, c in each(groups):
        with torch.no_grad():
            logp = alone_logps(lm, g, c, TAU)[0].numpy()
        n = c.trained
        columns = {
            "old_logp": logp + rng.normal(0, 0.3, n),
            "ref_logp": logp + rng.normal(0, 0.3, n),
            "sampler_logp": logp + rng.normal(0, 0.3, n),
            "ref_norm": rng.normal(3, 0.3, n),
            "advantage": rng.normal(0, 1, n),
            "value": rng.normal(0, 1, n),
            "return": rng.normal(0, 1, n),
        }
        for name, data in columns.items():
            c.tokens[name] = np.full(len(c), fill, np.float32)
            c.tokens[name][c.mask] = data


METHOD = PPO(clip=ClipSpec(dual=3.0), entropy_coef=0.01, value=ValueSpec(coef=0.5))


def ppo_sum(lm: LM, scorer: Scorer, groups: Sequence[Group]) -> Tensor | float:
    parts: list[Tensor] = []
    for g, c in each(groups):
        logp, entropy = alone_logps(lm, g, c, TAU)
        value = alone_heads(scorer, g, c)[len(g.prompt) - 1 : -1][torch.from_numpy(c.mask)]
        old, a, v0, ret = (
            c.tokens[k][c.mask].astype(np.float64)
            for k in ("old_logp", "advantage", "value", "return")
        )
        for t in range(c.trained):
            rho = (logp[t] - old[t]).exp()
            inside = bool(0.8 <= rho <= 1.2)
            pushed_out = (a[t] > 0 and rho > 1.2) or (a[t] < 0 and rho < 0.8)
            policy = rho * a[t] if inside or not pushed_out else rho.detach().clamp(0.8, 1.2) * a[t]
            if a[t] < 0 and rho > 3.0:
                policy = torch.tensor(3.0 * a[t])
            near = value[t] if abs(float(value[t].detach()) - v0[t]) < 0.2 else None
            far = v0[t] + math.copysign(0.2, float(value[t].detach()) - v0[t])
            free = (value[t] - ret[t]) ** 2
            loss = free if near is not None else torch.tensor((far - ret[t]) ** 2)
            critic = 0.5 * (free if free >= loss else loss)
            parts.append(-policy + 0.5 * critic - 0.01 * entropy[t])
    return torch.stack(parts).mean() if parts else 0.0


def ppo_forward(lm: LM, scorer: Scorer) -> Callable[[Pack], Output]:
    def forward(pack: Pack) -> Output:
        logp, entropy = lm.logps(lm.states(pack), pack, TAU)
        return Output(logp_C=logp, entropy_C=entropy, value_C=scorer.values(pack))

    return forward


@pytest.mark.slow
def test_ppo_step(lm: LM, scorer: Scorer, layout: bool) -> None:
    modules: dict[str, nn.Module] = {"policy": lm.model, "critic": scorer.model}
    forward = ppo_forward(lm, scorer)

    @few
    @given(shapes, seeds, budgets)
    def check(shape: Shape, seed: int, budget: int) -> None:
        groups = make(shape, seed)
        rollout(lm, groups, seed)
        want = plain_gradient(modules, ppo_sum(lm, scorer, groups))
        for order in (groups, shuffled(groups, seed)):
            got, _ = step(modules, order, METHOD, forward, budget, layout)
            agree(got, want)

    check()


def method_forward(lm: LM, scorer: Scorer, critic: bool) -> Callable[[Pack], Output]:
    def forward(pack: Pack) -> Output:
        logp, entropy, norm = lm.logps_and_norms(lm.states(pack), pack, TAU)
        values = scorer.values(pack) if critic else None
        return Output(logp_C=logp, entropy_C=entropy, norm_C=norm, value_C=values)

    return forward


def made_method(name: str) -> PolicyMethod:
    """As published, with an entropy bonus and the KL of its place at work."""
    return METHODS[name](max_length=8, entropy_coef=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_takes_the_same_step_however_it_is_cut(
    lm: LM, scorer: Scorer, name: str
) -> None:
    """One pack of whole groups, in the order given, is what all other cuts must agree with."""
    method = made_method(name)
    modules: dict[str, nn.Module] = {"policy": lm.model}
    if method.needs_critic:
        modules["critic"] = scorer.model
    forward = method_forward(lm, scorer, method.needs_critic)

    @few
    @given(shapes, seeds, budgets, st.booleans())
    def check(shape: Shape, seed: int, budget: int, share: bool) -> None:
        groups = make(shape, seed)
        rollout(lm, groups, seed)
        want, expected = step(modules, groups, method, forward, 1_000_000, True)
        got, actual = step(modules, shuffled(groups, seed), method, forward, budget, share)
        agree(got, want)
        for key in expected:
            if key.startswith(("policy/", "value/")):
                assert actual[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), key
        alone = [Group(g.id, g.prompt, [c]) for g in groups for c in g.completions]
        agree(step(modules, alone, method, forward, budget, share)[0], want)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_O0_garbage_under_the_mask_of_every_method(lm: LM, scorer: Scorer, name: str) -> None:
    method = made_method(name)
    modules: dict[str, nn.Module] = {"policy": lm.model}
    if method.needs_critic:
        modules["critic"] = scorer.model
    forward = method_forward(lm, scorer, method.needs_critic)
    seen: list[tuple[Tensor, dict[str, float]]] = []
    for fill in (0.0, math.nan):
        groups = make([(3, [5, 2, 7]), (1, [6]), (4, [4, 4])], 5)
        rollout(lm, groups, 5, fill)
        seen.append(step(modules, groups, method, forward, 16, True))
    assert torch.equal(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_O0_garbage_under_the_mask_of_a_ppo_step(lm: LM, scorer: Scorer, garbage: float) -> None:
    """Bit for bit: what is masked is never read."""
    modules: dict[str, nn.Module] = {"policy": lm.model, "critic": scorer.model}
    shape: Shape = [(3, [5, 2, 7]), (1, [6]), (4, [4, 4])]
    seen: list[tuple[Tensor, dict[str, float]]] = []
    for fill in (0.0, garbage):
        groups = make(shape, 5)
        assert any(not c.mask.all() for _, c in each(groups))
        rollout(lm, groups, 5, fill)
        seen.append(step(modules, groups, METHOD, ppo_forward(lm, scorer), 16, True))
    assert torch.equal(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1]

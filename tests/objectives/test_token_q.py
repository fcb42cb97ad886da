"""Token-level Q-learning: residuals by hand, and the exact optimum of a small task as the fixed point."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.support.oracles import completion, f64, floats, group, near, total
from trimtab.data.pack import Output, build
from trimtab.objectives.kl import FixedKL
from trimtab.objectives.methods.shiq import ShiQ, TokenQ

BETA = 0.5
HALF = FixedKL(place="loss", estimator="k2", beta=BETA)
NAIVE_HALF = FixedKL(place="none", beta=BETA)
OWNER = torch.tensor([0, 0, 0, 1])


def test_residuals_by_hand() -> None:
    """Two completions, of three tokens and of one; rewards 1 and 0 at their last tokens."""
    returns, log, norm = f64(1, 1, 1, 0), f64(-1.0, -2.0, -0.5, -3.0), f64(4.0, 3.0, 2.0, 1.0)
    # r + beta n_next - beta (log + n): 0 + 1.5 - 1.5, 0 + 1 - 0.5, 1 + 0 - 0.75, 0 + 0 + 1.
    near(TokenQ(kl=NAIVE_HALF).residual(returns, log, norm, OWNER), [0.0, 0.5, 0.25, 1.0])
    # R - beta (sum of later logs + n): 1 - 0.5 (-3.5 + 4), 1 - 0.5 (-2.5 + 3), 1 - 0.5 (1.5), 0 - 0.5 (-2).
    near(ShiQ(kl=HALF).residual(returns, log, norm, OWNER), [0.75, 0.75, 0.25, 1.0])


def test_one_step_residuals_sum_to_the_multi_step_one() -> None:
    generator = torch.Generator().manual_seed(0)
    log, norm = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    reward = f64(0.1, 0.0, 1.0, 0.5)
    returns = f64(1.1, 1.0, 1.0, 0.5)
    assert float(reward[:3].sum()) == float(returns[0])
    one = ShiQ(kl=HALF, backup="one-step").residual(returns, log, norm, OWNER)
    many = ShiQ(kl=HALF).residual(returns, log, norm, OWNER)
    near(many, [float(one[:3].sum()), float(one[1:3].sum()), float(one[2]), float(one[3])])


def test_gradients_by_hand() -> None:
    """One token: delta = 1 - 0.5 (log + n); the loss is its square, so each slope is -delta."""
    pack = build([group(completion(1))])
    pack.tokens.update({"advantage": torch.ones(1), **reference(1)})
    for method in (ShiQ(kl=HALF), TokenQ(kl=NAIVE_HALF)):
        logp, norm = (torch.tensor([x], requires_grad=True) for x in (-0.4, 1.2))
        out = Output(logp_C=logp, entropy_C=torch.zeros(1), norm_C=norm)
        loss = total(method(out, pack), method.counts(pack))
        near(loss, 0.36, 1e-6)
        loss.backward()
        assert logp.grad is not None and norm.grad is not None
        near(torch.cat([logp.grad, norm.grad]), [-0.6, -0.6], 1e-6)


def reference(count: int) -> Any:
    return {"ref_logp": torch.zeros(count), "ref_norm": torch.zeros(count)}


# A task of two tokens from a vocabulary of three, every state with its own logits: nine completions.
V, STATES = 3, [(), (0,), (1,), (2,)]


def task() -> tuple[Tensor, Tensor]:
    """Reference logits [4, V], and rewards [V, V] of the completions."""
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(4, V, generator=generator, dtype=torch.float64) + 5.0,
        torch.rand(V, V, generator=generator, dtype=torch.float64),
    )


def optimum(prior_SV: Tensor) -> Tensor:
    """The logits [4, V] of the optimal policy: prior + Q / beta, backwards from the rewards."""
    _, reward = task()
    z = prior_SV.clone()
    z[1:] = prior_SV[1:] + reward / BETA
    value = BETA * (z[1:].logsumexp(-1) - prior_SV[1:].logsumexp(-1))
    z[0] = prior_SV[0] + value / BETA
    return z


def columns(z_SV: Tensor, prior_SV: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns, log-ratios and differences of log-sum-exps of all nine completions, [18] each; owners."""
    _, reward = task()
    rows: list[tuple[Tensor, Tensor, Tensor, int]] = []
    norm, prior = z_SV.logsumexp(-1), prior_SV.logsumexp(-1)
    for owner, (a, b) in enumerate(itertools.product(range(V), repeat=2)):
        for state, token in ((0, a), (1 + a, b)):
            log = z_SV[state, token] - norm[state] - prior_SV[state, token] + prior[state]
            rows.append((reward[a, b], log, norm[state] - prior[state], owner))
    returns, logs, norms, owners = zip(*rows, strict=True)
    return torch.stack(returns), torch.stack(logs), torch.stack(norms), torch.tensor(owners)


@pytest.mark.parametrize("backup", ["one-step", "multi-step"])
def test_the_residual_vanishes_at_the_optimum_only(backup: Any) -> None:
    prior, reward = task()
    method = ShiQ(kl=HALF, backup=backup)
    near(method.residual(*columns(optimum(prior), prior)), [0.0] * 18)
    start = method.residual(*columns(prior, prior))
    if backup == "multi-step":  # at the start it is the return of every token
        near(start, reward.reshape(-1).repeat_interleave(2).tolist())
    assert float(start.abs().max()) > 0.3


def test_learning_ends_at_the_optimum_from_an_offset_start() -> None:
    """The reference's logits have an offset of 5, which no policy sees and the shift takes off."""
    prior, _ = task()
    z = prior.clone().requires_grad_()
    method = ShiQ(kl=HALF)
    optimizer = torch.optim.LBFGS([z], max_iter=200, tolerance_grad=1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (method.residual(*columns(z, prior)) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    near(z.detach().softmax(-1).flatten(), optimum(prior).softmax(-1).flatten().tolist(), 1e-5)


def test_the_naive_form_forgets_the_reference() -> None:
    """Its fixed point is the optimum under a uniform prior, whatever the policy was before."""
    prior, reward = task()
    flat = torch.zeros_like(prior)
    z = torch.zeros_like(prior)
    z[1:] = reward / BETA
    z[0] = z[1:].logsumexp(-1)
    method = TokenQ(kl=NAIVE_HALF)
    returns, logs, norms, owners = columns(z, flat)
    # Under a flat prior of log V the log-ratios and norms are those of the logits, up to log V.
    shift = float(np.log(V))
    near(method.residual(returns, logs - shift, norms + shift, owners), [0.0] * 18)
    assert float((z.softmax(-1) - optimum(prior).softmax(-1)).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"kl": {"beta": 0.0}}, "leaves no logit"),
        ({"kl": {"place": "reward", "estimator": "k1"}}, "holds the KL itself"),
        ({"advantage": {"estimator": "gae"}}, "estimator: returns"),
        ({"advantage": {"gamma": 0.9}}, "gamma: 1"),
    ],
)
def test_refusals(keys: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        ShiQ.model_validate({"type": "shiq", **keys})


def test_floats_are_kept_apart_by_completion() -> None:
    """A pack of two completions gives the sums of two packs of one."""
    method = ShiQ(kl=HALF)
    values = floats({"advantage": [1.0, 1.0], "given": [-0.3, -0.6], "norm": [2.0, 1.0],
                     "ref_logp": [-0.5, -0.5], "ref_norm": [1.5, 1.5]})  # fmt: skip

    def loss(count: int) -> float:
        done = [completion(2) for _ in range(count)]
        for c in done:
            c.tokens.update(values)
        pack = build([group(*done)])
        out = Output(
            logp_C=pack.tokens["given"],
            entropy_C=torch.zeros(2 * count),
            norm_C=pack.tokens["norm"],
        )
        return float(method(out, pack).terms["policy/loss"].sum)

    assert loss(2) == pytest.approx(2 * loss(1), rel=1e-6)
    # 1 - 0.5 (0.2 - 0.1 + 0.5), 1 - 0.5 (-0.1 - 0.5)
    assert loss(1) == pytest.approx(0.7**2 + 1.3**2, rel=1e-6)

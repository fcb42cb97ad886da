"""The hand-worked numbers of the algorithm specification, oracles O5 to O7: values and gradients.

Every expected number was computed apart from the code under test: from the specification's tables,
or by hand from the formula where the table gives a value and no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.oracles import GARBAGE, Scaled, completion, f64, floats, group, near, total
from trimtab.data.pack import Output, build
from trimtab.objectives.advantage import gae, implicit_rewards, last_token, token_rewards
from trimtab.objectives.kl import (
    AdaptiveKL,
    HalvingKL,
    KLController,
    RangeKL,
    estimate,
    log_ratio,
)
from trimtab.objectives.methods.ppo import PPO
from trimtab.objectives.nll import SFT
from trimtab.objectives.ratio import clip_fraction, clipped, ratios
from trimtab.objectives.tensors import masked_mean, masked_sum, whiten
from trimtab.objectives.terms import aggregate
from trimtab.objectives.value import ValueSpec, value_loss
from trimtab.train.gradients import Part
from trimtab.train.trainer import LoopSpec, OptimSpec, Trainer

# O5 ------------------------------------------------------------------------------------------

PI, REF = (0.5, 0.3, 0.2), (0.4, 0.4, 0.2)
TRUE = (0.098938, -0.093885, -0.005053)


def _rho_k3(logp: Tensor, ref: Tensor) -> Tensor:
    return ratios(logp, logp.detach()) * estimate(log_ratio(logp, ref), "k3")


@pytest.mark.parametrize(
    ("loss", "value", "gradient"),
    [
        (lambda a, b: estimate(log_ratio(a, b), "k1"), 0.025267, (0.0, 0.0, 0.0)),
        (lambda a, b: estimate(log_ratio(a, b), "k2"), 0.024862, TRUE),
        (lambda a, b: estimate(log_ratio(a, b), "k3"), 0.025267, (0.1, -0.1, 0.0)),
        (lambda a, b: estimate(log_ratio(b, a), "k3"), 0.024733, (0.1, -0.09, -0.01)),
        (_rho_k3, 0.025267, TRUE),
        # k1 in the reward: -sg(r) logpi with r = -k1.
        (lambda a, b: estimate(log_ratio(a, b), "k1").detach() * a, None, TRUE),
    ],
    ids=["k1", "k2", "k3", "flipped k3", "rho k3", "k1 in reward"],
)
def test_O5a_estimators_in_expectation(
    loss: Callable[[Tensor, Tensor], Tensor], value: float | None, gradient: tuple[float, ...]
) -> None:
    z = f64([math.log(p) for p in PI]).requires_grad_()
    expected = (f64(PI) * loss(torch.log_softmax(z, 0), f64(REF).log())).sum()
    if value is not None:
        near(expected, value)
    expected.backward()
    near(z.grad, gradient)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "want"), [("reward-to-go", 0.185647), ("token k2", 0.097312), ("gamma 0", 0.097312)]
)
def test_O5b_reward_to_go_is_what_reaches_later_tokens(how: str, want: float) -> None:
    first = f64([math.log(0.6), math.log(0.4)]).requires_grad_()
    logp = torch.log_softmax(first, 0)
    rows: list[Tensor] = []
    weights: list[float] = []
    for one, p_one in ((0, 0.6), (1, 0.4)):
        for p_two in (0.9, 0.1) if one == 0 else (0.5, 0.5):
            # Columns: logpi and logref of both tokens; the second step does not move.
            rows.append(torch.stack([logp[one], f64(math.log(p_two))]))
            weights.append(p_one * p_two)
    on = torch.stack(rows)
    ref = f64([[math.log(0.5)] * 2] * 4)
    mask = torch.ones(4, 2, dtype=torch.bool)
    ratio = log_ratio(on, ref)
    if how == "token k2":
        per_row = estimate(ratio, "k2").sum(1)
    else:
        rewards = token_rewards(torch.zeros(4), estimate(ratio, "k1").detach(), mask, 1.0)
        gamma = 0.0 if how == "gamma 0" else 1.0
        credit, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)
        per_row = -(credit * on).sum(1)
    (f64(weights) * per_row).sum().backward()
    near(first.grad[0], want)  # type: ignore[index]


@pytest.mark.parametrize(("kl", "want"), [(9.0, 0.201024), (6.6, 0.200512), (0.0, 0.198976)])
def test_O5c_adaptive(kl: float, want: float) -> None:
    controller = KLController(AdaptiveKL(beta=0.2, target=6.0, horizon=10_000))
    controller.update(kl, 256)
    near(controller.beta, want, 1e-12)


@pytest.mark.parametrize(("kl", "want"), [(3.9, 0.1), (4.1, 0.2), (8.9, 0.2), (9.1, 0.4)])
def test_O5_halving(kl: float, want: float) -> None:
    controller = KLController(HalvingKL(beta=0.2, target=6.0))
    controller.update(kl, 1)
    near(controller.beta, want, 1e-12)


def test_O5_range_gives_up_after_patience_in_a_row() -> None:
    controller = KLController(RangeKL(beta=1.0, low=1.0, high=2.0, factor=2.0, patience=2))
    seen: list[tuple[float, bool]] = []
    for kl in (3.0, 1.5, 0.5, 3.0, 3.0):
        controller.update(kl, 1)
        seen.append((controller.beta, controller.exhausted))
    assert seen == [(2.0, False), (2.0, False), (1.0, False), (2.0, False), (4.0, True)]


# O6 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [None, 9.0, *GARBAGE])
@pytest.mark.parametrize(
    ("lam", "advantages"),
    [(0.95, (0.46575, 0.385, 0.3)), (1.0, (0.5, 0.4, 0.3)), (0.0, (0.1, 0.1, 0.3))],
)
def test_O6a_gae(lam: float, advantages: tuple[float, ...], garbage: float | None) -> None:
    """With a gap before the third token, padding at the end, and garbage in both."""
    values, rewards, mask = [0.5, 0.6, 0.7], [0.0, 0.0, 1.0], [True] * 3
    if garbage is not None:
        values = [0.5, 0.6, garbage, 0.7, garbage]
        rewards = [0.0, 0.0, garbage, 1.0, garbage]
        mask = [True, True, False, True, False]
    on = torch.tensor([mask])
    a, returns = gae(f64([rewards]), f64([values]), on, 1.0, lam)
    near(a[on], advantages)
    near(returns[on], [x + v for x, v in zip(advantages, (0.5, 0.6, 0.7), strict=True)])
    assert (a[~on] == 0).all()
    assert (returns[~on] == 0).all()


@pytest.mark.parametrize(
    ("value", "old", "target", "clip", "loss", "slope"),
    [
        (1.0, 0.0, 0.9, 0.2, 0.245, 0.0),
        (1.0, 0.0, 0.9, None, 0.005, 0.1),
        (0.1, 0.0, 0.9, 0.2, 0.32, -0.8),
    ],
)
def test_O6b_value_loss(
    value: float, old: float, target: float, clip: float | None, loss: float, slope: float
) -> None:
    v = f64([value]).requires_grad_()
    got = value_loss(v, f64([old]), f64([target]), clip).sum()
    near(got, loss)
    got.backward()
    near(v.grad, [slope])  # type: ignore[arg-type]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_O6c_token_rewards(garbage: float) -> None:
    kl = f64([[0.2, -0.1, garbage, 0.3, garbage], [garbage] * 5])
    mask = torch.tensor([[True, True, False, True, False], [False] * 5])
    got = token_rewards(torch.tensor([1.0, 5.0]), kl, mask, 0.1)
    near(got, [[-0.02, 0.01, 0.0, 0.97, 0.0], [0.0] * 5])
    assert last_token(mask).tolist() == [3, 0]


def test_O6c_implicit_rewards() -> None:
    logp, ref = f64([[-1.0, -2.0, -0.5]]), f64([[-1.2, -1.9, -0.8]])
    near(implicit_rewards(logp, ref, 0.1), [[0.02, -0.01, 0.03]])
    assert (implicit_rewards(logp, logp, 0.1) == 0).all()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_O0_masked_statistics(garbage: float) -> None:
    """Population variance of (1, 2, 6) is 14/3; rewards keep their mean of 3."""
    x = f64([1.0, garbage, 2.0, 6.0])
    mask = torch.tensor([True, False, True, True])
    near(masked_sum(x, mask), 9.0)
    near(masked_mean(x, mask), 3.0)
    unit = math.sqrt(14 / 3)
    near(whiten(x, mask), [-2 / unit, 0.0, -1 / unit, 3 / unit])
    near(whiten(x, mask, keep_mean=True)[mask], [3 - 2 / unit, 3 - 1 / unit, 3 + 3 / unit])
    assert masked_mean(x, torch.zeros_like(mask)) == 0


# O7 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual", "loss", "slope", "hit"),
    [
        (1.5, 1.0, None, -1.2, 0.0, 1),
        (0.5, 1.0, None, -0.5, -0.5, 0),
        (1.5, -1.0, None, 1.5, 1.5, 0),
        (0.5, -1.0, None, 0.8, 0.0, 1),
        (5.0, -1.0, None, 5.0, 5.0, 0),
        (5.0, -1.0, 3.0, 3.0, 0.0, 0),
        (5.0, 1.0, 3.0, -1.2, 0.0, 1),
    ],
)
def test_O7_clip(
    ratio: float, advantage: float, dual: float | None, loss: float, slope: float, hit: int
) -> None:
    logp = f64([math.log(ratio) - 3.0]).requires_grad_()
    rho = ratios(logp, f64([-3.0]))
    a = f64([advantage])
    got = clipped(rho, a, 0.2, 0.2, dual).sum()
    near(got, loss)
    got.backward()
    near(logp.grad, [slope])  # type: ignore[arg-type]
    assert clip_fraction(rho, a, 0.2, 0.2).item() == hit


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [(1.25, 1.0, -1.25, -1.25), (1.3, 1.0, -1.28, 0.0), (0.85, -1.0, 0.9, 0.0)],
)
def test_O7_clip_is_asymmetric(ratio: float, advantage: float, loss: float, slope: float) -> None:
    logp = f64([math.log(ratio)]).requires_grad_()
    got = clipped(ratios(logp, f64([0.0])), f64([advantage]), 0.1, 0.28).sum()
    near(got, loss)
    got.backward()
    near(logp.grad, [slope])  # type: ignore[arg-type]


def test_O7_log_ratios_are_clamped_to_20() -> None:
    rho = ratios(f64(-1.0, -900.0, -1.0), f64(-900.0, -1.0, -20.5))
    near(rho.log(), (20.0, -20.0, 19.5))


def test_O7_objective_adds_policy_value_and_entropy() -> None:
    """Two completions, a gap in the first; the sum over three tokens is divided by three."""
    nan = np.nan
    first = {"old_logp": [-3.0, nan, -3.0], "advantage": [1.0, nan, -1.0]}
    first |= {"value": [0.0, nan, 0.0], "return": [0.9, nan, 0.9]}
    second = {"old_logp": [-3.0], "advantage": [-1.0], "value": [0.0], "return": [0.9]}
    pack = build(
        [
            group(
                completion(3, mask=[True, False, True], tokens=floats(first)),
                completion(1, tokens=floats(second)),
            )
        ]
    )
    logp = torch.tensor([math.log(0.5), math.log(1.5), math.log(5.0)]) - 3.0
    logp.requires_grad_()
    value = torch.tensor([1.0, 0.1, 1.0], requires_grad=True)
    entropy = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    method = PPO(value=ValueSpec(coef=0.1), entropy_coef=0.01)
    loss = method(Output(logp_C=logp, entropy_C=entropy, value_C=value), pack)
    combined = total(loss, method.counts(pack))
    # Policy -.5, 1.5, 5; value .245, .32, .245 (O6b and its unclipped neighbour); entropy 6.
    near(combined, 6.0 / 3 + 0.1 * 0.81 / 3 - 0.01 * 6.0 / 3, 1e-5)
    combined.backward()
    near(logp.grad, [-0.5 / 3, 1.5 / 3, 5.0 / 3], 1e-5)  # type: ignore[arg-type]
    near(value.grad, [0.0, -0.08 / 3, 0.0], 1e-6)  # type: ignore[arg-type]
    near(entropy.grad, [-0.01 / 3] * 3, 1e-7)  # type: ignore[arg-type]
    near(loss.metrics["policy/ratio"][0], 7.0, 1e-5)
    assert loss.metrics["policy/ratio"][1] == "tokens"


def test_O7_ptx_gradient_is_additive() -> None:
    """The gradient of a step with two parts is that of the first plus 27.8 times the second's."""

    def slope(*parts: tuple[list[float], float]) -> float:
        model = Scaled()
        trainer = Trainer(
            {"m": model}, {"m": OptimSpec(max_grad_norm=1e9)}, 1, LoopSpec(token_budget=2)
        )
        all_parts = [
            Part(
                [group(completion(len(x), tokens=floats({"given": x})))],
                SFT(), model, True, weight, f"{i}/",
            )
            for i, (x, weight) in enumerate(parts)
        ]  # fmt: skip
        trainer.update(all_parts)
        assert model.scale.grad is not None
        return float(model.scale.grad)

    # Means 1.5 and 4: one token count never divides the other part.
    near(slope(([-1.0, -2.0], 1.0)), 1.5)
    near(slope(([-1.0, -2.0], 1.0), ([-4.0], 27.8)), 1.5 + 27.8 * 4.0, 1e-4)


@pytest.mark.parametrize(
    ("mode", "want", "gradient"),
    [
        ("token-mean", 1.5, (0.25, 0.25, 0.25, 0.25)),
        ("seq-mean-token-mean", 2.0, (1 / 2, 1 / 6, 1 / 6, 1 / 6)),
        ("seq-mean-token-sum", 3.0, (0.5, 0.5, 0.5, 0.5)),
        ("seq-mean-token-sum-norm", 0.3, (0.05, 0.05, 0.05, 0.05)),
    ],
)
def test_O9e_aggregation(mode: Any, want: float, gradient: tuple[float, ...]) -> None:
    """Here because every method of O2 and O7 rests on it. A fully masked row is not counted."""
    pack = build([group(completion(1), completion(3), completion(2, mask=[False] * 2))])
    losses = torch.tensor([3.0, 1.0, 1.0, 1.0], requires_grad=True)
    term = aggregate(losses, pack, mode, 10)
    got = term.sum / SFT().counts(pack)[term.per]
    near(got, want)
    got.backward()
    near(losses.grad, gradient)  # type: ignore[arg-type]

"""Laws of the objectives that hold for every input, and the credit of a batch of rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.oracles import GARBAGE
from trimtab.data.pack import Output, Pack, build
from trimtab.objectives.advantage import gae, token_rewards
from trimtab.objectives.bradley_terry import BradleyTerry, bradley_terry, plackett_luce
from trimtab.objectives.kl import Estimator, estimate
from trimtab.objectives.methods.ppo import PPO
from trimtab.objectives.ratio import clipped, ratios
from trimtab.objectives.tensors import pad_rows, unpad_rows, whiten
from trimtab.train.advantages import assign_advantages
from trimtab.types import Completion, Group

seeds = st.integers(0, 2**32 - 1)
many = settings(max_examples=60, deadline=None, derandomize=True)
small = st.floats(-5, 5, width=32)


# Credit of a batch ---------------------------------------------------------------------------


def credit(done: list[Completion], **method: Any) -> dict[str, float]:
    """PPO's credit at beta 0.1, each completion under a prompt of its own."""
    groups = [Group(str(i), np.array([1]), [c]) for i, c in enumerate(done)]
    return assign_advantages(groups, PPO(**method), 0.1)


def batch(seed: int, fill: float) -> list[Completion]:
    rng = np.random.default_rng(seed)
    done: list[Completion] = []
    for n in (5, 1, 8, 3):
        c = Completion(np.arange(n), rng.random(n) < 0.6, reward=float(rng.normal()))
        for name in ("value", "old_logp", "ref_logp", "sampler_logp"):
            row = rng.normal(0, 1, n).astype(np.float32)
            c.tokens[name] = np.where(c.mask, row, np.float32(fill))
        done.append(c)
    return done


def close(x: Any) -> Any:
    return pytest.approx(x, abs=1e-6)


def test_credit_of_a_batch_by_hand() -> None:
    """O6c's rewards (-.02, .01, .97), a gap before the third: to go (.96, .98, .97), less V.

    The second completion was cut, so it has no part in the loss.
    """
    one = Completion(np.arange(4), np.array([True, True, False, True]), reward=1.0)
    two = Completion(np.arange(1), np.array([True]), reward=1.6, finish="length")
    for c, value, kl in ((one, [0.5, 0.6, 9.0, 0.7], [0.2, -0.1, 9.0, 0.3]), (two, [1.0], [1.0])):
        c.tokens["value"] = np.array(value, np.float32)
        c.tokens["old_logp"] = np.array(kl, np.float32) - 3
        c.tokens["ref_logp"] = np.full(len(c), -3, np.float32)
        c.tokens["sampler_logp"] = c.tokens["old_logp"] + np.float32(0.25)
    metrics = credit(
        [one, two], advantage={"whiten": False, "lam": 1.0}, length={"mask_truncated": True}
    )
    assert one.tokens["return"] == close([0.96, 0.98, 0.0, 0.97])
    assert one.tokens["advantage"] == close([0.46, 0.38, 0.0, 0.27])
    assert two.tokens["return"] == close([1.5])
    assert two.tokens["advantage"] == close([0.5])
    assert one.trained == 3
    assert two.trained == 0
    assert metrics["objective/kl"] == close((0.4 + 1.0) / 2)
    assert metrics["objective/kl_reward"] == close(-0.07)
    assert metrics["reward/final"] == close((1.0 + 1.6) / 2)
    assert metrics["objective/rlhf_reward"] == close((0.96 + 1.5) / 2)
    assert metrics["value/mean"] == close(2.8 / 4)
    assert metrics["value/last"] == close((0.7 + 1.0) / 2)
    assert metrics["sampler/drift_max"] == close(0.25)


@pytest.mark.parametrize("place", ["reward", "sequence", "none"])
def test_what_is_maximised_counts_dense_rewards_and_the_kl_where_it_is_subtracted(
    place: str,
) -> None:
    done = batch(3, 7.0)
    for c in done:
        c.tokens["dense"] = np.full(len(c), 0.5, np.float32)
    metrics = credit(done, kl={"place": place}, advantage={"whiten_rewards": True})
    paid = np.mean([c.reward + 0.5 * c.mask.sum() for c in done])
    kl = np.mean([(c.tokens["old_logp"] - c.tokens["ref_logp"])[c.mask].sum() for c in done])
    assert metrics["objective/rlhf_reward"] == close(paid - (place != "none") * 0.1 * kl)


def test_whitened_credit_by_hand() -> None:
    """Advantages 1, -2, 4 (mean 1, variance 6) over both completions; returns stay raw."""
    done = [
        Completion(np.arange(n), np.array(mask), reward=r)
        for n, mask, r in ((2, [True, False], 1.0), (1, [True], -2.0), (1, [True], 4.0))
    ]
    for c in done:
        for name in ("value", "old_logp", "ref_logp", "sampler_logp"):
            c.tokens[name] = np.zeros(len(c), np.float32)
    credit(done)
    for c, r in zip(done, (1.0, -2.0, 4.0), strict=True):
        assert c.tokens["return"][0] == pytest.approx(r)
        assert c.tokens["advantage"][0] == pytest.approx((r - 1) / math.sqrt(6), abs=1e-6)
    credit(done, advantage={"whiten_rewards": True, "whiten": False})
    for c, r in zip(done, (1.0, -2.0, 4.0), strict=True):
        assert c.tokens["return"][0] == pytest.approx(1 + (r - 1) / math.sqrt(6), abs=1e-6)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("seed", range(4))
def test_O0_garbage_under_the_mask_of_a_batch(seed: int, garbage: float) -> None:
    clean, dirty = batch(seed, 0.0), batch(seed, garbage)
    assert credit(clean) == credit(dirty)
    for x, y in zip(clean, dirty, strict=True):
        for name in ("advantage", "return"):
            assert np.array_equal(x.tokens[name], y.tokens[name])
            assert (x.tokens[name][~x.mask] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_credit_follows_its_completion(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(4)
    one, two = batch(seed, 0.0), batch(seed, 0.0)
    credit(one, advantage={"whiten_rewards": True})
    credit([two[i] for i in order], advantage={"whiten_rewards": True})
    for x, y in zip(one, two, strict=True):
        np.testing.assert_allclose(x.tokens["advantage"], y.tokens["advantage"], atol=1e-6)
        np.testing.assert_allclose(x.tokens["return"], y.tokens["return"], atol=1e-6)


# Pure maths ----------------------------------------------------------------------------------


def rows(width: int) -> st.SearchStrategy[list[float]]:
    return st.lists(small, min_size=width, max_size=width)


@given(st.lists(small, min_size=1, max_size=8), st.sampled_from([None, 1.5, 3.0]))
@many
def test_ppo_at_ratio_one_is_reinforce(advantages: list[float], dual: float | None) -> None:
    a = torch.tensor(advantages, dtype=torch.float64)
    logp = torch.linspace(-9, -0.1, len(a), dtype=torch.float64).requires_grad_()
    loss = clipped(ratios(logp, logp.detach()), a, 0.2, 0.3, dual)
    assert torch.equal(loss.detach(), -a)
    loss.sum().backward()
    assert torch.equal(logp.grad, -a)  # type: ignore[arg-type]


@given(rows(6), rows(6))
@many
def test_the_clipped_loss_is_never_below_the_plain_one(moved: list[float], a: list[float]) -> None:
    rho = torch.tensor(moved, dtype=torch.float64).exp()
    advantage = torch.tensor(a, dtype=torch.float64)
    assert (clipped(rho, advantage, 0.2, 0.2) >= -rho * advantage - 1e-12).all()


@given(rows(7), rows(7), st.lists(st.booleans(), min_size=7, max_size=7), st.floats(0.1, 1.0))
@many
def test_gae_at_lambda_one_and_zero(
    r: list[float], v: list[float], on: list[bool], gamma: float
) -> None:
    """Lambda 1: what is still to come, less V. Lambda 0: one step. Both over trained tokens."""
    mask = torch.tensor([on])
    reward, value = (torch.tensor([x], dtype=torch.float64) for x in (r, v))
    full, returns = gae(reward, value, mask, gamma, 1.0)
    short, _ = gae(reward, value, mask, gamma, 0.0)
    trained = [t for t in range(7) if on[t]]
    for place, t in enumerate(trained):
        later = trained[place:]
        to_go = sum(gamma**k * r[s] for k, s in enumerate(later))
        assert float(returns[0, t]) == pytest.approx(to_go, abs=1e-9)
        assert float(full[0, t]) == pytest.approx(to_go - v[t], abs=1e-9)
        after = v[later[1]] if len(later) > 1 else 0.0
        assert float(short[0, t]) == pytest.approx(r[t] + gamma * after - v[t], abs=1e-9)


@given(rows(6), st.lists(st.booleans(), min_size=6, max_size=6), small, st.floats(0, 1))
@many
def test_token_rewards_sum_to_reward_less_kl(
    kl: list[float], on: list[bool], final: float, beta: float
) -> None:
    mask = torch.tensor([on])
    got = token_rewards(torch.tensor([final]), torch.tensor([kl], dtype=torch.float64), mask, beta)
    spent = beta * sum(k for k, m in zip(kl, on, strict=True) if m)
    assert float(got.sum()) == pytest.approx(final * any(on) - spent, abs=1e-6)
    assert (got[~mask] == 0).all()


@given(st.lists(small, min_size=2, max_size=9), small, st.floats(0.5, 50))
@many
def test_whitening(x: list[float], shift: float, scale: float) -> None:
    """Mean 0, variance 1, and the units of the reward do not matter."""
    raw = torch.tensor(x, dtype=torch.float64)
    if float(raw.var(unbiased=False)) < 0.1:
        return
    mask = torch.ones(len(x), dtype=torch.bool)
    white = whiten(raw, mask)
    assert float(white.mean()) == pytest.approx(0, abs=1e-9)
    assert float((white**2).mean()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(whiten(raw * scale + shift, mask), white, atol=1e-5, rtol=0)
    with_mean = whiten(raw, mask, keep_mean=True)
    assert float(with_mean.mean()) == pytest.approx(float(raw.mean()), abs=1e-9)


def group_of(ranks: Sequence[int]) -> Pack:
    answers = [Completion(np.array([3]), np.ones(1, bool), rank=k) for k in ranks]
    return build([Group("a", np.array([1]), answers)])


@given(rows(4), st.lists(st.integers(0, 3), min_size=4, max_size=4), st.floats(-50, 50))
@many
@pytest.mark.parametrize("kind", ["pairwise", "plackett_luce"])
def test_scores_are_fixed_only_up_to_a_constant(
    kind: Any, scores: list[float], ranks: list[int], shift: float
) -> None:
    objective, pack = BradleyTerry(loss=kind, smoothing=0.1), group_of(ranks)
    r = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    loss = objective(Output(score_B=r), pack).terms["loss"].sum
    moved = objective(Output(score_B=r.detach() + shift), pack).terms["loss"].sum
    assert float(moved) == pytest.approx(float(loss.detach()), abs=1e-6)
    loss.backward()
    assert r.grad is not None
    assert float(r.grad.sum()) == pytest.approx(0, abs=1e-7)


@given(small, small)
@many
def test_two_answers_are_one_pair(x: float, y: float) -> None:
    r = torch.tensor([x, y], dtype=torch.float64)
    one = float(bradley_terry(r[0] - r[1]))
    assert one == pytest.approx(math.log1p(math.exp(y - x)), abs=1e-9)
    assert float(plackett_luce(r)) == pytest.approx(one, abs=1e-9)
    assert float(bradley_terry(r[1] - r[0])) - one == pytest.approx(x - y, abs=1e-9)
    both = BradleyTerry()(Output(score_B=r), group_of([0, 1])).terms["loss"].sum
    assert float(both) == pytest.approx(one, abs=1e-6)


@given(rows(5), rows(5))
@many
def test_kl_estimators(policy: list[float], reference: list[float]) -> None:
    """k1 and k3 have the mean of the KL, k2 and k3 are not negative, k2's gradient is the KL's."""
    z = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    ref = torch.tensor(reference, dtype=torch.float64).log_softmax(0)
    logp = z.log_softmax(0)
    exact = (logp.exp() * (logp - ref)).sum()
    (want,) = torch.autograd.grad(exact, z, retain_graph=True)
    p, ratio = logp.exp().detach(), logp - ref
    means: tuple[Estimator, ...] = ("k1", "k3")
    for kind in means:
        assert float((p * estimate(ratio, kind)).sum().detach()) == pytest.approx(
            float(exact.detach()), abs=1e-9
        )
    assert (estimate(ratio, "k2") >= 0).all()
    assert (estimate(ratio, "k3") >= -1e-12).all()
    slopes: dict[Estimator, Tensor] = {
        "k2": want,
        "k3": p - ref.exp(),
        "k1": torch.zeros_like(want),
    }
    for kind, right in slopes.items():
        (got,) = torch.autograd.grad((p * estimate(ratio, kind)).sum(), z, retain_graph=True)
        torch.testing.assert_close(got, right, atol=1e-9, rtol=1e-9)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), seeds)
@many
def test_padding_and_back(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    ragged = [rng.normal(size=n).astype(np.float32) for n in lengths]
    padded = pad_rows(ragged, fill=7.0)
    assert padded.shape == (len(lengths), max(lengths))
    assert float(padded.sum()) == pytest.approx(
        sum(float(x.sum()) for x in ragged) + 7.0 * sum(max(lengths) - n for n in lengths), abs=1e-3
    )
    for x, y in zip(ragged, unpad_rows(padded, lengths), strict=True):
        assert np.array_equal(x, y)

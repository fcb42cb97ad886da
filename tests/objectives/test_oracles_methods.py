"""O8, O9 and O16: group baselines, ratios, weights and aggregation, method by method."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tests.support.oracles import completion, f64, floats, group, near, total
from trimtab.data.pack import Output, build
from trimtab.objectives.advantage import group_advantages
from trimtab.objectives.kl import FixedKL
from trimtab.objectives.methods import METHODS, Method
from trimtab.objectives.mismatch import mismatch_weights
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.ratio import level_ratios
from trimtab.train.advantages import assign_advantages
from trimtab.types import Group

ONE = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("baseline", "scale", "rewards", "want"),
    [
        ("leave-one-out", "none", (1, 0, 0.5, 0), (0.833333, -0.5, 0.166667, -0.5)),
        ("group", "group", (1, 0, 0, 1), (0.866025, -0.866025, -0.866025, 0.866025)),
        ("group", "group", (1, 0, 0, 0), (1.5, -0.5, -0.5, -0.5)),
        ("group", "none", (1, 0, 0, 0), (0.75, -0.25, -0.25, -0.25)),
        ("leave-one-out", "leave-one-out", (1, 0, 0, 0), (1, -0.57735, -0.57735, -0.57735)),
    ],
)
def test_O8a_O9a_baselines(baseline: Any, scale: Any, rewards: Any, want: Any) -> None:
    near(group_advantages(f64(*rewards), ONE, baseline, scale), want, 1e-5)


def test_O9a_equal_rewards_have_no_advantage() -> None:
    """0.1 has no exact form, so a mean of four may leave a residue: it must not be blown up."""
    got = group_advantages(torch.full((4,), 0.1), ONE, "group", "group")
    assert torch.equal(got, torch.zeros(4))


def test_O9a_affine_rewards() -> None:
    r = f64(0.3, -1.0, 2.0, 0.5)
    near(
        group_advantages(3 * r + 7, ONE, "group", "group", 0.0),
        group_advantages(r, ONE, "group", "group", 0.0),
    )
    near(group_advantages(3 * r + 7, ONE, "group"), 3 * group_advantages(r, ONE, "group"), 1e-9)


def rollouts(rewards: list[float], lengths: list[int]) -> list[Group]:
    done = [completion(n, reward=r) for n, r in zip(lengths, rewards, strict=True)]
    for c in done:
        for name in ("old_logp", "ref_logp", "sampler_logp"):
            c.tokens[name] = np.zeros(len(c), np.float32)
    return [group(*done)]


def test_O8a_reinforce_pp() -> None:
    groups = rollouts([1.0, 0.0], [2, 1])
    assign_advantages(groups, METHODS["reinforce_pp"](), 0.0)
    got = [x for c in groups[0].completions for x in c.tokens["advantage"].tolist()]
    near(torch.tensor(got), [0.707107, 0.707107, -1.414214], 1e-5)


def test_rloo_takes_the_summed_kl_off_before_its_baseline() -> None:
    groups = rollouts([1.0, 0.0], [2, 1])
    one = groups[0].completions[0]
    one.tokens["old_logp"] = np.array([0.5, 1.5], np.float32)
    assign_advantages(groups, METHODS["rloo"](), 0.1)
    near(torch.from_numpy(one.tokens["advantage"]), [0.8, 0.8], 1e-6)
    near(torch.from_numpy(groups[0].completions[1].tokens["advantage"]), [-0.8], 1e-6)


@pytest.mark.parametrize(
    ("baseline", "scale", "want"),
    [
        ("leave-one-out", "none", (0.2, -0.18, -0.02)),
        ("group", "none", (0.2 * 2 / 3, -0.18 * 2 / 3, -0.02 * 2 / 3)),
        ("group", "group", (0.279392, -0.233205, -0.046188)),
    ],
)
def test_O8b_expected_gradient_over_every_draw(baseline: Any, scale: Any, want: Any) -> None:
    p, reward = f64(0.5, 0.3, 0.2), f64(1.0, 0.0, 0.5)
    expected = torch.zeros(3, dtype=torch.float64)
    for draw in itertools.product(range(3), repeat=3):
        at = torch.tensor(draw)
        a = group_advantages(reward[at], ONE[:3], baseline, scale, 0.0)
        score = torch.eye(3, dtype=torch.float64)[at] - p
        expected += p[at].prod() * (a[:, None] * score).mean(0)
    near(expected, want, 1e-5)


def ratio_pack(*logs: list[float], **more: list[float]) -> Any:
    done = [completion(len(x)) for x in logs]
    for c, x in zip(done, logs, strict=True):
        c.tokens.update(floats({"given": x, "old_logp": [0.0] * len(x), **more}))
    return build([group(*done)])


@pytest.mark.parametrize(
    ("logs", "s", "loss", "gradient"),
    [
        ([0.001, -0.0004, 0.0003], 1.000300, -1.000300, -1.0003),
        ([0.002, 0.0, 0.001], 1.001001, -1.0004, 0.0),
    ],
)
@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
def test_O9c_gspo(name: str, logs: list[float], s: float, loss: float, gradient: float) -> None:
    pack = ratio_pack(logs, advantage=[1.0, 1.0, 1.0])
    logp = pack.tokens["given"].clone().requires_grad_()
    method = METHODS[name]()
    near(level_ratios(logp, pack.tokens["old_logp"], pack, method.ratio)[0], s, 1e-6)
    out = Output(logp_C=logp, entropy_C=torch.zeros(3))
    value = total(method(out, pack), method.counts(pack))
    near(value, loss, 1e-6)
    value.backward()
    assert logp.grad is not None
    near(logp.grad, [gradient / 3] * 3, 1e-6)


@pytest.mark.parametrize(("name", "slope"), [("cispo", -5.0), ("ppo", 0.0)])
def test_O9c_cispo_goes_on_where_ppo_stops(name: str, slope: float) -> None:
    pack = ratio_pack([float(np.log(6.0))], advantage=[1.0])
    logp = pack.tokens["given"].clone().requires_grad_()
    method = METHODS[name]()
    out = Output(logp_C=logp, entropy_C=torch.zeros(1))
    total(method(out, pack), method.counts(pack)).backward()
    assert logp.grad is not None
    near(logp.grad, [slope], 1e-6)


@pytest.mark.parametrize(
    ("mode", "low", "high", "want"),
    [
        ("token", 0.0, 2.0, (1.0, 2.0, 0.2)),
        ("mask", 0.5, 5.0, (1.0, 3.0, 0.0)),
        ("sequence", 0.0, 3.0, (0.6, 0.6, 0.6)),
        ("sequence", 0.0, 0.5, (0.0, 0.0, 0.0)),
        ("geometric", 0.8, 1.01, (1.0, 3.0, 0.2)),
        ("geometric", 0.99, 1.01, (0.0, 0.0, 0.0)),
    ],
)
def test_O9d_mismatch(mode: Any, low: float, high: float, want: Any) -> None:
    pack = ratio_pack([0.0, 0.0, 0.0])
    log_w = torch.log(torch.tensor([1.0, 3.0, 0.2]))
    near(mismatch_weights(log_w, pack, mode, low, high), want, 1e-6)


@pytest.mark.parametrize("mode", ["token", "mask", "sequence", "geometric"])
def test_O9d_equal_engines_are_a_bitwise_no_op(mode: Any) -> None:
    pack = ratio_pack([0.0, 0.0])
    assert torch.equal(mismatch_weights(torch.zeros(2), pack, mode, 0.5, 2.0), torch.ones(2))


def first_gradient(method: PolicyMethod) -> Tensor:
    """Of one update at the weights that sampled, R = (1, 0), two tokens each."""
    groups = rollouts([1.0, 0.0], [2, 2])
    assign_advantages(groups, method, 0.0)
    pack = build(groups)
    logp = torch.full((4,), -0.7, requires_grad=True)
    pack.tokens["old_logp"] = logp.detach().clone()
    out = Output(logp_C=logp, entropy_C=torch.zeros(4))
    total(method(out, pack), method.counts(pack)).backward()
    assert logp.grad is not None
    return logp.grad


def test_O16_first_updates_coincide() -> None:
    want = first_gradient(METHODS["grpo"](kl=FixedKL(place="none")))
    for name in ("dapo", "gspo", "gspo_token", "cispo"):
        near(first_gradient(METHODS[name]()), want, 1e-6)
    for name in ("dr_grpo", "rloo"):
        update = {"max_length": 2} if name == "dr_grpo" else {"kl": FixedKL()}
        got = first_gradient(METHODS[name]().model_copy(update=update))
        near(got / got.norm(), want / want.norm(), 1e-6)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"type": "grpo", "kl": {"estimator": "k1"}}, "expected gradient of exactly 0"),
        ({"type": "gspo", "clip": {"high": 0.2}}, "never clip"),
        ({"type": "cispo", "cap": 0.2}, "1 \\+ epsilon"),
        ({"type": "reinforce", "epochs": 2}, "no ratio to correct"),
        ({"type": "grpo", "mismatch": {"correction": "token", "anchor": "sampler"}}, "take one"),
        ({"type": "ppo", "advantage": {"baseline": "group"}}, "critic is the baseline"),
        ({"type": "grop"}, "none of cispo, dapo, dr_grpo"),
    ],
)
def test_nonsense_is_refused_with_its_reason(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        TypeAdapter(Method).validate_python(options)


def test_a_part_overrides_the_published_method() -> None:
    method: PolicyMethod = TypeAdapter(Method).validate_python(
        {"type": "dapo", "kl": {"beta": 0.3}}
    )
    assert method.name == "dapo"
    assert method.kl.beta == 0.3
    assert method.clip.high == 0.28

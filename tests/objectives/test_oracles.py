"""The hand-worked numbers of the algorithm specification, oracles O0 to O4: values and gradients.

Every expected number was computed apart from the code under test: from the specification's tables,
or by hand from the formula where the table gives a value and no gradient.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.oracles import GARBAGE, Scaled, completion, f64, group, near, total
from trimtab.data.pack import Output, build
from trimtab.models.forward import token_logps
from trimtab.objectives.bradley_terry import BradleyTerry, bradley_terry, ensemble, plackett_luce
from trimtab.objectives.nll import SFT
from trimtab.objectives.process_reward import aggregate_steps, step_advantages, step_differences
from trimtab.stats.uncertainty import ece
from trimtab.train.gradients import Part
from trimtab.train.trainer import LoopSpec, OptimSpec, Trainer

# O1 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 7.0, -300.0])
@pytest.mark.parametrize(
    ("tau", "logp", "entropy", "gradient"),
    [
        # At tau 1, p = (.665241, .244728, .090031), and the gradient is onehot - p.
        (1.0, -0.407606, 0.832396, (0.334759, -0.244728, -0.090031)),
        (2.0, -0.680270, 1.020191, (0.246760, -0.153598, -0.093162)),
    ],
)
def test_O1_logp_and_entropy(
    tau: float, logp: float, entropy: float, gradient: tuple[float, ...], shift: float
) -> None:
    z = (torch.tensor([[2.0, 1.0, 0.0]]) + shift).requires_grad_()
    got, h = token_logps(z, torch.tensor([0]), lambda x: x, temperature=tau)
    tol = 1e-5 if abs(shift) < 10 else 5e-5  # fp32 holds 300 to 3e-5
    near(got[0], logp, tol)
    near(h[0], entropy, tol)
    got.sum().backward()
    near(z.grad[0], gradient, tol)  # type: ignore[index]


def test_O1_a_forbidden_token_has_no_gradient() -> None:
    """(2, 1, -inf): p = (.731059, .268941), H = .582203, dH/dz = -p (log p + H)."""
    z = torch.tensor([[2.0, 1.0, -math.inf]], requires_grad=True)
    logp, h = token_logps(z, torch.tensor([0]), lambda x: x)
    near(logp[0], -0.313262, 1e-6)
    near(h[0], 0.582203, 1e-6)
    h.sum().backward()
    near(z.grad[0], (-0.196612, 0.196612, 0.0), 1e-6)  # type: ignore[index]


def test_O1_chunks_and_temperature_leave_logits_alone() -> None:
    z = torch.tensor([[2.0, 1.0, 0.0]]).repeat(5, 1).requires_grad_()
    got, h = token_logps(z, torch.tensor([0, 1, 2, 0, 0]), lambda x: x, temperature=2.0, chunk=2)
    near(got, [-0.680270, -1.180270, -1.680270, -0.680270, -0.680270], 1e-5)
    near(h, [1.020191] * 5, 1e-5)
    near(z[0], (2.0, 1.0, 0.0))
    got.sum().backward()
    near(z.grad[4], (0.246760, -0.153598, -0.093162), 1e-5)  # type: ignore[index]


# O2 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 4, 1000])
@pytest.mark.parametrize(
    ("aggregation", "want"),
    [("token-mean", 0.5), ("seq-mean-token-mean", (2 + 3 / 9) / 2), ("seq-mean-token-sum", 2.5)],
)
def test_O2_sums_of_micro_batches_over_tokens_of_the_step(
    aggregation: Any, want: float, budget: int
) -> None:
    rows = [
        completion(1, tokens={"given": np.full(1, -2.0, np.float32)}),
        completion(9, tokens={"given": np.full(9, -1 / 3, np.float32)}),
        completion(3, mask=[False] * 3, tokens={"given": np.full(3, np.nan, np.float32)}),
    ]
    model = Scaled()
    trainer = Trainer(
        {"m": model}, {"m": OptimSpec(max_grad_norm=1e9)}, 1, LoopSpec(token_budget=budget)
    )
    objective = SFT(aggregation=aggregation)
    metrics = trainer.update([Part([group(c) for c in rows], objective, model)])
    near(metrics["loss"], want)
    near(-model.scale.grad, -want)  # type: ignore[operator]
    near(metrics["nll"], 0.5)


def test_O2_all_masked_gives_zero_attached_to_the_graph() -> None:
    pack = build([group(completion(3, mask=[False] * 3))])
    z = torch.randn(pack.size, 8, requires_grad=True)
    logp, _ = token_logps(z[pack.source_C], pack.target_C, lambda x: x)
    loss = SFT()(Output(logp_C=logp), pack)
    assert loss.terms["loss"].sum.item() == 0.0
    loss.terms["loss"].sum.backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("garbage", GARBAGE)
def test_O0_O2_logits_at_masked_positions(garbage: float) -> None:
    """Tool tokens in the middle: nothing there is seen by the loss, nothing there moves."""
    pack = build([group(completion(5, mask=[True, False, False, True, True]))])
    clean = torch.zeros(pack.size, 8)
    # One prompt token, then five: tokens 0, 3, 4 are predicted at positions 0, 3, 4.
    used = torch.tensor([0, 3, 4])
    clean[torch.arange(pack.size), torch.arange(pack.size)] = 1.0
    dirty = torch.full_like(clean, garbage)
    dirty[used] = clean[used]
    z = dirty.requires_grad_()
    logp, entropy = token_logps(z[pack.source_C], pack.target_C, lambda x: x)
    loss = SFT()(Output(logp_C=logp, entropy_C=entropy), pack)
    # Targets 3, 6, 7 at rows 0, 3, 4: none is a row's raised logit, so each is log(e + 7).
    near(loss.terms["loss"].sum / 3, math.log(math.e + 7), 1e-5)
    (loss.terms["loss"].sum / 3).backward()
    grad = z.grad
    assert grad is not None
    p = 1 / (math.e + 7)
    want = torch.full((3, 8), p / 3)
    for row, (raised, target) in enumerate([(0, 3), (3, 6), (4, 7)]):
        want[row, raised] = math.e * p / 3
        want[row, target] = (p - 1) / 3
    near(grad[used], want, 1e-6)
    assert torch.equal(grad[[1, 2, 5]], torch.zeros(3, 8))


# O3 ------------------------------------------------------------------------------------------

BT = [
    (1.0, 0.0, 0.474077, -0.377541),
    (1.0, 1.0, 0.974077, -0.622459),
    (0.9, 0.0, 0.524077, -0.277541),  # d/dr_w = -q s(-.5) + (1-q) s(.5)
    (0.5, 0.0, 0.724077, 0.122459),
]


@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize(("q", "margin", "value", "slope"), BT)
def test_O3a_bradley_terry(
    q: float, margin: float, value: float, slope: float, shift: float
) -> None:
    r = f64(1.2 + shift, 0.7 + shift, grad=True)
    loss = bradley_terry(r[0] - r[1], q, margin)
    near(loss, value)
    loss.backward()
    near(r.grad, (slope, -slope))  # type: ignore[arg-type]


def test_O3a_smoothed_minimum() -> None:
    delta = f64(2.197225, grad=True)
    bradley_terry(delta, 0.9).backward()
    near(delta.grad, 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "ranks", "margin", "value", "gradient"),
    [
        ({}, (0, 1), 0.0, 0.474077, (-0.377541, 0.377541)),
        ({}, (1, 0), 0.0, 0.974077, (0.622459, -0.622459)),
        ({}, (0, 1), 1.0, 0.974077, (-0.622459, 0.622459)),
        ({"margins": False}, (0, 1), 1.0, 0.474077, (-0.377541, 0.377541)),
        ({"smoothing": 0.1}, (0, 1), 0.0, 0.524077, (-0.277541, 0.277541)),
        ({}, (0, 0), 0.0, 0.724077, (0.122459, -0.122459)),
        ({"smoothing": 0.1}, (0, 0), 3.0, 0.724077, (0.122459, -0.122459)),
        # Centering adds 2 eta (r_w + r_l) = .038 to both.
        ({"centering": 0.01}, (0, 1), 0.0, 0.474077 + 0.0361, (-0.339541, 0.415541)),
        ({"loss": "plackett_luce"}, (0, 1), 0.0, 0.474077, (-0.377541, 0.377541)),
    ],
)
def test_O3a_objective(
    config: dict[str, Any],
    ranks: tuple[int, int],
    margin: float,
    value: float,
    gradient: tuple[float, float],
) -> None:
    objective = BradleyTerry(**config)
    pack = build([group(*(completion(2, rank=k, margin=margin) for k in ranks))])
    r = f64(1.2, 0.7, grad=True)
    loss = total(objective(Output(score_B=r), pack), objective.counts(pack))
    near(loss, value)
    loss.backward()
    near(r.grad, gradient)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "ranks", "want"),
    [((1.2, 0.7), (0, 1), 1.0), ((0.7, 1.2), (0, 1), 0.0), ((1.0, 1.0), (0, 1), 0.5)],
)
def test_O3_accuracy_counts_a_half_for_equal_scores(
    scores: tuple[float, float], ranks: tuple[int, int], want: float
) -> None:
    pack = build([group(*(completion(2, rank=k) for k in ranks))])
    near(BradleyTerry()(Output(score_B=f64(*scores)), pack).metrics["accuracy"][0], want)


KWISE = {
    "pairwise": (0.251150, (-0.129381, 0.0, 0.129381)),
    "plackett_luce": (0.720868, (-0.334759, -0.024213, 0.358972)),
}


@pytest.mark.parametrize("kind", ["pairwise", "plackett_luce"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_O3b_k_ranked(kind: Any, order: tuple[int, int, int]) -> None:
    """Beside a pair of another prompt: a mean over prompts, not over pairs."""
    value, gradient = KWISE[kind]
    objective = BradleyTerry(loss=kind)
    unranked = completion(2)
    pack = build(
        [
            group(completion(2, rank=0), completion(1, rank=1)),
            group(unranked, *(completion(2, rank=k) for k in order)),
            group(unranked),
        ]
    )
    best_first = (2.0, 1.0, 0.0)
    r = f64(1.2, 0.7, 9.0, *(best_first[k] for k in order), -9.0, grad=True)
    counts = objective.counts(pack)
    assert counts["groups"] == 2
    loss = total(objective(Output(score_B=r), pack), counts)
    near(loss, (0.474077 + value) / 2)
    loss.backward()
    want = [-0.377541, 0.377541, 0.0, *(gradient[k] for k in order), 0.0]
    near(r.grad, [x / 2 for x in want])  # type: ignore[arg-type]


def test_O3b_plackett_luce() -> None:
    near(plackett_luce(f64(2.0, 1.0, 0.0)), 0.720868)
    near(plackett_luce(f64(1.2, 0.7)), 0.474077)


@pytest.mark.parametrize(
    ("how", "weight", "want"),
    [
        ("mean", 0.5, 2.333333),
        ("worst", 0.5, 1.0),
        ("uncertainty", 0.5, 1.555556),
        ("uncertainty", 0.0, 2.333333),
    ],
)
def test_O3c_ensemble(how: Any, weight: float, want: float) -> None:
    scores = torch.stack([f64(1.0, 5.0), f64(2.0, 5.0), f64(4.0, 5.0)])
    near(ensemble(scores, how, weight), (want, 5.0))


def test_O3c_ece() -> None:
    near(ece([0.9, 0.9, 0.6, 0.6], [1, 0, 1, 1], [0.5, 0.75, 1.0]), 0.4, 1e-9)


# O4 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "want", "gradient"),
    [
        ("product", 0.36, (0.4, 0.72, 0.45)),
        ("min", 0.5, (0.0, 1.0, 0.0)),
        ("last", 0.8, (0.0, 0.0, 1.0)),
        ("mean", 0.733333, (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_O4_aggregate(how: Any, want: float, gradient: tuple[float, ...]) -> None:
    p = f64(0.9, 0.5, 0.8, grad=True)
    out = aggregate_steps(p, how)
    near(out, want)
    out.backward()
    near(p.grad, gradient)  # type: ignore[arg-type]


def test_O4_step_credit() -> None:
    near(step_advantages(f64(0.5, -1.0), torch.tensor([1, 3]), 4), (-0.5, -0.5, -1.0, -1.0))
    near(step_differences(f64(0.9, 0.5, 0.8)), (0.9, -0.4, 0.3))

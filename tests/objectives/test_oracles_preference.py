"""Oracles O10a and O10b: every number of the direct methods, and identities that hold for all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tests.support.oracles import GARBAGE, completion, f64, group, near, total
from trimtab.data.pack import Output, build
from trimtab.objectives import preference as pref
from trimtab.objectives.kto import KTO, kto, mismatched
from trimtab.objectives.pairs import Direct, Pairs
from trimtab.objectives.preference import Preference

MENU: TypeAdapter[Direct] = TypeAdapter(Preference)
TYPES = (
    "dpo", "rpo", "cdpo", "robust", "ipo", "hinge", "slic", "dpo_norm", "simpo", "orpo", "kto",
)  # fmt: skip


def made(**settings: Any) -> Any:
    return MENU.validate_python(settings)


def run(objective: Any, W: float, L: float, ref: tuple[float, float] | None = (-11.0, -12.0)):
    """Loss of one pair of 5 and 4 tokens through the pack, with leaves W and L of the sums."""
    w, l = completion(5, rank=0), completion(4, rank=1)
    if ref is not None:
        for c, r in ((w, ref[0]), (l, ref[1])):
            c.tokens["ref_logp"] = np.full(len(c), r / len(c), np.float32)
    pack = build([group(w, l)])
    leaves = f64(W, L, grad=True)
    logp = torch.cat([(leaves[0] / 5).expand(5), (leaves[1] / 4).expand(4)])
    loss = objective(Output(logp_C=logp), pack)
    value = total(loss, objective.counts(pack))
    (gradient,) = torch.autograd.grad(value, leaves)
    return value, gradient, loss


O10A = [
    ({"type": "dpo"}, 0.554355),
    ({"type": "cdpo", "smoothing": 0.1}, 0.584355),
    ({"type": "robust", "smoothing": 0.1}, 0.516855),
    ({"type": "ipo", "average": "sum"}, 4.0),
    ({"type": "ipo"}, 18.49),
    ({"type": "hinge"}, 0.7),
    ({"type": "dpo_norm"}, 0.658760),
    ({"type": "simpo", "beta": 2.0, "gamma": 0.5}, 0.078890),
    ({"type": "simpo", "beta": 2.0, "gamma": 1.0}, 0.126928),
    ({"type": "orpo"}, 2.018144),
    ({"type": "dpo", "rpo_alpha": 1.0}, 2.554355),
    ({"type": "rpo"}, 2.554355),
    ({"type": "dpo", "reference_free": True}, 0.513015),
    ({"type": "slic", "nll_weight": 0.5}, 1.0),
]


@pytest.mark.parametrize(("settings", "want"), O10A)
def test_O10a(settings: dict[str, Any], want: float) -> None:
    value, gradient, _ = run(made(**settings), -10.0, -14.0)
    near(value, want, 2e-6)
    step = 1e-5
    numeric = [
        (run(made(**settings), -10 + x * step, -14 + y * step)[0]
         - run(made(**settings), -10 - x * step, -14 - y * step)[0]) / (2 * step)
        for x, y in ((1, 0), (0, 1))
    ]  # fmt: skip
    near(gradient, torch.stack(numeric).detach(), 1e-6)


def test_O10a_log_odds_and_kto() -> None:
    near(pref.log_odds(f64(-2.0)) - pref.log_odds(f64(-3.5)), 1.614751)
    for z0, want in ((0.0, (0.475021, 0.450166)), (1.0, (0.5, 0.425557))):
        both = kto(f64(1.0, -2.0), torch.tensor([True, False]), z0, 0.1, 1.0, 1.0)
        near(both, want)
        value, _, _ = run(KTO().at(z0), -10.0, -14.0)
        near(value, sum(want) / 2, 2e-6)


def test_O10b_at_the_reference() -> None:
    value, gradient, loss = run(made(type="dpo"), -11.0, -12.0)
    near(value, math.log(2), 1e-6)
    for name in ("chosen", "rejected", "margins"):
        near(loss.metrics[f"rewards/{name}"][0], 0.0, 1e-6)
    w, l = completion(5, rank=0), completion(5, rank=1)
    for c in (w, l):
        c.tokens["ref_logp"] = np.full(5, -1.0, np.float32)
    even = made(type="dpo")(Output(logp_C=-torch.ones(10)), build([group(w, l)]))
    assert float(even.metrics["rewards/accuracies"][0]) == 0.5
    _, gradient, _ = run(made(type="dpo"), -10.0, -14.0)
    near(gradient, [-0.042556, 0.042556])


reals = st.floats(-20, 20)


@given(reals, st.floats(0, 0.49))
def test_O10b_robust_is_unbiased(x: float, e: float) -> None:
    z = f64(x)
    mixed = (1 - e) * pref.robust(z, e) + e * pref.robust(-z, e)
    near(mixed, -torch.nn.functional.logsigmoid(z), 1e-9)


def pair(W: float, L: float, a: float, b: float) -> Pairs:
    return Pairs(*(f64([x]) for x in (W, L, a, b)), f64([5.0]), f64([5.0]))


@given(reals, reals)
def test_coincidences(a: float, b: float) -> None:
    p = pair(-30 + a, -30 + b, a, b)

    def of(**settings: Any) -> Tensor:
        return made(**settings).loss(p)

    near(of(type="cdpo", smoothing=0.0), of(type="dpo"), 1e-12)
    near(of(type="robust", smoothing=0.0), of(type="dpo"), 1e-12)
    near(of(type="dpo_norm", beta=0.5), of(type="dpo", beta=0.1), 1e-9)
    near(of(type="ipo", average="sum", beta=0.2), f64([a - b - 2.5]) ** 2, 1e-9)
    near(of(type="simpo", gamma=0.0, beta=2.0),
         -torch.nn.functional.logsigmoid(2 * (p.W_P - p.L_P) / 5), 1e-9)  # fmt: skip
    # KTO: at z0 a good and a bad answer with the same ratio share 1.
    ends = kto(f64(a, a), torch.tensor([True, False]), b, 0.1, 1.0, 1.0)
    near(ends.sum(), 1.0, 1e-9)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_O0_masked_garbage(kind: str, garbage: float) -> None:
    objective = made(type=kind)
    objective = objective.at(0.3) if kind == "kto" else objective
    seen: list[tuple[float, dict[str, float]]] = []
    for fill in (0.0, garbage):
        ranked = [completion(4, mask=[True, False, True, True], rank=r) for r in (1, 0, 2)]
        for i, c in enumerate(ranked):
            c.tokens["ref_logp"] = np.array([-1, fill, -2 - i, -1], np.float32)
        pack = build([group(*ranked)])
        loss = objective(Output(logp_C=-torch.arange(1.0, 10.0)), pack)
        value = float(total(loss, objective.counts(pack)))
        seen.append((value, {k: float(v) for k, (v, _) in loss.metrics.items()}))
    assert seen[0] == seen[1]
    assert math.isfinite(seen[0][0])


@pytest.mark.parametrize("kind", TYPES)
def test_a_certain_model_and_ties_stay_finite(kind: str) -> None:
    objective = made(type=kind)
    objective = objective.at(0.0) if kind == "kto" else objective
    w, l = completion(2, rank=0), completion(2, rank=1)
    for c in (w, l):
        c.tokens["ref_logp"] = np.zeros(2, np.float32)
    logp = torch.zeros(4, requires_grad=True)
    pack = build([group(w, l)])
    value = total(objective(Output(logp_C=logp), pack), objective.counts(pack))
    (gradient,) = torch.autograd.grad(value, logp)
    assert torch.isfinite(gradient).all()
    w.rank = l.rank = 0
    pack = build([group(w, l)])
    assert all(v == 0 for k, v in objective.counts(pack).items() if k != "tokens")
    empty = objective(Output(logp_C=logp), pack).terms["loss"].sum
    assert float(empty.detach()) == 0
    assert empty.requires_grad


def test_displacement_is_seen_where_the_margin_hides_it() -> None:
    _, _, up = run(made(type="dpo"), -10.0, -14.0)
    _, _, down = run(made(type="dpo"), -20.0, -24.0)
    near(up.metrics["rewards/margins"][0], down.metrics["rewards/margins"][0], 1e-6)
    near(up.metrics["logps/chosen_shift"][0], 1.0, 1e-5)
    near(down.metrics["logps/chosen_shift"][0], -9.0, 1e-5)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"type": "robust", "smoothing": 0.5}, "divides by"),
        ({"type": "cdpo", "smoothing": 0.6}, "below 0.5"),
        ({"type": "dpo", "rpo_alpha": -1.0}, "rpo_alpha"),
        ({"type": "dpo", "beta": 0.0}, "beta"),
        ({"type": "dpo", "gamma": 1.0}, "gamma"),
        ({"type": "simpo", "reference_free": False}, "without a reference"),
        ({"type": "orpo", "reference_free": False}, "without a reference"),
        ({"type": "kto", "reference_free": True}, "KL to the reference"),
        ({"type": "kto", "desirable": 0.0, "undesirable": 0.0}, "nothing to train on"),
        ({"type": "ppo"}, "dpo"),
    ],
)
def test_nonsense_is_refused_with_the_reason(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        made(**settings)


def test_mismatched_pairs_do_not_depend_on_the_order() -> None:
    def one(name: str, prompt: int, first: int, rank: int):
        g = group(completion(2, rank=rank))
        g.id, g.prompt = name, np.array([prompt])
        g.completions[0].ids = np.array([first, first])
        return g

    groups = [one("a", 1, 10, 0), one("b", 1, 11, 1), one("c", 2, 12, 0)]

    def said(order: list[Any]) -> list[tuple[int, int]]:
        return [(int(g.prompt[0]), int(g.completions[0].ids[0])) for g in mismatched(order)]

    assert said(groups) == [(1, 12), (1, 12), (2, 10)]
    assert said(groups[::-1]) == said(groups)
    assert said(groups[:2]) == []

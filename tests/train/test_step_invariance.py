"""Laws that hold for every input: how a step is cut, packed or ordered changes no gradient.

Each optimiser step is compared with a plain one written here: a transformers forward for every
completion alone, the loss added up token by token, divided once. Models are float64: what is left
is the code's own rounding (log-probs and scores are fp32), 5e-7 at most in the gradient's norm
over these examples. With fp32 models it is 9e-7, too near the bound to hold on every machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tests.support.invariance import (
    Shape,
    agree,
    alone_heads,
    alone_logps,
    budgets,
    each,
    few,
    make,
    many,
    number,
    plain_gradient,
    seeds,
    shapes,
    shuffled,
    step,
)
from trimtab.data.pack import Output, Pack, build, packs, scatter
from trimtab.models.heads import Scorer
from trimtab.models.load import LM
from trimtab.objectives.bradley_terry import BradleyTerry
from trimtab.objectives.nll import SFT
from trimtab.types import Completion, Group


def sft_sum(lm: LM, groups: Sequence[Group], aggregation: str) -> Tensor | float:
    rows = [alone_logps(lm, g, c)[0] for g, c in each(groups) if c.trained]
    if aggregation == "token-mean":
        return -sum(r.sum() for r in rows) / max(1, sum(len(r) for r in rows))
    return -sum(r.mean() for r in rows) / max(1, len(rows))


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_sft_step(lm: LM, layout: bool, aggregation: Any) -> None:
    modules: dict[str, nn.Module] = {"model": lm.model}

    def forward(pack: Pack) -> Output:
        logp, entropy = lm.logps(lm.states(pack), pack)
        return Output(logp_C=logp, entropy_C=entropy.detach())

    @few
    @given(shapes, seeds, budgets)
    def check(shape: Shape, seed: int, budget: int) -> None:
        groups = make(shape, seed)
        loss = sft_sum(lm, groups, aggregation)
        want = plain_gradient(modules, loss)
        objective = SFT(aggregation=aggregation)
        for order in (groups, shuffled(groups, seed)):
            got, metrics = step(modules, order, objective, forward, budget, layout)
            agree(got, want)
            assert metrics["loss"] == pytest.approx(number(loss), rel=1e-5)

    check()


def kwise_sum(scorer: Scorer, groups: Sequence[Group], eta: float) -> Tensor | float:
    per_group: list[Tensor] = []
    for g in groups:
        judged = [
            (c.rank, alone_heads(scorer, g, c)[-1], c.margin)
            for c in g.completions
            if c.rank is not None
        ]
        losses: list[Tensor] = []
        for (i, x, m), (j, y, n) in itertools.combinations(judged, 2):
            if i == j:
                one = -0.5 * logsigmoid(x - y) - 0.5 * logsigmoid(y - x)
            else:
                one = -logsigmoid(x - y - m) if i < j else -logsigmoid(y - x - n)
            losses.append(one + eta * (x + y) ** 2)
        if losses:
            per_group.append(torch.stack(losses).mean())
    return torch.stack(per_group).mean() if per_group else 0.0


def ranking_sum(scorer: Scorer, groups: Sequence[Group]) -> Tensor | float:
    per_group: list[Tensor] = []
    for g in groups:
        scores = [(c.rank, alone_heads(scorer, g, c)[-1]) for c in g.completions]
        r = [x for _, x in sorted(scores, key=lambda f: cast(int, f[0]))]
        if len(r) > 1:
            parts = [torch.stack(r[k:]).logsumexp(0) - r[k] for k in range(len(r))]
            per_group.append(torch.stack(parts).sum())
    return torch.stack(per_group).mean() if per_group else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "ranks", "plackett_luce"])
def test_reward_step(scorer: Scorer, layout: bool, kind: str) -> None:
    modules: dict[str, nn.Module] = {"model": scorer.model}
    eta = 0.0 if kind == "plackett_luce" else 0.01
    objective = (
        BradleyTerry(loss="plackett_luce")
        if kind == "plackett_luce"
        else BradleyTerry(centering=eta)
    )

    def forward(pack: Pack) -> Output:
        return Output(score_B=scorer.scores(pack))

    @few
    @given(shapes, seeds, budgets)
    def check(shape: Shape, seed: int, budget: int) -> None:
        if kind == "pairs":
            shape = [(width, (lengths * 2)[:2]) for width, lengths in shape]
        groups = make(shape, seed)
        rng = np.random.default_rng(seed)
        for g in groups:
            if kind != "ranks":  # a strict order
                for c, k in zip(g.completions, rng.permutation(len(g.completions)), strict=True):
                    c.rank = int(k)
        if kind == "plackett_luce":
            loss = ranking_sum(scorer, groups)
        else:
            loss = kwise_sum(scorer, groups, eta)
        want = plain_gradient(modules, loss)
        for order in (groups, shuffled(groups, seed)):
            got, metrics = step(modules, order, objective, forward, budget, layout)
            agree(got, want)
            have = metrics["loss"] + eta * metrics.get("centering", 0.0)
            assert have == pytest.approx(number(loss), rel=1e-5, abs=1e-6)

    check()


def test_O0_tail_after_the_last_trained_token(lm: LM) -> None:
    """Causal: ids that come after every trained token change nothing, but their number may."""
    modules: dict[str, nn.Module] = {"model": lm.model}

    def forward(pack: Pack) -> Output:
        return Output(logp_C=lm.logps(lm.states(pack), pack)[0])

    def run(tail: list[int]) -> Tensor:
        ids = np.array([7, 8, 9, *tail])
        answer = Completion(ids, np.array([True] * 3 + [False] * len(tail)))
        groups = [Group("a", np.array([1, 5]), [answer, Completion(ids[:2], np.ones(2, bool))])]
        return step(modules, groups, SFT(), forward, 1000, True)[0]

    want = run([])
    agree(run([0, 0, 0]), want)
    agree(run([63, 2]), want)


@pytest.mark.parametrize("exact", [True, False])
def test_score_is_read_at_the_last_real_token_whatever_its_id(
    scorer: Scorer, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Completions that end in the padding id, beside longer ones: no "last non-pad" search."""
    monkeypatch.setattr(scorer, "exact", exact)
    pad = int(cast(Any, scorer.model).config.pad_token_id)
    answers = [[5, pad], [pad], [9, 8, 7, 6, pad, pad], [5]]
    group = Group(
        "a", np.array([1, 4]), [Completion(np.array(x), np.ones(len(x), bool)) for x in answers]
    )
    with torch.no_grad():
        got = scorer.scores(build([group], share=exact))
        want = torch.stack([alone_heads(scorer, group, c)[-1] for c in group.completions])
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    assert abs(float(want[0] - want[3])) > 1e-3, "the last token must matter"


@given(shapes, seeds, budgets, st.booleans())
@many
def test_columns_come_back_to_their_tokens(
    shape: Shape, seed: int, budget: int, share: bool
) -> None:
    """Every group is in one pack, the budget holds, and each number returns where it came from."""
    groups = make(shape, seed)
    for i, (_, c) in enumerate(each(groups)):
        c.tokens["at"] = np.arange(len(c), dtype=np.float32) + 100 * i
    all_packs = packs(groups, budget, share=share)
    assert sorted(g.id for p in all_packs for g in p.groups) == sorted(g.id for g in groups)
    for pack in all_packs:
        assert pack.size <= budget or len(pack.groups) == 1
        scatter(pack, {"back": pack.tokens["at"].numpy()})
    for _, c in each(groups):
        assert np.array_equal(c.tokens["back"], np.where(c.mask, c.tokens["at"], 0))

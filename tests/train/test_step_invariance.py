"""Laws that hold for every input: how a step is cut, packed or ordered changes no gradient.

Each optimiser step is compared with a plain one written here: a transformers forward for every
completion alone, the loss added up token by token, divided once. Models are float64: what is left
is the code's own rounding (log-probs and scores are fp32), 5e-7 at most in the gradient's norm
over these examples. With fp32 models it is 9e-7, too near the bound to hold on every machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification

from tests.support.models import tiny
from tests.support.oracles import GARBAGE
from trimtab.data.pack import Output, Pack, build, packs, scatter
from trimtab.models.heads import Scorer
from trimtab.models.load import LM, ModelSpec
from trimtab.objectives.bradley_terry import BradleyTerry
from trimtab.objectives.methods import METHODS
from trimtab.objectives.methods.ppo import PPO
from trimtab.objectives.nll import SFT
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.ratio import ClipSpec
from trimtab.objectives.value import ValueSpec
from trimtab.train.trainer import LoopSpec, OptimSpec, Part, Trainer
from trimtab.types import Completion, Group

RELATIVE = 1e-6
TAU = 0.7

Shape = list[tuple[int, list[int]]]
shapes = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 7), min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
)
seeds = st.integers(0, 2**32 - 1)
budgets = st.sampled_from([1, 16, 40, 10_000])
few = settings(max_examples=20, deadline=None, derandomize=True)
many = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM(tiny("llama").double(), ModelSpec(path="none"))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    torch.manual_seed(1)
    config = tiny("llama", seed=1).config
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(6.0)
    return Scorer(model, ModelSpec(path="none"), exact=True)


def make(shape: Shape, seed: int) -> list[Group]:
    """Groups with holes in their masks (some all hole), ranks with ties and gaps, margins."""
    rng = np.random.default_rng(seed)

    def answer(n: int) -> Completion:
        c = Completion(rng.integers(0, 64, n), rng.random(n) < 0.75)
        c.rank = None if rng.random() < 0.15 else int(rng.integers(0, 3))
        c.margin = float(rng.choice([0.0, 0.5, 1.25]))
        return c

    return [
        Group(str(i), rng.integers(0, 64, width), [answer(n) for n in lengths])
        for i, (width, lengths) in enumerate(shape)
    ]


def shuffled(groups: Sequence[Group], seed: int) -> list[Group]:
    """Groups in another order, and the completions of each too."""
    rng = np.random.default_rng(seed)
    return [
        Group(g.id, g.prompt, [g.completions[j] for j in rng.permutation(len(g.completions))])
        for g in (groups[i] for i in rng.permutation(len(groups)))
    ]


def gradients(modules: dict[str, nn.Module]) -> Tensor:
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).detach().flatten()
            for m in modules.values()
            for p in m.parameters()
        ]
    )


def step(
    modules: dict[str, nn.Module],
    groups: Sequence[Group],
    objective: Any,
    forward: Callable[[Pack], Output],
    budget: int,
    share: bool,
) -> tuple[Tensor, dict[str, float]]:
    """Gradient and metrics of one optimiser step that leaves the weights where they are."""
    still = OptimSpec(lr=1e-30, max_grad_norm=1e30)
    trainer = Trainer(modules, dict.fromkeys(modules, still), 1, LoopSpec(token_budget=budget))
    metrics = trainer.update([Part(groups, objective, forward, share)])
    assert not metrics["skipped"]
    return gradients(modules), metrics


def plain_gradient(modules: dict[str, nn.Module], loss: Tensor | float) -> Tensor:
    for m in modules.values():
        m.zero_grad()
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss.backward()
    return gradients(modules)


def number(loss: Tensor | float) -> float:
    return float(loss.detach()) if isinstance(loss, Tensor) else loss


def agree(got: Tensor, want: Tensor) -> None:
    norm = float(want.norm())
    assert float((got - want).norm()) <= RELATIVE * norm, (float((got - want).norm()), norm)


def each(groups: Sequence[Group]) -> Iterator[tuple[Group, Completion]]:
    return ((g, c) for g in groups for c in g.completions)


def alone_logps(lm: LM, g: Group, c: Completion, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the trained tokens, from the sequence by itself."""
    ids = torch.from_numpy(np.concatenate([g.prompt, c.ids]))[None]
    logits = cast(Any, lm.plain_attention())(input_ids=ids).logits[0, len(g.prompt) - 1 : -1]
    table = (logits / tau).log_softmax(-1)
    on = torch.from_numpy(c.mask)
    entropy = -(table.exp() * table).sum(-1)
    return table[torch.arange(len(c)), torch.from_numpy(c.ids)][on], entropy[on]


def alone_heads(scorer: Scorer, g: Group, c: Completion) -> Tensor:
    """The scalar head at every position of the sequence by itself."""
    model = cast(Any, scorer.model)
    model.set_attn_implementation("sdpa")
    ids = torch.from_numpy(np.concatenate([g.prompt, c.ids]))[None]
    return model.score(model.model(input_ids=ids).last_hidden_state[0])[:, 0]


LAYOUTS = {"tree": (True, True), "segments": (False, True), "rows": (False, False)}
"""Name to (share, exact): prompts shared; one segment a completion; padded rows, plain attention."""


@pytest.fixture(params=LAYOUTS)
def layout(
    request: pytest.FixtureRequest, lm: LM, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> bool:
    share, exact = LAYOUTS[request.param]
    monkeypatch.setattr(lm, "exact", exact)
    monkeypatch.setattr(scorer, "exact", exact)
    return share


def sft_sum(lm: LM, groups: Sequence[Group], aggregation: str) -> Tensor | float:
    rows = [alone_logps(lm, g, c)[0] for g, c in each(groups) if c.trained]
    if aggregation == "token-mean":
        return -sum(r.sum() for r in rows) / max(1, sum(len(r) for r in rows))
    return -sum(r.mean() for r in rows) / max(1, len(rows))


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
        logp, entropy = lm.logps(lm.states(pack), pack, TAU)
        return Output(
            logp_C=logp, entropy_C=entropy, value_C=scorer.values(pack) if critic else None
        )

    return forward


def made_method(name: str) -> PolicyMethod:
    """As published, with an entropy bonus and the KL of its place at work."""
    return METHODS[name](max_length=8, entropy_coef=0.01)


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

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
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification

from tests.models import tiny
from trimtab.data.pack import Output, Pack, build, packs
from trimtab.models.heads import Scorer
from trimtab.models.load import LM, ModelSpec
from trimtab.objectives.advantage import gae, token_rewards
from trimtab.objectives.kl import FixedKL, KLController, estimate
from trimtab.objectives.methods.ppo import PPO
from trimtab.objectives.policy import clipped, ratios
from trimtab.objectives.reward import BradleyTerry, bradley_terry, plackett_luce
from trimtab.objectives.sft import SFT
from trimtab.tensors import pad_rows, unpad_rows, whiten
from trimtab.train.policy import RLStage, put
from trimtab.train.step import LoopSpec, OptimSpec, Part, Trainer
from trimtab.types import Completion, Group

RELATIVE = 1e-6
TAU = 0.7
GARBAGE = [math.nan, math.inf, -math.inf, 3e38]

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
small = st.floats(-5, 5, width=32)


# The whole step ------------------------------------------------------------------------------


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
    still = OptimSpec(lr=1e-30, clip=1e30)
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
        found = [(c.rank, alone_heads(scorer, g, c)[-1]) for c in g.completions]
        r = [x for _, x in sorted(found, key=lambda f: cast(int, f[0]))]
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
            "advantage": rng.normal(0, 1, n),
            "value": rng.normal(0, 1, n),
            "return": rng.normal(0, 1, n),
        }
        for name, data in columns.items():
            c.tokens[name] = np.full(len(c), fill, np.float32)
            c.tokens[name][c.mask] = data


METHOD = PPO(dual_clip=3.0, entropy_coef=0.01, value_coef=0.5)


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
            held = free if near is not None else torch.tensor((far - ret[t]) ** 2)
            critic = 0.5 * (free if free >= held else held)
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


# Credit of a batch ---------------------------------------------------------------------------


def credit(done: list[Completion], **method: Any) -> dict[str, float]:
    """``RLStage._credit`` without a model."""
    config = SimpleNamespace(method=PPO(kl=FixedKL(beta=0.1), **method), reward_clip=None)
    stage = SimpleNamespace(config=config, kl=KLController(config.method.kl))
    stage._final = lambda c: RLStage._final(cast(Any, stage), c)  # pyright: ignore
    return RLStage._credit(cast(Any, stage), done)  # pyright: ignore


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


def test_credit_of_a_batch_by_hand() -> None:
    """O6c's rewards (-.02, .01, .97), a gap before the third: to go (.96, .98, .97), less V.

    The second completion was cut: 0.4 off its reward of 2, and no part in the loss.
    """
    one = Completion(np.arange(4), np.array([True, True, False, True]), reward=1.0)
    two = Completion(np.arange(1), np.array([True]), reward=2.0, finish="length")
    for c, value, kl in ((one, [0.5, 0.6, 9.0, 0.7], [0.2, -0.1, 9.0, 0.3]), (two, [1.0], [1.0])):
        c.tokens["value"] = np.array(value, np.float32)
        c.tokens["old_logp"] = np.array(kl, np.float32) - 3
        c.tokens["ref_logp"] = np.full(len(c), -3, np.float32)
        c.tokens["sampler_logp"] = c.tokens["old_logp"] + np.float32(0.25)
    metrics = credit(
        [one, two], whiten_advantages=False, lam=1.0, missing_eos_penalty=0.4, mask_truncated=True
    )
    near = {"abs": 1e-6}
    assert one.tokens["return"] == pytest.approx([0.96, 0.98, 0.0, 0.97], **near)
    assert one.tokens["advantage"] == pytest.approx([0.46, 0.38, 0.0, 0.27], **near)
    assert two.tokens["return"] == pytest.approx([1.5], **near)
    assert two.tokens["advantage"] == pytest.approx([0.5], **near)
    assert one.trained == 3
    assert two.trained == 0
    assert metrics["objective/kl"] == pytest.approx((0.4 + 1.0) / 2, **near)
    assert metrics["objective/kl_reward"] == pytest.approx(-0.07, **near)
    assert metrics["reward/final"] == pytest.approx((1.0 + 1.6) / 2, **near)
    assert metrics["value/mean"] == pytest.approx(2.8 / 4, **near)
    assert metrics["value/last"] == pytest.approx((0.7 + 1.0) / 2, **near)
    assert metrics["sampler/drift_max"] == pytest.approx(0.25, **near)


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
    credit(done, whiten_rewards=True, whiten_advantages=False)
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
    credit(one, whiten_rewards=True)
    credit([two[i] for i in order], whiten_rewards=True)
    for x, y in zip(one, two, strict=True):
        np.testing.assert_allclose(x.tokens["advantage"], y.tokens["advantage"], atol=1e-6)
        np.testing.assert_allclose(x.tokens["return"], y.tokens["return"], atol=1e-6)


@given(shapes, seeds, budgets, st.booleans())
@many
def test_columns_come_back_to_their_tokens(
    shape: Shape, seed: int, budget: int, share: bool
) -> None:
    """Every group is in one pack, the budget holds, and each number returns where it came from."""
    groups = make(shape, seed)
    for i, (_, c) in enumerate(each(groups)):
        c.tokens["at"] = np.arange(len(c), dtype=np.float32) + 100 * i
    made = packs(groups, budget, share=share)
    assert sorted(g.id for p in made for g in p.groups) == sorted(g.id for g in groups)
    for pack in made:
        assert pack.size <= budget or len(pack.groups) == 1
        put(pack, {"back": pack.tokens["at"].numpy()})
    for _, c in each(groups):
        assert np.array_equal(c.tokens["back"], np.where(c.mask, c.tokens["at"], 0))


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
    kept = [t for t in range(7) if on[t]]
    for place, t in enumerate(kept):
        later = kept[place:]
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
    kept = whiten(raw, mask, keep_mean=True)
    assert float(kept.mean()) == pytest.approx(float(raw.mean()), abs=1e-9)


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
    assert float(moved) == pytest.approx(number(loss), abs=1e-6)
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
    for kind in ("k1", "k3"):
        assert float((p * estimate(ratio, kind)).sum()) == pytest.approx(float(exact), abs=1e-9)
    assert (estimate(ratio, "k2") >= 0).all()
    assert (estimate(ratio, "k3") >= -1e-12).all()
    for kind, right in (("k2", want), ("k3", p - ref.exp()), ("k1", torch.zeros_like(want))):
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

"""Every fast path beside the plain one: the same values, the same gradients."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flops
from tests.support.models import tiny
from tests.support.packed_forwards import alone, groups, packed, worst
from trimtab.data.pack import Output, Pack, build, path_to
from trimtab.kernels.flash_cpu import flash_tree_attention
from trimtab.kernels.logprobs import LogitHead
from trimtab.kernels.masked import masked_tree_attention
from trimtab.kernels.tree_attention import make_tree
from trimtab.models.forward import logps_and_norms, token_logps
from trimtab.models.load import LM, ModelSpec, bfloat16_speedup, uses_mixed_precision
from trimtab.objectives.nll import SFT
from trimtab.sample.draw import SamplingConfig
from trimtab.sample.sampler import Request, Sampler
from trimtab.train.gradients import MemoryLimitError, Part
from trimtab.train.trainer import LoopSpec, OptimSpec, Trainer
from trimtab.types import Completion, Group


def plain_logps(z: Tensor, y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    l = (z / tau).log_softmax(-1)
    entropy_sum = torch.where(l.exp() > 0, l, torch.zeros_like(l))
    return l.gather(-1, y[:, None])[:, 0], -(l.exp() * entropy_sum).sum(-1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("times", "cap"), [(1.0, 0.0), (0.5, 0.0), (1.5, 2.0)])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_written_backward(bias: bool, times: float, cap: float, chunk: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 17, bias=bias).double()
    head = LogitHead(layer, times, cap)
    h = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 17, (11,))
    g, e = torch.randn(2, 11, dtype=torch.float64)
    inputs = [h, *layer.parameters()]
    for weights in ((g, e), (g, None), (None, e)):
        want_l, want_h = plain_logps(head(h), y, 0.7)
        got_l, got_h = token_logps(h, y, head, temperature=0.7, chunk=chunk)
        torch.testing.assert_close(got_l.double(), want_l, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got_h.double(), want_h, atol=1e-5, rtol=1e-5)

        def loss(a: Tensor, b: Tensor, weights: Any = weights) -> Tensor:
            parts = zip(weights, (a, b), strict=True)
            return torch.stack([(w * x).sum() for w, x in parts if w is not None]).sum()

        want = torch.autograd.grad(loss(want_l, want_h), inputs)
        for a, b in zip(torch.autograd.grad(loss(got_l, got_h), inputs), want, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("times", "cap"), [(0.5, 0.0), (1.5, 2.0)])
@pytest.mark.parametrize("chunk", [5, 100])
def test_written_backward_of_log_sum_exps(
    fused: bool, times: float, cap: float, chunk: int
) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(6, 17).double()
    head = LogitHead(layer, times, cap)
    h = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 17, (11,))
    g, e, n = torch.randn(3, 11, dtype=torch.float64)
    inputs = [h, *layer.parameters()]
    for weights in ((g, e, n), (g, None, n), (None, e, n), (None, None, n)):
        want = (*plain_logps(head(h), y, 0.7), torch.logsumexp(head(h) / 0.7, -1))
        function = head if fused else lambda x: head(x)
        got = logps_and_norms(h, y, function, temperature=0.7, chunk=chunk)
        torch.testing.assert_close(got[2].double(), want[2], atol=1e-5, rtol=1e-5)

        def loss(columns: Any, weights: Any = weights) -> Tensor:
            parts = zip(weights, columns, strict=True)
            return torch.stack([(w * x).sum() for w, x in parts if w is not None]).sum()

        slopes = torch.autograd.grad(loss(want), inputs)
        for a, b in zip(torch.autograd.grad(loss(got), inputs), slopes, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shapes", [
    [(7, [])], [(5, [3])], [(6, [2, 4, 9])], [(4, [3, 3]), (9, [1, 8, 2]), (4, [5]), (1, [1, 1])],
    [(4, [3]), (5, [2]), (1, [6])],
])  # fmt: skip
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("stem", [0, 20, 40])
def test_flash_attention_over_trees_equals_masked(
    shapes: list[tuple[int, list[int]]], heads: tuple[int, int], stem: int
) -> None:
    rng = np.random.default_rng(0)
    common = rng.integers(0, 9, stem)
    pack = build([
        Group(
            str(i), np.concatenate([common[: stem if i % 3 else stem // 2], rng.integers(9, 99, p)]),
            [Completion(rng.integers(0, 9, n), np.ones(n, np.bool_)) for n in ns],
        )
        for i, (p, ns) in enumerate(shapes)
    ])  # fmt: skip
    levels = max(len(path_to(pack.segments, i)) for i in range(len(pack.segments)))
    several = any(len(ns) > 1 for _, ns in shapes)
    assert levels == 1 + several + (0 if len(shapes) == 1 else {0: 0, 20: 1, 40: 2}[stem])
    tree = make_tree(pack)
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(pack.size, h, 8, dtype=torch.float64, requires_grad=True)
        for h in (heads[0], heads[1], heads[1])
    )
    g = torch.randn(pack.size, heads[0], 8, dtype=torch.float64)
    want = masked_tree_attention(q, k, v, tree.buckets, 0.3, 0.0, 0, 0.0)
    got = flash_tree_attention(q, k, v, tree.flash_plan, 0.3)
    if not stem:
        assert tree.flash_plan.own.in_order == (len({s.length for s in pack.segments}) == 1)
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)
    expected = torch.autograd.grad(want, (q, k, v), g)
    for a, b in zip(torch.autograd.grad(got, (q, k, v), g), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_memory_of_a_prompt_is_paid_once() -> None:
    """What the backward keeps of attention grows with tokens, not with completions times prompt."""
    entropy_sum: list[int] = []
    for n in (2, 32):
        pack = build(
            [
                Group(
                    "a",
                    np.ones(256, np.int64),
                    [Completion(np.ones(2, np.int64), np.ones(2, np.bool_))] * n,
                )
            ]
        )
        tree = make_tree(pack)
        x = torch.randn(pack.size, 2, 8, requires_grad=True)
        leaf: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, leaf=leaf: leaf.append(t.numel()) or t, lambda t: t
        ):
            flash_tree_attention(x, x, x, tree.flash_plan, 0.3)
        entropy_sum.append(sum(leaf))
    assert entropy_sum[1] < 1.5 * entropy_sum[0]


def test_frozen_head_impossible_tokens_and_no_entropy() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 9)
    with torch.no_grad():
        layer.bias[3] = -torch.inf
    layer.requires_grad_(False)
    h = torch.randn(5, 4, requires_grad=True)
    y = torch.tensor([0, 1, 2, 4, 8])
    want, entropy = plain_logps(layer(h), y, 1.0)
    (grad,) = torch.autograd.grad(want.sum(), h)
    for requests in (True, False):
        got, refused = token_logps(h, y, layer, entropy=requests)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got.sum(), h)[0], grad)
        torch.testing.assert_close(refused, entropy if requests else torch.zeros(5))
    got, refused = token_logps(h, y, layer)
    assert torch.isfinite(torch.autograd.grad(refused.sum() + got.sum(), h)[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mistral"])
def test_completions_of_a_prompt_decode_from_one_copy(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = Sampler(tiny(kind), stop_ids=(2, 5, 9))
    assert sampler.shares_prompts == (kind != "mistral"), "a window can hide a whole prompt"
    rng = np.random.default_rng(3)
    requests = [
        Request(rng.integers(3, 64, rng.integers(1, 30)), (1, i), int(rng.integers(1, 6)))
        for i in range(14)
    ]
    for slots in (3, 64):
        config = SamplingConfig(max_new_tokens=14, slots=slots)
        sampler.shares_prompts = kind != "mistral"
        got = sampler(requests, config)
        sampler.shares_prompts = False
        for a, b in zip(got, sampler(requests, config), strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x.ids, y.ids)
                np.testing.assert_allclose(x.logp, y.logp, atol=1e-4)
    lengths = {len(x.ids) for one in got for x in one}
    assert len(lengths) > 3, "rows must leave at different times"


def sft_step(lm: LM, forward: Callable[[Pack], Output], budget: int) -> tuple[Tensor, Trainer]:
    still = {"m": OptimSpec(lr=1e-30, max_grad_norm=1e30)}
    trainer = Trainer({"m": lm.model}, still, 1, LoopSpec(token_budget=budget))
    trainer.update([Part(groups(), SFT(), forward)])
    parts = [p.grad.flatten() for p in lm.model.parameters() if p.grad is not None]
    return torch.cat(parts), trainer


def test_a_step_that_does_not_fit_is_cut_smaller_and_stays_the_same() -> None:
    lm = LM(tiny("llama").double(), ModelSpec(path="llama"))

    def limited(most: int) -> Callable[[Pack], Output]:
        def forward(pack: Pack) -> Output:
            logp, _ = lm.logps(lm.states(pack), pack)
            if pack.size > most:
                raise torch.OutOfMemoryError("out of memory")
            return Output(logp_C=logp)

        return forward

    want, _ = sft_step(lm, limited(1000), 1000)
    got, trainer = sft_step(lm, limited(50), 1000)
    assert trainer.budget <= 50
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-6)
    with pytest.raises(MemoryLimitError, match="47 tokens does not fit"):
        sft_step(lm, limited(10), 1000)


def mixed_lm() -> LM:
    lm = LM(tiny("llama"), ModelSpec(path="llama", precision="mixed"))
    assert lm.mixed and lm.exact
    return lm


def test_mixed_precision_keeps_weights_and_stays_near() -> None:
    lm = mixed_lm()
    actual = groups()
    away = worst(packed(lm, actual), alone(lm.plain_attention(), actual))
    assert 0 < away < 0.3, "bfloat16 products must show, and little"
    logp, _ = lm.logps(lm.states(build(actual)), build(actual))
    assert logp.dtype == torch.float32
    logp.sum().backward()
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in lm.model.parameters())


def test_mixed_sampling_agrees_with_mixed_training() -> None:
    lm = mixed_lm()
    prompt = np.arange(5, 17)
    sampler = Sampler(lm.plain_attention(), stop_ids=(), mixed=True)
    (got,) = sampler([Request(prompt, (0,), 4)], SamplingConfig(max_new_tokens=12))
    done = [Completion(x.ids, np.ones(len(x.ids), np.bool_)) for x in got]
    results = packed(lm, [Group("a", prompt, done)])
    for x, c in zip(got, done, strict=True):
        assert float(np.abs(x.logp - results[id(c)].numpy()).max()) < 0.3


@pytest.mark.slow
def test_mixed_precision_learns_as_well() -> None:
    """The same curve within noise: both learn the same answers by heart."""
    ends: dict[str, list[float]] = {"full": [], "mixed": []}
    for seed in range(3):
        for precision, results in ends.items():
            lm = LM(tiny("llama", seed), ModelSpec(path="x", precision=precision))  # type: ignore[arg-type]
            optim = {"m": OptimSpec(lr=3e-3, warmup_ratio=0.0, lr_scheduler_type="constant")}
            trainer = Trainer({"m": lm.model}, optim, 40, LoopSpec())

            def forward(pack: Pack, lm: LM = lm) -> Output:
                return Output(logp_C=lm.logps(lm.states(pack), pack)[0])

            for _ in range(40):
                refused = trainer.update([Part(groups(seed), SFT(), forward)])
            results.append(refused["loss"])
    full, mixed = np.array(ends["full"]), np.array(ends["mixed"])
    assert full.max() < 2.0, "must have learnt"
    assert abs(full.mean() - mixed.mean()) <= max(0.1, 3 * full.std())


def test_auto_precision_follows_the_measurement() -> None:
    cpu = torch.device("cpu")
    assert uses_mixed_precision(ModelSpec(path="x", precision="auto"), cpu, 64) == (
        bfloat16_speedup(64) >= 1.3
    )
    assert not uses_mixed_precision(ModelSpec(path="x"), cpu, 64)
    assert not uses_mixed_precision(
        ModelSpec(path="x", precision="mixed", dtype="bfloat16"), cpu, 64
    )


def test_useful_flops_are_those_of_a_forward() -> None:
    model: Any = tiny("llama")
    ids = torch.arange(3, 33)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
    actual = Group("a", ids[0, :1].numpy(), [Completion(ids[0, 1:].numpy(), np.ones(29, np.bool_))])
    config = model.config
    scores = 4.0 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    # The counter takes no account of the causal mask, and has logits at every position.
    dense = counter.get_total_flops() - scores * 30 * 30 - 2 * config.hidden_size * 64
    got = flops.forward(config, [actual], logits=True) - scores * 30 * 31 / 2
    # Not every kernel of attention is known to the counter.
    assert got in (pytest.approx(dense), pytest.approx(dense + scores * 30 * 30))


@pytest.mark.slow
@pytest.mark.parametrize("what", [["-c", "import trimtab"], ["-m", "trimtab", "--help"]])
def test_starts_in_half_a_second(what: list[str]) -> None:
    """Of processor time: what other work on the machine takes does not count."""
    spent: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *what], check=True, capture_output=True, env=os.environ)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) <= 0.5


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own settings")
@pytest.mark.parametrize("named", [False, True])
def test_freed_memory_is_kept_unless_somebody_decides_otherwise(named: bool) -> None:
    refused = """
import resource, torch
from trimtab.kernels.allocator import keep_freed_memory
kept = keep_freed_memory()
for _ in range(4):
    held = [torch.ones(2**20) for _ in range(64)]  # 256 MB in blocks of 4
    del held
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
held = [torch.ones(2**20) for _ in range(64)]
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    env = dict(os.environ) | ({"MALLOC_TRIM_THRESHOLD_": "65536"} if named else {})
    actual = subprocess.run(
        [sys.executable, "-c", refused], capture_output=True, text=True, check=True, env=env
    )
    entropy_sum, faults = actual.stdout.split()
    assert entropy_sum == str(not named)
    assert int(faults) > 30_000 if named else int(faults) < 3_000

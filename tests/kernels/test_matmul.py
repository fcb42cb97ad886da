"""Products by oneDNN beside torch's own: the same values and gradients, and who is left alone."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tests.support.models import tiny
from tests.support.packed_forwards import groups
from trimtab.data.pack import build
from trimtab.kernels import matmul
from trimtab.kernels.matmul import (
    FastLinear,
    decode_linear,
    fast_linear,
    fast_matmul,
    is_plain_linear,
    use_fast_linears,
    weight_gradient,
)
from trimtab.models.load import LM, ModelSpec
from trimtab.sample.draw import SamplingConfig
from trimtab.sample.sampler import Request, Sampler

FULL_WIDTH = matmul._has_full_width_avx512


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """oneDNN takes products of any size; the shapes it was given."""
    if not (torch.backends.mkldnn.is_available() and matmul._onednn_works()):
        pytest.skip("this torch has no oneDNN")
    seen: list[tuple[int, ...]] = []
    own = matmul._onednn_linear

    def counted(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append((*x.shape, len(w)))
        return own(x, w, bias)

    monkeypatch.setattr(matmul, "uses_onednn", lambda: True)
    monkeypatch.setattr(matmul, "_has_full_width_avx512", lambda: True)
    monkeypatch.setattr(matmul, "ONEDNN_MIN_SIZE", 1)
    monkeypatch.setattr(matmul, "_onednn_linear", counted)
    return seen


def close(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= 2e-6 * float(b.abs().max()) + 1e-12


@pytest.mark.parametrize("shape", [(7,), (3, 5), (1, 2, 4)])
@pytest.mark.parametrize(("width", "out"), [(24, 40), (40, 24), (16, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_are_torchs(
    shape: tuple[int, ...], width: int, out: int, biased: bool, on: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(*shape, width), torch.randn(out, width)]
    inputs += [torch.randn(out)] if biased else []
    up = torch.randn(*shape, out)

    def cpuinfo(f: Any) -> list[Tensor]:
        # In float64, where both libraries' rounding is out of sight.
        kind = torch.float64 if f is linear else torch.float32
        leaves = [x.to(kind, copy=True).requires_grad_() for x in inputs]
        out = f(*leaves)
        out.backward(up.to(kind))
        return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]

    got, want = cpuinfo(fast_linear), cpuinfo(linear)
    assert len(on) == 3 and len(got) == len(want) == 2 + len(inputs) - 1
    for a, b in zip(got, want, strict=True):
        close(a.double(), b)
        assert a.is_contiguous()


def test_strided_and_expanded_tensors(on: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(32, 9).t(), torch.randn(40, 64)[:, ::2]
    close(fast_linear(x, w), x @ w.t())
    wide = torch.randn(1, 32).expand(6, 32).requires_grad_()
    fast_linear(wide, torch.eye(32)).sum().backward()
    assert wide.grad is not None and torch.equal(wide.grad, torch.ones(6, 32))
    g = torch.randn(9, 5)
    close(weight_gradient(g, x), g.t() @ x)
    b = torch.randn(5, 3)
    close(fast_matmul(g, b), g @ b)


def test_frozen_weights_get_no_gradient(on: list[tuple[int, ...]]) -> None:
    w = torch.randn(8, 8)
    x = torch.randn(4, 8, requires_grad=True)
    fast_linear(x, w).sum().backward()
    assert w.grad is None and len(on) == 2
    with torch.no_grad():
        assert not fast_linear(x, w).requires_grad
    with torch.inference_mode():
        close(fast_linear(x, w), linear(x, w))


def test_what_is_not_float32_on_a_cpu_goes_by_torch(
    on: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (torch.float64, torch.bfloat16):
        x, w = torch.randn(4, 8, dtype=kind), torch.randn(8, 8, dtype=kind)
        assert torch.equal(fast_linear(x, w), linear(x, w))
        assert torch.equal(weight_gradient(x, x), x.t() @ x) and torch.equal(
            fast_matmul(x, w), x @ w
        )
    x, w = torch.randn(4, 8), torch.randn(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast_linear(x, w).dtype == torch.bfloat16
    assert fast_linear(x.to("meta"), w.to("meta")).shape == (4, 8)

    class Other(Tensor):
        pass

    fast_linear(x.as_subclass(Other), w)
    with monkeypatch.context() as off:
        off.setattr(torch.backends.mkldnn, "enabled", False)
        fast_linear(x, w)
    assert on == []
    fast_linear(x, w)
    assert on == [(4, 8, 8)]


def test_small_products_go_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "uses_onednn", lambda: True)

    def never(*_: Any) -> Tensor:
        raise AssertionError("too small for oneDNN")

    monkeypatch.setattr(matmul, "_onednn_linear", never)
    x, w = torch.randn(127, 128), torch.randn(128, 128)
    assert torch.equal(fast_linear(x, w), linear(x, w))
    with pytest.raises(AssertionError, match="too small"):
        fast_linear(torch.randn(128, 128), w)


def test_layers_are_taken_over_and_nothing_else_of_them_changes(
    on: list[tuple[int, ...]],
) -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Own(8, 8), nn.Linear(8, 4, bias=False))
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 8)
    want = model(x).detach()
    use_fast_linears(model)
    assert [type(m) for m in model] == [FastLinear, Own, FastLinear]
    assert all(isinstance(m, nn.Linear) for m in model)
    close(model(x).detach(), want)
    assert len(on) == 2
    other = copy.deepcopy(model)
    assert type(other[0]) is FastLinear
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())
    assert (
        is_plain_linear(model[0])
        and is_plain_linear(nn.Linear(2, 2))
        and not is_plain_linear(model[1])
    )
    model[0].register_forward_hook(lambda *_: None)
    assert not is_plain_linear(model[0])


def test_nothing_is_taken_over_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "uses_onednn", lambda: False)
    model = nn.Sequential(nn.Linear(8, 8))
    use_fast_linears(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("cpuinfo", "pays"),
    [
        ("vendor_id : AuthenticAMD\nflags : fpu avx2 avx512f avx512_bf16", True),
        ("vendor_id : AuthenticAMD\nflags : fpu avx2", False),
        ("vendor_id : GenuineIntel\nflags : fpu avx2 avx512f", False),
        ("", False),
    ],
)
def test_the_processor_decides(cpuinfo: str, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (torch.backends.mkldnn.is_available() and matmul._onednn_works()):
        pytest.skip("this torch has no oneDNN")
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        # Set first, so that it is taken back.
        monkeypatch.setenv(name, "5")
    monkeypatch.setattr(matmul, "_cpuinfo", lambda: cpuinfo)
    monkeypatch.setattr(matmul, "is_amd_avx512", matmul.is_amd_avx512.__wrapped__)
    assert matmul.uses_onednn.__wrapped__() is pays
    assert os.environ["LRU_CACHE_CAPACITY"] == "5"


@pytest.mark.parametrize(
    ("cpuinfo", "full_width"),
    [
        ("cpu family\t: 25\nmodel\t\t: 17", False),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2", True),
        ("", False),
    ],
)
def test_weight_gradients_go_by_onednn_where_512_bits_are_multiplied_at_once(
    cpuinfo: str, full_width: bool, on: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    full_width_cached = FULL_WIDTH.__wrapped__
    monkeypatch.setattr(matmul, "_cpuinfo", lambda: cpuinfo)
    monkeypatch.setattr(matmul, "_has_full_width_avx512", full_width_cached)
    torch.manual_seed(0)
    g, x = torch.randn(6, 4), torch.randn(6, 8)
    close(weight_gradient(g, x), g.t() @ x)
    assert bool(on) is full_width


def test_a_torch_without_the_operation_multiplies_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other(*_: Any) -> Tensor:
        raise TypeError("takes other arguments")

    monkeypatch.setattr(matmul, "_onednn_linear", other)
    assert not matmul._onednn_works()
    monkeypatch.setattr(matmul, "_onednn_linear", lambda x, w: x @ w)
    assert not matmul._onednn_works()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma2"])
def test_a_model_computes_the_same(
    kind: str, on: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = build(groups())

    def cpuinfo(model: nn.Module) -> tuple[Tensor, Tensor]:
        lm = LM(model, ModelSpec(path=kind))
        model.zero_grad()
        logp, entropy = lm.logps(lm.states(pack), pack)
        (logp.sum() + entropy.sum()).backward()
        return logp.detach(), torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        )

    model = tiny(kind)
    model.eval()
    got = cpuinfo(model)
    assert on
    monkeypatch.setattr(matmul, "uses_onednn", lambda: False)
    want = cpuinfo(tiny(kind).eval())
    for a, b in zip(got, want, strict=True):
        assert float((a - b).abs().max()) <= 2e-5 * max(1.0, float(b.abs().max()))


def test_sampling_draws_the_same(
    on: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    requests = [Request(rng.integers(3, 64, n), (n,), limit=4 + n) for n in range(3, 24)]
    config = SamplingConfig(max_new_tokens=40)
    got = Sampler(tiny("llama").eval(), stop_ids=[2])(requests, config)
    rows = {s[0] for s in on}
    monkeypatch.setattr(matmul, "uses_onednn", lambda: False)
    want = Sampler(tiny("llama").eval(), stop_ids=[2])(requests, config)
    for a, b in zip(got, want, strict=True):
        assert a[0].ids.tolist() == b[0].ids.tolist()
        assert np.allclose(a[0].logp, b[0].logp, atol=1e-5)
    # More than sixteen rows are decoded as thirty-two, and the last few as they are; prompts end
    # in twenty-one.
    assert {32, 21, 3} <= rows and not rows & {17, 19, 20}


@pytest.mark.slow
@pytest.mark.parametrize("biased", [False, True])
def test_a_few_rows_are_columns_where_that_is_faster(
    biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "uses_onednn", lambda: False)
    monkeypatch.setattr(matmul, "is_amd_avx2", lambda: False)
    torch.manual_seed(0)
    small, wide = torch.randn(40, 24), torch.randn(1100, 1024)

    def columns(rows: int, weight: Tensor) -> bool:
        x = torch.randn(rows, weight.shape[1])
        bias = torch.randn(len(weight)) if biased else None
        out = decode_linear(x, weight, bias)
        close(out, linear(x, weight, bias))
        return not out.is_contiguous()

    monkeypatch.setattr(matmul, "is_intel_avx512", lambda: False)
    assert not any(columns(n, w) for n in (8, 16, 59) for w in (small, wide))
    monkeypatch.setattr(matmul, "is_intel_avx512", lambda: True)
    assert [n for n in range(2, 66) if columns(n, small)] == list(range(16, 60))
    assert [n for n in range(2, 66) if columns(n, wide)] == list(range(8, 60))
    monkeypatch.setattr(matmul, "is_amd_avx2", lambda: True)
    assert [n for n in range(1, 140) if columns(n, small)] == list(range(8, 129))
    assert [n for n in (1, 2, 256, 257) if columns(n, wide)] == [2, 256]
    half = decode_linear(torch.randn(20, 24).bfloat16(), small.bfloat16())
    assert half.is_contiguous() and half.dtype == torch.bfloat16


def test_columns_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "uses_onednn", lambda: False)
    rng = np.random.default_rng(0)
    requests = [Request(rng.integers(3, 64, n), (n,), 3, limit=4 + n) for n in range(3, 24)]
    config = SamplingConfig(max_new_tokens=40)
    got: list[Any] = []
    monkeypatch.setattr(matmul, "is_intel_avx512", lambda: False)
    for is_amd in (True, False):
        monkeypatch.setattr(matmul, "is_amd_avx2", lambda cpuinfo=is_amd: cpuinfo)
        got.append(Sampler(tiny("qwen3").eval(), stop_ids=[2])(requests, config))
    for a, b in zip(*got, strict=True):
        for one, other in zip(a, b, strict=True):
            assert one.ids.tolist() == other.ids.tolist()
            assert np.allclose(one.logp, other.logp, atol=1e-5)


def test_programs_are_bounded_before_the_first_is_written() -> None:
    """The environment is read by oneDNN once; in a new process it must be set in time."""
    if not matmul.uses_onednn():
        pytest.skip("this processor multiplies by MKL")
    code = (
        "import torch; from trimtab.kernels.matmul import fast_linear\n"
        "w = torch.randn(256, 256)\n"
        "for n in [*range(512, 540), 512]: fast_linear(torch.randn(n, 256), w)\n"
    )
    env = {k: v for k, v in os.environ.items() if "CACHE_CAPACITY" not in k}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | {"ONEDNN_VERBOSE": "2"}, text=True,
        capture_output=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    written = [x for x in done.stdout.splitlines() if "cache_miss" in x and "mb512ic" in x]
    assert len(written) == 2

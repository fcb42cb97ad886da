"""One GPU in 12 minutes: ``make gpu-check`` writes docs/gpu.md.

First whether the GPU computes what the CPU does, then speed beside TRL and vLLM at 1.5B parameters. A row
that cannot be run, or for which no time is left, is written as not measured, with the reason.
``--device cpu --model 1m`` tries the script without a GPU and writes no page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import material
from benchmarks.turns import ROOT
from trimtab.data.pack import build
from trimtab.models.load import LM, ModelSpec
from trimtab.models.packed import PackedLM
from trimtab.models.shard import full, shard_over
from trimtab.types import Completion, Group

PAGE = ROOT / "docs" / "gpu.md"
MINUTES = 12.0
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""FLOP/s of dense bfloat16 matmuls by the vendors' datasheets."""
SPEED: tuple[tuple[str, list[str]], ...] = (
    ("SFT beside TRL (packed)", ["sft", "--peer", "bfd", "--token-budget", "4096", "--steps", "2"]),
    ("GRPO beside TRL with transformers", ["grpo", "--prompt", "256", "--steps", "1"]),
    ("GRPO beside TRL with vLLM", ["grpo", "--prompt", "256", "--steps", "1", "--peer-vllm"]),
    ("sampler beside vLLM", ["sampler", "--peer", "vllm", "--new", "256"]),
)
"""Rows of ``python -m benchmarks``."""


@dataclass(frozen=True)
class Row:
    """A line of the page."""

    what: str
    target: str
    measured: str


def groups() -> list[Group]:
    """Prompts with several completions, of lengths that do not fill blocks."""
    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray[Any, Any]:
        return rng.integers(3, 1000, count)

    made: list[Group] = []
    for prompt, lengths in ((150, (40, 7, 130)), (33, (200,)), (1, (64, 64))):
        answers = [Completion(ids(n), np.ones(n, np.bool_)) for n in lengths]
        made.append(Group(str(prompt), ids(prompt), answers))
    return made


def outputs(root: PackedLM) -> tuple[Tensor, Tensor]:
    """Log-probs of the completions, and the gradient of their sum with respect to all weights."""
    root.zero_grad()
    logp = root.outputs(build(groups()).to(next(root.parameters()).device)).logp_C
    assert logp is not None
    logp.sum().backward()
    grads = [full(p.grad).reshape(-1) for p in root.parameters() if p.grad is not None]
    return logp.detach().float().cpu(), torch.cat(grads).float().cpu()


def relative(a: Tensor, b: Tensor) -> float:
    """Difference in the Euclidean norm, relative to ``b``."""
    return float((a - b).norm() / b.norm())


def exactness(folder: Path, device: str, model: str = "5m") -> list[Row]:
    """FlexAttention and bfloat16 against the CPU in float32, and FlexAttention under FSDP2."""
    torch.backends.cuda.matmul.allow_tf32 = False
    path = str(material.model_folder(folder, model))

    def load(on: str, **settings: Any) -> PackedLM:
        return PackedLM(LM.load(ModelSpec(path=path, device=on, **settings)))

    reference = outputs(load("cpu"))
    logp, grad = outputs(load(device))
    rows = [
        Row("FlexAttention against the CPU path, float32: log-probs, largest difference", "1e-4",
            f"{float((logp - reference[0]).abs().max()):.1e}"),
        Row("the same: gradients, relative", "1e-4", f"{relative(grad, reference[1]):.1e}"),
    ]  # fmt: skip
    gap = (outputs(load(device, precision="mixed"))[0] - reference[0]).abs().mean()
    rows.append(
        Row(
            "mixed precision: log-probs, mean difference (the probe's limit)",
            "0.05",
            f"{float(gap):.1e}",
        )
    )
    sharded = load(device)
    with tempfile.TemporaryDirectory() as store:
        torch.distributed.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            init_method=f"file://{store}/store", rank=0, world_size=1,
        )  # fmt: skip
        shard_over(sharded, torch.distributed.group.WORLD)
        gradient = outputs(sharded)[1]
        torch.distributed.destroy_process_group()
    rows.append(
        Row("FlexAttention under FSDP2 (one rank) against without: gradients, relative", "1e-6",
            f"{relative(gradient, grad):.1e}")
    )  # fmt: skip
    return rows


def speed(args: argparse.Namespace, deadline: float) -> list[Row]:
    """Rows of the benchmarks on this device, until the time is up."""
    rows: list[Row] = []
    for what, command in SPEED:
        left = deadline - time.monotonic()
        if left < 30:
            rows.append(Row(what, "", f"not measured: {MINUTES:g} minutes were over"))
            continue
        name, *own = command
        words = [
            sys.executable, "-m", f"benchmarks.{name}", "--model", args.model, "--device", args.device,
            "--turns", "3", "--folder", str(args.folder), *own, *args.pass_on,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                words, cwd=ROOT, capture_output=True, text=True, timeout=left, check=False
            )
        except subprocess.TimeoutExpired:
            rows.append(Row(what, "", f"not measured: did not end within {left:.0f} s"))
            continue
        print(done.stdout, flush=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            rows.append(Row(what, "", f"not measured: {reason}"))
            continue
        rows.append(Row(what, "", measured(json.loads(done.stdout.splitlines()[-1]))))
    return rows


def measured(result: dict[str, Any]) -> str:
    """A result of ``benchmarks.turns`` in a line."""
    text = f"{result['ours']:.4g} {result['unit']}s/s"
    if result["ratio"]:
        text += (
            f", {result['ratio']:.2f} [{result['ratio_low']:.2f}, {result['ratio_high']:.2f}] times "
            f"{result['peer_name']}"
        )
    peak = device_peak()
    if result["gflops_ours"] and peak:
        text += f", MFU {1e9 * result['gflops_ours'] / peak:.2f}"
    return f"{text}, {result['peak_mb_ours'] / 1024:.1f} GB"


def device_peak() -> float | None:
    """FLOP/s of the GPU by its datasheet; None if it is not in ``PEAK``."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAK.items() if key in name), None)


def write_page(rows: Sequence[Row], device: str) -> None:
    """docs/gpu.md."""
    lines = [
        "# On a GPU", "",
        "`make gpu-check` writes this page: at most 12 minutes on one GPU, with `make bench-env` and "
        "`make vllm-env` for the peers. MFU is useful arithmetic (each prompt once, no padding) over the peak of "
        "dense bfloat16 matmuls in the datasheet.", "",
        f"Device: {device}.", "",
        "| row | target | measured |", "|---|---|---|",
        *(f"| {r.what} | {r.target} | {r.measured} |" for r in rows), "",
        "Weights over NCCL to a vLLM server need a second GPU: NCCL refuses two processes on one.",
    ]  # fmt: skip
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--model", default="qwen-1.5b", help="for the rows of speed")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "bench")
    args, args.pass_on = parser.parse_known_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu-check: torch sees no GPU here; --device cpu --model 1m tries the script")
    deadline = time.monotonic() + 60 * MINUTES
    rows = [*exactness(args.folder / "material", args.device), *speed(args, deadline)]
    for row in rows:
        print(f"{row.what}: {row.measured}" + (f" (target {row.target})" if row.target else ""))
    if args.device == "cuda":
        write_page(rows, torch.cuda.get_device_name())


if __name__ == "__main__":
    main()

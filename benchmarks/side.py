"""One side of a comparison: a process that makes one library ready and then runs passes on demand.

Started by ``benchmarks.turns`` as ``python -m benchmarks.side '{"job": "module:Class", ...}'``. It
answers each line on standard input with one line of JSON; whatever a library prints goes to
standard error. Being a process of its own, its peak memory is the library's own.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


class Phases:
    """Seconds by phase, the inner one counted alone where calls nest."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = {}
        self.stack: list[str] = []
        self.since = 0.0
        self.sync = sync

    def _turn(self) -> None:
        self.sync()
        now = time.thread_time() if self.sync is _nothing else time.perf_counter()
        name = self.stack[-1] if self.stack else "other"
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.since
        self.since = now

    def start(self) -> None:
        """A new pass."""
        self.seconds = {}
        self.since = time.thread_time() if self.sync is _nothing else time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Shares of the pass, largest first."""
        self._turn()
        total = sum(self.seconds.values()) or 1.0
        order = sorted(self.seconds.items(), key=lambda kv: -kv[1])
        return {k: round(v / total, 3) for k, v in order}

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Count calls of ``owner.name`` as ``phase``."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self.stack.append(phase)
            try:
                return inner(*args, **kwargs)
            finally:
                self._turn()
                self.stack.pop()

        setattr(owner, name, timed)


def _nothing() -> None:
    """No device to wait for."""


def peak_mb(device: str) -> float:
    """Largest memory of this process so far: on CUDA the allocator's, otherwise the resident set."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return _resident("VmHWM")


def held_mb(device: str) -> float:
    """Memory of this process now, told as ``peak_mb``."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated() / 2**20
    return _resident("VmRSS")


def _resident(which: str) -> float:
    with open("/proc/self/status", encoding="ascii") as lines:
        line = next(line for line in lines if line.startswith(which))
    return int(line.split()[1]) / 1024


def gemm_rate(device: str, dtype: str) -> dict[str, float]:
    """The best GFLOP/s of a matrix product here and now: of torch's own, and of the faster library."""
    import torch

    from trimtab.kernels.matmul import fast_matmul

    best = {"torch": 0.0, "gemm": 0.0}
    kind = getattr(torch, dtype)
    sizes = [(2048, 512, 2048), (1024, 1024, 1024)]
    if device == "cuda":
        sizes = [(8192, 8192, 8192)]
    for m, k, n in sizes:
        a = torch.randn(m, k, device=device, dtype=kind)
        b = torch.randn(k, n, device=device, dtype=kind)
        for _ in range(5):
            if device == "cuda":
                torch.cuda.synchronize()
            for name, multiply in (("torch", torch.mm), ("gemm", fast_matmul)):
                wall, cpu = time.perf_counter(), time.process_time()
                for _ in range(4):
                    multiply(a, b)
                if device == "cuda":
                    torch.cuda.synchronize()
                    spent = time.perf_counter() - wall
                else:
                    # Processor time over the threads used: what others on the machine take is left out.
                    spent = (time.process_time() - cpu) / torch.get_num_threads()
                best[name] = max(best[name], 4 * 2.0 * m * k * n / spent / 1e9)
    return {"torch": best["torch"], "gemm": max(best.values())}


KINDS = (
    ("matmul", ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "onednn::", "mkldnn")),
    ("attention", ("scaled_dot_product", "_Flash", "_FlashBackward")),
    ("moved", ("aten::copy_", "aten::cat", "aten::index", "aten::fill_", "aten::gather", "aten::scatter")),
)  # fmt: skip
"""Operations by what they do; the rest is elementwise, sums, and calling them."""


def operations(run: Callable[[], Any]) -> dict[str, float]:
    """Shares of a pass by kind of operation, of the main thread's time within operations."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    shares = dict.fromkeys([k for k, _ in KINDS] + ["elementwise and rest"], 0.0)
    for event in seen.key_averages():
        kind = next(
            (k for k, names in KINDS if any(n in event.key for n in names)), "elementwise and rest"
        )
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values()) or 1.0
    return {k: round(v / total, 3) for k, v in shares.items()}


def main() -> None:
    """Serve one job."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    talk = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import torch
    import transformers.utils as hf_utils

    # Our tests bring scikit-learn and no side needs it, but transformers imports it where it is.
    hidden: Any = hf_utils
    hidden.is_sklearn_available = lambda: False
    torch.set_num_threads(int(spec["threads"]))
    sync = torch.cuda.synchronize if spec["device"] == "cuda" else _nothing
    module, _, name = str(spec["job"]).partition(":")
    phases = Phases(sync)
    job = getattr(importlib.import_module(module), name)(spec, phases)
    ready = {"versions": job.versions(), "start_mb": held_mb(spec["device"])}
    talk.write(json.dumps(ready) + "\n")
    for line in sys.stdin:
        request = line.strip()
        answer: dict[str, Any] = {}
        if request == "gemm":
            answer = dict[str, Any](gemm_rate(spec["device"], spec["dtype"]))
        elif request == "operations":
            answer = {"operations": operations(job.run)}
        elif request == "go":
            sync()
            phases.start()
            wall, cpu = time.perf_counter(), time.process_time()
            answer = job.run()
            sync()
            answer.setdefault("wall", time.perf_counter() - wall)
            answer.setdefault("cpu", time.process_time() - cpu)
            answer["phases"] = phases.stop()
        answer["peak_mb"] = peak_mb(spec["device"])
        talk.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()

"""One rank of ``benchmarks.ranks_speed``, started by torchrun: ``python -m benchmarks.rank_side '{...}'``."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

import torch

from benchmarks.side import Phases
from trimtab import ranks
from trimtab.ranks import Ranks
from trimtab.train import gradients


def summing(here: Ranks, numbers: int) -> float:
    """Seconds of a sum of so many float32 numbers over the ranks, median of five."""
    values = torch.zeros(numbers)
    taken: list[float] = []
    for _ in range(6):
        here.barrier()
        began = time.perf_counter()
        here.sum_tensor(values)
        taken.append(time.perf_counter() - began)
    return sorted(taken[1:])[2]


def main() -> None:
    """Run the passes; rank 0 writes their seconds and phases to ``spec["answer"]``."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(int(spec["threads"]))
    with ranks.started() as here:
        module, _, name = str(spec["job"]).partition(":")
        phases = Phases(lambda: None)  # wall time: a rank that waits uses no processor
        phases.wrap(gradients, "sum_gradients", "sum of gradients")
        job = getattr(importlib.import_module(module), name)(spec, phases)
        job.run()
        seconds: list[float] = []
        shares: dict[str, float] = {}
        work = 0.0
        for _ in range(spec["turns"]):
            here.barrier()
            phases.start()
            began = time.perf_counter()
            work = job.run()["work"]
            here.barrier()
            seconds.append(time.perf_counter() - began)
            shares = phases.stop()
        numbers = sum(p.numel() for ps in job.stage.trainer.params.values() for _, p in ps)
        answer = {
            "seconds": seconds, "work": work, "phases": shares, "sum": summing(here, numbers),
            "world": here.world,
        }  # fmt: skip
        if here.is_main:
            with open(spec["answer"], "w", encoding="utf-8") as out:
                json.dump(answer, out)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

"""Five steps of every method on 1, 2 and 4 real ranks (gloo), in one group of forked processes.

``python -m tests.scale.equality sft-none-full ppo-full-lora`` prints the differences of these rows.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tests.support import folders
from tests.support.models import tiny
from trimtab import ranks
from trimtab.config import build
from trimtab.launch.commands import find_command
from trimtab.models import checkpoint
from trimtab.models.shard import full, full_tensors
from trimtab.ranks import Ranks

WORLDS = (1, 2, 4)
STEPS = 5
EPS = 1e-5
"""With the usual 1e-8, Adam turns rounding of gradients near zero into steps of full size."""
TIMEOUT = 1800.0
"""Seconds: ranks wait for the row of one process, on a machine that may be busy."""


@dataclass
class Trace:
    """What a run of a few steps shows: gradients of the first step, weights at the end, metrics."""

    gradients: Tensor
    weights: Tensor
    metrics: list[dict[str, float]] = field(default_factory=list[dict[str, float]])


METHODS: dict[str, dict[str, Any]] = {
    "sft": {"command": "sft"},
    "reward": {"command": "reward"},
    "dpo": {"command": "dpo"},
    "kto": {"command": "dpo", "objective": {"type": "kto"}},
    "ppo": {"command": "rl", "method": {"type": "ppo", "updates": {"epochs": 1, "minibatches": 2}}},
    "ppo-shared": {"command": "rl", "method": {"type": "ppo"}, "critic": {"type": "shared"}},
    "grpo": {"command": "rl", "method": {"type": "grpo", "group_size": 4}},
    "dapo": {"command": "rl", "method": {"type": "dapo", "group_size": 4}},
}
ROWS = [
    f"{method}.{shard}.{weights}"
    for method in METHODS
    for shard in ("none", "full")
    for weights in ("whole", "lora")
]


def make_data(folder: Path) -> None:
    """A model of three layers and width 64, with data for every stage."""
    tiny("llama", hidden_size=64, num_hidden_layers=3).save_pretrained(folder / "model")
    folders.tokenizer().save_pretrained(folder / "model")
    folders.demonstrations(folder / "demos.jsonl")
    folders.comparisons(folder / "pairs.jsonl")
    folders.prompts(folder / "prompts.jsonl")


def settings(row: str, base: Path) -> tuple[str, dict[str, Any]]:
    """The command of a row and its configuration; a step has about three packs."""
    method, shard, weights = row.split(".")[:3]
    values = dict(METHODS[method])
    command = str(values.pop("command"))
    model: dict[str, Any] = {"path": str(base / "model"), "device": "cpu", "shard": shard}
    if weights == "lora":
        model["lora"] = {"r": 4}
    if "bf16" in row:
        model["precision"] = "mixed"
    values |= {"model": model, "out": str(base / "out"), "optim": {"lr": 1e-3, "warmup_ratio": 0.0}}
    if command == "rl":
        return command, {
            **values,
            "data": {"path": str(base / "prompts.jsonl")},
            "rewards": [folders.WORDY],
            "sampling": {"max_new_tokens": 8},
            "steps": STEPS,
            "batch_size": 6,
            "loop": {"token_budget": 130 if method in ("grpo", "dapo") else 50},
        }
    file = "demos" if command == "sft" else "pairs"
    return command, {
        **values,
        "data": {"path": str(base / f"{file}.jsonl")},
        "batch_size": 10,
        "epochs": STEPS * 10 / 48,
        "loop": {"token_budget": 50 if command == "sft" else 80},
    }


def exported(base: Path, row: str, world: int) -> Path:
    """Where a row's model is exported."""
    return base / "exports" / f"{row}-{world}" / "model"


def trace(row: str, base: Path) -> Trace | None:
    """Train a few steps on the current ranks; the trace on rank 0. Rows that end in ".eps" have a larger eps in Adam."""
    name, values = settings(row, base)
    command = find_command(name)
    stage = command.load_stage()(build(command.load_config(), values))
    trainer = stage.trainer
    if row.endswith(".eps"):
        for group in trainer.optimizer.param_groups:
            group["eps"] = EPS
    gradients: list[Tensor] = []
    take_step = trainer.optimizer.step

    def step(*args: Any) -> Any:
        if not gradients:
            grads = [
                full(p.grad) if p.grad is not None else torch.zeros(p.shape)
                for params in trainer.params.values()
                for _, p in params
            ]
            gradients.append(torch.cat([g.detach().reshape(-1).clone() for g in grads]))
        return take_step(*args)

    trainer.optimizer.step = step
    metrics = [stage.step(index) for index in range(STEPS)]
    stage.export(exported(base, row, ranks.current().world))
    weights = [t for params in trainer.params.values() for t in full_tensors(params).values()]
    if not ranks.current().is_main:
        return None
    flat = torch.cat([t.detach().reshape(-1).clone() for t in weights])
    return Trace(gradients[0], flat, metrics)


SAVED = 2
"""Steps before the checkpoint of ``save``."""


def save(row: str, base: Path) -> None:
    """Train two steps and write a checkpoint."""
    name, values = settings(row, base)
    command = find_command(name)
    stage = command.load_stage()(build(command.load_config(), values))
    for index in range(SAVED):
        stage.step(index)
    tensors = stage.trainer.tensors()
    state = {"trainer": stage.trainer.state(), "stage": stage.state()}
    checkpoint.save(base / "checkpoints", SAVED, tensors, state)


def resume(row: str, base: Path) -> dict[str, Tensor] | None:
    """The weights at the load of the checkpoint of ``save``, and at the end."""
    name, values = settings(row, base)
    command = find_command(name)
    stage = command.load_stage()(build(command.load_config(), values))
    saved = checkpoint.latest_of_main(base / "checkpoints")
    assert saved is not None
    stage.trainer.load(saved)
    stage.load(saved.state["stage"])
    flat: dict[str, Tensor] = {}
    for key, first, last in (("loaded", 0, 0), ("end", SAVED, STEPS)):
        for index in range(first, last):
            stage.step(index)
        weights = [
            t for params in stage.trainer.params.values() for t in full_tensors(params).values()
        ]
        if ranks.current().is_main:
            flat[key] = torch.cat([t.detach().reshape(-1).clone() for t in weights])
    return flat if ranks.current().is_main else None


Job = Callable[[str, Path], Any]


def _child(
    rank: int,
    world: int,
    base: Path,
    rows: Sequence[str],
    worlds: Sequence[int],
    job: Job,
    timeout: float,
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    store = dist.FileStore(str(base / "store"), world)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
    )
    groups = {n: dist.new_group(list(range(n))) for n in worlds if n > 1}
    for row in rows:
        for n in worlds:
            if rank >= n:
                continue
            here = Ranks(rank, n, groups[n], timeout) if n > 1 else Ranks()
            started = time.thread_time()
            try:
                with ranks.using(here):
                    result = job(row, base)
            except Exception:
                traceback.print_exc()
                raise
            if rank == 0:
                torch.save(result, base / f"{row}.{n}.pt")
                print(f"{row} on {n}: {time.thread_time() - started:.1f} s", flush=True)
    dist.barrier()
    dist.destroy_process_group()


def run_rows(
    base: Path,
    rows: Sequence[str],
    worlds: Sequence[int] = WORLDS,
    job: Job = trace,
    timeout: float = TIMEOUT,
) -> list[int | None]:
    """Run ``job`` for every row and world in one group of processes; the results are files in ``base``.

    Returns:
        The exit code of each process; that of a process that had to be killed is negative.
    """
    # Forked: torch and transformers are imported once.
    context = mp.get_context("fork")
    (base / "store").unlink(missing_ok=True)
    world = max(worlds)
    processes = [
        context.Process(target=_child, args=(rank, world, base, rows, worlds, job, timeout))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    # A rank that fails leaves the others waiting: they have the timeout to end by themselves.
    while any(p.is_alive() for p in processes):
        if any(p.exitcode not in (0, None) for p in processes):
            break
        time.sleep(0.05)
    deadline = time.monotonic() + timeout + 5
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [p.exitcode for p in processes]


def result(base: Path, row: str, world: int) -> Any:
    """The result of a row that ``run_rows`` wrote."""
    return torch.load(base / f"{row}.{world}.pt", weights_only=False)


def difference(a: Tensor, b: Tensor) -> float:
    """Relative difference in the Euclidean norm."""
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


def metrics_difference(a: Trace, b: Trace) -> tuple[float, str]:
    """Largest difference of a metric, relative where it is above 1, and its name."""
    worst, where = 0.0, ""
    for x, y in zip(a.metrics, b.metrics, strict=True):
        assert x.keys() == y.keys(), x.keys() ^ y.keys()
        for name in x:
            if x[name] != x[name] and y[name] != y[name]:
                continue
            gap = abs(x[name] - y[name]) / max(1.0, abs(y[name]))
            if not gap <= worst:
                worst, where = gap, name
    return worst, where


def main() -> None:
    """Print the differences of the rows that are named, or of all."""
    rows = sys.argv[1:] or ROWS
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_data(base)
        worlds = tuple(int(n) for n in os.environ.get("WORLDS", "1 2 4").split())
        run_rows(base, rows, worlds)
        for row in rows:
            one = result(base, row, 1)
            for world in worlds[1:]:
                other = result(base, row, world)
                print(
                    f"{row:<24} {world} ranks: gradients {difference(other.gradients, one.gradients):.1e}"
                    f" weights {difference(other.weights, one.weights):.1e}"
                    f" metrics {metrics_difference(other, one)}"
                )


if __name__ == "__main__":
    main()

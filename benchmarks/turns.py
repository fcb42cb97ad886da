"""Two sides in turn, A B A B, and what comes out: medians, ratio with its spread, memory, phases."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(os.environ.get("TRIMTAB_PEERS", ROOT / "runs" / "peers"))
"""Made by ``make bench-env``: a folder of packages for each version of TRL."""


class Absent(SystemExit):
    """The peer is not installed; the message, with which the row ends, says how it would be."""


def flags(about: str) -> argparse.ArgumentParser:
    """What every row takes."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", default="5m", help="5m, 25m, qwen-0.5b, ...")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default=None, help="float32 on CPU, bfloat16 on CUDA")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--turns", type=int, default=5, help="measured passes per side")
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps per pass")
    parser.add_argument("--token-budget", type=int, help="tokens per forward of ours")
    parser.add_argument("--quick", action="store_true", help="under a minute per side")
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"],
        help="cpu counts processor seconds: for a shared machine",
    )  # fmt: skip
    parser.add_argument(
        "--ours-only", action="store_true", help="run trimtab only, without the peer"
    )
    parser.add_argument(
        "--operations",
        action="store_true",
        help="profile one more pass: matmul, attention, rest",
    )
    parser.add_argument("--folder", default=str(ROOT / "runs" / "bench"))
    return parser


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The part of a job's description that all rows share."""
    if args.quick:
        args.turns, args.steps = min(args.turns, 3), min(args.steps, 2)
    dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    return {
        "device": args.device, "dtype": dtype, "threads": args.threads, "steps": args.steps,
        "folder": args.folder, "clock": args.clock, "token_budget": args.token_budget,
    }  # fmt: skip


class Side:
    """A running process of ``benchmarks.side``.

    Args:
        spec: Its job's description.
        packages: Folder put before the packages it would import.
        python: Another interpreter.
        name: Tells its log from those of others with the same job.
        root: Checkout whose trimtab and benchmarks it imports.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        packages: Path | None = None,
        python: str | None = None,
        name: str = "",
        root: Path = ROOT,
    ) -> None:
        env = dict(os.environ)
        threads = str(spec["threads"])
        env |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        env |= {"TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
        if spec.get("clock") == "cpu":
            # Spinning while others have the processor would count as work.
            env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        places = [str(root), str(root / "src"), *([str(packages)] if packages else [])]
        env["PYTHONPATH"] = os.pathsep.join(places)
        folder = Path(spec["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{str(spec['job']).replace(':', '.')}{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python or sys.executable, "-m", "benchmarks.side", json.dumps(spec)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=env, cwd=root,
            )  # fmt: skip
        ready = self._read()
        self.versions: dict[str, str] = ready["versions"]
        self.start_mb: float = ready["start_mb"]
        """Memory before the first pass: libraries, model and data."""

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise SystemExit(f"a side ended before it answered; the end of {self.log}:\n{tail}")
        return json.loads(line)

    def ask(self, what: str) -> dict[str, Any]:
        """The answer to one line."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@dataclass(slots=True)
class Result:
    """A row of the table, and its JSON."""

    row: str
    unit: str
    values: dict[str, Any]
    lines: list[str] = field(default_factory=list[str])

    def show(self, folder: str) -> None:
        """The table, then the JSON as the last line; also kept for ``benchmarks.page``."""
        path = Path(folder) / "results" / f"{self.row}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
        print("\n".join(self.lines))
        print(json.dumps(self.values))


def peer_packages(version: str) -> Path:
    """Where a version of TRL is.

    Raises:
        Absent: it is not installed.
    """
    path = PEERS / f"trl-{version}"
    if not (path / "trl").is_dir():
        raise Absent(f"TRL {version} is not in {path}; make bench-env puts it there")
    return path


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def compare(
    row: str,
    unit: str,
    ours: dict[str, Any],
    peer: dict[str, Any] | None,
    *,
    args: argparse.Namespace,
    peer_name: str = "",
    packages: Path | None = None,
    python: str | None = None,
    root: Path = ROOT,
    about: str = "",
    target: float | None = None,
) -> Result:
    """Both sides ready, one unmeasured pass each, then turns.

    Args:
        row: Name of the row.
        unit: What is counted a second.
        ours, peer: Job descriptions; without a peer only ours is run.
        args: The row's flags.
        peer_name: What the peer is called in the table.
        packages: Folder put before the peer's packages.
        python: Another interpreter for the peer.
        root: Another checkout for the peer.
        about: Data and sizes.
        target: The ratio that is aimed at.
    """
    one = Side(ours)
    two = None if peer is None or args.ours_only else Side(peer, packages, python, "-peer", root)
    sides = [s for s in (one, two) if s is not None]
    gemm = [one.ask("gemm")]
    for side in sides:
        side.ask("go")
    runs: list[list[dict[str, Any]]] = [
        [side.ask("go") for side in sides] for _ in range(args.turns)
    ]
    gemm.append(one.ask("gemm"))
    kinds = [side.ask("operations")["operations"] for side in sides] if args.operations else []
    for side in sides:
        side.close()

    def rate(run: dict[str, Any]) -> float:
        seconds = run["wall"] if args.clock == "wall" else run["cpu"]
        return run["work"] / seconds

    def flops(run: dict[str, Any]) -> float:
        spent = run["wall"] if args.clock == "wall" else run["cpu"] / ours["threads"]
        return runs[0][0].get("flops", 0.0) * run["work"] / runs[0][0]["work"] / spent / 1e9

    best, own = (max(g[name] for g in gemm) for name in ("gemm", "torch"))
    result: dict[str, Any] = {
        "row": row, "unit": unit, "ours": _middle([rate(r[0]) for r in runs]), "peer": None,
        "ratio": None, "ratio_low": None, "ratio_high": None,
        "peak_mb_ours": runs[-1][0]["peak_mb"], "peak_mb_peer": None, "target": target,
        "start_mb_ours": one.start_mb, "start_mb_peer": None,
        "about": about, "model": args.model, "threads": ours["threads"], "dtype": ours["dtype"],
        "clock": args.clock, "turns": args.turns, "device": ours["device"], "gemm_gflops": best, "gemm_gflops_torch": own,
        "gflops_ours": _middle([flops(r[0]) for r in runs]), "phases_ours": runs[-1][0]["phases"],
        "versions": one.versions,
    }  # fmt: skip
    lines = [
        f"{row}: {about}",
        f"  {args.model}, {ours['dtype']}, {ours['threads']} threads on {ours['device']}, "
        f"{args.turns} turns, {args.clock} clock; best GEMM {best:.0f} GFLOP/s, "
        f"torch's own {own:.0f}",
        f"  trimtab  {result['ours']:10.1f} {unit}/s  {result['peak_mb_ours']:7.0f} MB  "
        f"{result['gflops_ours']:6.1f} useful GFLOP/s ({100 * result['gflops_ours'] / best:.0f} %)  "
        f"{_shares(result['phases_ours'])}",
    ]
    if two is not None:
        # Neighbours in time are compared, so a slow minute of the machine is in both.
        ratios = sorted(rate(r[0]) / rate(r[1]) for r in runs)
        result |= {
            "peer": _middle([rate(r[1]) for r in runs]), "ratio": _middle(ratios),
            "ratio_low": ratios[0], "ratio_high": ratios[-1], "peer_name": peer_name,
            "peak_mb_peer": runs[-1][1]["peak_mb"], "start_mb_peer": two.start_mb, "phases_peer": runs[-1][1]["phases"],
            "gflops_peer": _middle([flops(r[1]) for r in runs]),
            "versions": one.versions | two.versions,
        }  # fmt: skip
        lines += [
            f"  {peer_name:<8} {result['peer']:10.1f} {unit}/s  {result['peak_mb_peer']:7.0f} MB  "
            f"{result['gflops_peer']:6.1f} useful GFLOP/s ({100 * result['gflops_peer'] / best:.0f} %)  "
            f"{_shares(result['phases_peer'])}",
            f"  ratio {result['ratio']:.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
            + (f", target {target:g}" if target else "")
            + f"; memory {result['peak_mb_ours'] / result['peak_mb_peer']:.2f}"
            f" ({one.start_mb:.0f} and {two.start_mb:.0f} MB before the first pass)",
        ]
    for who, shares in zip(("ours", "peer"), kinds, strict=False):
        result[f"operations_{who}"] = shares
        lines.append(f"  {who} by operation: {_shares(shares)}")
    lines.append("  " + ", ".join(f"{k} {v}" for k, v in result["versions"].items()))
    return Result(row, unit, result, lines)


def _shares(phases: dict[str, float]) -> str:
    return ", ".join(f"{k} {100 * v:.0f} %" for k, v in phases.items() if v >= 0.01)

"""The rows: what each compares, on what, and the ratio it aims at."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from benchmarks import material
from benchmarks.turns import ROOT, Absent, Result, compare, flags, peer_packages, settings

TRL = "1.16.0"
TRL_PPO = "1.10.0"
"""The last version with a PPO trainer."""


def _model(args: argparse.Namespace) -> tuple[str, int]:
    folder = material.model_folder(
        Path(args.folder) / "material", args.model, getattr(args, "vocabulary", None)
    )
    return str(folder), int(folder.name.rsplit("-", 1)[1])


def _half(args: argparse.Namespace, spec: dict[str, Any]) -> None:
    if args.dtype == "bfloat16" or (args.device == "cuda" and args.dtype is None):
        spec["held"] = {"precision": "mixed"}


PEERS: dict[str, dict[str, Any]] = {
    "random": {},
    "grouped": {"args": {"train_sampling_strategy": "group_by_length"}},
    "bfd": {"args": {"packing": True, "packing_strategy": "bfd", "per_device_train_batch_size": 4}},
    "defaults": {"args": {"bf16": True, "gradient_checkpointing": True}},
}
"""How TRL goes through the data: in random order, by length, packed, or as it comes."""

TARGETS = {
    ("sft", "random"): 3.8, ("sft", "grouped"): 1.05, ("sft", "bfd"): 1.05,
    ("reward", "random"): 4.2, ("reward", "grouped"): 1.7, ("dpo", "random"): 4.5,
    ("dpo", "grouped"): 1.7, ("dpo", "cached"): 5.0, ("grpo", "64"): 1.9, ("grpo", "256"): 3.0,
    ("grpo", "1024"): 5.0, ("ppo", "separate"): 1.15, ("ppo", "shared"): 2.0,
    ("sampler", "equal"): 1.6, ("sampler", "ragged"): 3.5, ("sampler", "vllm"): 1.0,
}  # fmt: skip


def named(row: str, args: argparse.Namespace) -> str:
    """The row's name, with the model's where it is not the default."""
    return row if args.model == "5m" else f"{row}-{args.model}"


def target_of(args: argparse.Namespace, *row: str) -> float | None:
    """The ratio a row aims at; targets are set for the default model."""
    return TARGETS.get((row[0], row[1])) if args.model == "5m" else None


def training_flags(kind: str) -> argparse.ArgumentParser:
    """What the rows of ``train`` take."""
    parser = flags(f"{kind} compared with TRL")
    parser.add_argument("--peer", default="random", choices=list(PEERS), help="TRL's setting")
    parser.add_argument("--batch", type=int, default=16, help="rows per optimiser step")
    parser.add_argument(
        "--checkpoint", action="store_true",
        help="ours too recomputes its activations, in forwards of 1,024 tokens: for memory",
    )  # fmt: skip
    return parser


def train(kind: str, args: argparse.Namespace) -> Result:
    """SFT, reward model or DPO against TRL."""
    spec = settings(args)
    model, vocabulary = _model(args)
    folder = Path(args.folder) / "material"
    make = material.demonstrations if kind == "sft" else material.pairs
    data, about = make(folder, vocabulary, spec["steps"] * args.batch)
    spec |= {"kind": kind, "model": model, "data": str(data), "batch": args.batch}
    cached = bool(getattr(args, "cached", False))
    spec["cached"] = cached
    name = f"{kind}-{args.peer}" + ("-cached" if cached else "")
    ours = spec | {"job": "benchmarks.ours:Train"}
    _half(args, ours)
    if args.checkpoint:
        name += "-checkpointed"
        ours |= {"held": ours.get("held", {}) | {"gradient_checkpointing": True}}
        ours["token_budget"] = 1024
    work = tokens(data) if kind == "sft" else spec["steps"] * args.batch
    peer = spec | {"job": "benchmarks.trl_jobs:Train", "tokens": work, **PEERS[args.peer]}
    target = target_of(args, kind, "cached" if cached else args.peer)
    return compare(
        named(name, args), "token" if kind == "sft" else "pair", ours, peer, args=args, peer_name="TRL",
        packages=None if args.ours_only else peer_packages(TRL), about=about, target=target,
    )  # fmt: skip


def sft_side(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Our SFT job, and its data in words."""
    spec = settings(args)
    model, vocabulary = _model(args)
    count = spec["steps"] * args.batch
    folder = Path(args.folder) / "material"
    system = getattr(args, "system", 0)
    data, about = material.demonstrations(folder, vocabulary, count, system)
    spec |= {
        "kind": "sft", "model": model, "data": str(data), "batch": args.batch,
        "job": "benchmarks.ours:Train",
    }  # fmt: skip
    return spec, about


def precision(args: argparse.Namespace) -> Result:
    """Our own mixed precision against our own fp32: SFT."""
    spec, about = sft_side(args)
    mixed = spec | {"held": {"precision": "mixed"}}
    return compare(
        f"precision-{args.model}", "token", mixed, spec, args=args, peer_name="fp32",
        about=f"mixed precision, {about}", target=1.5,
    )  # fmt: skip


def bare(args: argparse.Namespace) -> Result:
    """The package's SFT against a loop written by hand on its packs: what the package costs."""
    spec, about = sft_side(args)
    return compare(
        named("bare-sft", args), "token", spec,
        spec | {"job": "benchmarks.ours:Bare"}, args=args, peer_name="bare", about=about, target=0.9,
    )  # fmt: skip


def tokens(path: Path) -> int:
    """Tokens of demonstrations, each answer with its end."""
    return sum(len(x.split()) - 2 + 1 for x in path.read_text(encoding="utf-8").splitlines())


def grpo_flags(parser: argparse.ArgumentParser, new: int) -> None:
    """What the rows of GRPO take; ``new`` is the default number of new tokens."""
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per batch")
    parser.add_argument("--group", type=int, default=8, help="completions per prompt")
    parser.add_argument("--new", type=int, default=new, help="new tokens at most")


def sampler_flags(parser: argparse.ArgumentParser) -> None:
    """What the rows of the sampler take beside ``grpo_flags``."""
    parser.add_argument("--requests", type=int, default=128, help="prompts")
    parser.add_argument("--ragged", action="store_true", help="8 to 256 new tokens instead")
    parser.add_argument("--slots", type=int, default=128, help="rows decoded at once")


def system_flag(parser: argparse.ArgumentParser) -> None:
    """For rows that can begin with the same tokens."""
    parser.add_argument("--system", type=int, default=0, help="tokens that all prompts begin with")


def grpo_sides(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What ours and TRL's GRPO are asked to do, and in words."""
    spec = settings(args)
    model, vocabulary = _model(args)
    folder = Path(args.folder) / "material"
    count, system = max(64, 8 * args.prompts), getattr(args, "system", 0)
    data, about = material.prompts(folder, vocabulary, count, args.prompt, system)
    spec |= {
        "model": model, "data": str(data), "prompts": args.prompts, "group": args.group,
        "new": args.new, "slots": args.prompts * args.group,
    }  # fmt: skip
    ours = spec | {
        "job": "benchmarks.ours:Online", "method": {"type": "grpo", "kl": {"beta": 0.0}},
        "rewards": [{"name": "last", "function": "benchmarks.material:reward"}],
    }  # fmt: skip
    _half(args, ours)
    about += f", {args.group} completions of at most {args.new} tokens to {args.prompts} prompts"
    return ours, spec | {"job": "benchmarks.trl_jobs:GRPO"}, about


def grpo(args: argparse.Namespace) -> Result:
    """GRPO against TRL: sampling, scoring and one update a batch."""
    ours, peer, about = grpo_sides(args)
    name, python = f"grpo-{args.prompt}", None
    if args.peer_vllm:
        name += "-vllm"
        peer["args"] = {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": 0.3,
        }
        python = None if args.ours_only else vllm_python()
    return compare(
        named(name, args), "completion", ours, peer, args=args,
        peer_name="TRL with vLLM" if args.peer_vllm else "TRL", python=python,
        packages=None if args.ours_only else peer_packages(TRL), about=about,
        target=None if args.peer_vllm else target_of(args, "grpo", str(args.prompt)),
    )  # fmt: skip


def ppo(args: argparse.Namespace) -> Result:
    """PPO against TRL's last: a reward model, a reference, a critic, four epochs."""
    spec = settings(args)
    model, vocabulary = _model(args)
    folder = Path(args.folder) / "material"
    data, about = material.prompts(folder, vocabulary, spec["steps"] * args.prompts, args.prompt)
    spec |= {
        "model": model, "data": str(data), "prompts": args.prompts, "group": 1, "new": args.new,
        "epochs": 4, "slots": args.prompts,
    }  # fmt: skip
    ours = spec | {
        "job": "benchmarks.ours:Online", "method": {"type": "ppo", "updates": {"epochs": 4}},
        "rewards": [{"name": "model", "model": str(material.reward_folder(model))}],
        "more": {"critic": {"type": args.critic}},
    }  # fmt: skip
    _half(args, ours)
    peer = spec | {"job": "benchmarks.trl_jobs:PPO"}
    return compare(
        named(f"ppo-{args.critic}", args), "episode", ours, peer, args=args, peer_name="TRL",
        packages=None if args.ours_only else peer_packages(TRL_PPO),
        about=f"{about}, {args.prompts} episodes of at most {args.new} tokens per batch",
        target=target_of(args, "ppo", args.critic),
    )  # fmt: skip


def vllm_python() -> str:
    """The interpreter that has vLLM.

    Raises:
        Absent: there is none.
    """
    path = Path(os.environ.get("TRIMTAB_VLLM", ROOT / ".vllm")) / "bin" / "python"
    if path.is_file():
        return str(path)
    raise Absent(f"vLLM has no environment here ({path}); make vllm-env, or set TRIMTAB_VLLM")


def sampler_side(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """What a sampler is asked to do, and in words."""
    spec = settings(args)
    model, vocabulary = _model(args)
    folder = Path(args.folder) / "material"
    data, about = material.prompts(folder, vocabulary, args.requests, args.prompt, args.system)
    low, high = (8, 256) if args.ragged else (args.new, args.new)
    spec |= {
        "model": model, "data": str(data), "low": low, "high": high, "n": args.group,
        "slots": args.slots, "job": "benchmarks.ours:Sampling",
    }  # fmt: skip
    return spec, f"{about}, {args.group} completions each, {low} to {high} tokens"


def sampler(args: argparse.Namespace) -> Result:
    """Our sampler against ``generate`` or vLLM on the same requests."""
    spec, about = sampler_side(args)
    engine = args.peer
    if engine == "vllm":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    kind = "ragged" if args.ragged else "equal"
    name = f"sampler-{kind}-{engine}{material.system_suffix(args.system)}"
    python = vllm_python() if engine == "vllm" and not args.ours_only else None
    return compare(
        named(name, args), "token", spec,
        spec | {"job": "benchmarks.engines:" + ("VLLM" if engine == "vllm" else "Generate")},
        args=args, peer_name=engine, python=python, about=about,
        target=None if args.system else target_of(args, "sampler", "vllm" if engine == "vllm" else kind),
    )  # fmt: skip

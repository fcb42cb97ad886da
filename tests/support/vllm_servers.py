"""Real vLLM servers of a tiny model for tests, in the environment of ``make vllm-env``."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tests.support import folders
from tests.support.models import tiny
from trimtab.rollout.engines.server_process import ServerProcesses, ServeSpec

WHERE = Path(os.environ.get("TRIMTAB_VLLM") or Path(__file__).parents[2] / ".vllm").absolute()
PYTHON = WHERE / "bin" / "python"
MISSING = f"no vLLM in {WHERE}: make vllm-env (or say with TRIMTAB_VLLM where it is)"
VOCAB, LENGTH = 26, 128
ARGUMENTS = ("--enforce-eager", "--max-num-seqs", "32")
"""What makes a small server start quickly."""


def model_folder(path: Path, tied: bool) -> Path:
    """A Llama of 4 layers and width 128; vLLM's CPU build refuses heads of 16."""
    model = tiny(
        "llama", tie_word_embeddings=tied, vocab_size=VOCAB, hidden_size=128, num_hidden_layers=4,
        intermediate_size=256, head_dim=32, max_position_embeddings=256,
    )  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(0.5)
    model.save_pretrained(path)
    folders.tokenizer().save_pretrained(path)
    return path


def start_servers(
    model: Path, folder: Path, count: int, backend: str | None, lora_rank: int | None
) -> ServerProcesses:
    """``count`` servers of ``model``, with 1 GiB of cache each."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    spec = ServeSpec(
        python=str(PYTHON),
        model=str(model),
        tokenizer=str(model),
        max_length=LENGTH,
        dtype="float32",
        backend=backend,
        lora_rank=lora_rank,
        gpus=0,
        args=ARGUMENTS,
    )
    return ServerProcesses(spec, [[] for _ in range(count)], folder)

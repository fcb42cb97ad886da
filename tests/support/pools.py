"""Servers of a tiny model with our own sampler, and the pool over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.support import folders
from tests.support.engine_server import EngineServer
from tests.support.models import tiny
from trimtab.models.load import LM
from trimtab.models.lora import LoraSpec
from trimtab.models.model_spec import ModelSpec
from trimtab.rollout.engines.pool import ServerPool
from trimtab.rollout.engines.vllm import Requirements, VLLMServer
from trimtab.rollout.policy_weights import PolicyWeights
from trimtab.rollout.sync import Transport
from trimtab.sample.sampler import Request, Sampled, SamplingConfig

VOCAB = 26
SAMPLING = SamplingConfig(max_new_tokens=8)
PROMPTS = [np.array([1, 6 + i, 9]) for i in range(4)]
Start = Callable[..., EngineServer]


def folder(path: Path, tied: bool = True) -> Path:
    tiny("llama", tie_word_embeddings=tied, vocab_size=VOCAB).save_pretrained(path)
    folders.tokenizer().save_pretrained(path)
    return path


def policy(path: Path, lora: LoraSpec | None = None) -> LM:
    return LM.load(ModelSpec(path=str(path), lora=lora, device="cpu"))


def move(lm: LM, seed: int, scale: float = 0.05) -> None:
    """Add normal noise to the trained weights: what an optimiser step does, only larger."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lm.model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=draws), alpha=scale)


def make(servers: list[EngineServer], transport: Transport, timeout: float = 60.0) -> ServerPool:
    clients = [VLLMServer(s.url, timeout=timeout) for s in servers]
    return ServerPool(clients, Requirements(VOCAB, 20), transport, (2,), PROMPTS)


def requests(count: int, n: int = 1) -> list[Request]:
    return [Request(PROMPTS[i % 4], (5, i), n) for i in range(count)]


def logp_gap(lm: LM, asked: list[Request], sampled: list[list[Sampled]]) -> float:
    """Largest difference of the engine's logprobs from the trainer's, nats."""
    pairs = [(r.prompt, s.ids) for r, group in zip(asked, sampled, strict=True) for s in group]
    trainer = PolicyWeights(lm, None).logps(pairs, 1.0)
    served = [s.logp for group in sampled for s in group]
    return float(np.abs(np.concatenate(trainer) - np.concatenate(served)).max())

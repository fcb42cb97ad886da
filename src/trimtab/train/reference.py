"""Log-probs of a frozen reference.

On data that is given (``Reference``) they are computed once, kept on disk, never recomputed; on
answers sampled as training goes (``Anchor``), as they come. A file is named by the fingerprint of everything the numbers depend on (weights, tokenizer, token
ids, temperature), so a stale one is not found, and several runs may share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from trimtab.data.pack import Pack, packs, scatter
from trimtab.models.frozen import load_reference
from trimtab.models.load import LM, ModelSpec, base_of
from trimtab.runs import write_atomic
from trimtab.runs.console import console
from trimtab.types import Group

NAME = "ref_logp"
TEMPERATURE = 1.0


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of every weight but those of adapters, names and types included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base_of(model).state_dict().items()):
        if "lora_" in name:
            continue
        digest.update(f"{name.replace('.base_layer', '')} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


def fingerprint(weights: str, tokenizer: Any, groups: Sequence[Group]) -> str:
    """What the log-probs of ``groups`` depend on, as 32 hex digits."""
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(f"{weights} {words} {TEMPERATURE}".encode())
    for g in groups:
        for part in (g.prompt, *(x for c in g.completions for x in (c.ids, c.mask))):
            digest.update(f"{len(part)} ".encode())
            digest.update(part.tobytes())
    return digest.hexdigest()[:32]


class Reference:
    """Puts "ref_logp" on completions, from the cache where it can.

    Args:
        lm: The reference; with adapters, they are turned off. It may be freed afterwards.
        tokenizer: What made the token ids.
        folder: Where the cache is.
        budget: Tokens of one forward.
    """

    def __init__(self, lm: LM, tokenizer: Any, folder: Path, budget: int) -> None:
        self.lm, self.tokenizer, self.folder, self.budget = lm, tokenizer, folder, budget
        self.weights = weights_hash(lm.model)
        self.computed = 0

    def annotate(self, groups: Sequence[Group]) -> None:
        """Log-probs of the reference on every token of every completion (0 where not trained)."""
        if not groups:
            return
        found = fingerprint(self.weights, self.tokenizer, groups)
        path = self.folder / f"{found}.safetensors"
        done = [c for g in groups for c in g.completions]
        total = sum(len(c) for c in done)
        flat = _read(path, total)
        if flat is None:
            self._compute(groups)
            self.computed += len(done)
            flat = np.concatenate([c.tokens[NAME] for c in done])
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, save({NAME: torch.from_numpy(flat)}, {"fingerprint": found}))
            return
        at = 0
        for c in done:
            c.tokens[NAME] = flat[at : at + len(c)]
            at += len(c)

    @torch.no_grad()
    def _compute(self, groups: Sequence[Group]) -> None:
        for pack in packs(groups, self.budget, share=self.lm.exact):
            on = pack.to(self.lm.device)
            scatter(pack, {NAME: frozen_logps(self.lm, on, TEMPERATURE).cpu().numpy()})


def frozen_logps(lm: LM, pack: Pack, temperature: float) -> Tensor:
    """Log-probs [C] of the model, of its base where it has adapters."""
    with lm.adapters_off() if isinstance(lm.model, PeftModel) else contextlib.nullcontext():
        return lm.logps(lm.states(pack), pack, temperature, entropy=False)[0]


class Anchor:
    """A fixed reference beside a policy that moves.

    Args:
        policy: As it is at its start, before any checkpoint is loaded into it.
        spec: Another model as reference; without it, the policy's start: a frozen copy, or the
            policy with its adapters off.
        tokenizer: The policy's.

    Raises:
        ModelError: the other model's vocabulary is not the policy's.
    """

    def __init__(self, policy: LM, spec: ModelSpec | None, tokenizer: Any) -> None:
        self.lm = policy
        if spec is not None:
            self.lm = load_reference(spec, tokenizer)
        elif not isinstance(policy.model, PeftModel):
            self.lm = policy.frozen_copy()

    @torch.no_grad()
    def logps(self, pack: Pack, temperature: float = TEMPERATURE) -> Tensor:
        """Log-probs [C] on a pack."""
        return frozen_logps(self.lm, pack, temperature)

    def annotate(self, groups: Sequence[Group], budget: int) -> None:
        """Put "ref_logp" on the tokens of every completion."""
        for pack in packs(groups, budget, share=self.lm.exact):
            scatter(pack, {NAME: self.logps(pack.to(self.lm.device)).cpu().numpy()})


def _read(path: Path, total: int) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        flat = load(path.read_bytes())[NAME]
    except (SafetensorError, KeyError):
        console.print(f"{path}: damaged; the reference's log-probs are computed again")
        return None
    return flat.numpy() if flat.shape == (total,) else None

"""Log-probs of a frozen reference model.

On a data set (``CachedReference``) they are computed once and cached on disk; on sampled completions
(``Reference``) they are computed at each step. A cache file is named by a fingerprint of everything
the numbers depend on (weights, tokenizer, token ids, temperature), so a stale file is never read, and
several runs may share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trimtab.data.pack import Pack, packs, scatter
from trimtab.models.adapters import weights_without_adapters
from trimtab.models.load import LM, ModelSpec, base_of
from trimtab.models.load_frozen import load_reference
from trimtab.runs import write_atomic
from trimtab.types import Group

log = logging.getLogger(__name__)
NAME = "ref_logp"
TEMPERATURE = 1.0


def weights_hash(lm: LM) -> str:
    """SHA-256 of every weight that the reference's log-probs depend on, with names and types."""
    digest = hashlib.sha256()
    new = lm.starts_without_adapters
    weights: dict[str, Any] = (
        weights_without_adapters(lm.model) if new else base_of(lm.model).state_dict()
    )
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


def fingerprint(weights: str, tokenizer: Any, groups: Sequence[Group]) -> str:
    """A hash of everything the log-probs of ``groups`` depend on, as 32 hex digits."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(f"{weights} {vocabulary} {TEMPERATURE}".encode())
    for g in groups:
        for part in (g.prompt, *(x for c in g.completions for x in (c.ids, c.mask))):
            digest.update(f"{len(part)} ".encode())
            digest.update(part.tobytes())
    return digest.hexdigest()[:32]


class CachedReference:
    """Puts "ref_logp" on the completions of a data set, from the cache where it can.

    Args:
        lm: The reference; new adapters are turned off. It may be freed afterwards.
        tokenizer: The tokenizer of the token ids.
        folder: The cache.
        budget: Tokens per forward.

    Attributes:
        computed: Completions that were not in the cache.
    """

    def __init__(self, lm: LM, tokenizer: Any, folder: Path, budget: int) -> None:
        self.lm, self.tokenizer, self.folder, self.budget = lm, tokenizer, folder, budget
        self.weights = weights_hash(lm)
        self.computed = 0

    def annotate(self, groups: Sequence[Group]) -> None:
        """Log-probs of the reference on every token of every completion (0 where not trained)."""
        if not groups:
            return
        name = fingerprint(self.weights, self.tokenizer, groups)
        path = self.folder / f"{name}.safetensors"
        completions = [c for g in groups for c in g.completions]
        flat = _read(path, sum(len(c) for c in completions))
        if flat is None:
            self.compute(groups)
            self.computed += len(completions)
            flat = np.concatenate([c.tokens[NAME] for c in completions])
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, save({NAME: torch.from_numpy(flat)}, {"fingerprint": name}))
            return
        start = 0
        for c in completions:
            c.tokens[NAME] = flat[start : start + len(c)]
            start += len(c)

    @torch.no_grad()
    def compute(self, groups: Sequence[Group]) -> None:
        """The same without the cache."""
        for pack in packs(groups, self.budget, share=self.lm.exact):
            on = pack.to(self.lm.device)
            scatter(pack, {NAME: frozen_logps(self.lm, on, TEMPERATURE).cpu().numpy()})


def frozen_logps(lm: LM, pack: Pack, temperature: float) -> Tensor:
    """Log-probs [C] of the model, without its new adapters where it has any."""
    with lm.adapters_off() if lm.starts_without_adapters else contextlib.nullcontext():
        return lm.logps(lm.states(pack), pack, temperature, entropy=False)[0]


class Reference:
    """A frozen reference of a policy that is being trained.

    Args:
        policy: The policy before its first step, and before a checkpoint is restored.
        spec: Another model as reference. Without it, the policy before its first step: a frozen
            copy, or the policy with its new adapters off.
        tokenizer: The policy's tokenizer.

    Raises:
        ModelError: the vocabulary of the other model is not the policy's.
    """

    def __init__(self, policy: LM, spec: ModelSpec | None, tokenizer: Any) -> None:
        self.lm = policy
        if spec is not None:
            self.lm = load_reference(spec, tokenizer)
        elif not policy.starts_without_adapters:
            self.lm = policy.frozen_copy()

    @torch.no_grad()
    def logps(self, pack: Pack, temperature: float = TEMPERATURE) -> Tensor:
        """Log-probs [C] on a pack."""
        return frozen_logps(self.lm, pack, temperature)

    def annotate(
        self, groups: Sequence[Group], budget: int, temperature: float = TEMPERATURE
    ) -> None:
        """Put "ref_logp" on the tokens of every completion."""
        for pack in packs(groups, budget, share=self.lm.exact):
            logps = self.logps(pack.to(self.lm.device), temperature)
            scatter(pack, {NAME: logps.cpu().numpy()})


def _read(path: Path, total: int) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        flat = load(path.read_bytes())[NAME]
    except (SafetensorError, KeyError):
        log.warning("%s: damaged; computing the reference's log-probs again", path)
        return None
    return flat.numpy() if flat.shape == (total,) else None

"""Log-probs of a frozen reference model.

On a data set (``CachedReference``) they are computed once and cached on disk; on sampled completions
(``Reference``) they are computed at each step. A cache file is named by a fingerprint of everything
the numbers depend on (weights, tokenizer, token ids, temperature), so a stale file is never read, and
several runs may share a folder.
"""

from __future__ import annotations

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

from trimtab import ranks
from trimtab.data.pack import Output, Pack
from trimtab.models.adapters import weights_without_adapters
from trimtab.models.load import LM, ModelSpec, base_of
from trimtab.models.load_frozen import load_reference
from trimtab.models.packed import PackedLM
from trimtab.models.shard import shard
from trimtab.runs import write_atomic
from trimtab.train.deal import annotate
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
        here = ranks.current()
        flat = _read(path, sum(len(c) for c in completions)) if here.is_main else None
        if not here.share(flat is not None):
            self.compute(groups)
            self.computed += len(completions)
            if here.is_main:
                flat = np.concatenate([c.tokens[NAME] for c in completions])
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomic(path, save({NAME: torch.from_numpy(flat)}, {"fingerprint": name}))
            return
        rows = here.gather_arrays([] if flat is None else [{NAME: flat}])
        flat = rows[0][0][NAME]
        start = 0
        for c in completions:
            c.tokens[NAME] = flat[start : start + len(c)]
            start += len(c)

    @torch.no_grad()
    def compute(self, groups: Sequence[Group]) -> None:
        """The same without the cache."""
        _annotate(PackedLM(self.lm), groups, self.budget, TEMPERATURE)


class Reference:
    """A frozen reference of a policy that is being trained.

    Args:
        policy: The policy before its first step, before a checkpoint is restored, and before it is
            sharded, unless ``spec`` is given or it has new adapters.
        spec: Another model as reference. Without it, the policy before its first step: a frozen
            copy, or the policy with its new adapters off.
        tokenizer: The policy's tokenizer.
        sharded: Whether a reference of its own is sharded over the ranks.

    Raises:
        ModelError: the vocabulary of the other model is not the policy's.
    """

    def __init__(
        self, policy: PackedLM, spec: ModelSpec | None, tokenizer: Any, *, sharded: bool = False
    ) -> None:
        self.root = policy
        if spec is not None:
            self.root = PackedLM(load_reference(spec, tokenizer))
        elif not policy.lm.starts_without_adapters:
            self.root = PackedLM(policy.lm.frozen_copy())
        if sharded and self.root is not policy:
            shard(self.root)

    @torch.no_grad()
    def logps(self, pack: Pack, temperature: float = TEMPERATURE) -> Tensor:
        """Log-probs [C] on a pack."""
        return self.root.reference_logps(pack, temperature)

    @torch.no_grad()
    def outputs(self, pack: Pack, temperature: float, *, norm: bool) -> Output:
        """Log-probs, and log-sum-exps if ``norm``: [C] each."""
        return self.root.reference_outputs(pack, temperature, norm=norm)

    def annotate(
        self, groups: Sequence[Group], budget: int, temperature: float = TEMPERATURE
    ) -> None:
        """Put "ref_logp" on the tokens of every completion."""
        _annotate(self.root, groups, budget, temperature)


@torch.no_grad()
def _annotate(root: PackedLM, groups: Sequence[Group], budget: int, temperature: float) -> None:
    def compute(pack: Pack) -> dict[str, Tensor]:
        return {NAME: root.reference_logps(pack, temperature)}

    annotate(groups, budget, root.lm.exact, root.lm.device, compute)


def _read(path: Path, total: int) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        flat = load(path.read_bytes())[NAME]
    except (SafetensorError, KeyError):
        log.warning("%s: damaged; computing the reference's log-probs again", path)
        return None
    return flat.numpy() if flat.shape == (total,) else None

"""The policy's weights as a stream of named tensors, for engines that have their own copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.data.pack import packs, scatter
from trimtab.models.adapters import save_adapter
from trimtab.models.load import LM, base_of
from trimtab.models.lora import has_adapter
from trimtab.types import Completion, Floats, Group, Ints

_LOGP = "probe_logp"


class PolicyWeights:
    """The current weights of a policy; see ``rollout.engine.Weights``.

    Args:
        lm: The policy.
        tokenizer: Is saved with a base model that is on no disk.
        token_budget: Tokens per forward of ``logps``.
    """

    def __init__(self, lm: LM, tokenizer: Any, token_budget: int = 8192) -> None:
        self.lm, self.tokenizer, self.token_budget = lm, tokenizer, token_budget

    @property
    def trains_adapter(self) -> bool:
        """Whether only an adapter is trained."""
        return has_adapter(self.lm.model)

    @property
    def exact(self) -> bool:
        """Whether the trainer computes in float32."""
        return not self.lm.mixed and base_of(self.lm.model).dtype == torch.float32

    @torch.no_grad()
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under its name in a saved model, one at a time, adapters merged.

        A tied output head comes by name too: an engine that is given only the embeddings keeps its old
        head, because it ties the two when it loads a model and not when it is updated.
        """
        from transformers.core_model_loading import revert_weight_conversion

        inner = base_of(self.lm.model)
        head = cast("nn.Module | None", inner.get_output_embeddings())
        names = {module: name for name, module in inner.named_modules(remove_duplicate=False)}
        for name, tensor in _merged(inner):
            if head is not None and name == f"{_plain(names[head])}.weight":
                continue  # last, below
            yield from revert_weight_conversion(inner, {name: tensor}).items()
        if head is not None:
            for name, tensor in _merged_module(head, ""):
                if name == "weight":
                    yield f"{_plain(names[head])}.weight", tensor

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in peft's format."""
        assert has_adapter(self.lm.model), "the configuration is checked before"
        save_adapter(self.lm.model, folder, self.tokenizer)

    @torch.no_grad()
    def logps(self, sequences: Sequence[tuple[Ints, Ints]], temperature: float) -> list[Floats]:
        """The trainer's logprobs [T] of each (prompt ids [P], completion ids [T])."""
        completions = [Completion(ids, np.ones(len(ids), np.bool_)) for _, ids in sequences]
        groups = [
            Group(str(i), prompt, [c])
            for i, ((prompt, _), c) in enumerate(zip(sequences, completions, strict=True))
        ]
        training = self.lm.model.training
        self.lm.model.eval()
        for pack in packs(groups, self.token_budget, share=self.lm.exact):
            on = pack.to(self.lm.device)
            logp, _ = self.lm.logps(self.lm.states(on), on, temperature, entropy=False)
            scatter(pack, {_LOGP: logp.float().cpu().numpy()})
        self.lm.model.train(training)
        return [c.tokens[_LOGP] for c in completions]


def _plain(name: str) -> str:
    return name.replace(".base_layer", "").replace(".original_module", "")


def _merged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors of ``model`` by their names without adapters, W + s·BA where there is one."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    seen: set[int] = set()
    stack: list[tuple[str, nn.Module]] = [("", model)]
    while stack:
        prefix, module = stack.pop(0)
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
            yield from _merged_module(module, prefix)
            continue
        for name, tensor in module.named_parameters(recurse=False):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{prefix}{name}", tensor.detach()
        for name, tensor in module.named_buffers(recurse=False):
            # Not by state_dict(): it would undo the gathering of a sharded model.
            if name not in module._non_persistent_buffers_set:  # pyright: ignore[reportPrivateUsage]
                yield f"{prefix}{name}", tensor
        stack[:0] = [(f"{prefix}{name}.", child) for name, child in module.named_children()]


def _merged_module(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of one module that may have an adapter around it."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        name = next(iter(module.active_adapters))
        yield from _merged_module(module.modules_to_save[name], prefix)
        return
    if not isinstance(module, BaseTunerLayer):
        for name, tensor in module.named_parameters():
            yield f"{prefix}{name}", tensor.detach()
        return
    # A copy of this layer alone is merged, as an export merges every layer.
    layer: Any = copy.deepcopy(module)
    layer.merge()
    for name, tensor in layer.get_base_layer().named_parameters():
        yield f"{prefix}{name}", tensor.detach()

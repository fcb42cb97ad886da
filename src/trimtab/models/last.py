"""The last layer, where it is read.

Of the last layer's states only some are read: those before trained tokens, or a completion's last
one. Every token's keys and values are needed there; what comes after attention is needed at the rows
that are read, and is computed for these alone, forward and backward.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor, nn

FAMILIES = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})  # fmt: skip
"""Layers of transformers that are x + attention(norm(x)), then x + unit(norm(x))."""


class _Reading:
    """Marks a layer that takes ``read``."""


@lru_cache
def _reading(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, hidden_states: Tensor, *, read: Tensor, **kwargs: Any) -> Tensor:
        def at_rows(_: nn.Module, given: tuple[Tensor]) -> Tensor:
            return given[0].index_select(-2, read)

        # What attention gives is cut before its output projection, adapters and all.
        hook = self.self_attn.o_proj.register_forward_pre_hook(at_rows)
        try:
            added, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        finally:
            hook.remove()
        x = hidden_states.index_select(-2, read) + added
        return x + self.mlp(self.post_attention_layernorm(x))

    def either(
        self: Any, hidden_states: Tensor, *, read: Tensor | None = None, **kwargs: Any
    ) -> Any:
        if read is None:
            return kind.forward(self, hidden_states, **kwargs)
        return forward(self, hidden_states, read=read, **kwargs)

    # Its name stays, since wrappers of layers (sharding, checkpointing) go by it.
    return type(kind.__name__, (_Reading, kind), {"forward": either})


def reads_rows(backbone: nn.Module) -> bool:
    """Whether the backbone's forward takes ``read``, rows [K] of the last layer that are wanted.

    The last layer is given a class that can, where its family is known; one that is copied with the
    model, and is as before without ``read``.
    """
    layers: Any = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != backbone.config.num_hidden_layers:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    last = layers[-1]
    if isinstance(last, _Reading):
        return True
    kind = type(last)
    if kind.__name__ not in FAMILIES or not kind.__module__.startswith("transformers."):
        return False
    last.__class__ = _reading(kind)
    return True

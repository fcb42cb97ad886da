"""Tiny random models of many architectures, made in place."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

KINDS: dict[str, dict[str, object]] = {
    "llama": _SMALL,
    "qwen2": _SMALL,
    "qwen3": _SMALL,
    "mistral": {**_SMALL, "sliding_window": 6},
    "gemma": _SMALL,
    "gemma2": {
        **_SMALL,
        "sliding_window": 6,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {**_SMALL, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gpt2": {
        "vocab_size": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "granite": {**_SMALL, "logits_scaling": 2.0},
    "cohere": {**_SMALL, "logit_scale": 0.5},
}


def tiny(kind: str, seed: int = 0, **over: object) -> PreTrainedModel:
    """A random model of ``kind``, with weights large enough for log-probs to differ clearly."""
    config = AutoConfig.for_model(kind, **{**KINDS[kind], **over})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(6.0)
    return model.eval()

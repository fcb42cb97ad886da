"""Drawing tokens: filters, one random stream per completion, inverse-CDF sampling."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from trimtab.config import Config


class SamplingConfig(Config):
    """How completions are drawn. Filters apply in the order top-k, top-p, min-p."""

    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """0 takes the most probable token."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    """0 is off."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    stop_ids: tuple[int, ...] = ()
    """Ids which end a completion, besides those of the tokenizer and generation config."""
    stop: tuple[str, ...] = ()
    """Strings which end a completion with the token that completes them; need a tokenizer."""
    slots: int = Field(default=128, ge=1)
    """Rows decoded at once."""


def uniforms(key: tuple[int, ...], count: int) -> npt.NDArray[np.float64]:
    """The stream of ``key``: [count] numbers in [0, 1); a longer stream begins with a shorter."""
    # Signed keys are folded, since a seed sequence takes non-negative integers only.
    entropy = [k % 2**64 for k in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).random(count)


def filtered(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Log-probabilities [R, V] float32 actually sampled from (temperature > 0), -inf if cut."""
    z = logits.float() / config.temperature
    if config.top_k or config.top_p < 1.0:
        # Stable, so that equal logits are cut in order of id.
        top, order = z.sort(dim=-1, descending=True, stable=True)
        if 0 < config.top_k < z.shape[-1]:
            top[:, config.top_k :] = float("-inf")
        if config.top_p < 1.0:
            p = top.softmax(-1)
            top = top.masked_fill(p.cumsum(-1) - p >= config.top_p, float("-inf"))
            top[:, 0] = z.amax(-1)
        # Back in order of id: near-ties may swap in sorted order and would move the draw.
        z = torch.empty_like(z).scatter_(1, order, top)
    if config.min_p > 0.0:
        floor = z.amax(-1, keepdim=True) + float(np.log(config.min_p))
        z = z.masked_fill(z < floor, float("-inf"))
    return z.log_softmax(-1)


def draw(
    logits: torch.Tensor, u: torch.Tensor, config: SamplingConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [R] int64 and their log-probs [R] float32 from logits [R, V] and uniforms [R] float64.

    At temperature 0 the ids are the argmax and the log-probs those of the raw softmax.
    """
    if config.temperature == 0.0:
        logp = logits.float().log_softmax(-1)
        ids = logits.argmax(-1)
    else:
        logp = filtered(logits, config)
        cdf = logp.exp().cumsum(-1, dtype=torch.float64)
        # Shrunk a hair, so that rounding never reaches past the last possible id.
        target = u[:, None] * cdf[:, -1:] * (1.0 - 1e-12)
        ids = torch.searchsorted(cdf, target, right=True)[:, 0]
    return ids, logp.gather(1, ids[:, None])[:, 0]

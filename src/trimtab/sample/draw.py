"""Token sampling: filters, one random stream per completion, inverse-CDF draws."""

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from trimtab.config import Config


class SamplingConfig(Config):
    """Sampling settings. Filters apply in the order top-k, top-p, min-p."""

    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """0 is greedy decoding."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    """Tokens kept by probability; 0 is off."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    stop_ids: tuple[int, ...] = ()
    """Additional ids that end a completion, besides those of the tokenizer and generation config."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion, with the token that completes them; need a tokenizer."""
    slots: int = Field(default=128, ge=1)
    """Completions decoded at the same time."""

    @property
    def filtered(self) -> bool:
        """Whether top-k, top-p or min-p leave out tokens, so that the others are more probable than
        under the model."""
        return self.temperature > 0 and (self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0)


def uniforms(key: tuple[int, ...], count: int) -> npt.NDArray[np.float64]:
    """The first ``count`` numbers in [0, 1) of the random stream of ``key``."""
    # A seed sequence takes non-negative integers only, so wrap signed keys.
    entropy = [k % 2**64 for k in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).random(count)


def filtered_logprobs(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Logprobs [R, V] float32 of the distribution sampled from (temperature > 0); -inf if filtered."""
    z = logits.float() / config.temperature
    if config.top_k or config.top_p < 1.0:
        # Stable, so that equal logits are filtered in order of id.
        top, order = z.sort(dim=-1, descending=True, stable=True)
        if 0 < config.top_k < z.shape[-1]:
            top[:, config.top_k :] = float("-inf")
        if config.top_p < 1.0:
            p = top.softmax(-1)
            top = top.masked_fill(p.cumsum(-1) - p >= config.top_p, float("-inf"))
            top[:, 0] = z.amax(-1)
        # Back in order of id: near-ties may swap in sorted order, which would change the draw.
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
        logp = filtered_logprobs(logits, config)
        cdf = logp.exp().cumsum(-1, dtype=torch.float64)
        # Slightly below 1, so that rounding never selects an id past the last possible one.
        target = u[:, None] * cdf[:, -1:] * (1.0 - 1e-12)
        ids = torch.searchsorted(cdf, target, right=True)[:, 0]
    return ids, logp.gather(1, ids[:, None])[:, 0]

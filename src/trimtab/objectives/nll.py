"""Supervised fine-tuning: negative log-likelihood of the trained tokens."""

from typing import Literal

import torch

from trimtab.config import Config
from trimtab.data.pack import Output, Pack
from trimtab.objectives.terms import (
    Aggregation,
    Counts,
    Loss,
    Metrics,
    aggregate,
    default_counts,
    detached,
)


class SFT(Config):
    """L = -sum(logp) / N, N the trained tokens of the whole optimiser step.

    ``aggregation`` "seq-mean-token-mean" is what some libraries call the same: every completion
    weighs the same, so tokens of short ones weigh more.
    """

    type: Literal["sft"] = "sft"
    aggregation: Aggregation = "token-mean"

    def counts(self, pack: Pack) -> Counts:
        return default_counts(pack)

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Negative log-likelihood; needs ``logp_C``."""
        assert out.logp_C is not None
        metrics: Metrics = {"nll": (detached(-out.logp_C), "tokens")}
        if out.entropy_C is not None:
            metrics["entropy"] = (detached(out.entropy_C), "tokens")
        right = out.logp_C.detach() > torch.log(torch.tensor(0.5))
        metrics["sure"] = (right.float().sum(), "tokens")
        return Loss({"loss": aggregate(-out.logp_C, pack, self.aggregation)}, metrics)

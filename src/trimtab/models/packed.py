"""A model as one module from a pack to its outputs: what training calls, and what sharding wraps.

The heads are inside, so that a sharded model gathers their weights with its own.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from trimtab.data.pack import Output, Pack
from trimtab.models.heads import Scorer
from trimtab.models.load import LM
from trimtab.models.step_scorer import StepScorer

# Forwards return plain dictionaries: sharding finds the tensors in them, and not in our classes. It
# hooks them, and a hook on a view could be lost: hence the clones.
Tensors = dict[str, Tensor]


class PackedLM(nn.Module):
    """A language model, and the value head of a critic that shares its trunk.

    Args:
        lm: The language model.
        value_head: A linear layer from hidden states to one value.
    """

    def __init__(self, lm: LM, value_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.lm = lm
        self.model = lm.model
        self.value_head = value_head

    def forward(self, pack: Pack, temperature: float, entropy: bool, norm: bool = False) -> Tensors:
        """Log-probs, entropies and log-sum-exps if asked for, and values if there is a head: [C] each."""
        states = self.lm.states(pack)
        if norm:
            logp, entropy_C, norm_C = self.lm.logps_and_norms(
                states, pack, temperature, entropy=entropy
            )
            tensors = {"logp_C": logp, "norm_C": norm_C}
        else:
            logp, entropy_C = self.lm.logps(states, pack, temperature, entropy=entropy)
            tensors = {"logp_C": logp}
        if entropy:
            tensors["entropy_C"] = entropy_C
        if self.value_head is not None:
            tensors["value_C"] = self.value_head(states)[:, 0].float().clone()
        return tensors

    def outputs(
        self, pack: Pack, temperature: float = 1.0, *, entropy: bool = True, norm: bool = False
    ) -> Output:
        """The same as an ``Output``."""
        return Output(**self(pack, temperature, entropy, norm))

    def reference_outputs(self, pack: Pack, temperature: float, *, norm: bool = False) -> Output:
        """Log-probs, and log-sum-exps if asked for, of the model without its new adapters, if it has any."""
        if not self.lm.starts_without_adapters:
            return self.outputs(pack, temperature, entropy=False, norm=norm)
        with self.lm.adapters_off():
            return self.outputs(pack, temperature, entropy=False, norm=norm)

    def reference_logps(self, pack: Pack, temperature: float) -> Tensor:
        """Log-probs [C] of the model without its new adapters, if it has any."""
        logp_C = self.reference_outputs(pack, temperature).logp_C
        assert logp_C is not None
        return logp_C


class PackedScorer(nn.Module):
    """A model with a scalar head: a reward model or a critic."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer
        self.model = scorer.model

    def forward(self, pack: Pack, values: bool) -> Tensors:
        """Values [C] of the states before trained tokens, or scores [B] at last tokens."""
        if values:
            return {"value_C": self.scorer.values(pack).clone()}
        return {"score_B": self.scorer.scores(pack).clone()}

    def outputs(self, pack: Pack) -> Output:
        """Raw scores [B] at each completion's last token."""
        return Output(**self(pack, False))

    def values(self, pack: Pack) -> Output:
        """Values [C] of the state before each trained token."""
        return Output(**self(pack, True))


class PackedStepScorer(nn.Module):
    """A classifier of reasoning steps."""

    def __init__(self, scorer: StepScorer) -> None:
        super().__init__()
        self.scorer = scorer
        self.model = scorer.model

    def forward(self, pack: Pack) -> Tensors:
        """Log-odds [C] that the step ending at each trained token is correct."""
        return {"step_C": self.scorer.log_odds(pack)}

    def outputs(self, pack: Pack) -> Output:
        """The same as an ``Output``."""
        return Output(**self(pack))


def packed(network: object) -> PackedLM | PackedScorer | PackedStepScorer:
    """The root module of a model."""
    if isinstance(network, Scorer):
        return PackedScorer(network)
    if isinstance(network, StepScorer):
        return PackedStepScorer(network)
    return PackedLM(cast(LM, network))

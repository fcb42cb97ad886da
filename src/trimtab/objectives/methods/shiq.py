"""Token-level Q-learning on the logits: naive, and shifted as in ShiQ (2505.11081)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor

from trimtab.data.pack import Output, Pack
from trimtab.objectives.kl import KL, FixedKL, log_ratio
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.ratio import level_ratios
from trimtab.objectives.tensors import suffix_sum
from trimtab.objectives.terms import Aggregation, Loss, Metrics, detached

Backup = Literal["one-step", "multi-step"]
"""The target of a token's Q-value: its reward and the next state's value, or all later rewards."""


class TokenQ(PolicyMethod):
    """L = sum_t delta_t^2 with delta_t = r_t + beta sg(n_{t+1}) - beta z_t[y_t], mean over completions.

    Naive: beta times the logits z (over the temperature) are read as Q-values. n_t = logsumexp(z_t), so beta
    n_t is the soft value of the state before token t, and 0 after the last. There is no reference: the
    policy that solves it has the highest reward plus beta times its entropy.
    """

    type: Literal["token_q"] = "token_q"
    # delta_t = r_t + beta sg(n_{t+1}) - beta z_t[y_t]
    backup: Backup = "one-step"
    shift: bool = False
    """Subtract the reference's logits and log-sum-exps: delta is then the reward at the start, and the solution
    has the highest reward less beta times the KL to the reference."""
    # the soft values' coefficient; no KL without ``shift``
    kl: KL = FixedKL(place="none", beta=0.05)
    aggregation: Aggregation = "seq-mean-token-sum"

    @model_validator(mode="after")
    def _check_q(self) -> TokenQ:
        for wrong, why in (
            (self.kl.beta == 0.0, "kl.beta: 0 leaves no logit in the loss; give one above 0"),
            (self.kl.in_reward, "the loss holds the KL itself; leave kl.place at loss"),
            (
                self.advantage.estimator != "returns",
                "Q-learning takes advantage.estimator: returns",
            ),
            (self.advantage.gamma != 1.0, "Q-learning needs advantage.gamma: 1"),
        ):
            if wrong:
                raise ValueError(f"{self.name}: {why}")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the logits are shifted by the reference's."""
        return self.shift

    @property
    def needs_norms(self) -> bool:
        """Always: a logit is a log-prob plus the log-sum-exp."""
        return True

    def _policy_loss(self, logp_C: Tensor, out: Output, pack: Pack) -> Loss:
        assert out.entropy_C is not None and out.norm_C is not None
        metrics: Metrics = {}
        log_C, norm_C = logp_C, out.norm_C
        if self.shift:
            log_C = log_ratio(logp_C, pack.tokens["ref_logp"])
            norm_C = norm_C - pack.tokens["ref_norm"]
            metrics["policy/kl"] = (detached(log_C), "completions")
        # With the returns' estimator the advantage is the reward to go.
        delta_C = self.residual(pack.tokens["advantage"], log_C, norm_C, pack.owner_C)
        terms = {"policy/loss": self._aggregate(delta_C**2, pack)}
        if self.entropy_coef:
            terms["policy/entropy_bonus"] = self._aggregate(out.entropy_C, pack, -self.entropy_coef)
        old_C = pack.tokens.get("old_logp", logp_C.detach())
        ratio_C = level_ratios(logp_C, old_C, pack, self.ratio)
        metrics |= self._metrics(logp_C, old_C, ratio_C, out.entropy_C, pack)
        metrics["policy/norm"] = (detached(norm_C), "tokens")
        return Loss(terms, metrics)

    def residual(self, return_C: Tensor, log_C: Tensor, norm_C: Tensor, owner_C: Tensor) -> Tensor:
        """The Bellman residual delta [C] of each trained token.

        Args:
            return_C: Reward to go.
            log_C: Log-probs; with ``shift`` less the reference's.
            norm_C: Log-sum-exps; with ``shift`` less the reference's.
            owner_C: The completion of each token, ascending.
        """
        beta = self.kl.beta
        if self.backup == "multi-step":
            return return_C - beta * (suffix_sum(log_C, owner_C) + norm_C)
        reward_C = return_C - _following(return_C, owner_C)
        target_C = reward_C + beta * _following(norm_C.detach(), owner_C)
        return target_C - beta * (log_C + norm_C)


def _following(x_C: Tensor, owner_C: Tensor) -> Tensor:
    """The value of the next token of the same completion; 0 after its last."""
    same = torch.zeros_like(owner_C, dtype=torch.bool)
    same[:-1] = owner_C[1:] == owner_C[:-1]
    return torch.where(same, x_C.roll(-1), torch.zeros_like(x_C))


class ShiQ(TokenQ):
    """L = sum_t delta_t^2, mean over completions, with
    delta_t = sum_{k>=t} (r_k - beta (log pi_k - log ref_k)) - beta (n_t - n_ref_t).

    Shifted: the logits are Q + beta log ref + the reference's log-sum-exp, over beta. So a softmax over them
    is the policy itself, and at the start delta is the reward to go.
    """

    type: Literal["shiq"] = "shiq"  # pyright: ignore[reportIncompatibleVariableOverride]
    # sum_{k>=t}
    backup: Backup = "multi-step"
    # - log ref_k, - n_ref_t
    shift: bool = True
    # beta; the KL is in the loss
    kl: KL = FixedKL(place="loss", estimator="k2", beta=0.05)

"""Direct preference methods (ALGORITHMS section 10): formulas over sums of log-probs.

W, L are the summed log-probs of the chosen and the rejected completion under the policy; a, b the
same minus the reference's; n_w, n_l trained tokens; z = beta (a - b). Reference-free: a = W, b = L.

| type     | paper      | loss of a pair                                        |
|----------|------------|-------------------------------------------------------|
| dpo      | 2305.18290 | -log s(z)                                             |
| cdpo     | 2305.18290 | -(1-e) log s(z) - e log s(-z)                         |
| robust   | 2403.00409 | [-(1-e) log s(z) + e log s(-z)] / (1-2e)              |
| ipo      | 2310.12036 | (a/n_w - b/n_l - 1/(2 beta))^2, or of the sums        |
| hinge    | 2309.06657 | max(0, 1 - z)                                         |
| slic     | 2305.10425 | max(0, delta - W + L) - nll W/n_w                     |
| dpo_norm | 2411.15124 | -log s(beta (a/n_w - b/n_l))                          |
| simpo    | 2405.14734 | -log s(beta (W/n_w - L/n_l) - gamma)                  |
| orpo     | 2403.07691 | -W/n_w - lam log s(o(W/n_w) - o(L/n_l))               |
| kto      | 2402.01306 | good: D (1 - s(beta (a - z0))), bad: U (1 - s(beta (z0 - b))) |

``rpo_alpha`` adds -alpha W/n_w, RPO's likelihood term (2404.19733), to any of them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from trimtab.config import by_type
from trimtab.objectives.kto import KTO
from trimtab.objectives.pairs import Direct, PairLoss, Pairs, Scaled


def smoothed(z: Tensor, e: float) -> Tensor:
    """-(1-e) log s(z) - e log s(-z): a share e of the labels is assumed wrong."""
    return -(1.0 - e) * logsigmoid(z) - e * logsigmoid(-z)


def robust(z: Tensor, e: float) -> Tensor:
    """[-(1-e) log s(z) + e log s(-z)] / (1-2e): unbiased when a share e of the labels is flipped."""
    return (-(1.0 - e) * logsigmoid(z) + e * logsigmoid(-z)) / (1.0 - 2.0 * e)


def ipo(difference: Tensor, beta: float) -> Tensor:
    """(a - b - 1/(2 beta))^2: the margin has a target, so it does not grow without bound."""
    return (difference - 1.0 / (2.0 * beta)) ** 2


def log_odds(s: Tensor) -> Tensor:
    """s - log(1 - e^s) of mean log-probs s < 0; finite where a model is certain (s = 0)."""
    s = s.clamp(max=-1e-6)
    return s - torch.log(-torch.expm1(s))


class DPO(Scaled):
    """-log s(z) (2305.18290)."""

    type: Literal["dpo"] = "dpo"

    def loss(self, p: Pairs) -> Tensor:
        return -logsigmoid(self.z(p))


class RPO(DPO):
    """-log s(z) - rpo_alpha W/n_w (2404.19733): keeps the chosen log-prob from falling."""

    type: Literal["rpo"] = "rpo"  # pyright: ignore[reportIncompatibleVariableOverride]
    rpo_alpha: float = Field(default=1.0, gt=0.0)
    """Weight of the chosen completion's mean negative log-likelihood."""


class CDPO(Scaled):
    """-(1-e) log s(z) - e log s(-z): conservative DPO (Mitchell 2023, a note to 2305.18290)."""

    type: Literal["cdpo"] = "cdpo"
    smoothing: float = Field(default=0.1, ge=0.0)
    """e: the share of labels assumed wrong."""

    @model_validator(mode="after")
    def _half(self) -> CDPO:
        if self.smoothing >= 0.5:
            raise ValueError("smoothing must be below 0.5; at 0.5 the labels carry no information")
        return self

    def loss(self, p: Pairs) -> Tensor:
        return smoothed(self.z(p), self.smoothing)


class Robust(Scaled):
    """[-(1-e) log s(z) + e log s(-z)] / (1-2e) (2403.00409)."""

    type: Literal["robust"] = "robust"
    smoothing: float = Field(default=0.1, ge=0.0)
    """e: the share of labels assumed flipped."""

    @model_validator(mode="after")
    def _half(self) -> Robust:
        if self.smoothing >= 0.5:
            raise ValueError("smoothing must be below 0.5: robust DPO divides by 1 - 2 smoothing")
        return self

    def loss(self, p: Pairs) -> Tensor:
        return robust(self.z(p), self.smoothing)


class IPO(Scaled):
    """(a - b - 1/(2 beta))^2 (2310.12036), of means over tokens or of sums."""

    type: Literal["ipo"] = "ipo"
    average: Literal["mean", "sum"] = "mean"
    """The paper's experiments use means over tokens; its formula has sums."""

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """beta a, beta b; of the means where the loss uses means."""
        nw, nl = (p.nw_P, p.nl_P) if self.average == "mean" else (1.0, 1.0)
        return self.beta * p.a_P / nw, self.beta * p.b_P / nl

    def loss(self, p: Pairs) -> Tensor:
        return ipo(self.z(p) / self.beta, self.beta)


class Hinge(Scaled):
    """max(0, 1 - z) (2309.06657)."""

    type: Literal["hinge"] = "hinge"

    def loss(self, p: Pairs) -> Tensor:
        return relu(1.0 - self.z(p))


class SLiC(PairLoss):
    """max(0, delta - W + L) - nll_weight W/n_w (2305.10425); no reference."""

    type: Literal["slic"] = "slic"
    without: ClassVar[bool] = True
    delta: float = Field(default=1.0, gt=0.0)
    """Target of W - L, nats."""
    nll_weight: float = Field(default=0.5, ge=0.0)
    """Weight of the likelihood term, which keeps the model near its start."""

    @property
    def nll(self) -> float:
        return self.nll_weight + self.rpo_alpha

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """W, L."""
        return p.W_P, p.L_P

    def loss(self, p: Pairs) -> Tensor:
        return relu(self.delta - p.W_P + p.L_P)


class DPONorm(Scaled):
    """-log s(beta (a/n_w - b/n_l)): DPO of means over tokens (2411.15124)."""

    type: Literal["dpo_norm"] = "dpo_norm"

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """beta a/n_w, beta b/n_l."""
        return self.beta * p.a_P / p.nw_P, self.beta * p.b_P / p.nl_P

    def loss(self, p: Pairs) -> Tensor:
        return -logsigmoid(self.z(p))


class SimPO(Scaled):
    """-log s(beta (W/n_w - L/n_l) - gamma) (2405.14734); no reference."""

    type: Literal["simpo"] = "simpo"
    without: ClassVar[bool] = True
    beta: float = Field(default=2.0, gt=0.0)
    """Scale of the mean log-probs; 2 to 10."""
    gamma: float = Field(default=0.5, ge=0.0)
    """Target margin, absolute (not a share of beta)."""

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """beta W/n_w, beta L/n_l."""
        return self.beta * p.W_P / p.nw_P, self.beta * p.L_P / p.nl_P

    def loss(self, p: Pairs) -> Tensor:
        return -logsigmoid(self.z(p) - self.gamma)


class ORPO(PairLoss):
    """-W/n_w - lam log s(o(W/n_w) - o(L/n_l)), o the log-odds (2403.07691); no reference."""

    type: Literal["orpo"] = "orpo"
    without: ClassVar[bool] = True
    lam: float = Field(default=0.1, gt=0.0)
    """Weight of the odds-ratio term."""

    @property
    def nll(self) -> float:
        return 1.0 + self.rpo_alpha

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """lam W/n_w, lam L/n_l."""
        return self.lam * p.W_P / p.nw_P, self.lam * p.L_P / p.nl_P

    def loss(self, p: Pairs) -> Tensor:
        return -self.lam * logsigmoid(log_odds(p.W_P / p.nw_P) - log_odds(p.L_P / p.nl_P))


DIRECT: dict[str, type[Direct]] = {
    m.model_fields["type"].default: m
    for m in (DPO, RPO, CDPO, Robust, IPO, Hinge, SLiC, DPONorm, SimPO, ORPO, KTO)
}
"""The methods by ``type``."""

Preference = Annotated[SerializeAsAny[Direct], by_type(Direct, DIRECT)]
"""A direct method as a key of a configuration: ``{type: NAME, …}``, NAME perhaps an import path."""

"""Direct preference methods (ALGORITHMS section 10): each a formula over sums of log-probs.

W, L are the summed log-probs of the chosen and the rejected answer under the policy; a, b the same
less the reference's; n_w, n_l trained tokens; z = beta (a - b). Reference-free: a = W, b = L.

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

To any of them ``rpo_alpha`` adds -alpha W/n_w, RPO's share of likelihood (2404.19733).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from trimtab.config import Config
from trimtab.data.pack import Output, Pack
from trimtab.objectives.reward import pair_indices
from trimtab.objectives.terms import Counts, Loss, Per, Term, detached, zero_like
from trimtab.tensors import segment_sum
from trimtab.types import Completion, Group


@dataclass(slots=True)
class Pairs:
    """P pairs of a chosen (w) and a rejected (l) answer; sums over trained tokens, nats."""

    W_P: Tensor
    """Log-prob of the chosen answer."""
    L_P: Tensor
    """Log-prob of the rejected answer."""
    a_P: Tensor
    """W less the reference's; W itself without a reference."""
    b_P: Tensor
    """L less the reference's."""
    nw_P: Tensor
    """Trained tokens of the chosen answer."""
    nl_P: Tensor
    """Trained tokens of the rejected answer."""


def smoothed(z: Tensor, e: float) -> Tensor:
    """-(1-e) log s(z) - e log s(-z): a share e of the labels is thought to be wrong."""
    return -(1.0 - e) * logsigmoid(z) - e * logsigmoid(-z)


def robust(z: Tensor, e: float) -> Tensor:
    """[-(1-e) log s(z) + e log s(-z)] / (1-2e): without bias when a share e is flipped."""
    return (-(1.0 - e) * logsigmoid(z) + e * logsigmoid(-z)) / (1.0 - 2.0 * e)


def ipo(difference: Tensor, beta: float) -> Tensor:
    """(a - b - 1/(2 beta))^2: a target for the margin instead of no end to it."""
    return (difference - 1.0 / (2.0 * beta)) ** 2


def log_odds(s: Tensor) -> Tensor:
    """s - log(1 - e^s) of mean log-probs s < 0; held finite where a model is certain (s = 0)."""
    s = s.clamp(max=-1e-6)
    return s - torch.log(-torch.expm1(s))


def kto(ratio: Tensor, good: Tensor, z0: float, beta: float, d: float, u: float) -> Tensor:
    """D (1 - s(beta (ratio - z0))) of good answers, U (1 - s(beta (z0 - ratio))) of bad ones."""
    gain = beta * (ratio - z0)
    return torch.where(good, d * torch.sigmoid(-gain), u * torch.sigmoid(gain))


class Direct(Config):
    """What the methods share: which pairs there are, the mix of likelihood, the metrics.

    Each prompt counts once: the mean over its comparable pairs. A tie is no pair, nor is a
    completion without a rank or without a trained token. The reference's log-probs are the
    tokens' "ref_logp".
    """

    rpo_alpha: float = Field(default=0.0, ge=0.0)
    """Weight of RPO's -W/n_w (published: 1)."""
    reference_free: bool = False
    """Leave the reference out: a = W, b = L."""
    without: ClassVar[bool] = False
    """Whether the method is defined without a reference."""

    @model_validator(mode="after")
    def _reference(self) -> Direct:
        if self.without and "reference_free" in self.model_fields_set and not self.reference_free:
            name = type(self).__name__
            raise ValueError(f"{name} is defined without a reference; drop reference_free: false")
        return self

    @property
    def referenced(self) -> bool:
        """Whether the loss reads "ref_logp"."""
        return not (self.without or self.reference_free)

    @property
    def nll(self) -> float:
        """Weight of the chosen answer's mean negative log-likelihood in the loss."""
        return self.rpo_alpha

    def loss(self, p: Pairs) -> Tensor:
        """The formula, without the likelihood: [P]."""
        raise NotImplementedError

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """Implicit rewards of the chosen and the rejected answers, on the loss's own scale."""
        raise NotImplementedError

    def usable(self, group: Group) -> bool:
        """Whether a group has something to train on."""
        ranks = {c.rank for c in group.completions if c.rank is not None and c.trained}
        return len(ranks) > 1

    def counts(self, pack: Pack) -> Counts:
        """Groups with at least one comparable pair."""
        usable = sum(1.0 for found in strict_pairs(pack)[0] if found)
        return {"groups": usable, "tokens": float(pack.trained_B.sum())}

    def pairs(self, out: Output, pack: Pack) -> tuple[Pairs, Tensor, list[int]] | None:
        """The pack's pairs, each one's share of its prompt [P], and its group; None without any."""
        found, _ = strict_pairs(pack)
        flat = [(w, l, 1.0 / len(mine), g) for g, mine in enumerate(found) for w, l in mine]
        if not flat:
            return None
        sums, ratios = summed(out, pack, self.referenced)
        w = torch.tensor([f[0] for f in flat], device=sums.device)
        l = torch.tensor([f[1] for f in flat], device=sums.device)
        n = pack.trained_B.to(sums.dtype)
        made = Pairs(sums[w], sums[l], ratios[w], ratios[l], n[w], n[l])
        share = torch.tensor([f[2] for f in flat], dtype=sums.dtype, device=sums.device)
        return made, share, [f[3] for f in flat]

    def right(self, out: Output, pack: Pack) -> list[tuple[int, float]]:
        """(group, 1 / 0.5 / 0) of each comparison the implicit rewards get right, tie, get wrong."""
        made = self.pairs(out, pack)
        if made is None:
            return []
        return list(zip(made[2], _right(*self.implicit(made[0])).tolist(), strict=True))

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Needs ``logp_C``, and the tokens' "ref_logp" unless reference-free."""
        assert out.logp_C is not None
        made = self.pairs(out, pack)
        if made is None:
            return Loss({"loss": Term(zero_like(out.logp_C), "groups")})
        p, share, _ = made
        each = self.loss(p)
        if self.nll:
            each = each - self.nll * p.W_P / p.nw_P
        reward_w, reward_l = self.implicit(p)
        values = {
            "rewards/chosen": reward_w,
            "rewards/rejected": reward_l,
            "rewards/margins": reward_w - reward_l,
            "rewards/accuracies": _right(reward_w, reward_l),
            "logps/chosen": p.W_P,
            "logps/rejected": p.L_P,
            "nll": -p.W_P / p.nw_P,
        }
        if "ref_logp" in pack.tokens:
            _, moved = summed(out, pack, True)
            sums, _ = summed(out, pack, False)
            start = sums - moved
            w, l = _indices(pack, sums.device)
            values["logps/chosen_shift"] = p.W_P - start[w]
            values["logps/rejected_shift"] = p.L_P - start[l]
        metrics: dict[str, tuple[Tensor, Per]] = {
            k: (detached(share * v), "groups") for k, v in values.items()
        }
        ties = strict_pairs(pack)[1]
        metrics["ties"] = (torch.tensor(float(ties), device=share.device), "groups")
        return Loss({"loss": Term((share * each).sum(), "groups")}, metrics)


class _Scaled(Direct):
    """Methods whose implicit reward is beta (logpi - logref)."""

    beta: float = Field(default=0.1, gt=0.0)
    """How strongly the policy is held to the reference: higher stays nearer."""

    def z(self, p: Pairs) -> Tensor:
        """beta (a - b)."""
        w, l = self.implicit(p)
        return w - l

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """beta a, beta b."""
        return self.beta * p.a_P, self.beta * p.b_P


class DPO(_Scaled):
    """-log s(z) (2305.18290)."""

    type: Literal["dpo"] = "dpo"

    def loss(self, p: Pairs) -> Tensor:
        """See the class."""
        return -logsigmoid(self.z(p))


class CDPO(_Scaled):
    """-(1-e) log s(z) - e log s(-z): conservative DPO (Mitchell 2023, a note to 2305.18290)."""

    type: Literal["cdpo"] = "cdpo"
    smoothing: float = Field(default=0.1, ge=0.0)
    """e: the share of labels thought to be wrong."""

    @model_validator(mode="after")
    def _half(self) -> CDPO:
        if self.smoothing >= 0.5:
            raise ValueError("smoothing must be below 0.5: from there on the labels mean nothing")
        return self

    def loss(self, p: Pairs) -> Tensor:
        """See the class."""
        return smoothed(self.z(p), self.smoothing)


class Robust(_Scaled):
    """[-(1-e) log s(z) + e log s(-z)] / (1-2e) (2403.00409)."""

    type: Literal["robust"] = "robust"
    smoothing: float = Field(default=0.1, ge=0.0)
    """e: the share of labels thought to be flipped."""

    @model_validator(mode="after")
    def _half(self) -> Robust:
        if self.smoothing >= 0.5:
            raise ValueError("smoothing must be below 0.5: robust DPO divides by 1 - 2 smoothing")
        return self

    def loss(self, p: Pairs) -> Tensor:
        """See the class."""
        return robust(self.z(p), self.smoothing)


class IPO(_Scaled):
    """(a - b - 1/(2 beta))^2 (2310.12036), of means over tokens or of sums."""

    type: Literal["ipo"] = "ipo"
    average: Literal["mean", "sum"] = "mean"
    """The paper's experiments took means over tokens; its formula reads as sums."""

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """beta a, beta b, of the means where the loss takes means."""
        nw, nl = (p.nw_P, p.nl_P) if self.average == "mean" else (1.0, 1.0)
        return self.beta * p.a_P / nw, self.beta * p.b_P / nl

    def loss(self, p: Pairs) -> Tensor:
        """See the class."""
        return ipo(self.z(p) / self.beta, self.beta)


class Hinge(_Scaled):
    """max(0, 1 - z) (2309.06657)."""

    type: Literal["hinge"] = "hinge"

    def loss(self, p: Pairs) -> Tensor:
        """See the class."""
        return relu(1.0 - self.z(p))


class SLiC(Direct):
    """max(0, delta - W + L) - nll_weight W/n_w (2305.10425); no reference."""

    type: Literal["slic"] = "slic"
    without: ClassVar[bool] = True
    delta: float = Field(default=1.0, gt=0.0)
    """Nats by which the chosen answer should be likelier."""
    nll_weight: float = Field(default=0.5, ge=0.0)
    """Weight of the likelihood that keeps the model near its start."""

    @property
    def nll(self) -> float:
        """See ``Direct``."""
        return self.nll_weight + self.rpo_alpha

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """W, L."""
        return p.W_P, p.L_P

    def loss(self, p: Pairs) -> Tensor:
        """See the class."""
        return relu(self.delta - p.W_P + p.L_P)


class DPONorm(_Scaled):
    """-log s(beta (a/n_w - b/n_l)): DPO of means over tokens (2411.15124)."""

    type: Literal["dpo_norm"] = "dpo_norm"

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """beta a/n_w, beta b/n_l."""
        return self.beta * p.a_P / p.nw_P, self.beta * p.b_P / p.nl_P

    def loss(self, p: Pairs) -> Tensor:
        """See the class."""
        return -logsigmoid(self.z(p))


class SimPO(_Scaled):
    """-log s(beta (W/n_w - L/n_l) - gamma) (2405.14734); no reference."""

    type: Literal["simpo"] = "simpo"
    without: ClassVar[bool] = True
    beta: float = Field(default=2.0, gt=0.0)
    """Scale of the mean log-probs; 2 to 10."""
    gamma: float = Field(default=0.5, ge=0.0)
    """Margin to reach, as it is (not as a share of beta)."""

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """beta W/n_w, beta L/n_l."""
        return self.beta * p.W_P / p.nw_P, self.beta * p.L_P / p.nl_P

    def loss(self, p: Pairs) -> Tensor:
        """See the class."""
        return -logsigmoid(self.z(p) - self.gamma)


class ORPO(Direct):
    """-W/n_w - lam log s(o(W/n_w) - o(L/n_l)), o the log-odds (2403.07691); no reference."""

    type: Literal["orpo"] = "orpo"
    without: ClassVar[bool] = True
    lam: float = Field(default=0.1, gt=0.0)
    """Weight of the odds ratio beside the likelihood."""

    @property
    def nll(self) -> float:
        """See ``Direct``."""
        return 1.0 + self.rpo_alpha

    def implicit(self, p: Pairs) -> tuple[Tensor, Tensor]:
        """lam W/n_w, lam L/n_l."""
        return self.lam * p.W_P / p.nw_P, self.lam * p.L_P / p.nl_P

    def loss(self, p: Pairs) -> Tensor:
        """See the class."""
        return -self.lam * logsigmoid(log_odds(p.W_P / p.nw_P) - log_odds(p.L_P / p.nl_P))


class KTO(_Scaled):
    """Good and bad answers by themselves, their mean over all of the step (2402.01306).

    The label is the rank: 0 is good, any other is bad. An answer alone in its group (a row with
    ``label``) is taken at its word; in a group of several the best are good and the rest bad,
    and one whose answers all tie is left out.
    """

    type: Literal["kto"] = "kto"
    desirable: float = Field(default=1.0, ge=0.0)
    """lambda_D, the weight of good answers."""
    undesirable: float = Field(default=1.0, ge=0.0)
    """lambda_U, the weight of bad ones."""

    @model_validator(mode="after")
    def _needs_reference(self) -> KTO:
        if self.reference_free:
            raise ValueError("KTO's z0 is a KL to the reference; drop reference_free, or use simpo")
        if self.desirable == 0 and self.undesirable == 0:
            raise ValueError("desirable and undesirable are both 0: there is nothing to train on")
        return self

    def usable(self, group: Group) -> bool:
        """See ``Direct``."""
        return any(label is not None for label in labels(group))

    def counts(self, pack: Pack) -> Counts:
        """Labelled answers: all, good, bad."""
        found = [x for g in pack.groups for x in labels(g) if x is not None]
        good = float(sum(found))
        return {"completions": float(len(found)), "chosen": good, "rejected": len(found) - good}

    def right(self, out: Output, pack: Pack) -> list[tuple[int, float]]:
        """Pairs where there are any; of an answer alone, whether its reward has the right sign."""
        found = super().right(out, pack)
        _, ratios = summed(out, pack, True)
        owner = pack.group_B.tolist()
        flat = [x for g in pack.groups for x in labels(g)]
        for b, (label, ratio) in enumerate(zip(flat, ratios.tolist(), strict=True)):
            if label is not None and len(pack.groups[owner[b]].completions) == 1:
                signed = ratio if label else -ratio
                found.append((owner[b], 0.5 if signed == 0 else float(signed > 0)))
        return found

    def at(self, z0: float) -> KTOAt:
        """The loss of one step, whose z0 is known."""
        return KTOAt(self, z0)


@dataclass(frozen=True, slots=True)
class KTOAt:
    """KTO with the z0 of one whole optimiser step, so that no pack has to know the others."""

    config: KTO
    z0: float
    """max(0, mean(logpi - logref)) over the step's mismatched pairs, nats; no gradient."""

    def counts(self, pack: Pack) -> Counts:
        """See ``KTO``."""
        return self.config.counts(pack)

    def __call__(self, out: Output, pack: Pack) -> Loss:
        """Needs ``logp_C`` and the tokens' "ref_logp"."""
        assert out.logp_C is not None
        c = self.config
        flat = [x for g in pack.groups for x in labels(g)]
        used = [b for b, label in enumerate(flat) if label is not None]
        if not used:
            return Loss({"loss": Term(zero_like(out.logp_C), "completions")})
        sums, ratios = summed(out, pack, True)
        at = torch.tensor(used, device=sums.device)
        good = torch.tensor([bool(flat[b]) for b in used], device=sums.device)
        W, ratio = sums[at], ratios[at]
        each = kto(ratio, good, self.z0, c.beta, c.desirable, c.undesirable)
        nll = -W / pack.trained_B.to(sums.dtype)[at]
        each = each + torch.where(good, c.rpo_alpha * nll, torch.zeros_like(nll))
        signed = torch.where(good, ratio, -ratio)
        metrics: dict[str, tuple[Tensor, Per]] = {
            "rewards/accuracies": (detached(_right(signed, -signed)), "completions")
        }
        sides: tuple[tuple[Literal["chosen", "rejected"], Tensor], ...] = (
            ("chosen", good), ("rejected", ~good),
        )  # fmt: skip
        for side, on in sides:
            if bool(on.any()):
                metrics[f"rewards/{side}"] = (detached(c.beta * ratio[on]), side)
                metrics[f"logps/{side}"] = (detached(W[on]), side)
                metrics[f"logps/{side}_shift"] = (detached(ratio[on]), side)
        if bool(good.any()):
            metrics["nll"] = (detached(nll[good]), "chosen")
        return Loss({"loss": Term(each.sum(), "completions")}, metrics)


AnyPreference = (
    DPO | CDPO | Robust | IPO | Hinge | SLiC | DPONorm | SimPO | ORPO | KTO
)  # the registry


def _named(value: Any) -> Any:
    return {"type": "dpo", **value} if isinstance(value, dict) else value


Preference = Annotated[AnyPreference, Field(discriminator="type"), BeforeValidator(_named)]
"""Every direct method by its ``type``, "dpo" where none is given."""


def strict_pairs(pack: Pack) -> tuple[list[list[tuple[int, int]]], int]:
    """For each group its pairs (chosen, rejected) as completion indices; and the ties left out."""
    trained = pack.trained_B.tolist()
    found: list[list[tuple[int, int]]] = []
    ties = 0
    for mine in pair_indices(pack):
        real = [(w, l, m) for w, l, m in mine if trained[w] and trained[l]]
        found.append([(w, l) for w, l, m in real if m == m])
        ties += len(real) - len(found[-1])
    return found, ties


def _indices(pack: Pack, device: torch.device) -> tuple[Tensor, Tensor]:
    flat = [pair for mine in strict_pairs(pack)[0] for pair in mine]
    w, l = zip(*flat, strict=True)
    return torch.tensor(w, device=device), torch.tensor(l, device=device)


def summed(out: Output, pack: Pack, referenced: bool) -> tuple[Tensor, Tensor]:
    """Log-probs of whole completions [B], and the same less the reference's where asked for."""
    assert out.logp_C is not None
    count = len(pack.last_B)
    sums = segment_sum(out.logp_C, pack.owner_C, count)
    if not referenced:
        return sums, sums
    reference = pack.tokens["ref_logp"].to(out.logp_C.dtype)
    # Differences first: the sums are large and close, and would cancel.
    return sums, segment_sum(out.logp_C - reference, pack.owner_C, count)


def _right(w: Tensor, l: Tensor) -> Tensor:
    return torch.where(w == l, 0.5, (w > l).to(w.dtype)).detach()


def labels(group: Group) -> list[bool | None]:
    """For KTO: good, bad or unused, of each completion (see ``KTO``)."""
    ranks = [c.rank if c.trained else None for c in group.completions]
    known = [r for r in ranks if r is not None]
    if len(group.completions) == 1:
        return [None if r is None else r == 0 for r in ranks]
    if len(set(known)) < 2:
        return [None] * len(ranks)
    return [None if r is None else r == min(known) for r in ranks]


def mismatched(groups: Sequence[Group]) -> list[Group]:
    """Each prompt with the labelled answers of another, for KTO's z0.

    Prompts stand in the order of their ids, so the order of ``groups`` does not matter; each takes
    the answers of the next that differs. Empty when all prompts are equal.
    """
    order = sorted(groups, key=lambda g: g.id)
    made: list[Group] = []
    for i, group in enumerate(order):
        for other in (*order[i + 1 :], *order[:i]):
            if other.prompt.tolist() != group.prompt.tolist():
                break
        else:
            continue
        answers = [
            Completion(c.ids, c.mask)
            for c, label in zip(other.completions, labels(other), strict=True)
            if label is not None
        ]
        if answers:
            made.append(Group(f"{group.id} | {other.id}", group.prompt, answers))
    return made

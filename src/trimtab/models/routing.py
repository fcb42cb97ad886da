"""Routing replay: a mixture of experts trains on the experts that its tokens took when they were scored.

Every update changes the router a little, so a token may take other experts than it took under the weights of
the batch, and its importance ratio then compares two networks (2507.18071, 2510.11370). Here the forward that
computes the old log-probs records the experts, and the updates on the batch replay them. The router's weights
on these experts are still computed and trained.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from trimtab import ranks
from trimtab.data.pack import Pack, path_to
from trimtab.errors import ConfigError, ModelError
from trimtab.models.load import LM, base_of

RoutingMode = Literal["own", "watch", "replay"]
"""Which experts the tokens of an update take. "own": those that the router chooses now. "watch": the same,
and metrics say how many have changed since the batch was scored. "replay": those of the scoring forward."""


def routers_of(model: nn.Module) -> list[nn.Module]:
    """The routers of a transformers mixture, by layer."""
    return [m for m in model.modules() if type(m).__name__.endswith("TopKRouter")]


def expert_weights(router: nn.Module, logits_RE: Tensor, experts_RK: Tensor) -> Tensor:
    """The weights [R, K] of given experts: their softmax probabilities, which most routers normalise."""
    p_RK = torch.softmax(logits_RE.float(), -1).gather(-1, experts_RK)
    if getattr(router, "norm_topk_prob", True):
        p_RK = p_RK / p_RK.sum(-1, keepdim=True)
    return p_RK


class Routing:
    """Records the experts of every token in forwards without a gradient, and compares with them or replays
    them in forwards with one.

    Args:
        lm: The policy. Its other forwards (sampling, reference) are left alone.
        mode: See ``RoutingMode``; with "own" nothing is done.

    Raises:
        ConfigError: several ranks, or gradient checkpointing, whose second forward is not seen.
        ModelError: the model has no router that can be replayed.
    """

    def __init__(self, lm: LM, mode: RoutingMode) -> None:
        self.mode, self.exact = mode, lm.exact
        self.routers = routers_of(lm.model) if mode != "own" else []
        self._recorded: list[Tensor] | None = None
        self._replayed_NLK: Tensor | None = None
        self._real: Tensor | None = None
        self._counts = np.zeros(3)
        if mode == "own":
            return
        if ranks.current().world > 1:
            raise ConfigError(
                f"routing: {mode} runs in one process; set routing: own, or use one trainer"
            )
        if getattr(base_of(lm.model), "is_gradient_checkpointing", False):
            raise ConfigError(
                f"routing: {mode} does not see the second forward of model.gradient_checkpointing; turn "
                "that off"
            )
        if not self.routers:
            raise ModelError(
                f"routing: {mode} needs a mixture of experts, and {type(base_of(lm.model)).__name__} has "
                "no router; set routing: own"
            )
        for layer, router in enumerate(self.routers):
            router.register_forward_hook(self._hook(layer))

    @property
    def active(self) -> bool:
        """Whether a scoring forward is needed before the updates on a batch."""
        return self.mode != "own"

    @contextmanager
    def __call__(self, pack: Pack) -> Generator[None, None, None]:
        """Record the experts of ``pack`` on its completions, or with a gradient, compare or replay."""
        if not self.active:
            yield
            return
        self._real = None if self.exact else _real_rows(pack)
        try:
            if torch.is_grad_enabled():
                self._replayed_NLK = gather_experts(pack)
                yield
            else:
                self._recorded = []
                yield
                store_experts(pack, torch.stack(self._recorded, 1))
        finally:
            self._recorded = self._replayed_NLK = self._real = None

    def metrics(self) -> dict[str, float]:
        """Over the updates since the last call, shares of tokens and layers: "routing/flips" took other
        experts than the recorded ones; of "routing/drift" the router would now choose others."""
        flips, drift, total = self._counts.tolist()
        self._counts[:] = 0.0
        return {"routing/flips": flips / total, "routing/drift": drift / total} if total else {}

    def _hook(self, layer: int) -> Any:
        def act(router: nn.Module, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
            logits_RE, weights_RK, own_RK = output
            if self._recorded is not None:
                self._check(router, logits_RE, weights_RK, own_RK)
                taken_NK = own_RK if self._real is None else own_RK[self._real]
                self._recorded.append(taken_NK.detach())
                return None
            if self._replayed_NLK is None:
                return None
            recorded_RK = self._replayed_NLK[:, layer]
            if self._real is not None:
                padded = own_RK.clone()
                padded[self._real] = recorded_RK
                recorded_RK = padded
            used_RK = recorded_RK if self.mode == "replay" else own_RK
            rows = len(self._replayed_NLK)
            self._counts += [_changed(used_RK, recorded_RK), _changed(own_RK, recorded_RK), rows]
            if self.mode == "watch":
                return None
            weights = expert_weights(router, logits_RE, used_RK).to(weights_RK.dtype)
            return logits_RE, weights, used_RK

        return act

    @staticmethod
    def _check(router: nn.Module, logits: Tensor, weights: Tensor, own: Tensor) -> None:
        """Refuse a router whose weights are not those that ``expert_weights`` computes."""
        expected = expert_weights(router, logits, own).to(weights.dtype)
        if weights.shape != expected.shape or not torch.allclose(weights, expected, atol=1e-5):
            raise ModelError(
                f"routing: {type(router).__name__} weighs its experts in another way than by their "
                "softmax probabilities, so they cannot be replayed; set routing: own"
            )


def _changed(a_RK: Tensor, b_RK: Tensor) -> int:
    """Rows whose sets of experts differ; padding is equal in both."""
    return int((a_RK.sort(-1).values != b_RK.sort(-1).values).any(-1).sum())


def _real_rows(pack: Pack) -> Tensor:
    """Indices of the pack's tokens among those of right-padded rows."""
    lengths = torch.tensor([s.length for s in pack.segments])
    at = torch.arange(int(lengths.max()))
    return (at[None] < lengths[:, None]).flatten().nonzero()[:, 0].to(pack.ids_N.device)


def _runs(pack: Pack) -> Generator[tuple[Any, slice, slice], None, None]:
    """(completion, tokens of the pack, the same tokens in its ``experts``) for every segment from the
    root of the tree to each completion; a shared one comes once for each completion."""
    completions = (c for group in pack.groups for c in group.completions)
    for c, leaf in zip(completions, pack.leaf_B, strict=True):
        start = 0
        for segment in path_to(pack.segments, leaf):
            tokens = slice(segment.start, segment.start + segment.length)
            yield c, tokens, slice(start, start + segment.length)
            start += segment.length


def store_experts(pack: Pack, experts_NLK: Tensor) -> None:
    """Write the experts of every token of a pack to the ``experts`` of its completions."""
    rows = experts_NLK.to(torch.int16).cpu().numpy()
    for c, tokens, place in _runs(pack):
        part = rows[tokens]
        c.experts = part if place.start == 0 else np.concatenate([c.experts, part])


def gather_experts(pack: Pack) -> Tensor:
    """The recorded experts of every token of a pack [N, layers, K]; inverse of ``store_experts``."""
    rows: np.ndarray | None = None
    for c, tokens, place in _runs(pack):
        assert c.experts is not None, "the batch was not scored before its updates"
        if rows is None:
            rows = np.zeros((pack.size, *c.experts.shape[1:]), np.int64)
        rows[tokens] = c.experts[place]
    return torch.from_numpy(cast(Any, rows)).to(pack.ids_N.device)

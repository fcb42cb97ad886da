"""Random groups, one optimiser step, and the plain forwards that steps are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from tests.support.models import tiny
from trimtab.data.pack import Output, Pack
from trimtab.models.heads import Scorer
from trimtab.models.load import LM, ModelSpec
from trimtab.train.gradients import Part
from trimtab.train.trainer import LoopSpec, OptimSpec, Trainer
from trimtab.types import Completion, Group

RELATIVE = 1e-6
TAU = 0.7

Shape = list[tuple[int, list[int]]]
shapes = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 7), min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
)
seeds = st.integers(0, 2**32 - 1)
budgets = st.sampled_from([1, 16, 40, 10_000])
few = settings(max_examples=20, deadline=None, derandomize=True)
many = settings(max_examples=60, deadline=None, derandomize=True)


def double_lm() -> LM:
    return LM(tiny("llama").double(), ModelSpec(path="none"))


def double_scorer() -> Scorer:
    torch.manual_seed(1)
    config = tiny("llama", seed=1).config
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(6.0)
    return Scorer(model, ModelSpec(path="none"), exact=True)


def make(shape: Shape, seed: int) -> list[Group]:
    """Groups with holes in their masks (some all hole), ranks with ties and gaps, margins."""
    rng = np.random.default_rng(seed)

    def answer(n: int) -> Completion:
        c = Completion(rng.integers(0, 64, n), rng.random(n) < 0.75)
        c.rank = None if rng.random() < 0.15 else int(rng.integers(0, 3))
        c.margin = float(rng.choice([0.0, 0.5, 1.25]))
        return c

    return [
        Group(str(i), rng.integers(0, 64, width), [answer(n) for n in lengths])
        for i, (width, lengths) in enumerate(shape)
    ]


def shuffled(groups: Sequence[Group], seed: int) -> list[Group]:
    """Groups in another order, and the completions of each too."""
    rng = np.random.default_rng(seed)
    return [
        Group(g.id, g.prompt, [g.completions[j] for j in rng.permutation(len(g.completions))])
        for g in (groups[i] for i in rng.permutation(len(groups)))
    ]


def gradients(modules: dict[str, nn.Module]) -> Tensor:
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).detach().flatten()
            for m in modules.values()
            for p in m.parameters()
        ]
    )


def step(
    modules: dict[str, nn.Module],
    groups: Sequence[Group],
    objective: Any,
    forward: Callable[[Pack], Output],
    budget: int,
    share: bool,
) -> tuple[Tensor, dict[str, float]]:
    """Gradient and metrics of one optimiser step that leaves the weights where they are."""
    still = OptimSpec(lr=1e-30, max_grad_norm=1e30)
    trainer = Trainer(modules, dict.fromkeys(modules, still), 1, LoopSpec(token_budget=budget))
    metrics = trainer.update([Part(groups, objective, forward, share)])
    assert not metrics["skipped"]
    return gradients(modules), metrics


def plain_gradient(modules: dict[str, nn.Module], loss: Tensor | float) -> Tensor:
    for m in modules.values():
        m.zero_grad()
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss.backward()
    return gradients(modules)


def number(loss: Tensor | float) -> float:
    return float(loss.detach()) if isinstance(loss, Tensor) else loss


def agree(got: Tensor, want: Tensor) -> None:
    norm = float(want.norm())
    assert float((got - want).norm()) <= RELATIVE * norm, (float((got - want).norm()), norm)


def each(groups: Sequence[Group]) -> Iterator[tuple[Group, Completion]]:
    return ((g, c) for g in groups for c in g.completions)


def alone_logps(lm: LM, g: Group, c: Completion, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the trained tokens, from the sequence by itself."""
    ids = torch.from_numpy(np.concatenate([g.prompt, c.ids]))[None]
    logits = cast(Any, lm.plain_attention())(input_ids=ids).logits[0, len(g.prompt) - 1 : -1]
    table = (logits / tau).log_softmax(-1)
    on = torch.from_numpy(c.mask)
    entropy = -(table.exp() * table).sum(-1)
    return table[torch.arange(len(c)), torch.from_numpy(c.ids)][on], entropy[on]


def alone_heads(scorer: Scorer, g: Group, c: Completion) -> Tensor:
    """The scalar head at every position of the sequence by itself."""
    model = cast(Any, scorer.model)
    model.set_attn_implementation("sdpa")
    ids = torch.from_numpy(np.concatenate([g.prompt, c.ids]))[None]
    return model.score(model.model(input_ids=ids).last_hidden_state[0])[:, 0]


LAYOUTS = {"tree": (True, True), "segments": (False, True), "rows": (False, False)}
"""Name to (share, exact): prompts shared; one segment a completion; padded rows, plain attention."""

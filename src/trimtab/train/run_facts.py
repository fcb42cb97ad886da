"""``facts.json`` of a run: what is true of its data and model before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.pack import packs
from trimtab.data.render import Renderer
from trimtab.data.token_facts import leaked, odd_pairs, pair_facts, token_facts
from trimtab.models.load import LM, ModelSpec
from trimtab.rollout.engine import generate
from trimtab.rollout.engines.native import NativeEngine
from trimtab.sample.sampler import Request, SamplingConfig
from trimtab.types import Group, Row

_TEMPLATE_PROMPTS = 16
"""Prompts on which two templates are compared."""


def data_facts(renderer: Renderer, train: Sequence[Group], held_out: Sequence[Group]) -> Row:
    """Facts of a stage's tokenised data: see ``trimtab.data.token_facts``."""
    facts: Row = dict(token_facts(train, renderer.bos, renderer.stop_ids))
    if any(c.rank is not None for g in train for c in g.completions):
        facts |= {"comparisons": pair_facts(train), "odd": odd_pairs(train)}
    if held_out:
        facts["leaked"] = leaked(train, held_out)
    return facts


@torch.no_grad()
def template_facts(
    lm: LM, renderer: Renderer, spec: ModelSpec, prompts: Sequence[Group], budget: int
) -> Row:
    """Whether the chat template in use formats prompts as the model's own template does.

    If the two give different tokens, the model completes some prompts greedily under its own
    template. "nll_gap" is the mean NLL of these completions under the template in use minus that
    under its own, nats per token. "markers_missing" is the share of prompts that have special tokens (a
    turn's begin or end) under the model's own template, and none of these under the template in use.

    Args:
        spec: Where the model, its tokenizer and the template come from.
        prompts: Prompts of the run; the first with messages are compared.
    """
    if spec.chat_template is None and spec.tokenizer is None:
        return {"template": "own"}
    own = load_tokenizer(spec.path) if not spec.path.endswith(".json") else None
    if own is None or not own.chat_template or own.get_vocab() != renderer.tokenizer.get_vocab():
        return {"template": "unknown"}
    own_renderer = Renderer(own)
    conversations = [g for g in prompts if g.extra.get("messages")][:_TEMPLATE_PROMPTS]
    own_groups = [own_renderer.with_own_prompt(g) for g in conversations]
    changed = sum(
        a.prompt.tolist() != b.prompt.tolist()
        for a, b in zip(conversations, own_groups, strict=True)
    )
    facts: Row = {"template": "other", "prompts_changed": changed / max(1, len(conversations))}
    if not changed:
        return facts
    special = set(own.all_special_ids)
    # Not the first token: a BOS before a template without special tokens is none of its own.
    marks = [special & set(g.prompt[1:].tolist()) for g in own_groups]
    missing = sum(
        bool(wanted) and not wanted & set(g.prompt[1:].tolist())
        for g, wanted in zip(conversations, marks, strict=True)
    )
    facts["markers_missing"] = missing / len(conversations)
    engine = NativeEngine.of(lm, own_renderer)
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=48)
    requests = [Request(g.prompt, (0, i)) for i, g in enumerate(own_groups)]
    sampled = generate(engine, requests, greedy)
    completions = [own_renderer.completion(s[0].ids, s[0].finish) for s in sampled]
    nll = [
        _nll(
            lm,
            [replace(g, completions=[c]) for g, c in zip(groups, completions, strict=True)],
            budget,
        )
        for groups in (conversations, own_groups)
    ]
    facts["nll_gap"] = nll[0] - nll[1]
    facts["template_examples"] = [
        {
            "prompt": renderer.tokenizer.decode(a.prompt.tolist()),
            "answer": own.decode(b.prompt.tolist()),
        }
        for a, b in list(zip(conversations, own_groups, strict=True))[:5]
    ]
    return facts


def _nll(lm: LM, groups: Sequence[Group], budget: int) -> float:
    """Mean negative log-likelihood of the trained tokens, nats per token."""
    total = count = 0.0
    for pack in packs(groups, budget, share=lm.exact):
        on = pack.to(lm.device)
        logp, _ = lm.logps(lm.states(on), on)
        total -= float(logp.sum())
        count += len(logp)
    return total / max(1.0, count)

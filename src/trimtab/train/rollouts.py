"""What online methods share: prompts answered by the live policy and scored, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from trimtab.data.render import Renderer
from trimtab.errors import DataError
from trimtab.models.load import LM
from trimtab.rewards.score import Rewards
from trimtab.rewards.scoring import Scoring
from trimtab.rollout.collector import collect
from trimtab.sample.sampler import Sampler, SamplingConfig
from trimtab.stats.order_stats import pick
from trimtab.train.trainer import batch_indices
from trimtab.types import Completion, Group


class Rollouts:
    """Batches of prompts, answered by the live policy and scored.

    Which prompts come, and every random draw, follow from seed, step and attempt, so a resumed run
    samples what a whole one would.

    Args:
        prompts: Groups without completions.
        lm: The policy, sampled as it is at each call.
        renderer: Its tokens.
        rewards: Score every completion in place.
        sampling: How to sample.
        seed: Starts every stream.
    """

    def __init__(
        self,
        prompts: Sequence[Group],
        lm: LM,
        renderer: Renderer,
        rewards: Rewards | Scoring,
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        self.prompts, self.renderer, self.rewards = prompts, renderer, rewards
        self.sampling, self.seed = sampling, seed
        self.sampler = Sampler(
            lm.plain_attention(), renderer.tokenizer, stop_ids=renderer.stop_ids, mixed=lm.mixed
        )

    def __call__(
        self, index: int, count: int, n: int, version: int, attempt: int = 0
    ) -> list[Group]:
        """``count`` prompts of step ``index`` with ``n`` completions each, scored.

        Args:
            index: The step.
            count: Prompts.
            n: Completions a prompt.
            version: Optimiser steps behind the weights.
            attempt: 0, or the how-manieth refill of the step: other prompts.
        """
        # Refills come from passes of their own over the prompts, so they follow from the step too.
        seed = self.seed + 7919 * attempt
        picked = [self.prompts[i] for i in batch_indices(len(self.prompts), count, index, seed)]
        key = (self.seed, index, attempt) if attempt else (self.seed, index)
        groups = collect(
            self.sampler, self.renderer, picked, self.sampling, n=n, key=key, version=version
        )
        self.rewards(groups)
        return groups


def nothing_scored(where: str, done: Sequence[Completion]) -> DataError:
    """The error of a step or stage whose completions all went without a reward."""
    failed = next(s for c in done for s in c.scores.values() if not s.ok)
    return DataError(
        f"{where}: no completion could be scored; the first failure was "
        f"{failed.status}: {failed.detail}"
    )


def extremes(done: Sequence[Completion]) -> tuple[Completion, Completion] | None:
    """The best and the worst of scored answers to one prompt, of equal ones the first; None where
    they tie: by their reward, or because they say the same."""
    rewards = [cast(float, c.reward) for c in done]
    best, worst = done[pick(rewards)], done[pick([-r for r in rewards])]
    same = best.reward == worst.reward or np.array_equal(best.ids, worst.ids)
    return None if same else (best, worst)


def describe(done: Sequence[Completion]) -> dict[str, float]:
    """Rewards by part, lengths, finish reasons, failures."""
    scored = [c.reward for c in done if c.reward is not None]
    metrics = {
        "reward/mean": float(np.mean(scored)) if scored else math.nan,
        "reward/std": float(np.std(scored)) if scored else math.nan,
        "reward/unscored": 1.0 - len(scored) / max(1, len(done)),
        "completion/length": float(np.mean([len(c) for c in done])),
        "completion/truncated": float(np.mean([c.finish == "length" for c in done])),
    }
    for name in done[0].scores:
        values = [c.scores[name].value for c in done if c.scores[name].ok]
        metrics[f"reward/{name}"] = (
            float(np.mean([v for v in values if v is not None])) if values else math.nan
        )
    return metrics


def sample_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Prompts, completions and scores as rows for ``samples/``."""
    return [
        {
            "prompt": g.text,
            "completion": c.text,
            "reward": c.reward,
            "scores": {k: s.value if s.ok else s.status for k, s in c.scores.items()},
            "finish": c.finish,
            "tokens": len(c),
            "version": c.version,
            "id": g.id,
            "index": i,
            **_against(c),
        }
        for g in groups
        for i, c in enumerate(g.completions)
    ]


def _against(c: Completion) -> dict[str, float]:
    """Nats of the completion against the reference, where it was asked."""
    mine, theirs = c.tokens.get("sampler_logp"), c.tokens.get("ref_logp")
    if mine is None or theirs is None:
        return {}
    return {
        "kl": float((mine - theirs).sum()),
        "nll_reference": -float(theirs.mean()) if len(c) else 0.0,
    }

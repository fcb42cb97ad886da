"""Our figures for folders and files that other programs are compared on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.config import build
from trimtab.data import formats, sources
from trimtab.evaluate import accuracy
from trimtab.evaluate.completion_logps import summed_logps
from trimtab.models.load import LM, ModelSpec, renderer_for
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.sample.draw import SamplingConfig
from trimtab.sample.sampler import Request, Sampler
from trimtab.types import Row

Floats = npt.NDArray[np.float64]


def own_accuracy(reward: Path, pairs: Path, out: Path) -> float:
    """Of a reward model, by ``trimtab accuracy``."""
    options = {"rewards": [{"name": "rm", "model": str(reward)}], "out": str(out),
               "data": {"held": {"path": str(pairs)}}, "tokenizer": str(reward)}  # fmt: skip
    return accuracy.main(build(accuracy.AccuracyConfig, options))["rm"]["held"]["accuracy"]


def own_logps(model: Path, pairs: Path, to: Path | None = None, *, end: bool = True) -> Floats:
    """Log-probs of the completions of some pairs, nats [2 * pairs].

    Args:
        model: A policy's folder.
        pairs: Rows with messages.
        to: The token ids are written here, for ``clients/logps.py``.
        end: Whether the end token counts.
    """
    spec = ModelSpec(path=str(model), device="cpu")
    renderer = renderer_for(spec)
    rows = sources.read(str(pairs))
    groups = [g for g in map(renderer.comparison, formats.comparisons(rows)) if g is not None]
    assert len(groups) == len(rows.rows)
    tasks: list[dict[str, Any]] = []
    for group, (_, row) in zip(groups, rows.rows, strict=True):
        for completion, turn in zip(
            group.completions, (row["chosen"], row["rejected"]), strict=True
        ):
            if not end:
                texts = int(np.isin(completion.ids, renderer.stop_ids).argmax())
                completion.ids, completion.mask = completion.ids[:texts], completion.mask[:texts]
            prompt, ids = group.prompt.tolist(), completion.ids.tolist()
            tasks.append({"prompt": prompt, "completion": ids, "messages": row["prompt"] + turn})
    if to is not None:
        to.write_text(json.dumps(tasks))
    return np.array(summed_logps(LM.load(spec, train=False), groups, 4096, 1.0))


def own_scores(reward: Path, pairs: Path) -> tuple[list[list[Row]], Floats]:
    """Conversations of some pairs, and a reward model's scores of them, before standardisation."""
    renderer = renderer_for(ModelSpec(path=str(reward), device="cpu"))
    rows = sources.read(str(pairs))
    groups = [g for g in map(renderer.scoring, formats.comparisons(rows)) if g is not None]
    Rewards((RewardSpec(name="rm", model=str(reward)),), renderer.tokenizer, 4096, "cpu")(groups)
    scores = [c.scores["rm"].value for g in groups for c in g.completions]
    turns = [row["prompt"] + row[side] for _, row in rows.rows for side in ("chosen", "rejected")]
    config = json.loads((reward / "config.json").read_text())
    return turns, np.array(scores, np.float64) * config["reward_std"] + config["reward_mean"]


def own_greedy(policy: Path, prompts: list[list[Row]], longest: int) -> list[list[int]]:
    """Token ids of the greedy completions."""
    spec = ModelSpec(path=str(policy), device="cpu")
    renderer = renderer_for(spec)
    examples = formats.prompts(
        sources.Rows("", list(enumerate([{"prompt": p} for p in prompts], 1)))
    )
    groups = [g for g in map(renderer.prompt, examples) if g is not None]
    model = LM.load(spec, train=False).plain_attention()
    sampler = Sampler(model, renderer.tokenizer, stop_ids=renderer.stop_ids)
    requests = [Request(g.prompt, (n,)) for n, g in enumerate(groups)]
    sampled = sampler(requests, SamplingConfig(max_new_tokens=longest, temperature=0.0))
    return [one.ids.tolist() for [one] in sampled]

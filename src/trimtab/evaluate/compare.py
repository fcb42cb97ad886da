"""Several models answer the same held-out prompts; who is better, by how much, how sure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.data.pack import packs
from trimtab.data.render import Renderer, load_tokenizer
from trimtab.models.load import LM, ModelSpec
from trimtab.rewards.score import Rewards, RewardSpec
from trimtab.rollout.collector import collect
from trimtab.runs import write_atomic
from trimtab.runs.console import bar, console
from trimtab.sample.sampler import Sampler, SamplingConfig
from trimtab.stats.text import distinct_n
from trimtab.stats.uncertainty import bootstrap_mean, win_rate
from trimtab.types import Group


class CompareConfig(Config):
    """Configuration of a comparison."""

    out: str = "runs/compare"
    models: dict[str, ModelSpec] = Field(min_length=2)
    """Named models, in the order they are shown."""
    baseline: str
    """Whom the others are compared with; also the reference of the KL."""
    data: str
    """Prompts, one a row."""
    limit: int | None = None
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """Scores of each answer; the first decides wins."""
    parts: tuple[str, ...] = ()
    """Names of rewards that are parts of the first and must not fall."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    token_budget: int = 8192
    device: str = "auto"

    @model_validator(mode="after")
    def _known(self) -> CompareConfig:
        if self.baseline not in self.models:
            raise ValueError(
                f"baseline {self.baseline!r} is not among models: {', '.join(self.models)}"
            )
        for r in self.rewards:
            if r.compares:
                raise ValueError(
                    f"reward {r.name!r} is a judge of several answers of one model to one prompt, "
                    "and here each gives one; score with a model, a function, a verifier or an AI judge "
                    "of mode: score"
                )
        return self


@torch.no_grad()
def _summed_logps(lm: LM, groups: Sequence[Group], budget: int, temperature: float) -> list[float]:
    found: dict[int, float] = {}
    for pack in packs(groups, budget, share=lm.exact):
        on = pack.to(lm.device)
        logp, _ = lm.logps(lm.states(on), on, temperature or 1.0, entropy=False)
        sums = torch.zeros(len(pack.last_B)).index_add(0, pack.owner_C, logp.cpu())
        done = [c for g in pack.groups for c in g.completions]
        found.update({id(c): float(s) for c, s in zip(done, sums, strict=True)})
    return [found[id(c)] for g in groups for c in g.completions]


def main(config: CompareConfig) -> dict[str, Any]:
    """Answer, score, compare. Writes ``comparison.parquet`` and ``summary.json`` into ``out``.

    Returns:
        Figures by model: mean of each reward with its interval, length, distinct-2, truncated
        share, KL to the baseline in nats a completion; and, against the baseline, win rate (ties
        half) with its 95 % interval over prompts and the gain of each reward.
    """
    out = Path(config.out)
    rows = sources.read(config.data, limit=config.limit)
    examples = formats.prompts(rows)
    answers: dict[str, list[Group]] = {}
    figures: dict[str, Any] = {}
    base_lm = LM.load(
        config.models[config.baseline].model_copy(update={"device": config.device}), train=False
    )
    for name, spec in config.models.items():
        tokenizer = load_tokenizer(spec.tokenizer or spec.path, spec.chat_template)
        renderer = Renderer(tokenizer, max_prompt=1 << 20, max_tokens=1 << 20)
        lm = base_lm if name == config.baseline else LM.load(spec, train=False)
        asked = [renderer.prompt(e) for e in examples]
        prompts = [g for g in asked if g is not None]
        # One key for all models: the same uniforms, so that differences are the models' own.
        sampler = Sampler(lm.plain_attention(), tokenizer, stop_ids=renderer.stop_ids)
        with bar(name) as show:
            groups = collect(
                sampler, renderer, prompts, config.sampling,
                n=1, key=(config.seed,), version=0, on_progress=show,
            )  # fmt: skip
        Rewards(config.rewards, tokenizer, config.token_budget, config.device)(groups)
        answers[name] = groups
        texts = [g.completions[0].text for g in groups]
        mine: dict[str, Any] = {
            "length": float(np.mean([len(g.completions[0]) for g in groups])),
            "truncated": float(np.mean([g.completions[0].finish == "length" for g in groups])),
            "distinct_2": distinct_n(texts, 2),
        }
        for r in config.rewards:
            mean, low, high = bootstrap_mean(_values(groups, r.name))
            mine[r.name] = {"mean": mean, "low": low, "high": high}
        if name != config.baseline:
            tau = config.sampling.temperature
            own = _summed_logps(lm, groups, config.token_budget, tau)
            ref = _summed_logps(base_lm, groups, config.token_budget, tau)
            mine["kl"] = float(np.mean(np.asarray(own) - np.asarray(ref)))
        figures[name] = mine
    base = answers[config.baseline]
    first = config.rewards[0].name
    for name, groups in answers.items():
        if name == config.baseline:
            continue
        rate, low, high = win_rate(_values(groups, first), _values(base, first))
        figures[name]["win_rate"] = {"mean": rate, "low": low, "high": high}
        figures[name]["gain"] = {
            r.name: figures[name][r.name]["mean"] - figures[config.baseline][r.name]["mean"]
            for r in config.rewards
        }
    out.mkdir(parents=True, exist_ok=True)
    table: list[dict[str, Any]] = []
    for i, group in enumerate(base):
        row: dict[str, Any] = {"prompt": group.text, "kind": str(group.extra.get("kind", ""))}
        for name, groups in answers.items():
            c = groups[i].completions[0]
            row[name] = c.text
            for r in config.rewards:
                row[f"{r.name}_{name}"] = c.scores[r.name].value
        table.append(row)
    pq.write_table(pa.Table.from_pylist(table), out / "comparison.parquet")
    write_atomic(out / "summary.json", json.dumps(figures, indent=1).encode())
    for name in config.models:
        mine = figures[name]
        said = f"{name}: {first} {mine[first]['mean']:.3f}"
        if name != config.baseline:
            rate = mine["win_rate"]
            said += (
                f", beats {config.baseline} on {rate['mean']:.0%} of prompts"
                f" [{rate['low']:.0%}, {rate['high']:.0%}], KL {mine['kl']:.2f} nats"
            )
        console.print(f"[bold]compare[/bold]: {said}")
    return figures


def _values(groups: Sequence[Group], name: str) -> list[float]:
    """Scores by prompt; an answer that could not be scored counts as the lowest seen."""
    raw = [g.completions[0].scores[name].value for g in groups]
    known = [v for v in raw if v is not None]
    floor = min(known, default=0.0)
    return [floor if v is None else v for v in raw]

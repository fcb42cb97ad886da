"""How many held-out problems a model solves: pass@k by the unbiased estimator (2107.03374)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.data.render import Renderer, load_tokenizer
from trimtab.models.load import LM, ModelSpec
from trimtab.rewards.score import Rewards, RewardSpec
from trimtab.rollout.collector import collect
from trimtab.runs import write_atomic
from trimtab.runs.console import bar, console
from trimtab.sample.sampler import Sampler, SamplingConfig
from trimtab.stats.uncertainty import bootstrap_mean


class SolvedConfig(Config):
    """Configuration of pass@k."""

    out: str = "runs/solved"
    model: ModelSpec
    data: str
    """Prompts, one a row, with the columns that ``reward`` needs."""
    limit: int | None = Field(default=None, gt=0)
    reward: RewardSpec
    """Solved is a score of at least ``solved``."""
    solved: float = 1.0
    n: int = Field(default=8, gt=0)
    """Samples a prompt."""
    k: tuple[int, ...] = (1, 4, 8)
    """Each at most ``n``: for fewer samples than k there is no unbiased estimate."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    token_budget: int = 8192

    @model_validator(mode="after")
    def _enough(self) -> SolvedConfig:
        if max(self.k, default=1) > self.n or min(self.k, default=1) < 1:
            raise ValueError(f"k {list(self.k)} must lie between 1 and n ({self.n})")
        return self


def pass_at_k(n: int, right: int, k: int) -> float:
    """Probability that one of k samples, drawn from n of which ``right`` are right, is right.

    >>> round(pass_at_k(10, 3, 5), 6), round(pass_at_k(10, 3, 1), 6)
    (0.916667, 0.3)
    """
    assert 0 < k <= n and 0 <= right <= n, (n, right, k)
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def main(config: SolvedConfig) -> dict[str, Any]:
    """Sample, score, count. Writes ``solved.parquet`` (a row a prompt) and ``summary.json``.

    A completion that could not be scored counts as one that does not solve.

    Returns:
        "pass@K" -> mean, low, high over prompts (95 % bootstrap), the mean reward, mean length in
        tokens, the share of truncated and of unscored completions.
    """
    c = config
    examples = formats.prompts(sources.read(c.data, limit=c.limit))
    tokenizer = load_tokenizer(c.model.tokenizer or c.model.path, c.model.chat_template)
    renderer = Renderer(tokenizer, max_prompt=1 << 20, max_tokens=1 << 20)
    prompts = [g for g in map(renderer.prompt, examples) if g is not None]
    lm = LM.load(c.model, train=False)
    sampler = Sampler(lm.plain_attention(), tokenizer, stop_ids=renderer.stop_ids)
    with bar("solved") as show:
        groups = collect(
            sampler, renderer, prompts, c.sampling,
            n=c.n, key=(c.seed,), version=0, on_progress=show,
        )  # fmt: skip
    Rewards([c.reward], tokenizer, c.token_budget, c.model.device)(groups)
    scores = [[x.scores[c.reward.name].value for x in g.completions] for g in groups]
    right = [sum(v is not None and v >= c.solved for v in row) for row in scores]
    flat = [v for row in scores for v in row if v is not None]
    everything = [x for g in groups for x in g.completions]
    figures: dict[str, Any] = {"prompts": len(groups), "n": c.n}
    for k in c.k:
        mean, low, high = bootstrap_mean([pass_at_k(c.n, r, k) for r in right])
        figures[f"pass@{k}"] = {"mean": mean, "low": low, "high": high}
    figures["reward"] = float(np.mean(flat)) if flat else math.nan
    figures["length"] = float(np.mean([len(x) for x in everything]))
    figures["truncated"] = float(np.mean([x.finish == "length" for x in everything]))
    figures["unscored"] = 1.0 - len(flat) / len(everything)
    out = Path(c.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {"prompt": g.text, "right": r, "first": g.completions[0].text}
        for g, r in zip(groups, right, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), out / "solved.parquet")
    write_atomic(out / "summary.json", json.dumps(figures, indent=1).encode())
    said = ", ".join(
        f"pass@{k} {figures[f'pass@{k}']['mean']:.3f} "
        f"[{figures[f'pass@{k}']['low']:.3f}, {figures[f'pass@{k}']['high']:.3f}]"
        for k in c.k
    )
    console.print(f"[bold]solved[/bold]: {said} on {len(groups)} prompts -> {c.out}")
    return figures

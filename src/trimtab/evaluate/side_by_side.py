"""The same held-out prompts answered by the start, the policy at chosen steps, and the best audited."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, model_validator

from trimtab.config import Config, build, read_yaml
from trimtab.data import formats, sources
from trimtab.data.render import Renderer, load_tokenizer
from trimtab.errors import CheckpointError, ConfigError, DataError
from trimtab.evaluate.side_page import write_page
from trimtab.models import checkpoint
from trimtab.models.load import LM, ModelSpec
from trimtab.rewards.score import Rewards, RewardSpec
from trimtab.rollout.collector import collect
from trimtab.runs import to_json, write_atomic
from trimtab.runs.console import bar, console
from trimtab.sample.sampler import Sampler, SamplingConfig
from trimtab.stats.length import Verdicts, length_controlled
from trimtab.stats.style import openings, style
from trimtab.stats.uncertainty import bootstrap_mean, win_rate
from trimtab.types import Group

START, BEST, LAST = "start", "best audited", "last"


class SideConfig(Config):
    """Configuration of ``trimtab side_by_side RUN``."""

    run: str | None = None
    """The folder of an online run: its start, its checkpoints, its best audited policy."""
    models: dict[str, ModelSpec] = Field(default_factory=dict[str, ModelSpec])
    """Other models by name; without ``run`` the first is what the others are compared with."""
    data: str
    """Held-out prompts."""
    limit: int | None = Field(default=200, gt=0)
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """The first decides wins: gold, a stronger reward model, or a judge of pairs."""
    steps: tuple[int, ...] | None = None
    """Of checkpoints; all that are kept when not given."""
    temperatures: tuple[float, ...] = ()
    """The last policy at these too: what decoding costs in diversity and brings in gold."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Of those."""
    sampling: SamplingConfig = SamplingConfig()
    out: str | None = None
    """RUN/side-by-side when not given."""
    seed: int = 0
    token_budget: int = 8192
    device: str = "auto"

    @model_validator(mode="after")
    def _whole(self) -> SideConfig:
        if self.run is None and len(self.models) < 2:
            raise ValueError("give a run, or two models or more")
        if self.run is None and self.out is None:
            raise ValueError("without a run, say where to with out")
        if {START, BEST, LAST} & self.models.keys():
            raise ValueError(f"models: {START!r}, {BEST!r} and {LAST!r} are names of their own")
        return self


def _from_run(run: Path, steps: Sequence[int] | None, device: str) -> Iterator[tuple[str, LM]]:
    """The start and each policy of a run; the same model with other weights each time.

    Raises:
        ConfigError: no configuration, or a step without a checkpoint.
    """
    config = read_yaml(run / "config.yaml")
    if "model" not in config:
        raise ConfigError(f"{run / 'config.yaml'}: has no key model; it is no training run")
    spec = build(ModelSpec, config["model"], f"{run / 'config.yaml'}: model")
    kept = {
        int(p.name.split("-")[1].split(".")[0]): p for p in (run / "checkpoints").glob("step-*")
    }
    wanted = sorted(kept) if steps is None else list(steps)
    for step in wanted:
        if step not in kept:
            have = ", ".join(map(str, sorted(kept))) or "none"
            raise ConfigError(
                f"{run}/checkpoints: no step {step}; there are {have} (loop.save_steps and loop.save_total_limit)"
            )
    lm = LM.load(spec.model_copy(update={"device": device}))
    lm.model.eval()
    yield START, lm
    for step in wanted:
        _weights(lm, checkpoint.read(kept[step]))
        yield f"step {step}", lm
    best = checkpoint.latest(run / "best") if (run / "best").is_dir() else None
    if best is not None:
        _weights(lm, best)
        yield BEST, lm
    if (run / "model").is_dir():
        path = {"path": str(run / "model"), "lora": None, "device": device}
        yield LAST, LM.load(spec.model_copy(update=path), train=False)


@torch.no_grad()
def _weights(lm: LM, saved: checkpoint.Checkpoint) -> None:
    """Raises CheckpointError where it holds no policy of this model."""
    tensors = saved.tensors("params.policy")
    params = {n: p for n, p in lm.model.named_parameters() if p.requires_grad}
    if params.keys() != tensors.keys():
        raise CheckpointError(f"{saved.path}: holds the parameters of another model")
    for name, p in params.items():
        p.copy_(tensors[name])


def _all(c: SideConfig) -> Iterator[tuple[str, LM, SamplingConfig, ModelSpec]]:
    last: tuple[LM, ModelSpec] | None = None
    if c.run is not None:
        for name, lm in _from_run(Path(c.run), c.steps, c.device):
            yield name, lm, c.sampling, lm.spec
            last = (lm, lm.spec)
    for name, spec in c.models.items():
        lm = LM.load(spec.model_copy(update={"device": c.device}), train=False)
        yield name, lm, c.sampling, spec
        last = (lm, spec)
    for t in c.temperatures:
        assert last is not None
        how = c.sampling.model_copy(update={"temperature": t, "top_p": c.top_p})
        yield f"T={t:g}" + (f" p={c.top_p:g}" if c.top_p < 1 else ""), last[0], how, last[1]


def main(config: SideConfig) -> dict[str, Any]:
    """Answer, score, compare. Writes side.html, side.json and side.parquet.

    Returns:
        By model: each reward's mean with its interval, style (``stats.style``) and openings; and
        against the first the win rate, raw and at equal length, with 95 % intervals over prompts.

    Raises:
        DataError: no prompt, or an answer's scores all failed.
    """
    c = config
    examples = formats.prompts(sources.read(c.data, limit=c.limit))
    out = Path(c.out) if c.out is not None else Path(str(c.run)) / "side-by-side"
    answers: dict[str, list[Group]] = {}
    for name, lm, sampling, spec in _all(c):
        tokenizer = load_tokenizer(spec.tokenizer or spec.path, spec.chat_template)
        renderer = Renderer(tokenizer, max_prompt=1 << 20, max_tokens=1 << 20)
        prompts = [g for g in map(renderer.prompt, examples) if g is not None]
        sampler = Sampler(lm.plain_attention(), tokenizer, stop_ids=renderer.stop_ids)
        with bar(name) as show:
            groups = collect(
                sampler, renderer, prompts, sampling,
                n=1, key=(c.seed,), version=0, on_progress=show,
            )  # fmt: skip
        plain = tuple(r for r in c.rewards if r.judge is None)
        if plain:
            Rewards(plain, tokenizer, c.token_budget, c.device)(groups)
        answers[name] = groups
    first = c.rewards[0]
    base = next(iter(answers))
    figures = {
        name: _figures(name, groups, answers[base], c.rewards, first)
        for name, groups in answers.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    rows = _rows(answers, c.rewards)
    pq.write_table(pa.Table.from_pylist(rows), out / "side.parquet")
    write_atomic(out / "side.json", to_json(figures, indent=1).encode("utf-8", "replace"))
    page = write_page(out, figures, rows, first.name)
    for name, mine in figures.items():
        if name != base:
            raw, even = mine["win_rate"], mine["win_rate_length_controlled"]
            console.print(
                f"[bold]{name}[/bold]: beats {base} on {raw['mean']:.0%} [{raw['low']:.0%}, "
                f"{raw['high']:.0%}], at equal length {even['mean']:.0%} [{even['low']:.0%}, "
                f"{even['high']:.0%}]; words {mine['style']['words']:.1f} "
                f"(was {figures[base]['style']['words']:.1f})"
            )
    console.print(f"side by side -> {page}")
    return figures


def _figures(
    name: str,
    groups: Sequence[Group],
    base: Sequence[Group],
    rewards: Sequence[RewardSpec],
    first: RewardSpec,
) -> dict[str, Any]:
    texts = [g.completions[0].text for g in groups]
    mine: dict[str, Any] = {
        "style": style([g.text for g in groups], texts),
        "openings": openings(texts),
        "truncated": float(np.mean([g.completions[0].finish == "length" for g in groups])),
    }
    for r in rewards:
        if r.judge is None:
            mine[r.name] = _estimate(bootstrap_mean(_known(groups, r.name)))
    wins, gaps = _wins(groups, base, first)
    mine["win_rate"] = _estimate(bootstrap_mean(wins))
    # One answer a prompt: its own verdict is all that is known of a prompt's difficulty.
    prompts = tuple(map(str, range(len(wins))))
    verdicts = Verdicts(prompts, np.asarray(wins, float), np.asarray(gaps, float))
    mine["win_rate_length_controlled"] = _estimate(length_controlled(verdicts, {}))
    mine["compared"] = len(wins)
    return mine


def _estimate(of: tuple[float, float, float]) -> dict[str, float]:
    return {"mean": of[0], "low": of[1], "high": of[2]}


def _known(groups: Sequence[Group], name: str) -> list[float]:
    """Scores there are.

    Raises:
        DataError: there are none.
    """
    scores = [g.completions[0].scores[name] for g in groups]
    known = [s.value for s in scores if s.value is not None]
    if not known:
        raise DataError(f"reward {name!r} scored no answer; the first failure: {scores[0].detail}")
    return known


def _wins(
    groups: Sequence[Group], base: Sequence[Group], first: RewardSpec
) -> tuple[list[float], list[float]]:
    """Who won each prompt, and by how many words it was longer; prompts without a verdict are out."""
    if first.judge is not None:
        both = [
            Group(b.id, b.prompt, [*g.completions, *b.completions], b.text, b.extra)
            for g, b in zip(groups, base, strict=True)
        ]
        Rewards([first], None, 0)(both)
        scored = [[x.scores[first.name].value for x in g.completions] for g in both]
    else:
        scored = [
            [x.completions[0].scores[first.name].value for x in (g, b)]
            for g, b in zip(groups, base, strict=True)
        ]
    wins: list[float] = []
    gaps: list[float] = []
    for (mine, theirs), g, b in zip(scored, groups, base, strict=True):
        if mine is None or theirs is None:
            continue
        wins.append(win_rate([mine], [theirs], n=1)[0])
        gaps.append(float(len(g.completions[0].text.split()) - len(b.completions[0].text.split())))
    return wins, gaps


def _rows(answers: dict[str, list[Group]], rewards: Sequence[RewardSpec]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for i, group in enumerate(next(iter(answers.values()))):
        row: dict[str, Any] = {"prompt": group.text}
        for name, groups in answers.items():
            done = groups[i].completions[0]
            row[name] = done.text
            scores = {r.name: done.scores[r.name].value for r in rewards if r.judge is None}
            row[f"scores {name}"] = json.dumps(scores)
        rows.append(row)
    return rows

"""``trimtab best-of-n``: sample, score and keep the best, as rows for sft (RAFT, 2304.06767) and dpo."""

import logging
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.group_tensors import from_bytes, to_bytes
from trimtab.data.render import Renderer
from trimtab.data.rows import comparison, demonstration
from trimtab.datagen.output import write_summary
from trimtab.datagen.parts import Work, run_parts
from trimtab.errors import DataError
from trimtab.evaluate.best_of_n_gain import curve
from trimtab.models.load import ModelSpec, renderer_for
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.rollout.collector import collect
from trimtab.rollout.engines.native import NativeEngine
from trimtab.runs import Run, open_run, to_json, write_atomic
from trimtab.runs.job_launch import PartLaunchSpec
from trimtab.sample.sampler import SamplingConfig
from trimtab.stats.order_stats import pick
from trimtab.train.scored import best_and_worst, nothing_scored, sample_rows
from trimtab.types import Completion, Group, Row

log = logging.getLogger(__name__)


class BestOfNConfig(Config):
    """Configuration of ``trimtab best-of-n``."""

    free_keys: ClassVar[frozenset[str]] = frozenset({"token_budget", "launch"})
    renamed: ClassVar[dict[str, str]] = {"n": "num_completions"}

    out: str = "runs/best_of_n"
    """Gets best.jsonl, pairs.jsonl, samples/ and summary.json."""
    model: ModelSpec
    """Model that is sampled."""
    data: DataSpec
    """Prompts; other columns are passed to the rewards and copied to the rows."""
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """Completions are ranked by the weighted sum; a reward of weight 0 is only reported."""
    num_completions: int = Field(default=8, ge=2)
    """Completions per prompt."""
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    """A best completion with a lower reward is not written to best.jsonl."""
    sampling: SamplingConfig = SamplingConfig()
    token_budget: int = Field(default=8192, gt=0)
    seed: int = 0
    launch: PartLaunchSpec = PartLaunchSpec()
    """Whether parts of the prompts are sampled and scored on a Ray cluster."""

    @model_validator(mode="after")
    def _check_parts(self) -> "BestOfNConfig":
        if self.launch == PartLaunchSpec():
            return self
        for r in self.rewards:
            if r.residual_length and r.reference is None:
                raise ValueError(
                    f"launch: the fit on length of reward {r.name!r} needs all completions at once; give "
                    "it a reference, or leave launch out"
                )
            if r.ai is not None and r.ai.max_calls is not None and r.ai.cache is None:
                raise ValueError(
                    f"launch: reward {r.name!r} has max_calls, which is counted in its cache; set "
                    "ai.cache to a file that all workers can write"
                )
        return self


@dataclass(frozen=True, slots=True)
class BestOfNSummary:
    """summary.json of ``trimtab best-of-n``."""

    prompts: int
    n: int
    best: int
    """Rows of best.jsonl."""
    below: int
    """Prompts whose best completion is below the threshold."""
    pairs: int
    ties: int
    """Prompts without a pair because their completions tie."""
    lone: int
    """Prompts with fewer than two usable completions."""
    unscored: int
    empty: int
    truncated: int
    length: float
    """Mean, tokens."""
    best_of: dict[str, dict[str, float]]
    """See ``evaluate.best_of_n_gain.curve``."""


def usable(c: Completion) -> bool:
    """Whether a completion may become a row: scored, not empty, and not truncated (a row's text
    ends with an end token, which a truncated completion does not have)."""
    return c.reward is not None and bool(c.text.strip()) and c.finish != "length"


def main(config: BestOfNConfig) -> BestOfNSummary:
    """Sample, score and pick; writes best.jsonl, pairs.jsonl, samples/ (all) and summary.json.

    Of equally good completions the first is the best. Rows have the prompt's other columns and the
    rewards.

    Raises:
        DataError: no completion could be scored, or none is good enough for a row.
    """
    with open_run(config, config.out) as run:
        return _best_of_n(config, run)


def _best_of_n(c: BestOfNConfig, run: Run) -> BestOfNSummary:
    prompts = _prompts(c, renderer_for(c.model, c.data))
    parts = run_parts(_load, c, c.launch, len(prompts), run.path, "best of n")
    groups = [group for part in parts for group in from_bytes(part)]
    for group, prompt in zip(groups, prompts, strict=True):
        group.extra = prompt.extra
    done = [x for g in groups for x in g.completions]
    if all(x.reward is None for x in done):
        raise nothing_scored(c.data.path, done)
    best: list[Row] = []
    pairs: list[Row] = []
    ties = lone = below = 0
    for group in groups:
        extra = {k: v for k, v in group.extra.items() if k not in formats.COLUMNS}
        extra = {"id": group.id, **extra}
        candidates = [x for x in group.completions if usable(x)]
        if candidates:
            top = candidates[pick([cast(float, x.reward) for x in candidates])]
            if c.threshold is not None and cast(float, top.reward) < c.threshold:
                below += 1
            else:
                best.append({**extra, **demonstration(group, top.text), "reward": top.reward})
        if len(candidates) < 2:
            lone += 1
            continue
        extremes = best_and_worst(candidates)
        if extremes is None or extremes[0].text == extremes[1].text:
            ties += 1
            continue
        w, l = extremes
        reward_columns = {"reward_chosen": w.reward, "reward_rejected": l.reward}
        pairs.append({**extra, **comparison(group, w.text, l.text), **reward_columns})
    if not best:
        raise DataError(
            f"{c.data.path}: no completion is good enough for a row: of {len(groups)} prompts {below} "
            f"have their best below threshold {c.threshold}, the others only completions that are "
            "unscored, empty, or truncated by sampling.max_new_tokens"
        )
    for name, rows in (("best", best), ("pairs", pairs)):
        write_atomic(run.path / f"{name}.jsonl", "".join(to_json(r) + "\n" for r in rows).encode())
    run.samples(0, sample_rows(groups))
    summary = BestOfNSummary(
        prompts=len(groups),
        n=c.num_completions,
        best=len(best),
        below=below,
        pairs=len(pairs),
        ties=ties,
        lone=lone,
        unscored=sum(x.reward is None for x in done),
        empty=sum(not x.text.strip() for x in done),
        truncated=sum(x.finish == "length" for x in done),
        length=float(np.mean([len(x) for x in done])),
        best_of=curve(groups, [r.name for r in c.rewards], c.num_completions),
    )
    write_summary(run.path, summary)
    one, last = summary.best_of["1"], list(summary.best_of.items())[-1]
    log.info(
        f"best of {last[0]}: reward {one['reward']:+.3f} -> {last[1]['reward']:+.3f} "
        f"(KL at most {last[1]['kl_bound']:.2f} nats); {len(best)} best, {len(pairs)} pairs, "
        f"{ties} ties, {summary.unscored} of {len(done)} completions without a score -> {c.out}"
    )
    return summary


def _prompts(c: BestOfNConfig, renderer: Renderer) -> list[Group]:
    return load_groups(c.data, formats.prompts, renderer.prompt)


def _load(c: BestOfNConfig) -> Work:
    renderer = renderer_for(c.model, c.data)
    prompts = _prompts(c, renderer)
    rewards = Rewards(c.rewards, renderer.tokenizer, c.token_budget, c.model.device)
    # A part may lack columns that other prompts have.
    rewards.prepare({name for g in prompts for name in g.extra}, 0)
    engine = NativeEngine.load(c.model, renderer)

    def best_of_n_part(start: int, stop: int) -> bytes:
        """Scored completions of some prompts."""
        part, n, key = prompts[start:stop], c.num_completions, (c.seed,)
        groups = collect(engine, renderer, part, c.sampling, n=n, key=key, first=start)
        rewards(groups)
        return to_bytes(groups)

    return best_of_n_part

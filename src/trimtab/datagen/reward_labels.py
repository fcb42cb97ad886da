"""``trimtab reward-labels``: a reward ranks completions, as people and judges do."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field
from scipy.special import expit

from trimtab.config import Config
from trimtab.data.conversation import Text
from trimtab.data.formats import Example
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.datagen.output import write_summary
from trimtab.errors import DataError
from trimtab.feedback import records
from trimtab.feedback.comparisons import comparison_rows
from trimtab.feedback.items import read_items
from trimtab.feedback.judgement import Item, Judgement
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.runs import open_run
from trimtab.stats.ranking import ranks_by_worth
from trimtab.types import Group

log = logging.getLogger(__name__)


class RewardLabelsConfig(Config):
    """Configuration of ``trimtab reward-labels``."""

    out: str = "runs/reward_labels"
    """Gets items.jsonl, judgements.jsonl, rows.jsonl (comparisons to train on) and summary.json."""
    data: str
    """Items, as ``trimtab sample`` writes them, or rows with ``prompt`` and ``completions``. Ranks in
    them are not read."""
    skip: int = Field(default=0, ge=0)
    """Items to skip first."""
    limit: int | None = Field(default=None, gt=0)
    """Items to label, after ``skip``."""
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """The labeller: the weighted sum of these rewards, such as one trained reward model."""
    tokenizer: str
    """Folder or hub id of a tokenizer with a chat template, such as the policy's."""
    draw: bool = False
    """Draw the ranks, with the scores as log-odds (Plackett-Luce, so each pair is Bradley-Terry), as an
    annotator with these preferences would. By default the order of the scores."""
    scale: float = Field(default=1.0, gt=0.0)
    """Nats per point of reward, for ``draw`` and for the probabilities of pairs."""
    tie: float = Field(default=0.0, ge=0.0)
    """Without ``draw``: adjacent scores that differ by less tie; 0 ties only equal ones."""
    token_budget: int = Field(default=8192, gt=0)
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RewardLabelsSummary:
    """summary.json of ``trimtab reward-labels``."""

    items: int
    rows: int
    undecided: int
    """Items whose completions all tie."""
    failed: int
    """Items with a completion that could not be scored; they have no row."""
    mean: float
    """Mean reward of the completions that were scored."""


def main(config: RewardLabelsConfig) -> RewardLabelsSummary:
    """Score the completions of every item and rank them by their scores.

    Raises:
        DataError: an item cannot be used, or no completion could be scored.
    """
    with open_run(config, config.out) as run:
        return _label(config, run.path)


def _label(c: RewardLabelsConfig, out: Path) -> RewardLabelsSummary:
    most = None if c.limit is None else c.skip + c.limit
    items = read_items(c.data, most)[c.skip :]
    if not items:
        raise DataError(f"{c.data}: skip {c.skip} leaves no item to label; lower it")
    tokenizer = load_tokenizer(c.tokenizer)
    groups = _groups(items, Renderer(tokenizer))
    rewards = Rewards(c.rewards, tokenizer, c.token_budget, c.device)
    rewards.prepare({name for g in groups for name in g.extra}, 0)
    rewards(groups)
    name = "+".join(r.name for r in c.rewards)
    judgements = [
        judgement(item, [x.reward for x in group.completions], name, c, index)
        for index, (item, group) in enumerate(zip(items, groups, strict=True), c.skip)
    ]
    scored = [x.reward for g in groups for x in g.completions if x.reward is not None]
    if not scored:
        why = next(s.detail for s in groups[0].completions[0].scores.values() if not s.ok)
        raise DataError(f"{c.data}: the rewards scored no completion; the first failure: {why}")
    rows = comparison_rows({item.id: item for item in items}, judgements, ties=False)
    records.write(out / records.ITEMS, items)
    records.write(out / records.JUDGEMENTS, judgements)
    records.write(out / "rows.jsonl", rows)
    failed = sum(j.status == "error" for j in judgements)
    summary = RewardLabelsSummary(
        items=len(items),
        rows=len(rows),
        undecided=len(items) - failed - len(rows),
        failed=failed,
        mean=float(np.mean(scored)),
    )
    write_summary(out, summary)
    log.info(
        f"reward labels: {name} ranked {len(rows)} of {len(items)} items ({summary.undecided} "
        f"undecided, {failed} without a score) -> {c.out}/rows.jsonl"
    )
    return summary


def _groups(items: Sequence[Item], renderer: Renderer) -> list[Group]:
    groups: list[Group] = []
    for item in items:
        completions: list[Text] = [
            [{"role": "assistant", "content": text}] for text in item.completions
        ]
        group = renderer.scoring(
            Example(item.id, list(item.prompt), completions, extra=dict(item.extra))
        )
        assert group is not None, "a renderer without limits drops no row"
        groups.append(group)
    return groups


def judgement(
    item: Item, scores: Sequence[float | None], name: str, config: RewardLabelsConfig, index: int
) -> Judgement:
    """The verdict that follows from the scores [K] of an item's completions.

    Args:
        name: The labeller's.
        index: Of the item in the file, for the random stream of ``draw``.
    """
    values = [s for s in scores if s is not None]
    if len(values) < len(scores):
        return Judgement(item=item.id, annotator=name, who="ai", status="error")
    nats = config.scale * np.asarray(values, np.float64)
    if config.draw:
        rng = np.random.default_rng((config.seed, 67, index))
        ranks = ranks_by_worth((nats + rng.gumbel(size=len(nats))).tolist())
    else:
        ranks = _ranks_with_ties(values, config.tie)
    return Judgement(
        item=item.id,
        annotator=name,
        who="ai",
        ranks=ranks,
        prob=float(expit(nats[0] - nats[1])) if len(nats) == 2 else None,
        scores={"reward": tuple(values)},
        seed=config.seed if config.draw else None,
    )


def _ranks_with_ties(values: Sequence[float], tie: float) -> tuple[int, ...]:
    """Ranks, best first, where a value ties with the next higher one if it is less than ``tie`` below."""
    ranks = [0] * len(values)
    order = sorted(range(len(values)), key=lambda k: -values[k])
    for above, k in itertools.pairwise(order):
        gap = values[above] - values[k]
        ranks[k] = ranks[above] + (gap > 0 and gap >= tie)
    return tuple(ranks)

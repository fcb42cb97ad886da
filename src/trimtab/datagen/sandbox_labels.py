"""``trimtab sandbox-labels``: simulated annotators rank a model's completions on the sandbox task."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.datagen.output import jsonl, write_summary
from trimtab.errors import DataError
from trimtab.models.load import ModelSpec, renderer_for
from trimtab.rollout.collector import collect
from trimtab.rollout.engines.native import NativeEngine
from trimtab.runs import write_atomic
from trimtab.sample.sampler import SamplingConfig
from trimtab.sandbox import annotators
from trimtab.sandbox.world import Scene
from trimtab.types import Row

log = logging.getLogger(__name__)


class SandboxLabelsConfig(Config):
    """Configuration of ``trimtab sandbox-labels``."""

    renamed: ClassVar[dict[str, str]] = {"answers": "num_completions"}

    out: str = "runs/label"
    model: ModelSpec
    """Model whose completions are ranked."""
    data: str
    """Prompts of the sandbox task: rows with a ``scene``."""
    skip: int = Field(default=0, ge=0)
    """Prompts to skip first: those that an earlier round has labelled."""
    limit: int | None = Field(default=None, gt=0)
    """Prompts to label, after ``skip``."""
    num_completions: int = Field(default=4, ge=2, le=9)
    """Completions sampled per prompt."""
    heldout: int = Field(default=200, gt=0)
    """Prompts whose comparisons are for evaluation; at most a quarter of all."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SandboxLabelsSummary:
    """Numbers of labelled prompts and of comparisons, without those held out."""

    prompts: int
    comparisons: int
    heldout: int


def main(config: SandboxLabelsConfig) -> SandboxLabelsSummary:
    """Sample completions and rank them by simulated annotators; comparisons.jsonl, heldout.jsonl.

    Rows have ``prompt``, ``completions``, ``ranks`` (0 best), ``annotator``, and ``probs``: the
    annotator's probability that one completion is better than another, from which the accuracy
    ceiling of a reward model is computed.

    Raises:
        DataError: ``skip`` leaves no prompt, or the prompts are not of the sandbox.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    most = None if config.limit is None else config.skip + config.limit
    examples = formats.prompts(sources.read(config.data, limit=most))[config.skip :]
    if not examples:
        raise DataError(f"{config.data}: skip {config.skip} leaves no prompt to label; lower it")
    if any(not isinstance(e.extra.get("scene"), str) for e in examples):
        raise DataError(
            f"{config.data}: a row has no 'scene' to compute gold scores from; use prompts of "
            "trimtab sandbox-data"
        )
    renderer = renderer_for(config.model)
    groups = collect(
        NativeEngine.load(config.model, renderer),
        renderer,
        [g for g in map(renderer.prompt, examples) if g is not None],
        config.sampling,
        n=config.num_completions,
        key=(config.seed,),
        title="label",
    )
    people = annotators.panel()
    rows: list[Row] = []
    for i, group in enumerate(groups):
        scene = Scene.from_json(group.extra["scene"])
        rng = np.random.default_rng((config.seed, i))
        person = people[int(rng.integers(len(people)))]
        texts = list(dict.fromkeys(c.text for c in group.completions if c.text.strip()))
        if len(texts) < 2:
            continue
        ranks = person.rank(scene, texts, rng)
        probs = [[person.prob(scene, a, b) if a != b else 0.5 for b in texts] for a in texts]
        rows.append(
            {
                "prompt": scene.messages(),
                "completions": texts,
                "ranks": [int(r) for r in ranks],
                "annotator": person.name,
                "probs": probs,
                "kind": scene.kind,
                "scene": scene.to_json(),
            }
        )
    heldout = min(config.heldout, len(rows) // 4)
    write_atomic(out / "comparisons.jsonl", jsonl(rows[heldout:]))
    write_atomic(out / "heldout.jsonl", jsonl(rows[:heldout]))
    pairs = sum(len(r["ranks"]) * (len(r["ranks"]) - 1) // 2 for r in rows[heldout:])
    summary = SandboxLabelsSummary(len(rows) - heldout, pairs, heldout)
    write_summary(out, summary)
    log.info(
        f"label: {summary.prompts} prompts ranked, {pairs} comparisons by "
        f"{len(people)} simulated people, {heldout} prompts held out -> {config.out}"
    )
    return summary

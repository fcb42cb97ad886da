"""``trimtab sandbox-labels``: simulated annotators rank a model's completions on the sandbox task."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.datagen.output import jsonl, write_summary
from trimtab.errors import DataError
from trimtab.feedback import records
from trimtab.feedback.judgement import Item, Judgement
from trimtab.models.load import ModelSpec, renderer_for
from trimtab.rollout.collector import collect
from trimtab.rollout.engines.native import NativeEngine
from trimtab.runs import write_atomic
from trimtab.sample.sampler import SamplingConfig
from trimtab.sandbox import annotators
from trimtab.sandbox.annotators import Annotator
from trimtab.sandbox.label_forms import Form, Verdict, judge_item, margins
from trimtab.sandbox.world import Scene
from trimtab.types import Group, Row

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
    panel: tuple[Annotator, ...] = ()
    """Annotators, each as likely to get a prompt; empty: three with mild biases."""
    form: Form = "rank"
    """What they are asked for each prompt: a ranking, a choice for every pair, choices for the pairs
    that sorting needs, or a score for each completion."""
    annotators_per_prompt: int = Field(default=1, gt=0)
    """Different annotators who judge the same completions, each in rows of their own."""
    margins: Literal["none", "nats", "strength"] = "none"
    """Column ``margin``, how much better a completion is than the next rank: the annotator's nats, or
    a stated strength from 1 to 4."""
    records: bool = False
    """Also write items.jsonl and judgements.jsonl, for ``trimtab agreement``, and the seconds that
    labelling took."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        people = len(self.panel or annotators.panel())
        if self.annotators_per_prompt > people:
            raise ValueError(
                f"annotators_per_prompt: {self.annotators_per_prompt} of a panel of {people}"
            )
        if len({a.name for a in self.panel}) != len(self.panel):
            raise ValueError("panel: two annotators have the same name")
        return self


@dataclass(frozen=True, slots=True)
class SandboxLabelsSummary:
    """Numbers of labelled prompts and of comparisons, without those held out."""

    prompts: int
    comparisons: int
    heldout: int
    seconds: float | None = None
    """Of labelling, held-out prompts included, where ``records`` is set."""


class Labels:
    """Labels of the panel, prompt by prompt.

    Attributes:
        rows: The rows of every prompt that has two different completions.
        items: What was judged: a prompt with its completions, of pairs with two of them.
        judgements: Verdicts on ``items``.
        seconds: Time of labelling so far.
    """

    def __init__(self, config: SandboxLabelsConfig) -> None:
        self.config = config
        self.people = list(config.panel) or annotators.panel()
        self.rows: list[list[Row]] = []
        self.items: list[Item] = []
        self.judgements: list[Judgement] = []
        self.seconds = 0.0
        self._judged: Counter[str] = Counter()

    def add(self, index: int, group: Group) -> None:
        """Have a prompt's completions judged; equal completions are merged, empty ones dropped."""
        c = self.config
        scene = Scene.from_json(group.extra["scene"])
        texts = list(dict.fromkeys(x.text for x in group.completions if x.text.strip()))
        rng = np.random.default_rng((c.seed, index))
        first = int(rng.integers(len(self.people)))
        if len(texts) < 2:
            return
        rows: list[Row] = []
        judged: dict[tuple[int, ...], str] = {}
        for turn in range(c.annotators_per_prompt):
            if turn:
                rng = np.random.default_rng((c.seed, index, turn))
            fresh = self.people[(first + turn) % len(self.people)]
            person = fresh.after(self._judged[fresh.name])
            self._judged[fresh.name] += 1
            for verdict in judge_item(person, scene, texts, c.form, rng):
                rows.append(self._row(person, scene, texts, verdict))
                self._record(str(index), person, scene, texts, verdict, judged)
        self.rows.append(rows)

    def _row(self, person: Annotator, scene: Scene, texts: list[str], verdict: Verdict) -> Row:
        own = [texts[k] for k in verdict.members]
        probs = [[person.prob(scene, a, b) if a != b else 0.5 for b in own] for a in own]
        if verdict.planted:
            probs = [
                [0.5 + (a < b) / 2 - (a > b) / 2 for b in verdict.ranks] for a in verdict.ranks
            ]
        row: Row = {
            "prompt": scene.messages(),
            "completions": own,
            "ranks": list(verdict.ranks),
            "annotator": person.name,
            "probs": probs,
            "kind": scene.kind,
            "scene": scene.to_json(),
        }
        if self.config.margins != "none":
            in_nats = self.config.margins == "nats"
            row["margin"] = margins(person, scene, own, verdict.ranks, in_nats)
        if person.group:
            row["group"] = person.group
        if self.config.records:
            row["seconds"] = verdict.seconds
        if verdict.scores is not None:
            row["scores"] = list(verdict.scores)
        return row

    def _record(
        self,
        prompt: str,
        person: Annotator,
        scene: Scene,
        texts: list[str],
        verdict: Verdict,
        judged: dict[tuple[int, ...], str],
    ) -> None:
        own = [texts[k] for k in verdict.members]
        name = (
            prompt
            if len(own) == len(texts)
            else f"{prompt}:{verdict.members[0]}-{verdict.members[1]}"
        )
        if verdict.members not in judged:
            judged[verdict.members] = name
            extra: Row = {"kind": scene.kind, "scene": scene.to_json()}
            self.items.append(
                Item(id=name, prompt=tuple(scene.messages()), completions=tuple(own), extra=extra)
            )
        strength = None
        if len(own) == 2 and verdict.ranks[0] != verdict.ranks[1]:
            better, worse = own if verdict.ranks[0] == 0 else own[::-1]
            strength = person.strength(scene, better, worse)
        scores = {"overall": tuple(map(float, verdict.scores))} if verdict.scores else {}
        self.seconds += verdict.seconds
        self.judgements.append(
            Judgement(
                item=name,
                annotator=person.name,
                who="simulated",
                ranks=verdict.ranks,
                strength=strength,
                scores=scores,
                seconds=verdict.seconds,
                seed=self.config.seed,
            )
        )


def main(config: SandboxLabelsConfig) -> SandboxLabelsSummary:
    """Sample completions and rank them by simulated annotators; comparisons.jsonl, heldout.jsonl.

    Rows have ``prompt``, ``completions``, ``ranks`` (0 best), ``annotator``, and ``probs``: the
    annotator's probability that one completion is better than another, from which the accuracy
    ceiling of a reward model is computed. With options: ``margin``, ``group``, ``seconds``,
    ``scores`` (1 to 7).

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
    labels = Labels(config)
    for i, group in enumerate(groups):
        labels.add(i, group)
    rows = labels.rows
    heldout = min(config.heldout, len(rows) // 4)
    evaluated, trained = (
        [row for of_prompt in part for row in of_prompt]
        for part in (rows[:heldout], rows[heldout:])
    )
    write_atomic(out / "comparisons.jsonl", jsonl(trained))
    write_atomic(out / "heldout.jsonl", jsonl(evaluated))
    if config.records:
        records.write(out / records.ITEMS, labels.items)
        records.write(out / records.JUDGEMENTS, labels.judgements)
    pairs = sum(len(r["ranks"]) * (len(r["ranks"]) - 1) // 2 for r in trained)
    seconds = labels.seconds if config.records else None
    summary = SandboxLabelsSummary(len(rows) - heldout, pairs, heldout, seconds)
    write_summary(out, summary)
    log.info(
        f"label: {summary.prompts} prompts ranked, {pairs} comparisons by "
        f"{len(labels.people)} simulated people, {heldout} prompts held out -> {config.out}"
    )
    return summary

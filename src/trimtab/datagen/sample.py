"""``trimtab sample``: a model's completions as items, for people and judges to compare."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.formats import Example
from trimtab.data.render import Renderer
from trimtab.datagen.output import write_summary
from trimtab.datagen.parts import Work, run_parts
from trimtab.errors import DataError, ModelError
from trimtab.feedback import records
from trimtab.feedback.items import Entry
from trimtab.feedback.judgement import Item
from trimtab.feedback.records import messages
from trimtab.label.label_config import LabelConfig
from trimtab.label.store import Store
from trimtab.models.load import ModelSpec, renderer_for
from trimtab.rollout.engine import Engine, generate
from trimtab.rollout.engines.native import NativeEngine
from trimtab.runs import open_run, to_json
from trimtab.runs.job_launch import PartLaunchSpec
from trimtab.sample.sampler import Progress, Request, SamplingConfig
from trimtab.types import Group

log = logging.getLogger(__name__)


class SampleConfig(Config):
    """Configuration of ``trimtab sample``."""

    free_keys: ClassVar[frozenset[str]] = frozenset({"launch"})
    renamed: ClassVar[dict[str, str]] = {"answers": "num_completions"}

    out: str = "runs/sample"
    """Gets items.jsonl and summary.json."""
    launch: PartLaunchSpec = PartLaunchSpec()
    """Whether parts of the prompts are sampled on a Ray cluster. The completions do not depend on it."""
    model: ModelSpec
    """Model that is sampled."""
    data: DataSpec
    """Prompts; other columns are copied to ``extra``."""
    skip: int = Field(default=0, ge=0)
    """Prompts to skip first."""
    num_completions: int = Field(default=2, ge=1, le=9)
    """Different completions per prompt; prompts with fewer give no item."""
    tries: int = Field(default=4, gt=0)
    """Rounds of sampling for a prompt with too few different completions."""
    keep_truncated: bool = False
    """Whether completions that reach ``sampling.max_new_tokens`` count."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Writer:
    """Samples different completions of one model for prompts."""

    renderer: Renderer
    engine: Engine
    sampling: SamplingConfig
    n: int
    """Different completions per prompt."""
    cut: bool = False
    """Whether completions that reach ``max_new_tokens`` count."""

    def __call__(
        self,
        prompts: Sequence[Group],
        keys: Sequence[tuple[int, ...]],
        tries: int,
        on_progress: Progress | None = None,
    ) -> list[list[str]]:
        """At most ``n`` different non-empty texts per prompt.

        Prompts with too few are sampled again, ``tries`` times in all. Random streams are keyed by
        the prompt's key and the try, so the texts do not depend on the other prompts.
        """
        texts: list[list[str]] = [[] for _ in prompts]
        todo = list(range(len(prompts)))
        for turn in range(tries):
            requests = [Request(prompts[i].prompt, (*keys[i], turn), self.n) for i in todo]
            for i, drawn in zip(
                todo, generate(self.engine, requests, self.sampling, on_progress), strict=True
            ):
                for x in drawn:
                    text = self.renderer.completion(x.ids, x.finish).text
                    complete = self.cut or x.finish != "length"
                    if (
                        complete
                        and text.strip()
                        and text not in texts[i]
                        and len(texts[i]) < self.n
                    ):
                        texts[i].append(text)
            todo = [i for i in todo if len(texts[i]) < self.n]
            if not todo:
                break
        return texts


@dataclass(frozen=True, slots=True)
class SampleSummary:
    """summary.json of ``trimtab sample``."""

    items: int
    prompts: int


def main(config: SampleConfig) -> SampleSummary:
    """Sample until there are enough different completions; empty ones do not count, nor truncated ones
    without ``keep_truncated``.

    Raises:
        DataError: no prompt has enough different completions.
    """
    with open_run(config, config.out) as run:
        return _sample(config, run.path)


def _sample(c: SampleConfig, out: Path) -> SampleSummary:
    prompts = _prompts(c, renderer_for(c.model, c.data))
    parts = run_parts(_load, c, c.launch, len(prompts), out, "sample")
    texts: list[list[str]] = [completions for part in parts for completions in json.loads(part)]
    items: list[Item] = []
    for g, completions in zip(prompts, texts, strict=True):
        if len(completions) == c.num_completions:
            messages = g.extra.get("messages") or [{"role": "user", "content": g.text}]
            extra = {k: v for k, v in g.extra.items() if k != "messages"}
            items.append(
                Item(id=g.id, prompt=tuple(messages), completions=tuple(completions), extra=extra)
            )
    if not items:
        raise DataError(
            f"{c.data.path}: no prompt has {c.num_completions} different completions; raise "
            "sampling.temperature, sampling.max_new_tokens or tries"
        )
    records.write(out / "items.jsonl", items)
    summary = SampleSummary(len(items), len(prompts))
    write_summary(out, summary)
    log.info(
        f"sample: {len(items)} items of {c.num_completions} completions from {len(prompts)} "
        f"prompts -> {c.out}/items.jsonl"
    )
    return summary


def _prompts(c: SampleConfig, renderer: Renderer) -> list[Group]:
    return load_groups(c.data, formats.prompts, renderer.prompt)[c.skip :]


def _load(c: SampleConfig) -> Work:
    renderer = renderer_for(c.model, c.data)
    prompts = _prompts(c, renderer)
    engine = NativeEngine.load(c.model, renderer)
    writer = Writer(renderer, engine, c.sampling, c.num_completions, cut=c.keep_truncated)

    def sample_part(start: int, stop: int) -> bytes:
        """The texts of some prompts, as JSON."""
        keys = [(c.seed, i) for i in range(start, stop)]
        return to_json(writer(prompts[start:stop], keys, c.tries)).encode()

    return sample_part


BATCH = 8
"""Prompts per batch; small, since people wait for the first one."""


TRIES = 4
"""Rounds of sampling for a prompt whose completions are the same."""


def _writers(config: LabelConfig) -> list[Writer]:
    sampling = SamplingConfig(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    writers: list[Writer] = []
    # The first models give one more if the number does not divide evenly.
    many, rest = divmod(config.num_completions, len(config.model))
    for i, path in enumerate(config.model):
        model = ModelSpec(path=path, chat_template=config.chat_template)
        renderer = renderer_for(model)
        engine = NativeEngine.load(model, renderer)
        writers.append(Writer(renderer, engine, sampling, many + (i < rest), cut=True))
    return writers


def item_id(example: Example, config: LabelConfig) -> str:
    """The item id of a prompt: its row's own id, or a hash of its text, row number and models."""
    if example.id != str(example.row):
        return example.id
    parts = [f"{example.row}", *config.model]
    return Item.of(messages(example.prompt), parts).id


def sampled(config: LabelConfig, examples: list[Example], store: Store) -> Iterator[list[Entry]]:
    """Entries batch by batch, without the prompts that the store already has.

    Equal completions are merged and empty ones dropped. A prompt without two different completions
    (one, if steps are marked) gives no item. Random streams are keyed by seed, model and row, so
    an interrupted run resumes with the same completions.

    Raises:
        ModelError: a model cannot be loaded, or no prompt has completions to compare.
    """
    names = {item_id(e, config): e for e in examples}
    there = store.existing([*names, *(f"{name}:0-1" for name in names)])
    todo = [(n, e) for n, e in names.items() if n not in there and f"{n}:0-1" not in there]
    writers = _writers(config)
    least = 1 if config.marks else 2
    finished = len(names) - len(todo)
    for start in range(0, len(todo), BATCH):
        batch = todo[start : start + BATCH]
        completions: list[dict[str, str]] = [{} for _ in batch]
        for m, writer in enumerate(writers):
            prompts = [g for _, e in batch if (g := writer.renderer.prompt(e)) is not None]
            keys = [(config.seed, m, e.row) for _, e in batch]
            for models_by_text, texts in zip(
                completions, writer(prompts, keys, TRIES), strict=True
            ):
                for text in texts:
                    models_by_text.setdefault(text, config.model[m])
        entries = [
            _entry(name, example, models_by_text, config)
            for (name, example), models_by_text in zip(batch, completions, strict=True)
            if len(models_by_text) >= least
        ]
        finished += len(entries)
        yield entries
    if finished == 0:
        raise ModelError(
            f"{', '.join(config.model)}: no prompt of {config.data} got two different completions; raise "
            "--temperature or --max-new-tokens, or name another model"
        )


def _entry(
    name: str, example: Example, models_by_text: dict[str, str], config: LabelConfig
) -> Entry:
    texts = list(models_by_text)
    extra = dict(example.extra)
    if isinstance(example.prompt, str):
        extra["plain"] = True
    lines = [tuple(x.strip() for x in t.splitlines() if x.strip()) for t in texts]
    return Entry(
        Item(
            id=name,
            prompt=tuple(messages(example.prompt)),
            completions=tuple(texts),
            models=tuple(models_by_text.values()),
            steps=tuple(lines) if config.marks else None,
            extra=extra,
        )
    )

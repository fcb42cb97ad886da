"""Answers for people to compare, sampled from models while they label."""

from __future__ import annotations

from collections.abc import Iterator

from trimtab.data.formats import Example
from trimtab.data.render import Renderer, load_tokenizer
from trimtab.datagen.sample import Writer
from trimtab.errors import ModelError
from trimtab.feedback.items import Entry
from trimtab.feedback.judgement import Item
from trimtab.feedback.records import messages
from trimtab.label.label_config import LabelConfig
from trimtab.label.store import Store
from trimtab.models.load import ModelSpec
from trimtab.sample.draw import SamplingConfig

BATCH = 8
"""Prompts answered at once: the first question is there after one batch."""


TRIES = 4
"""Times a prompt is put to a model that says the same again."""


def _writers(config: LabelConfig) -> list[Writer]:
    sampling = SamplingConfig(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    made: list[Writer] = []
    # In turn: the first models give one more where they do not come out even.
    many, rest = divmod(config.num_completions, len(config.model))
    for i, path in enumerate(config.model):
        model = ModelSpec(path=path, chat_template=config.chat_template)
        tokenizer = load_tokenizer(path, config.chat_template)
        renderer = Renderer(tokenizer, max_prompt=1 << 20, max_tokens=1 << 20)
        made.append(Writer.load(model, renderer, sampling, many + (i < rest), cut=True))
    return made


def item_id(example: Example, config: LabelConfig) -> str:
    """A prompt's item, named before it is answered: by its row's own id, or its text and row."""
    if example.id != str(example.row):
        return example.id
    given = [f"{example.row}", *config.model]
    return Item.of(messages(example.prompt), given).id


def sampled(config: LabelConfig, examples: list[Example], store: Store) -> Iterator[list[Entry]]:
    """Entries batch by batch; prompts that the store has answers to are left out.

    Equal answers are merged, empty ones dropped, and a prompt without two different answers (one,
    where steps are marked) gives no item. Each answer has its own random stream, keyed by seed,
    model and row, so that a stopped run goes on as if it had not been.

    Raises:
        ModelError: a model cannot be loaded, or no prompt got answers to compare.
    """
    names = {item_id(e, config): e for e in examples}
    there = store.existing([*names, *(f"{name}:0-1" for name in names)])
    todo = [(n, e) for n, e in names.items() if n not in there and f"{n}:0-1" not in there]
    writers = _writers(config)
    least = 1 if config.marks else 2
    made = len(names) - len(todo)
    for start in range(0, len(todo), BATCH):
        batch = todo[start : start + BATCH]
        found: list[dict[str, str]] = [{} for _ in batch]
        for m, writer in enumerate(writers):
            prompts = [g for _, e in batch if (g := writer.renderer.prompt(e)) is not None]
            keys = [(config.seed, m, e.row) for _, e in batch]
            for answers, texts in zip(found, writer(prompts, keys, TRIES), strict=True):
                for text in texts:
                    answers.setdefault(text, config.model[m])
        entries = [
            _entry(name, example, answers, config)
            for (name, example), answers in zip(batch, found, strict=True)
            if len(answers) >= least
        ]
        made += len(entries)
        yield entries
    if made == 0:
        raise ModelError(
            f"{', '.join(config.model)}: no prompt of {config.data} got two different answers; raise "
            "--temperature or --max-new-tokens, or name another model"
        )


def _entry(name: str, example: Example, answers: dict[str, str], config: LabelConfig) -> Entry:
    texts = list(answers)
    extra = dict(example.extra)
    if isinstance(example.prompt, str):
        extra["plain"] = True
    lines = [tuple(x.strip() for x in t.splitlines() if x.strip()) for t in texts]
    return Entry(
        Item(
            id=name,
            prompt=tuple(messages(example.prompt)),
            completions=tuple(texts),
            models=tuple(answers.values()),
            steps=tuple(lines) if config.marks else None,
            extra=extra,
        )
    )

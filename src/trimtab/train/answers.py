"""Answers for people to compare, sampled from models while they label."""

from __future__ import annotations

from collections.abc import Iterator

from trimtab.data.formats import Example
from trimtab.data.render import Renderer, load_tokenizer
from trimtab.errors import ModelError
from trimtab.judgement import Item
from trimtab.label.items import Entry, messages
from trimtab.label.spec import LabelConfig
from trimtab.label.store import Store
from trimtab.models.load import LM, ModelSpec
from trimtab.sample.native import Request, Sampler, SamplingConfig

BATCH = 8
"""Prompts answered at once: the first question is there after one batch."""


class _Writer:
    def __init__(self, path: str, config: LabelConfig, index: int) -> None:
        self.path = path
        tokenizer = load_tokenizer(path, config.chat_template)
        self.renderer = Renderer(tokenizer, max_prompt=1 << 20, max_tokens=1 << 20)
        lm = LM.load(ModelSpec(path=path, chat_template=config.chat_template), train=False)
        self.sampler = Sampler(lm.plain_attention(), tokenizer, stop_ids=self.renderer.stop_ids)
        self.sampling = SamplingConfig(
            max_new_tokens=config.max_new_tokens, temperature=config.temperature
        )
        # In turn: the first models give one more where they do not come out even.
        many, rest = divmod(config.answers, len(config.model))
        self.n = many + (index < rest)

    def __call__(self, examples: list[Example], key: tuple[int, ...]) -> list[list[str]]:
        """Texts [n] of each example; its row ends the key of its stream."""
        prompts = [self.renderer.prompt(e) for e in examples]
        asked = [
            Request(g.prompt, (*key, e.row), self.n)
            for e, g in zip(examples, prompts, strict=True)
            if g is not None
        ]
        drawn = self.sampler(asked, self.sampling)
        return [[self.renderer.completion(a.ids, a.finish).text for a in one] for one in drawn]


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
    there = store.knows([*names, *(f"{name}:0-1" for name in names)])
    todo = [(n, e) for n, e in names.items() if n not in there and f"{n}:0-1" not in there]
    writers = [_Writer(path, config, i) for i, path in enumerate(config.model)]
    least = 1 if config.marks else 2
    made = len(names) - len(todo)
    for start in range(0, len(todo), BATCH):
        batch = todo[start : start + BATCH]
        found: list[dict[str, str]] = [{} for _ in batch]
        for m, writer in enumerate(writers):
            texts_of = writer([e for _, e in batch], (config.seed, m))
            for i, texts in enumerate(texts_of):
                for text in texts:
                    if text.strip():
                        found[i].setdefault(text, writer.path)
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
            answers=tuple(texts),
            models=tuple(answers.values()),
            steps=tuple(lines) if config.marks else None,
            extra=extra,
        )
    )

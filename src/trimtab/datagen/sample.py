"""``trimtab sample``: a model's answers as items, for people and judges to compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.render import Renderer
from trimtab.errors import DataError
from trimtab.feedback import records
from trimtab.feedback.judgement import Item
from trimtab.models.load import LM, ModelSpec, renderer_for
from trimtab.runs import write_atomic
from trimtab.runs.console import bar, console
from trimtab.sample.sampler import Progress, Request, Sampler, SamplingConfig
from trimtab.types import Group


class SampleConfig(Config):
    """Configuration of ``trimtab sample``."""

    out: str = "runs/sample"
    """Gets items.jsonl and summary.json."""
    model: ModelSpec
    """Whose answers they are."""
    data: DataSpec
    """Prompts; other columns go along as ``extra``."""
    skip: int = Field(default=0, ge=0)
    """Prompts passed over first."""
    answers: int = Field(default=2, ge=1, le=9)
    """Different ones a prompt; prompts with fewer give no item."""
    tries: int = Field(default=4, gt=0)
    """Completions sampled for each answer wanted."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Writer:
    """A model that answers prompts."""

    renderer: Renderer
    sampler: Sampler
    sampling: SamplingConfig
    n: int
    """Different answers wanted of it to each prompt."""
    cut: bool = False
    """Whether answers that ran into ``max_new_tokens`` count."""

    @classmethod
    def load(
        cls, model: ModelSpec, renderer: Renderer, sampling: SamplingConfig, n: int, cut: bool
    ) -> Writer:
        """Over the model at rest."""
        lm = LM.load(model, train=False)
        sampler = Sampler(lm.plain_attention(), renderer.tokenizer, stop_ids=renderer.stop_ids)
        return cls(renderer, sampler, sampling, n, cut)

    def __call__(
        self,
        prompts: Sequence[Group],
        keys: Sequence[tuple[int, ...]],
        tries: int,
        on_progress: Progress | None = None,
    ) -> list[list[str]]:
        """At most ``n`` different texts for each prompt, empty ones left out.

        Prompts with too few are asked again, ``tries`` times in all. Each completion has its own
        stream, by the prompt's key and the try, so what else is asked does not matter.
        """
        found: list[list[str]] = [[] for _ in prompts]
        todo = list(range(len(prompts)))
        for turn in range(tries):
            requests = [Request(prompts[i].prompt, (*keys[i], turn), self.n) for i in todo]
            for i, drawn in zip(
                todo, self.sampler(requests, self.sampling, on_progress), strict=True
            ):
                for x in drawn:
                    text = self.renderer.completion(x.ids, x.finish).text
                    whole = self.cut or x.finish != "length"
                    if whole and text.strip() and text not in found[i] and len(found[i]) < self.n:
                        found[i].append(text)
            todo = [i for i in todo if len(found[i]) < self.n]
            if not todo:
                break
        return found


def main(config: SampleConfig) -> dict[str, Any]:
    """Sample until there are enough different answers; empty and cut ones do not count.

    Raises:
        DataError: no prompt has enough different answers.
    """
    c = config
    renderer = renderer_for(c.model, c.data)
    prompts = load_groups(c.data, formats.prompts, renderer.prompt)[c.skip :]
    writer = Writer.load(c.model, renderer, c.sampling, c.answers, cut=False)
    keys = [(c.seed, i) for i in range(len(prompts))]
    with bar("sample") as show:
        texts = writer(prompts, keys, c.tries, show)
    items: list[Item] = []
    for g, mine in zip(prompts, texts, strict=True):
        if len(mine) == c.answers:
            asked = g.extra.get("messages") or [{"role": "user", "content": g.text}]
            extra = {k: v for k, v in g.extra.items() if k != "messages"}
            items.append(Item(id=g.id, prompt=tuple(asked), completions=tuple(mine), extra=extra))
    if not items:
        raise DataError(
            f"{c.data.path}: no prompt has {c.answers} different answers; raise "
            "sampling.temperature, sampling.max_new_tokens or tries"
        )
    out = Path(c.out)
    out.mkdir(parents=True, exist_ok=True)
    records.write(out / "items.jsonl", items)
    figures = {"items": len(items), "prompts": len(prompts)}
    write_atomic(out / "summary.json", json.dumps(figures, indent=1).encode())
    console.print(
        f"[bold]sample[/bold]: {len(items)} items of {c.answers} answers from {len(prompts)} "
        f"prompts -> {c.out}/items.jsonl"
    )
    return figures

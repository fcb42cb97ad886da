"""``trimtab sample``: a model's answers as items, for people and judges to compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats
from trimtab.errors import DataError
from trimtab.judgement import Item
from trimtab.judges.items import write_lines
from trimtab.models.load import LM, ModelSpec
from trimtab.rollout.collect import collect
from trimtab.runs import write_atomic
from trimtab.runs.console import bar, console
from trimtab.sample.native import Sampler, SamplingConfig
from trimtab.train.sft import DataSpec, load_groups, renderer_for


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


def main(config: SampleConfig) -> dict[str, Any]:
    """Sample until there are enough different answers; empty and cut ones do not count.

    Raises:
        DataError: no prompt has enough different answers.
    """
    c = config
    renderer = renderer_for(c.model, c.data)
    prompts = load_groups(c.data, formats.prompts, renderer.prompt)[c.skip :]
    lm = LM.load(c.model, train=False)
    sampler = Sampler(lm.plain_attention(), renderer.tokenizer, stop_ids=renderer.stop_ids)
    items: list[Item] = []
    todo = prompts
    texts: dict[str, list[str]] = {g.id: [] for g in prompts}
    for turn in range(c.tries):
        if not todo:
            break
        with bar(f"sample {turn + 1}") as show:
            groups = collect(
                sampler, renderer, todo, c.sampling,
                n=c.answers, key=(c.seed, turn), version=0, on_progress=show,
            )  # fmt: skip
        for g in groups:
            mine = texts[g.id]
            for x in g.completions:
                if x.finish != "length" and x.text.strip() and x.text not in mine:
                    mine.append(x.text)
        todo = [g for g in todo if len(texts[g.id]) < c.answers]
    for g in prompts:
        if len(texts[g.id]) >= c.answers:
            asked = g.extra.get("messages") or [{"role": "user", "content": g.text}]
            extra = {k: v for k, v in g.extra.items() if k != "messages"}
            items.append(
                Item(
                    id=g.id,
                    prompt=tuple(asked),
                    answers=tuple(texts[g.id][: c.answers]),
                    extra=extra,
                )
            )
    if not items:
        raise DataError(
            f"{c.data.path}: no prompt has {c.answers} different answers; raise "
            "sampling.temperature, sampling.max_new_tokens or tries"
        )
    out = Path(c.out)
    out.mkdir(parents=True, exist_ok=True)
    write_lines(out / "items.jsonl", items)
    figures = {"items": len(items), "prompts": len(prompts)}
    write_atomic(out / "summary.json", json.dumps(figures, indent=1).encode())
    console.print(
        f"[bold]sample[/bold]: {len(items)} items of {c.answers} answers from {len(prompts)} "
        f"prompts -> {c.out}/items.jsonl"
    )
    return figures

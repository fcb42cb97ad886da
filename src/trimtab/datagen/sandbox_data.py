"""``trimtab sandbox-data``: demonstrations and prompts of the sandbox task."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from trimtab.data import formats, sources
from trimtab.data.render import Renderer
from trimtab.datagen.output import jsonl, write_summary
from trimtab.runs import write_atomic
from trimtab.sandbox.world import Scene, demonstrations
from trimtab.sandbox.world_spec import HELD_OUT, WorldSpec
from trimtab.types import Group, Row

log = logging.getLogger(__name__)


class SandboxDataConfig(WorldSpec):
    """Configuration of ``trimtab sandbox-data``."""

    out: str = "runs/world"
    seed: int = 0
    demonstrations: int = Field(default=3000, gt=0)
    prompts: int = Field(default=2000, gt=0)
    """Prompts for sampling, labels and RL."""
    rl_prompts: int = Field(default=0, ge=0)
    """Further prompts for RL alone, for rl_prompts.jsonl: none of them is in another file, so RL can
    run on prompts that were never labelled."""
    heldout: int = Field(default=600, gt=0)
    """Prompts of the final comparison; never trained on."""


def prompt_rows(scenes: Sequence[Scene]) -> list[Row]:
    """Prompt-only rows, with the scene as a column for the gold score."""
    return [{"prompt": s.messages(), "kind": s.kind, "scene": s.to_json()} for s in scenes]


def prompt_groups(scenes: Sequence[Scene], renderer: Renderer) -> list[Group]:
    """The prompts of ``scenes`` as groups without completions."""
    rows = sources.Rows("scenes", list(enumerate(prompt_rows(scenes), 1)))
    rendered = (renderer.prompt(e) for e in formats.prompts(rows))
    return [g for g in rendered if g is not None]


@dataclass(frozen=True, slots=True)
class SandboxDataSummary:
    """Numbers of rows."""

    demonstrations: int
    prompts: int
    heldout: int
    rl_prompts: int | None = None
    splits: dict[str, int] | None = None
    """Of each test set of another distribution."""


def main(config: SandboxDataConfig) -> SandboxDataSummary:
    """Write demonstrations.jsonl, prompts.jsonl, heldout.jsonl and summary.json into ``out``; where the
    configuration has them, rl_prompts.jsonl, and for each part of ``held_out`` heldout-names.jsonl,
    heldout-kinds.jsonl and heldout-people.jsonl with ``heldout`` prompts each.

    Raises:
        DataError: the world has too few different prompts.
    """
    c, out = config, Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    demo_scenes = list(c.scenes(c.demonstrations, c.seed))
    prompt_scenes = list(c.scenes(c.prompts, c.seed, c.demonstrations))
    heldout_scenes = list(c.scenes(c.heldout, c.seed, HELD_OUT))
    files = {
        "demonstrations": demonstrations(demo_scenes, c.seed),
        "prompts": prompt_rows(prompt_scenes),
        "heldout": prompt_rows(heldout_scenes),
    }
    if c.rl_prompts:
        used = [*demo_scenes, *prompt_scenes, *heldout_scenes]
        start = c.demonstrations + c.prompts
        files["rl_prompts"] = prompt_rows(list(c.scenes(c.rl_prompts, c.seed, start, used)))
    for split in c.splits:
        scenes = c.held_out_scenes(split, c.heldout, c.seed)
        files[f"heldout-{split}"] = prompt_rows(scenes)
    for name, rows in files.items():
        write_atomic(out / f"{name}.jsonl", jsonl(rows))
    log.info(
        f"world: {c.demonstrations} demonstrations, {c.prompts} prompts, {c.heldout} held out"
        + (f", {c.rl_prompts} for RL alone" if c.rl_prompts else "")
        + "".join(f", {c.heldout} held out by {split}" for split in c.splits)
        + f" -> {c.out}"
    )
    summary = SandboxDataSummary(
        c.demonstrations,
        c.prompts,
        c.heldout,
        c.rl_prompts or None,
        {split: c.heldout for split in c.splits} or None,
    )
    write_summary(out, summary)
    return summary

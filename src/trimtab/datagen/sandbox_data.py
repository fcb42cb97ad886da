"""``trimtab sandbox-data``: demonstrations and prompts of the sandbox task."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.data.render import Renderer
from trimtab.datagen.output import jsonl, write_summary
from trimtab.runs import write_atomic
from trimtab.sandbox.world import Scene, demonstrations, make_scenes
from trimtab.types import Group, Row

log = logging.getLogger(__name__)


class SandboxDataConfig(Config):
    """Configuration of ``trimtab sandbox-data``."""

    out: str = "runs/world"
    seed: int = 0
    demonstrations: int = Field(default=3000, gt=0)
    prompts: int = Field(default=2000, gt=0)
    """Prompts for sampling, labels and RL."""
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


def main(config: SandboxDataConfig) -> SandboxDataSummary:
    """Write demonstrations.jsonl, prompts.jsonl, heldout.jsonl and summary.json into ``out``."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    demo_scenes = make_scenes(config.demonstrations, config.seed)
    prompt_scenes = make_scenes(config.prompts, config.seed, config.demonstrations)
    heldout_scenes = make_scenes(config.heldout, config.seed, 10_000_000)
    write_atomic(out / "demonstrations.jsonl", jsonl(demonstrations(demo_scenes, config.seed)))
    write_atomic(out / "prompts.jsonl", jsonl(prompt_rows(prompt_scenes)))
    write_atomic(out / "heldout.jsonl", jsonl(prompt_rows(heldout_scenes)))
    log.info(
        f"world: {config.demonstrations} demonstrations, {config.prompts} prompts, "
        f"{config.heldout} held out -> {config.out}"
    )
    summary = SandboxDataSummary(config.demonstrations, config.prompts, config.heldout)
    write_summary(out, summary)
    return summary

"""``trimtab word-problems``: arithmetic word problems, with a tokenizer and a model configuration."""

import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from trimtab.config import Config
from trimtab.datagen.output import jsonl, write_summary
from trimtab.datagen.scratch import write_model_config
from trimtab.runs import write_atomic
from trimtab.sandbox import arithmetic, word_problems
from trimtab.sandbox.arithmetic import Difficulty

log = logging.getLogger(__name__)


class WordProblemsConfig(Config):
    """Configuration of ``trimtab word-problems``."""

    out: str = "runs/tasks"
    seed: int = 0
    difficulty: Difficulty = Difficulty()
    wrong: float = Field(default=0.25, ge=0.0, le=1.0)
    """Probability that a step of a demonstration is wrong."""
    demonstrations: int = Field(default=20_000, gt=0)
    prompts: int = Field(default=4000, gt=0)
    """Prompts for RL."""
    heldout: int = Field(default=400, gt=0)
    """Prompts of the final comparison; none of their problems is trained on."""
    hidden: int = Field(default=64, gt=0)
    """Hidden size of the model that config.json describes, a Llama with random weights."""
    layers: int = Field(default=2, gt=0)
    heads: int = Field(default=4, gt=0)


@dataclass(frozen=True, slots=True)
class WordProblemsSummary:
    """Numbers of rows, and the share of demonstrations that end in the right answer."""

    demonstrations: int
    right: float
    prompts: int
    heldout: int


def main(config: WordProblemsConfig) -> WordProblemsSummary:
    """Write demonstrations.jsonl, prompts.jsonl, heldout.jsonl, tokenizer/ and config.json into
    ``out``; the last two are for ``model.tokenizer`` and ``model.path``."""
    c, out = config, Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    used = arithmetic.make_problems(c.difficulty, c.seed, c.demonstrations + c.prompts)
    heldout_problems = arithmetic.make_problems(
        c.difficulty, c.seed, c.heldout, start=word_problems.HELD_OUT, seen=used
    )
    demonstrations = [
        word_problems.demonstration_row(p, c.seed, i, c.wrong)
        for i, p in enumerate(used[: c.demonstrations])
    ]
    prompts = [word_problems.prompt_row(p) for p in used[c.demonstrations :]]
    write_atomic(out / "demonstrations.jsonl", jsonl(demonstrations))
    write_atomic(out / "prompts.jsonl", jsonl(prompts))
    write_atomic(
        out / "heldout.jsonl", jsonl([word_problems.prompt_row(p) for p in heldout_problems])
    )
    tokenizer = word_problems.tokenizer()
    tokenizer.save_pretrained(out / "tokenizer")
    write_model_config(out, tokenizer, c.hidden, c.layers, c.heads, positions=256)
    right = sum(row["right"] for row in demonstrations) / len(demonstrations)
    summary = WordProblemsSummary(c.demonstrations, right, c.prompts, c.heldout)
    write_summary(out, summary)
    log.info(
        f"tasks: {c.demonstrations} demonstrations ({right:.0%} end right), "
        f"{c.prompts} prompts, {c.heldout} held out -> {c.out}"
    )
    return summary

"""``trimtab word-problems``: arithmetic word problems, with a tokenizer and a model configuration."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.datagen.output import jsonl, write_summary
from trimtab.datagen.scratch import write_model_config
from trimtab.errors import ConfigError
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
    """Hidden size of the model that config.json describes, with random weights."""
    layers: int = Field(default=2, gt=0)
    heads: int = Field(default=4, gt=0)
    vocabulary: int | None = Field(default=None, gt=0)
    """Size of the model's vocabulary; tokens beyond the tokenizer's never occur in the data. Default: none
    beyond."""
    experts: int = Field(default=0, ge=0)
    """Experts of each layer: config.json then describes a Mixtral. 0: no experts, a Llama."""
    experts_per_token: int = Field(default=2, gt=0)
    expert_size: int | None = Field(default=None, gt=0)
    """Width of an expert; hidden · 3 / 2 by default."""

    @model_validator(mode="after")
    def _check_experts(self) -> WordProblemsConfig:
        if self.experts and self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token ({self.experts_per_token}) is more than experts ({self.experts})"
            )
        return self


@dataclass(frozen=True, slots=True)
class WordProblemsSummary:
    """Numbers of rows, and the share of demonstrations that end in the right answer."""

    demonstrations: int
    right: float
    prompts: int
    heldout: int


def main(config: WordProblemsConfig) -> WordProblemsSummary:
    """Write demonstrations.jsonl, prompts.jsonl, heldout.jsonl, tokenizer/ and config.json into
    ``out``; the last two are for ``model.tokenizer`` and ``model.path``.

    Raises:
        ConfigError: ``vocabulary`` is smaller than that of the tokenizer.
    """
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
    overrides: dict[str, Any] = {}
    if c.vocabulary is not None:
        if c.vocabulary < len(tokenizer):
            raise ConfigError(
                f"vocabulary: {c.vocabulary} is less than the tokenizer's {len(tokenizer)} tokens"
            )
        overrides["vocab_size"] = c.vocabulary
    if c.experts:
        overrides |= {
            "model_type": "mixtral", "num_local_experts": c.experts,
            "num_experts_per_tok": c.experts_per_token,
            "intermediate_size": c.expert_size or c.hidden * 3 // 2,
        }  # fmt: skip
    write_model_config(out, tokenizer, c.hidden, c.layers, c.heads, 256, overrides)
    right = sum(row["right"] for row in demonstrations) / len(demonstrations)
    summary = WordProblemsSummary(c.demonstrations, right, c.prompts, c.heldout)
    write_summary(out, summary)
    log.info(
        f"tasks: {c.demonstrations} demonstrations ({right:.0%} end right), "
        f"{c.prompts} prompts, {c.heldout} held out -> {c.out}"
    )
    return summary

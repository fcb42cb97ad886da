"""``trimtab nll``: how likely a model finds a run's logged rollouts, iteration by iteration."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from trimtab.audit.audit_run import as_examples
from trimtab.config import Config
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate.completion_logps import summed_logps
from trimtab.models.load import LM, ModelSpec, renderer_for
from trimtab.runs import read_samples, to_json, write_atomic
from trimtab.stats.uncertainty import Estimate, bootstrap_sums
from trimtab.types import Group, Row

log = logging.getLogger(__name__)


class NLLConfig(Config):
    """Configuration of ``trimtab nll RUN``."""

    run: str
    """Folder of an online run; its logged rollouts are read (``loop.sample_steps``)."""
    model: ModelSpec
    """Model whose negative log-likelihood is measured: the base model, to see whether the policy's
    text stays text that a language model expects."""
    out: str | None = None
    """Gets nll.json; the run's folder when not given."""
    limit: int = Field(default=64, gt=0)
    """Rollouts per iteration."""
    token_budget: int = Field(default=8192, gt=0)


def main(config: NLLConfig) -> dict[int, Estimate]:
    """Measure the rollouts of every logged iteration; writes nll.json.

    Returns:
        By iteration the negative log-likelihood under ``model`` in nats per token, end tokens
        included where the rollout has one; the interval is over rollouts.

    Raises:
        ConfigError: there is no such run.
        DataError: it has no logged rollouts with text.
    """
    c, run = config, Path(config.run)
    if not run.is_dir():
        raise ConfigError(f"{run}: no such run folder")
    by_step: dict[int, list[Row]] = {}
    for row in read_samples(run):
        if str(row["completion"]).strip():
            by_step.setdefault(int(row["step"]), []).append(row)
    if not by_step:
        raise DataError(f"{run}/samples: no rollouts; train with loop.sample_steps")
    renderer = renderer_for(c.model)
    lm = LM.load(c.model, train=False)
    estimates: dict[int, Estimate] = {}
    for step, rows in sorted(by_step.items()):
        examples = as_examples(rows[: c.limit], run)
        groups = [g for g in map(renderer.scoring, examples) if g is not None]
        estimates[step] = nll_per_token(lm, groups, c.token_budget)
        log.info("step %d: %.3f nats per token [%.3f, %.3f]", step, *estimates[step])
    out = Path(c.out) if c.out else run
    out.mkdir(parents=True, exist_ok=True)
    plain: dict[str, Any] = {
        "model": c.model.path,
        "nll": {str(step): e.summary() for step, e in estimates.items()},
    }
    write_atomic(out / "nll.json", to_json(plain, indent=1).encode())
    return estimates


def nll_per_token(lm: LM, groups: list[Group], budget: int) -> Estimate:
    """Negative log-likelihood of completions, nats per token, with an interval over completions."""
    logps = np.asarray(summed_logps(lm, groups, budget, 1.0))
    tokens = np.array([x.trained for g in groups for x in g.completions], np.float64)
    return bootstrap_sums(np.stack([-logps, tokens], 1), lambda s: s[..., 0] / s[..., 1])

"""Rewards of completions: models, Python functions, or a weighted list of both.

Every part is kept raw under its name. A part that failed leaves a status, and the completion is
then without a reward: it is never turned into a number.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from pydantic import Field, model_validator

from trimtab.config import Config, import_function
from trimtab.data.pack import packs
from trimtab.data.render import Renderer, load_tokenizer
from trimtab.errors import ConfigError, RewardError
from trimtab.models.heads import Scorer
from trimtab.models.load import ModelSpec
from trimtab.types import Group, Score

RewardFunction = Callable[..., object]


class RewardSpec(Config):
    """One part of the reward: a model folder or a Python function."""

    name: str = Field(min_length=1)
    """Its name in metrics and samples."""
    model: str | None = None
    """Folder or hub id of a sequence classification model with one label."""
    function: str | None = None
    """ "package.module:name" or "file.py:name", called as in TRL:
    ``f(prompts, completions, **columns) -> list of floats``; None marks "no score"."""
    weight: float = 1.0
    """Its share of the sum; 0 watches it without training on it."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keyword arguments of the function."""

    @model_validator(mode="after")
    def _one(self) -> RewardSpec:
        if (self.model is None) == (self.function is None):
            raise ValueError("give either 'model' or 'function', not both and not neither")
        return self


def _call(function: RewardFunction, spec: RewardSpec, groups: Sequence[Group]) -> list[Score]:
    prompts: list[str] = []
    completions: list[str] = []
    columns: dict[str, list[Any]] = {k: [] for g in groups for k in g.extra}
    for g in groups:
        for c in g.completions:
            prompts.append(g.text)
            completions.append(c.text)
            for key, column in columns.items():
                column.append(g.extra.get(key))
    columns = {k: v for k, v in columns.items() if k not in ("prompts", "completions")}
    takes = inspect.signature(function).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values()):
        columns = {k: v for k, v in columns.items() if k in takes}
    try:
        raw = function(prompts, completions, **columns, **spec.options)
    except Exception as error:  # noqa: BLE001  a user's function may raise anything; it becomes a status
        why = f"{type(error).__name__}: {error}"
        return [Score(None, "error", why) for _ in completions]
    if not isinstance(raw, Sequence) or len(raw) != len(completions):
        raise RewardError(
            f"reward {spec.name!r} ({spec.function}) must return one number for each of the "
            f"{len(completions)} completions, but returned "
            f"{f'{len(raw)} values' if isinstance(raw, Sequence) else type(raw).__name__}"
        )
    return [_number(x) for x in raw]


def _number(x: object) -> Score:
    if isinstance(x, bool | int | float) and math.isfinite(x):
        return Score(float(x))
    return Score(None, "invalid", f"not a finite number: {x!r}")


class Rewards:
    """Scores groups in place with every part of a list of rewards.

    Args:
        specs: The parts.
        tokenizer: The policy's; a reward model with the same vocabulary scores its token ids as
            they are, another one scores the text in its own tokens.
        token_budget: Tokens of one forward.
        device: Where reward models are held.

    Raises:
        ConfigError: names repeat, or a function cannot be imported.
    """

    def __init__(
        self, specs: Sequence[RewardSpec], tokenizer: Any, token_budget: int, device: str = "auto"
    ) -> None:
        names = [s.name for s in specs]
        if len(set(names)) != len(names):
            raise ConfigError(f"rewards: names repeat: {', '.join(names)}")
        self.specs = list(specs)
        self.budget = token_budget
        self.functions = {
            s.name: import_function(s.function, f"rewards.{s.name}.function")
            for s in specs
            if s.function is not None
        }
        self.models: dict[str, Scorer] = {}
        self.renderers: dict[str, Renderer] = {}
        for s in specs:
            if s.model is None:
                continue
            self.models[s.name] = Scorer.load(ModelSpec(path=s.model, device=device), train=False)
            own = load_tokenizer(s.model)
            if own.get_vocab() != tokenizer.get_vocab():
                limit = 1 << 20
                self.renderers[s.name] = Renderer(own, max_prompt=limit, max_tokens=limit)

    def __call__(self, groups: Sequence[Group]) -> None:
        """Fill ``Completion.scores`` and ``Completion.reward`` (None where a part failed)."""
        for spec in self.specs:
            if spec.name in self.functions:
                scores = _call(self.functions[spec.name], spec, groups)
            else:
                scores = self._model(spec.name, groups)
            at = iter(scores)
            for g in groups:
                for c in g.completions:
                    c.scores[spec.name] = next(at)
        for g in groups:
            for c in g.completions:
                parts = [(s.weight, c.scores[s.name]) for s in self.specs if s.weight != 0.0]
                if all(p.ok for _, p in parts):
                    c.reward = sum(w * cast(float, p.value) for w, p in parts)
                else:
                    c.reward = None

    @torch.no_grad()
    def _model(self, name: str, groups: Sequence[Group]) -> list[Score]:
        scorer = self.models[name]
        seen = list(groups)
        if name in self.renderers:
            seen = [self.renderers[name].retokenise(g) for g in groups]
        where = {id(c): i for i, c in enumerate(c for g in seen for c in g.completions)}
        values = [math.nan] * len(where)
        for pack in packs(seen, self.budget, share=scorer.exact):
            scores = scorer.normalise(scorer.scores(pack.to(scorer.device))).tolist()
            flat = [c for g in pack.groups for c in g.completions]
            for c, value in zip(flat, scores, strict=True):
                values[where[id(c)]] = value
        return [_number(v) for v in values]

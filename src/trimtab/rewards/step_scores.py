"""Process rewards: scores of the reasoning steps of completions, as dense or sequence rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field, model_validator

from trimtab.config import Config, FunctionPath
from trimtab.data.formats import Example
from trimtab.data.pack import packs
from trimtab.data.render import Renderer
from trimtab.data.steps import EachToken, Steps
from trimtab.models.load import ModelSpec
from trimtab.models.load_frozen import load_frozen
from trimtab.models.step_scorer import StepScorer
from trimtab.objectives.process_reward import Aggregate, aggregate_steps, step_differences
from trimtab.rewards.functions import UserFunction
from trimtab.types import Completion, Floats, Group, Score


class ProcessSpec(Config):
    """The source of step scores, and the rewards computed from them."""

    model_keys: ClassVar[frozenset[str]] = frozenset({"model"})

    name: str = Field(default="process", min_length=1)
    """Name in metrics and samples."""
    model: str | None = None
    """Folder or hub id of a token classification model with two labels (``trimtab process``)."""
    function: FunctionPath | None = None
    """ "package.module:name" or "file.py:name", called by argument name: ``f(prompts,
    completions_steps, **columns)``. For each completion (a list of step texts) it returns a list with
    the probability that each step is correct, or None for "no score"."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keyword arguments of the function."""
    timeout: float | None = Field(default=None, gt=0.0)
    """Seconds per call of the function, which then runs in a child process that is killed at the
    deadline."""
    unit: Literal["step", "token"] = "step"
    """What is scored. "token": ``completions_steps`` has the text of every token, the end token's being
    empty, and ``separator`` has no meaning; a function only."""
    separator: str = "\n"
    """Text that ends a step; must be the one that the model was trained with."""
    aggregate: Aggregate = "product"
    """How the scores of the steps become one score of the completion."""
    dense: Literal["difference", "raw", "none"] = "difference"
    """Reward at the end of step k, whose score is p_k. "difference": p_k - p_(k-1), whose sum is the
    last p. "raw": p_k, which rewards a larger number of steps. "none": no dense reward; the
    aggregate is added to the sequence reward instead."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor of the reward; 0 records the scores without training on them."""

    @model_validator(mode="after")
    def _one(self) -> ProcessSpec:
        if (self.model is None) == (self.function is None):
            raise ValueError("give one of 'model' and 'function'")
        if self.unit == "token" and self.function is None:
            raise ValueError("unit: token scores every token by a function; a model scores steps")
        return self


class ProcessReward:
    """Scores the reasoning steps of completions in place.

    Args:
        renderer: The policy's. A model with its vocabulary and chat template reads its token ids
            unchanged, another one reads the prompt and the texts of the steps in its own.

    Raises:
        ConfigError: the function cannot be imported, or the separator has no token.
        ModelError: the model is not a process reward model.
    """

    def __init__(
        self, spec: ProcessSpec, renderer: Renderer, token_budget: int, device: str = "auto"
    ) -> None:
        self.spec = spec
        self.budget = token_budget
        token = spec.unit == "token"
        self.steps = EachToken(renderer) if token else Steps(renderer, spec.separator)
        self.function: UserFunction | None = None
        self.foreign: Steps | None = None
        if spec.function is not None:
            owner, key = f"process reward {spec.name!r}", f"{spec.name}.function"
            self.function = UserFunction(owner, spec.function, key, spec.options, spec.timeout)
            return
        path = cast(str, spec.model)
        frozen = load_frozen(StepScorer, ModelSpec(path=path, device=device), renderer.tokenizer)
        self.scorer = frozen.model
        if not (frozen.same_vocabulary and frozen.same_template):
            self.foreign = Steps(frozen.renderer, spec.separator)

    def __call__(self, groups: Sequence[Group]) -> None:
        """Fill ``scores[name]`` and the columns "dense", "step_end" and "step_score", each [T].

        On the last token of each step, "step_end" is 1, "step_score" is the probability that the step
        is correct and "dense" is its reward. All other entries are 0. If the steps could not be
        scored, the score has a status and the columns are all 0.
        """
        scores = self._function(groups) if self.function is not None else self._model(groups)
        flat = [c for g in groups for c in g.completions]
        for c, p_S in zip(flat, scores, strict=True):
            for column in ("dense", "step_end", "step_score"):
                c.tokens[column] = np.zeros(len(c), dtype=np.float32)
            if isinstance(p_S, Score):
                c.scores[self.spec.name] = p_S
                continue
            ends = self.steps.ends(c.ids)
            p = torch.from_numpy(p_S.astype(np.float64))
            c.scores[self.spec.name] = Score(float(aggregate_steps(p, self.spec.aggregate)))
            if self.spec.dense != "none":
                dense = step_differences(p) if self.spec.dense == "difference" else p
                c.tokens["dense"][ends] = dense.numpy()
            c.tokens["step_end"][ends] = 1.0
            c.tokens["step_score"][ends] = p_S

    @torch.no_grad()
    def _model(self, groups: Sequence[Group]) -> list[Floats | Score]:
        copies: list[Group] = []
        for g in groups:
            if self.foreign is not None:
                copies += [self._retokenised(self.foreign, g, c) for c in g.completions]
                continue
            copied: list[Completion] = []
            for c in g.completions:
                ids, reads = self.steps.closed(c.ids)
                mask = np.zeros(len(ids), dtype=bool)
                mask[reads] = True
                copied.append(Completion(ids, mask))
            copies.append(Group(g.id, g.prompt, copied))
        where = {id(c): i for i, c in enumerate(c for g in copies for c in g.completions)}
        scores: list[Floats | Score] = [Score(None, "invalid")] * len(where)
        for pack in packs(copies, self.budget, share=self.scorer.exact):
            p_C = torch.sigmoid(self.scorer.log_odds(pack.to(self.scorer.device))).cpu().numpy()
            flat = [c for g in pack.groups for c in g.completions]
            at = np.cumsum([c.trained for c in flat])[:-1]
            for c, p_S in zip(flat, np.split(p_C, at), strict=True):
                scores[where[id(c)]] = _checked(p_S.tolist(), c.trained)
        return scores

    def _retokenised(self, foreign: Steps, group: Group, c: Completion) -> Group:
        prompt = group.extra.get("messages") or group.text
        texts = self.steps.texts(c.ids)
        retokenised = foreign.group(Example(group.id, prompt, list(texts), extra=group.extra))
        assert retokenised is not None, "a renderer without limits drops nothing"
        return retokenised

    def _function(self, groups: Sequence[Group]) -> list[Floats | Score]:
        assert self.function is not None
        rows = [(g, c) for g in groups for c in g.completions]
        texts = [self.steps.texts(c.ids) for _, c in rows]
        columns = {k: [g.extra.get(k) for g, _ in rows] for g in groups for k in g.extra}
        columns |= {"prompts": [g.text for g, _ in rows], "completions_steps": texts}
        step = max((c.version for _, c in rows), default=0)
        returned = self.function(columns, len(rows), "completions", max(0, step))
        if isinstance(returned, Score):
            return [returned] * len(rows)
        return [_checked(x, len(t)) for x, t in zip(returned.values, texts, strict=True)]


def _checked(raw: Any, count: int) -> Floats | Score:
    """The scores of ``count`` steps as an array, or a status with the reason if they are not valid."""
    if not isinstance(raw, Sequence) or len(raw) != count:
        return Score(None, "invalid", f"not one score for each of {count} steps: {raw!r}")
    for x in raw:
        if not isinstance(x, bool | int | float) or math.isnan(x) or not 0.0 <= x <= 1.0:
            return Score(None, "invalid", f"not a probability: {x!r}")
    return np.array(raw, dtype=np.float32)

"""Configuration of one part of the reward, an entry under ``rewards:``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from trimtab.config import Config, FunctionPath
from trimtab.judges.judge_config import JudgeSpec
from trimtab.rewards.rules import VerifierName, verifier_options

Combine = Literal["mean", "worst", "uncertainty", "average"]

_KINDS = ("model", "models", "function", "judge", "ai", "verifier")
_ONLY: dict[str, tuple[str, ...]] = {
    "combine": ("models",),
    "uncertainty_weight": ("models",),
    "reference": ("model", "models"),
    "residual_length": ("model", "models"),
    "timeout": ("function", "judge", "verifier"),
    "options": ("function", "judge", "verifier"),
    "messages": ("function",),
}


class RewardSpec(Config):
    """One part of the reward: a model, an ensemble of models, a function, a judge (a function or
    an LLM) or a verifier."""

    model_keys: ClassVar[frozenset[str]] = frozenset({"model", "models"})

    name: str = Field(default="", pattern=r"^[^/]+$")
    """Name in metrics and samples; details are recorded as "name/detail". The default is the name of
    the function or verifier, or else the key below that is set ("model")."""
    model: str | None = None
    """Folder or hub id of a sequence classification model with one label."""
    models: tuple[str, ...] = ()
    """Two or more such models, combined by ``combine``."""
    function: FunctionPath | None = None
    """ "package.module:name" or "file.py:name": ``f(prompts, completions, **columns) -> list of
    floats``. Every argument is passed by name, as in TRL; the function declares those it needs, and
    may be ``async``. None means "no score": the other parts are the completion's reward."""
    messages: bool | None = None
    """Whether the function gets conversational prompts and completions as lists of messages, as in
    TRL, instead of texts. By default its annotation of ``completions`` decides, or else whether it
    can read texts in its first call."""
    judge: FunctionPath | None = None
    """A function that compares two completions of one prompt, called by argument name:
    ``f(prompts, pairs, **columns) -> list``. 0: the first of the pair is better; 1: the second is;
    in between: P(second is better); None: no verdict. A completion's score is the share of its
    comparisons that it won, so this needs two or more completions per prompt."""
    ai: JudgeSpec | None = None
    """An LLM behind an OpenAI-compatible endpoint, with a rubric. A completion's score is the share of
    its comparisons that it won; with ``mode: score`` the rubric's score, scaled to [0, 1]."""
    verifier: VerifierName | None = None
    """A rule that gives 1 if the completion has the right answer of its row, else 0."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the sum; 0 records the score without training on it."""
    combine: Combine = "mean"
    """How the members' scores become one (2310.02743): their mean, the worst, or the mean minus
    lambda * variance. "average" averages the weights instead (WARM, 2401.12187), which costs as much
    as one model."""
    uncertainty_weight: float = Field(default=0.1, ge=0.0)
    """Lambda of "uncertainty": mean - lambda * variance."""
    reference: str | None = None
    """Data with prompts and completions. Each model is standardised by its scores of this data,
    instead of by the statistics saved with it."""
    residual_length: bool = False
    """Subtract the linear dependence of the score on the completion's length."""
    timeout: float | None = Field(default=None, gt=0.0)
    """Seconds per call of the function, which then runs in a child process that is killed at the
    deadline. For "math": seconds per completion (default 5)."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keyword arguments of the function, or keys of the verifier."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        """Accept a function alone as a reward, and set the default name."""
        if callable(values):
            values = {"function": values}
        if not isinstance(values, dict):
            return values
        values = cast("dict[str, Any]", values)
        kind = next((k for k in _KINDS if values.get(k)), None)
        if kind is None or "name" in values:
            return values
        name = values[kind] if kind in ("function", "judge", "verifier") else kind
        name = str(getattr(name, "__qualname__", name)).rpartition(":")[2].rpartition(".")[2]
        return {**values, "name": {"<lambda>": "reward"}.get(name, name)}

    @model_validator(mode="after")
    def _one(self) -> RewardSpec:
        kinds_set = [k for k in _KINDS if getattr(self, k)]
        if len(kinds_set) != 1:
            raise ValueError(
                f"give one of {', '.join(_KINDS)}, not {' and '.join(kinds_set) or 'none of them'}"
            )
        kind = kinds_set[0]
        for key, kinds in _ONLY.items():
            default = RewardSpec.model_fields[key].get_default(call_default_factory=True)
            if kind not in kinds and getattr(self, key) != default:
                raise ValueError(f"{key!r} belongs to {' or '.join(kinds)}, not to {kind}")
        if kind == "models" and len(self.models) < 2:
            raise ValueError(
                "'models' has one model, but an ensemble needs two or more; use 'model' for one"
            )
        if len(set(self.models)) != len(self.models):
            raise ValueError("'models' has the same model twice; remove one of them")
        if self.verifier is not None:
            verifier_options(self.verifier, self.options)
            if self.timeout is not None and self.verifier != "math":
                raise ValueError(
                    f"'timeout' is for \"math\" and functions; remove it for {self.verifier!r}"
                )
        return self

    @property
    def compares(self) -> bool:
        """Whether it compares completions of one prompt, and so needs two or more of them."""
        return self.judge is not None or (self.ai is not None and self.ai.mode != "score")

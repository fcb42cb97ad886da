"""What a list of rewards may hold, as it is written under ``rewards:``."""

from __future__ import annotations

from typing import Any, Literal, cast

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
}


class RewardSpec(Config):
    """One part of the reward: a model, an ensemble of models, a function, a judge (a function or
    an AI) or a verifier."""

    name: str = Field(default="", pattern=r"^[^/]+$")
    """Its name in metrics and samples; its details are recorded as "name/part". By default the name
    of the function or verifier, or else the key below that is set ("model")."""
    model: str | None = None
    """Folder or hub id of a sequence classification model with one label."""
    models: tuple[str, ...] = ()
    """Two or more of them, taken together as ``combine`` says."""
    function: FunctionPath | None = None
    """ "package.module:name" or "file.py:name", called by argument name as in TRL:
    ``f(prompts, completions, **columns) -> list of floats``, of which it declares what it needs;
    None marks "no score"."""
    judge: FunctionPath | None = None
    """A function that compares two answers to one prompt, called by argument name:
    ``f(prompts, pairs, **columns) -> list``, 0 where the first of a pair is better, 1 where the
    second is, between them P(second is better), None for "no verdict". An answer's score is the
    share of its comparisons that it won, so it takes two or more answers a prompt."""
    ai: JudgeSpec | None = None
    """A model behind an OpenAI-compatible endpoint, with a rubric. An answer's score is the share
    of its comparisons that it won; with ``mode: score`` the rubric's number, scaled to [0, 1]."""
    verifier: VerifierName | None = None
    """1 where the completion holds the answer of the row, 0 where it does not."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Its share of the sum; 0 watches it without training on it."""
    combine: Combine = "mean"
    """How members make one score (2310.02743): their mean, the worst, or the mean less their
    variance; "average" averages the weights instead (WARM, 2401.12187) and costs one model."""
    uncertainty_weight: float = Field(default=0.1, ge=0.0)
    """Lambda of "uncertainty": mean - lambda * variance."""
    reference: str | None = None
    """Data with prompts and completions on which each member is standardised, in place of the
    statistics saved with it."""
    residual_length: bool = False
    """Take the slope of the score on the completion's length out of it."""
    timeout: float | None = Field(default=None, gt=0.0)
    """Seconds for one call of the function, which then runs in a process that can be killed; for
    "math" seconds for one completion (5 when not given)."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keyword arguments of the function, or the verifier's keys."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        """A function alone is a reward, and a reward without a name is called after what it is."""
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
            raise ValueError("'models' is an ensemble of two or more; for one, give 'model'")
        if len(set(self.models)) != len(self.models):
            raise ValueError("'models' names a folder twice: it would only be weighted double")
        if self.verifier is not None:
            verifier_options(self.verifier, self.options)
            if self.timeout is not None and self.verifier != "math":
                raise ValueError(f"'timeout' is for \"math\" and functions; {self.verifier!r} ends")
        return self

    @property
    def compares(self) -> bool:
        """Whether it compares answers to one prompt, and so needs two or more of them."""
        return self.judge is not None or (self.ai is not None and self.ai.mode != "score")

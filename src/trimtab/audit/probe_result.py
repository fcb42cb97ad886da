"""What a probe measured of a model: one entry of the list "probes" in ``probes.json``."""

from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

Grade = Literal["bad", "fair", "good", ""]


class ProbeExample(BaseModel):
    """A prompt and the completion that the probe is about."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str = ""
    completion: str = Field(default="", validation_alias=AliasChoices("completion", "answer"))
    plain: str | None = None
    """The unchanged completion that it is compared with."""
    note: str = ""


class ProbeResult(BaseModel):
    """The value of a probe with its interval, and the value it is compared with."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    of: Literal["reward", "policy", "reference", "judge"]
    probe: str
    """ "flattery", "length", "swap", "canary", "accuracy", ..."""
    value: float | None = None
    """None where it could not be measured."""
    n: int = Field(default=0, ge=0)
    """Pairs or items."""
    low: float | None = None
    high: float | None = None
    """95 % confidence interval of the value."""
    baseline: float | None = None
    """The value of a model that ignores the content, or up to which nothing is wrong."""
    name: str = ""
    """Which reward model or judge, where there are several."""
    source: str = ""
    """The origin of the texts: "data" (the user's), "sandbox" or "rollouts"."""
    grade: Grade = Field(default="", validation_alias=AliasChoices("grade", "verdict"))
    about: str = ""
    """What was changed or measured."""
    step: int | None = None
    """Step of the policy, where it was probed during training."""
    gap: float | None = None
    """Mean change of the score, in standard deviations of the unchanged completions' scores."""
    gap_low: float | None = None
    gap_high: float | None = None
    p: float | None = None
    """P-value of "not above the baseline"."""
    first: float | None = None
    """Of a judge: how often the completion shown first wins."""
    shuffled_high: float | None = None
    """Of accuracy: the 97.5th percentile with shuffled labels."""
    ceiling: float | None = None
    """Of accuracy: that of the best possible predictor of noisy labels."""
    examples: tuple[ProbeExample, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The entry as ``probes.json`` has it: without the fields that do not apply."""
        plain = self.model_dump(exclude_none=True)
        return {k: v for k, v in plain.items() if v not in ("", ())}

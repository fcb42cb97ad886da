"""How a judge is described, in a file or by flags."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from trimtab.config import Config

Mode = Literal["pairwise", "rank", "score"]
Order = Literal["both", "random", "given"]


class ClientSpec(Config):
    """An OpenAI-compatible endpoint, and how far it may be used."""

    endpoint: str = "https://api.openai.com/v1"
    """Base URL ("http://127.0.0.1:8000/v1"), or a function that starts a server,
    "package.module:name" or "file.py:name", called with ``serve`` and returning what has ``url``,
    ``key`` and ``close()``."""
    serve: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keyword arguments of that function."""
    model: str = Field(min_length=1)
    """As the endpoint calls it."""
    key_env: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key; a key itself stands in no file and on no line."""
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    max_tokens: int = Field(default=512, gt=0)
    """Of one reply."""
    seed: int | None = 0
    """Sent along; null for endpoints that refuse it."""
    format: Literal["schema", "object", "none"] = "schema"
    """What keeps the reply in form: the JSON schema itself, JSON of any shape, or the words of the
    question alone. The reply is checked against the schema in any case."""
    probabilities: bool = False
    """Ask for log-probs and take P(verdict) from them; without them in the reply the verdict
    stands alone."""
    extra: dict[str, Any] = Field(default_factory=dict[str, Any])
    """More keys of the request; null takes one out, as with ``{seed: null}``."""
    concurrency: int = Field(default=8, gt=0)
    """Calls at a time."""
    timeout: float = Field(default=60.0, gt=0.0)
    """Seconds from sending a call to having the whole reply."""
    tries: int = Field(default=6, gt=0)
    """Calls for one reply, the first among them."""
    backoff: float = Field(default=0.5, ge=0.0)
    """Seconds before the second try, doubled for each further one up to 30, less a random part;
    a Retry-After of the server stands above it."""
    max_calls: int | None = Field(default=None, ge=0)
    """Calls that may be made, failed ones counted. Like ``max_spend`` it holds over everything the
    cache file has ever been used for, so a resumed run goes on counting."""
    max_spend: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Dollars that may be spent; needs ``price_in`` and ``price_out``."""
    price_in: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Dollars a million prompt tokens."""
    price_out: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Dollars a million reply tokens."""
    cache: str | None = None
    """SQLite file of replies and of what they cost."""

    @model_validator(mode="after")
    def _priced(self) -> ClientSpec:
        if self.max_spend is not None and (self.price_in is None or self.price_out is None):
            raise ValueError(
                "max_spend needs price_in and price_out (dollars a million tokens) to count by"
            )
        served = "://" not in self.endpoint
        if served and ":" not in self.endpoint:
            raise ValueError(
                f"endpoint: {self.endpoint!r} is neither a URL (http://host:port/v1) nor a function "
                "that starts a server (package.module:name)"
            )
        if self.serve and not served:
            raise ValueError("serve: belongs to an endpoint that is a function, not to a URL")
        return self


class JudgeSpec(ClientSpec):
    """A judge: a model at an endpoint, with a rubric."""

    rubric: str = "helpful"
    """A rubric of the package (hhh, helpful, honest, harmless, summary), or a YAML file."""
    mode: Mode = "pairwise"
    """ "pairwise" compares two at a time, "rank" puts all K in order at once, "score" gives each
    answer numbers by itself."""
    order: Order = "both"
    """ "both" asks in both orders: two verdicts that contradict each other are a tie. "random" asks
    once, in an order that follows from the item. "given" asks once, in the item's own order."""
    ties: bool = True
    """Whether the judge may call a tie."""
    critique: bool | None = None
    """Have it write its reasons before its verdict; as the rubric says when not given."""
    dimensions: bool = True
    """Ask for a verdict by each dimension of the rubric too."""
    principles: Literal["all", "one"] = "all"
    """Show every principle of the rubric, or one, drawn by the item (2212.08073)."""

"""The configuration of a judge and of its client."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from trimtab.config import Config

Mode = Literal["pairwise", "rank", "score"]
Order = Literal["both", "random", "given"]


class ClientSpec(Config):
    """An OpenAI-compatible endpoint, with limits on its use."""

    free_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "key_env",
            "concurrency",
            "timeout",
            "tries",
            "backoff",
            "max_calls",
            "max_spend",
            "price_in",
            "price_out",
        }
    )
    output_files: ClassVar[frozenset[str]] = frozenset({"cache"})

    endpoint: str = "https://api.openai.com/v1"
    """Base URL ("http://127.0.0.1:8000/v1"), or a function that starts a server
    ("package.module:name" or "file.py:name"). The function is called with ``serve`` and returns an
    object with ``url``, ``key`` and ``close()``."""
    serve: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Keyword arguments of the function in ``endpoint``."""
    model: str = Field(min_length=1)
    """Name of the model at the endpoint."""
    key_env: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the API key. The key itself is never read from a file or a flag."""
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    max_tokens: int = Field(default=512, gt=0)
    """Maximum tokens per reply."""
    seed: int | None = 0
    """Seed of the request; null for endpoints that reject it."""
    format: Literal["schema", "object", "none"] = "schema"
    """How the endpoint constrains the reply: to the JSON schema, to any JSON object, or not at all.
    The reply is checked against the schema in every case."""
    probabilities: bool = False
    """Request log-probs and compute P(verdict) from them. A reply without log-probs gives a verdict
    without a probability."""
    extra: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Additional keys of the request. null removes a key, as in ``{seed: null}``."""
    concurrency: int = Field(default=8, gt=0)
    """Maximum number of simultaneous calls."""
    timeout: float = Field(default=60.0, gt=0.0)
    """Seconds from sending a request until the whole reply has arrived."""
    tries: int = Field(default=6, gt=0)
    """Maximum calls per reply, including the first."""
    backoff: float = Field(default=0.5, ge=0.0)
    """Seconds before the second try, doubled for each further try up to 30, minus random jitter.
    Retry-After of the server takes precedence."""
    max_calls: int | None = Field(default=None, ge=0)
    """Maximum number of calls, including failed ones. Like ``max_spend`` it applies to the lifetime of
    the cache file, so a resumed run continues the count."""
    max_spend: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Maximum cost in dollars; needs ``price_in`` and ``price_out``."""
    price_in: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Dollars per million prompt tokens."""
    price_out: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Dollars per million reply tokens."""
    cache: str | None = None
    """SQLite file of replies and their cost."""

    @model_validator(mode="after")
    def _priced(self) -> ClientSpec:
        if self.max_spend is not None and (self.price_in is None or self.price_out is None):
            raise ValueError(
                "max_spend needs price_in and price_out (dollars per million tokens) to compute the cost"
            )
        served = "://" not in self.endpoint
        if served and ":" not in self.endpoint:
            raise ValueError(
                f"endpoint: {self.endpoint!r} is neither a URL (http://host:port/v1) nor a function "
                "that starts a server (package.module:name)"
            )
        if self.serve and not served:
            raise ValueError(
                "serve belongs to an endpoint that is a function, not to a URL; remove serve"
            )
        return self


class JudgeSpec(ClientSpec):
    """A judge: a model at an endpoint, with a rubric."""

    rubric: str = "helpful"
    """A built-in rubric (hhh, helpful, honest, harmless, summary) or a YAML file."""
    mode: Mode = "pairwise"
    """ "pairwise" compares two completions at a time, "rank" orders all K at once, "score" gives each
    completion numbers on its own."""
    order: Order = "both"
    """ "both" asks in both orders; two contradicting verdicts are a tie. "random" asks once, in an
    order drawn from a hash of the item. "given" asks once, in the item's own order."""
    ties: bool = True
    """Whether the judge may declare a tie."""
    critique: bool | None = None
    """Whether the judge writes its reasons before the verdict; by default as the rubric states."""
    dimensions: bool = True
    """Also request a verdict per dimension of the rubric."""
    principles: Literal["all", "one"] = "all"
    """Show all principles of the rubric, or one drawn from a hash of the item (2212.08073)."""

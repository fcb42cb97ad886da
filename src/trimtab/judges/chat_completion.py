"""Replies of a chat-completion endpoint: how they are parsed, and how they are cached."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


class InvalidReplyError(ValueError):
    """A reply that does not have the requested form. The question is asked again."""


@dataclass(slots=True)
class Token:
    """A token of a reply with the most likely alternatives at its position."""

    text: str
    top: list[tuple[str, float]]
    """(text, log-prob)."""


@dataclass(slots=True)
class Reply:
    """The content of a reply, and what it cost."""

    content: str
    tokens: list[Token]
    """Empty if the endpoint returned no log-probs."""
    seconds: float
    at: str
    """Time of arrival, ISO 8601 in UTC."""
    dollars: float
    """Price of the original call; 0 without ``price_in`` and ``price_out``."""
    tokens_in: int
    tokens_out: int

    def to_json(self) -> str:
        """The form in the cache."""
        return json.dumps(asdict(self) | {"tokens": [[t.text, t.top] for t in self.tokens]})

    @staticmethod
    def from_json(text: str) -> Reply:
        """Inverse of ``to_json``."""
        row: dict[str, Any] = json.loads(text)
        row["tokens"] = [Token(t, [(other, p) for other, p in top]) for t, top in row["tokens"]]
        return Reply(**row)


def parse_completion(data: bytes) -> tuple[str, list[Token], tuple[int, int] | None]:
    """Read the body of a chat completion.

    The SDK's own models do not validate, and strict ones would reject servers that omit fields
    which are never read here, so only these fields are checked.

    Returns:
        Content, tokens with log-probs, and (prompt tokens, completion tokens) or None if the
        endpoint does not count them.

    Raises:
        ValueError: it is not a chat completion, or its content is empty.
    """
    try:
        body: Any = json.loads(data.decode("utf-8", "replace"))
        choice = body["choices"][0]
        content = choice["message"]["content"]
        usage: Any = body.get("usage") or {}
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        tokens = [
            Token(
                t["token"],
                [(x["token"], float(x["logprob"])) for x in t.get("top_logprobs") or []],
            )
            for t in (choice.get("logprobs") or {}).get("content") or []
        ]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"status 200, but the body is not a chat completion ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(content, str) or not content.strip():
        raise ValueError("the reply is empty")
    counted = all(type(x) is int and x >= 0 for x in counts)
    return content, tokens, counts if counted else None

"""Reading a judge's reply: what it says in the form that was asked for, or nothing."""

import json
import math
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from trimtab.data.thoughts import answer_text
from trimtab.judges.chat_completion import InvalidReplyError, Reply
from trimtab.types import Row

_FENCE = "```"


def read(reply: Reply, answer: type[BaseModel]) -> Row:
    """The reply as ``answer`` says it must be.

    It is one JSON object, in a code block or not, after a model's own thoughts or not, and nothing
    else: an object somewhere in prose may be one that an answer under judgement brought along.

    Raises:
        InvalidReplyError: it is anything else.
    """
    try:
        try:
            value = _value(reply.content)
        except ValueError:
            # Only a reply that is no object has thoughts: one in its texts may be a quotation.
            value = _value(answer_text(reply.content))
        return answer.model_validate(value).model_dump()
    except RecursionError:
        raise InvalidReplyError("the reply is nested without end") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "reply"
        raise InvalidReplyError(
            f"{where}: {first['msg']}; it was {_short(reply.content)}"
        ) from None
    except ValueError as error:
        raise InvalidReplyError(f"not JSON ({error}); it was {_short(reply.content)}") from None


def _value(text: str) -> Any:
    inner = text.strip()
    if len(inner) >= 2 * len(_FENCE) and inner.startswith(_FENCE) and inner.endswith(_FENCE):
        first, _, rest = inner[len(_FENCE) : -len(_FENCE)].partition("\n")
        if first.strip() in ("", "json"):
            return json.loads(rest)
    return json.loads(text)


def _short(text: str) -> str:
    return repr(text if len(text) <= 160 else text[:160] + "…")


def verdict_prob(reply: Reply) -> float | None:
    """P(A is better) from the token in which the verdict begins, a tie counting half; None
    without log-probs, or where that token cannot be told.

    The probabilities of "A", "B" and "tie" are taken from what else could have stood in that
    place, and made to sum to 1: what the endpoint leaves out of its list counts as 0.
    """
    if not reply.tokens:
        return None
    text = "".join(t.text for t in reply.tokens)
    matches = list(re.finditer(r'"verdict"\s*:\s*"(A|B|tie)"', text))
    if not matches:
        return None
    start = matches[-1].start(1)
    at = 0
    for token in reply.tokens:
        if at <= start < at + len(token.text):
            before = token.text[: start - at]
            mass = {"A": 0.0, "B": 0.0, "t": 0.0}
            for other, logp in token.top:
                letter = other[len(before) : len(before) + 1]
                if other.startswith(before) and letter in mass:
                    mass[letter] += math.exp(min(logp, 0.0))
            total = sum(mass.values())
            return (mass["A"] + mass["t"] / 2) / total if total > 0 else None
        at += len(token.text)
    return None

"""How one call to an endpoint failed, and whether to try it again."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import openai

MAX_WAIT = 30.0
"""Longest pause before the next try, in seconds."""
_RETRIED_STATUS = frozenset((408, 409, 425, 429))


class CallError(Exception):
    """One call that failed; ``billed`` if the provider may charge for it."""

    def __init__(
        self,
        detail: str,
        *,
        status: Literal["error", "timeout"] = "error",
        retry: bool = True,
        retry_after: float = 0.0,
        billed: bool,
    ) -> None:
        super().__init__(detail)
        self.status, self.retry, self.retry_after = status, retry, retry_after
        self.billed = billed


def status_error(error: openai.APIStatusError, key_env: str) -> CallError:
    """What a status of 300 and above means. A refused call is not billed."""
    code = error.status_code
    detail = f"status {code}: {' '.join(error.response.text.split())[:300]}"
    if code in _RETRIED_STATUS or code >= 500:
        header = error.response.headers.get("retry-after", "")
        return CallError(detail, retry_after=retry_after(header), billed=False)
    refused_key = "; if it refuses a key of the request, set format: none, or extra: {KEY: null}"
    hint = {
        400: refused_key,
        401: f"; is the key in ${key_env} the right one?",
        403: f"; does the key in ${key_env} allow this?",
        404: "; is the model's name right, and does the endpoint end in /v1?",
        422: refused_key,
    }.get(code, "")
    return CallError(detail + hint, retry=False, billed=False)


def retry_after(header: str) -> float:
    """Seconds of a Retry-After header, which holds a number or a date."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), MAX_WAIT)

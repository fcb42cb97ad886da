"""Equality of mathematical answers through math-verify, which can hang, so under a deadline.

Its own time limit is an alarm signal, which works in the main thread alone; here it is turned off
and the whole process is killed instead.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from trimtab.errors import ConfigError
from trimtab.rewards.child import Child, ChildDiedError, ChildTimeoutError
from trimtab.types import Score

MEMORY_GB = 4.0
"""What one answer may take: 9**9**9 is short to write."""


def serve() -> tuple[str, Callable[[Any], Any]]:
    """The child's side: (given, gold) -> whether they are equal, None where gold has no meaning."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)

    def parse(text: str) -> list[Any]:
        return math_verify.parse(text, fallback_mode="no_fallback", parsing_timeout=0)

    @lru_cache(maxsize=4096)
    def parse_gold(text: str) -> tuple[Any, ...]:
        # A bare formula is only read as one between dollar signs.
        bare = not any(sign in text for sign in ("$", "\\boxed", "\\(", "\\["))
        return tuple((parse(f"${text}$") if bare else []) or parse(text))

    def handle(pair: list[str]) -> bool | None:
        answer, gold = pair
        want = parse_gold(gold)
        if not want:
            return None
        return math_verify.verify(
            list(want), parse(answer), timeout_seconds=None, raise_on_error=True
        )

    return "ready", handle


class MathVerify:
    """The parent's side, with one process for many answers.

    Args:
        name: The reward's name.
        timeout: Seconds for one answer.

    Raises:
        ConfigError: math-verify is not installed.
    """

    def __init__(self, name: str, timeout: float) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(
                f"rewards.{name}.verifier: math needs math-verify, which is not installed; "
                "run: pip install 'trimtab[math]'"
            )
        self.timeout = timeout
        self.child = Child(
            "trimtab.rewards.math_answers:serve", {}, what=f"reward {name!r}", memory_gb=MEMORY_GB
        )
        self.child.start()

    def check(self, answer: str, gold: str) -> bool | Score | None:
        """Whether ``given`` equals ``gold``; a status where that was not found out."""
        try:
            return self.child.call([answer, gold], self.timeout)
        except ChildTimeoutError as error:
            return Score(None, "timeout", str(error))
        except ChildDiedError as error:
            return Score(None, "error", str(error))

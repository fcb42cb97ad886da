"""Equality of mathematical answers by math-verify, in a child process because it can hang.

Its own time limit is an alarm signal, which works only in the main thread. It is turned off here,
and the process is killed at a deadline instead.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from trimtab.errors import ConfigError
from trimtab.runs.child import Child, ChildDiedError, ChildTimeoutError
from trimtab.types import Score

MEMORY_GB = 4.0
"""Limit of the child's memory: evaluating a short text such as 9**9**9 needs any amount."""


def serve() -> tuple[str, Callable[[Any], Any]]:
    """In the child process: (answer, gold) -> whether they are equal; None if gold cannot be parsed."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)

    def parse(text: str) -> list[Any]:
        return math_verify.parse(text, fallback_mode="no_fallback", parsing_timeout=0)

    @lru_cache(maxsize=4096)
    def parse_gold(text: str) -> tuple[Any, ...]:
        # math-verify reads a formula only between dollar signs.
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
    """Compares answers, all in one child process.

    Args:
        timeout: Seconds per answer.

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
        """Whether ``answer`` equals ``gold``; None if gold cannot be parsed; a status after a failure."""
        try:
            return self.child.call([answer, gold], self.timeout)
        except ChildTimeoutError as error:
            return Score(None, "timeout", str(error))
        except ChildDiedError as error:
            return Score(None, "error", str(error))

"""What a user's function takes: its parameters by name, inspected once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.errors import ConfigError

_MESSAGES = re.compile(r"\b(dict|Dict|Mapping|\w*Message\w*)\b")


@dataclass(frozen=True, slots=True)
class Signature:
    """The parameters of a function.

    >>> def f(completions: list[str], *, answer, scale=1.0): ...
    >>> signature = Signature.of(f, "f")
    >>> signature.required, signature.takes("prompts"), signature.messages
    (('completions', 'answer'), False, False)
    """

    names: Sequence[str]
    """Parameters that can be passed by name, or only by position."""
    required: Sequence[str]
    """Those without a default."""
    positional: Sequence[str]
    """Those that can only be passed by position, in order."""
    has_keywords: bool
    """Whether it takes any other argument (``**kwargs``)."""
    is_async: bool
    """Whether it is an ``async def``."""
    messages: bool | None
    """Whether its annotation says that a completion is a list of messages; None if it says nothing."""

    @staticmethod
    def of(function: Callable[..., Any], key: str) -> Signature:
        """The signature of ``function``.

        Raises:
            ConfigError: it cannot be inspected (a function written in C); the message names ``key``.
        """
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{key}: the parameters of {function!r} cannot be read ({error}); wrap it in a def"
            ) from None
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        named = [p for p in parameters if p.kind not in variable]
        annotation = next((str(p.annotation) for p in named if p.name == "completions"), "")
        messages = True if _MESSAGES.search(annotation) else None
        if messages is None and re.search(r"\bstr\b", annotation):
            messages = False
        call = getattr(function, "__call__", None)  # noqa: B004  its kind is read, not whether it exists
        return Signature(
            names=tuple(p.name for p in named),
            required=tuple(p.name for p in named if p.default is inspect.Parameter.empty),
            positional=tuple(p.name for p in named if p.kind is inspect.Parameter.POSITIONAL_ONLY),
            has_keywords=any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters),
            is_async=inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call),
            messages=messages,
        )

    def takes(self, name: str) -> bool:
        """Whether the function can be given an argument of this name."""
        return self.has_keywords or name in self.names

    def call(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Call ``function`` with those of ``arguments`` that it takes."""
        first = [arguments[name] for name in self.positional if name in arguments]
        rest = {k: v for k, v in arguments.items() if self.takes(k) and k not in self.positional}
        return function(*first, **rest)

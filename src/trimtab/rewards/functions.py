"""Python functions as rewards: in this process, or in a child process with a deadline."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, cast

from trimtab.config import import_function
from trimtab.errors import RewardError
from trimtab.rewards.child import Child, ChildDiedError, ChildTimeoutError
from trimtab.types import Group, Score

RewardFunction = Callable[..., object]
Columns = dict[str, list[Any]]


def number(x: object) -> Score:
    """A finite number as a score; any other value has the status "invalid"."""
    if isinstance(x, bool | Real) and math.isfinite(cast(float, x)):
        return Score(float(cast(float, x)))
    return Score(None, "invalid", f"not a finite number: {x!r:.200}")


def _parameters(function: RewardFunction) -> list[str] | None:
    """The parameter names of ``function``; None if it has ``**kwargs``."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return None
    return list(parameters)


def _call(
    function: RewardFunction, columns: Columns, options: dict[str, Any], count: int
) -> list[Score] | str:
    """The scores of ``count`` items, or a description of a return value that is not ``count`` values.

    Every argument is passed by name, as in TRL: a function declares those it needs.
    """
    try:
        raw = function(**columns, **options)
    except Exception as error:  # noqa: BLE001  a user's function may raise anything; it becomes a status
        why = f"{type(error).__name__}: {error}"
        return [Score(None, "error", why) for _ in range(count)]
    values_raw: Any = raw
    if hasattr(values_raw, "tolist"):
        values_raw = values_raw.tolist()
    if isinstance(values_raw, str | bytes) or not isinstance(values_raw, Sequence):
        return type(raw).__name__
    values = cast("Sequence[object]", values_raw)
    if len(values) != count:
        return f"{len(values)} values"
    return [number(x) for x in values]


def _texts(groups: Sequence[Group]) -> tuple[list[str], list[str], Columns]:
    prompts: list[str] = []
    completions: list[str] = []
    columns: Columns = {k: [] for g in groups for k in g.extra}
    for g in groups:
        for c in g.completions:
            prompts.append(g.text)
            completions.append(c.text)
            for key, column in columns.items():
                column.append(g.extra.get(key))
    return prompts, completions, columns


def serve(path: str, key: str, options: dict[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
    """In the child process: the parameter names of the function, and the handler of calls."""
    function = import_function(path, key)

    def handle(call: dict[str, Any]) -> Any:
        scores = _call(function, call["columns"], options, call["count"])
        return (
            scores if isinstance(scores, str) else [[s.value, s.status, s.detail] for s in scores]
        )

    return _parameters(function), handle


class FunctionPart:
    """A Python function as a part of the reward.

    Args:
        name: The part's name.
        path: Import path of the function (see ``import_function``).
        options: Keyword arguments of the function.
        timeout: Seconds per call. With a timeout, the arguments are sent as JSON to a child process
            that is killed at the deadline. Without it, the function runs in this process, and
            blocks it if the function hangs.
        kind: The configuration key of the function, for error messages.
        what: The name of the argument with the scored items.

    Raises:
        ConfigError: the function cannot be imported.
    """

    def __init__(
        self,
        name: str,
        path: str,
        options: dict[str, Any],
        timeout: float | None,
        kind: str = "function",
        what: str = "completions",
    ) -> None:
        self.name, self.path, self.options, self.timeout = name, path, options, timeout
        self.what = what
        key = f"rewards.{name}.{kind}"
        self.function: RewardFunction | None = None
        self.child: Child | None = None
        if timeout is None:
            self.function = import_function(path, key)
            self.parameters = _parameters(self.function)
        else:
            arguments = {"path": path, "key": key, "options": options}
            self.child = Child(
                "trimtab.rewards.functions:serve", arguments, what=f"reward {name!r}"
            )
            self.parameters = cast("list[str] | None", self.child.start())

    def __call__(self, groups: Sequence[Group]) -> dict[str, list[Score]]:
        """A score for each completion, in order.

        Raises:
            RewardError: the function returned something other than one value per completion.
        """
        return {self.name: self.ask(*_texts(groups))}

    def ask(self, prompts: list[str], completions: Sequence[Any], columns: Columns) -> list[Score]:
        """A score for each completion, or for each of the items passed as ``completions``.

        Raises:
            RewardError: the function returned something other than one value per item.
        """
        columns = {**columns, "prompts": prompts, self.what: list(completions)}
        if self.parameters is not None:
            columns = {k: v for k, v in columns.items() if k in self.parameters}
        if self.function is not None:
            scores = _call(self.function, columns, self.options, len(completions))
        else:
            scores = self._remote(columns, len(completions))
        if isinstance(scores, str):
            raise RewardError(
                f"reward {self.name!r} ({self.path}) must return one number for each of the "
                f"{len(completions)} {self.what}, but returned {scores}"
            )
        return scores

    def _remote(self, columns: Columns, count: int) -> list[Score] | str:
        assert self.child is not None and self.timeout is not None
        for key, column in columns.items():
            try:
                json.dumps(column)
            except (TypeError, ValueError) as error:
                raise RewardError(
                    f"reward {self.name!r} has a timeout, so its columns must be sent as JSON, but "
                    f"column {key!r} cannot: {error}; convert it to text or numbers"
                ) from None
        try:
            reply = self.child.call({"columns": columns, "count": count}, self.timeout)
        except ChildTimeoutError as error:
            return [Score(None, "timeout", str(error)) for _ in range(count)]
        except ChildDiedError as error:
            return [Score(None, "error", str(error)) for _ in range(count)]
        return reply if isinstance(reply, str) else [Score(*s) for s in reply]

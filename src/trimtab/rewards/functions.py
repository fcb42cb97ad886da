"""Python functions of the user: called by argument name, here or in a child process with a deadline."""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any, cast

from trimtab.background import background
from trimtab.config import import_function
from trimtab.errors import ConfigError, RewardError
from trimtab.redact import redact
from trimtab.rewards.signature import Signature
from trimtab.runs.child import Child, ChildDiedError, ChildTimeoutError
from trimtab.types import Group, Score

log = logging.getLogger(__name__)
Columns = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The argument ``trainer_state``: the fields of transformers' class that are known here."""

    global_step: int
    """Optimiser steps done by the policy that sampled the completions."""
    max_steps: int
    """Optimiser steps of the whole run; 0 outside training."""


@dataclass(slots=True)
class Returned:
    """What one call of a function returned; plain values, as JSON."""

    values: list[Any] = field(default_factory=list[Any])
    error: str = ""
    """The exception that it raised."""
    broken: str = ""
    """What it returned in place of a list with one value per item."""
    details: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    """Values per item that it recorded by ``log_extra`` and ``log_metric``."""


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _plain(value: Any) -> Any:
    """Numbers, texts and lists of them; anything else as its description."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(x) for x in cast("Sequence[Any]", value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return float(value) if isinstance(value, Real) else f"{value!r:.80}"


def _call(
    function: Callable[..., Any], signature: Signature, arguments: dict[str, Any], count: int
) -> Returned:
    """Call ``function`` for ``count`` items."""
    returned = Returned()

    def log_extra(column: str, values: Any) -> None:
        plain = _plain(values)
        if not any(isinstance(x, str) for x in plain):
            returned.details[column] = plain

    def log_metric(name: str, value: Any) -> None:
        returned.details[name] = [_plain(value)] * count

    state = TrainerState(*arguments["trainer_state"])
    own = {"trainer_state": state, "log_extra": log_extra, "log_metric": log_metric}
    try:
        raw = signature.call(function, {**arguments, **own})
        if inspect.isawaitable(raw):
            # Clients that the function opens outlive the call, so the loop does too.
            raw = background("trimtab-rewards").run(_awaited(raw))
    except Exception as error:  # noqa: BLE001  a user's function may raise anything; it becomes a status
        returned.error = f"{type(error).__name__}: {error}"
        return returned
    values = _plain(raw)
    if not isinstance(values, list):
        returned.broken = type(raw).__name__
    elif len(cast("list[Any]", values)) != count:
        returned.broken = f"{len(cast('list[Any]', values))} values"
    else:
        returned.values = cast("list[Any]", values)
    return returned


def serve(path: str, key: str, options: dict[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
    """In the child process: the function's signature, and the handler of calls."""
    function = import_function(path, key)
    signature = Signature.of(function, key)

    def handle(call: dict[str, Any]) -> Any:
        arguments = {**call["columns"], **options}
        return asdict(_call(function, signature, arguments, call["count"]))

    return asdict(signature), handle


class UserFunction:
    """A function of the user that gets lists with one value per item, by argument name.

    Args:
        owner: What it belongs to, for messages: "reward 'r'".
        path: Import path of the function (see ``import_function``).
        key: Its configuration key, for messages.
        options: Its other keyword arguments; they replace columns of the same name.
        timeout: Seconds per call. With a timeout, the arguments are sent as JSON to a child process
            that is killed at the deadline. Without it, the function runs in this process, and
            blocks it if the function hangs.

    Raises:
        ConfigError: the function cannot be imported or inspected.
    """

    def __init__(
        self,
        owner: str,
        path: str,
        key: str,
        options: dict[str, Any] | None = None,
        timeout: float | None = None,
    ) -> None:
        self.label = f"{owner} ({path})"
        self.options, self.timeout = options or {}, timeout
        self.max_steps = 0
        """Optimiser steps of the run, for ``trainer_state``."""
        self.columns: set[str] = set()
        """Columns of the whole dataset, where they are known: one batch may have rows without some."""
        self.function: Callable[..., Any] | None = None
        self.child: Child | None = None
        if timeout is None:
            self.function = import_function(path, key)
            self.signature = Signature.of(self.function, key)
        else:
            arguments = {"path": path, "key": key, "options": self.options}
            self.child = Child("trimtab.rewards.functions:serve", arguments, what=owner)
            self.signature = Signature(**self.child.start())
        if unused := [k for k in self.options if not self.signature.takes(k)]:
            raise ConfigError(
                f"{key}: {path} has no parameter {unused[0]!r}, which its options set; its parameters "
                f"are: {', '.join(self.signature.names)}"
            )

    def __call__(
        self, columns: Mapping[str, list[Any]], count: int, what: str, step: int = 0
    ) -> Returned | Score:
        """What the function returned for ``count`` items, or the status of a call that failed.

        Args:
            columns: Lists of ``count`` values; the function gets those that it takes.
            count: Number of items.
            what: The items, for messages: "completions".
            step: Optimiser steps done.

        Raises:
            RewardError: the function needs an argument that is no column, or did not return one
                value per item.
        """
        signature = self.signature
        columns = {name: [None] * count for name in self.columns} | dict(columns)
        available = {*columns, *self.options, "trainer_state", "log_extra", "log_metric"}
        missing = [name for name in signature.required if name not in available]
        if missing:
            raise RewardError(
                f"{self.label} needs the argument {missing[0]!r}, which is no column; arguments are "
                f"passed by name, and there are: {', '.join(sorted(available))}"
            )
        sent = {k: v for k, v in columns.items() if signature.takes(k)}
        sent["trainer_state"] = [step, self.max_steps]
        if self.function is not None:
            returned = _call(self.function, signature, {**sent, **self.options}, count)
        else:
            returned = self._remote(sent, count)
        if isinstance(returned, Score):
            return returned
        if returned.error:
            # It is written into the samples.
            return Score(None, "error", redact(returned.error))
        if returned.broken:
            raise RewardError(
                f"{self.label} must return one value for each of the {count} {what}, but returned "
                f"{returned.broken}"
            )
        return returned

    def _remote(self, columns: dict[str, Any], count: int) -> Returned | Score:
        assert self.child is not None and self.timeout is not None
        for key, column in columns.items():
            try:
                json.dumps(column)
            except (TypeError, ValueError) as error:
                raise RewardError(
                    f"{self.label} has a timeout, so its columns must be sent as JSON, but column "
                    f"{key!r} cannot: {error}; convert it to text or numbers"
                ) from None
        try:
            reply = self.child.call({"columns": columns, "count": count}, self.timeout)
        except ChildTimeoutError as error:
            return Score(None, "timeout", str(error))
        except ChildDiedError as error:
            return Score(None, "error", redact(str(error)))
        return Returned(**reply)

    def scores(self, values: Sequence[Any]) -> list[Score]:
        """Values as scores: None and numbers that are not finite are "masked".

        Raises:
            RewardError: a value is no number.
        """
        return [self._score(i, x) for i, x in enumerate(values, 1)]

    def _score(self, index: int, x: Any) -> Score:
        if x is None:
            return Score(None, "masked", "the function returned None")
        if not isinstance(x, int | float):
            raise RewardError(
                f"{self.label} must return numbers (None for no score), but value {index} is {x!r:.80}, "
                f"of type {type(x).__name__}"
            )
        return Score(float(x)) if math.isfinite(x) else Score(None, "masked", f"not finite: {x!r}")


class FunctionPart:
    """A Python function as a part of the reward.

    Args:
        function: Gets ``prompts``, ``completions``, ``completion_ids`` and the rows' other columns.
        messages: Whether prompts and completions are lists of messages where the rows' prompts are;
            None to find out: by the annotation of ``completions``, or else from the first call.
    """

    def __init__(self, name: str, function: UserFunction, messages: bool | None = None) -> None:
        self.name, self.function = name, function
        self.messages = function.signature.messages if messages is None else messages

    @property
    def is_async(self) -> bool:
        """Whether it waits for something else, so that it can run next to other parts."""
        return self.function.signature.is_async

    def __call__(self, groups: Sequence[Group]) -> dict[str, list[Score]]:
        """A score for each completion, in order; "NAME/COLUMN" for what the function logged.

        Raises:
            RewardError: the function returned something other than one number per completion.
        """
        count = sum(len(g.completions) for g in groups)
        conversational = all("messages" in g.extra for g in groups)
        returned = self._ask(groups, conversational and bool(self.messages))
        if self.messages is None and conversational:
            if isinstance(returned, Returned):
                self.messages = False
            elif returned.detail.startswith(_WRONG_TYPE):
                # It may be written for TRL, which passes messages: completion[0]["content"].
                with_messages = self._ask(groups, True)
                if isinstance(with_messages, Returned):
                    returned, self.messages = with_messages, True
                    log.info("%s is given messages: it does not read texts", self.function.label)
        if isinstance(returned, Score):
            return {self.name: [returned] * count}
        details = {
            f"{self.name}/{column}": self.function.scores(values)
            for column, values in returned.details.items()
            if len(values) == count
        }
        return {self.name: self.function.scores(returned.values), **details}

    def _ask(self, groups: Sequence[Group], messages: bool) -> Returned | Score:
        rows = [(g, c) for g in groups for c in g.completions]
        columns: Columns = {k: [g.extra.get(k) for g, _ in rows] for g in groups for k in g.extra}
        columns |= {k: [c.extra.get(k) for _, c in rows] for _, c in rows for k in c.extra}
        columns["prompts"] = [g.extra["messages"] if messages else g.text for g, _ in rows]
        columns["completions"] = [
            (c.messages or [{"role": "assistant", "content": c.text}]) if messages else c.text
            for _, c in rows
        ]
        columns["completion_ids"] = [c.ids.tolist() for _, c in rows]
        step = max((c.version for _, c in rows), default=0)
        return self.function(columns, len(rows), "completions", max(0, step))


_WRONG_TYPE = ("TypeError", "IndexError", "AttributeError")
"""What code that expects messages raises where it is given a text."""

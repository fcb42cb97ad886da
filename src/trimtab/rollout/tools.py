"""Python functions as tools: their schemas, and calls with a deadline."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from trimtab.errors import ConfigError
from trimtab.types import Row

Tool = Callable[..., Any]
RESERVED = ("reset", "get_reward")
"""Methods of an environment that are no tools."""


class DeadlineError(Exception):
    """A call took longer than it may."""


def methods(instance: object) -> list[Tool]:
    """The public methods of an environment, but for ``reset`` and ``get_reward``: its tools."""
    members = inspect.getmembers(instance, predicate=inspect.ismethod)
    return [f for name, f in members if name not in RESERVED and not name.startswith("_")]


def schema(tool: Tool) -> Row:
    """The JSON schema of a function, by its type hints and its docstring in Google's style; or the one
    in its attribute ``tool_schema``.

    Raises:
        ConfigError: an argument has no type hint or no description.
    """
    if hasattr(tool, "tool_schema"):
        return cast(Row, tool.tool_schema)  # pyright: ignore[reportFunctionMemberAccess]
    from transformers.utils.chat_template_utils import (
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    try:
        return cast(Row, get_json_schema(tool))
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise ConfigError(
            f"tool {getattr(tool, '__name__', tool)!r}: {error} A tool needs a type hint for each "
            "argument and a docstring with a section 'Args:' that describes each"
        ) from None


def by_name(tools: Sequence[Tool]) -> dict[str, Tool]:
    """Tools by name.

    Raises:
        ConfigError: two have the same name.
    """
    names = [str(getattr(t, "__name__", t)) for t in tools]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"tools: two tools are named {name!r}; rename one of them")
    return dict(zip(names, tools, strict=True))


async def call(function: Tool, arguments: Mapping[str, Any], seconds: float | None) -> Any:
    """The result of a function, plain or async.

    Without a deadline a plain function runs in this thread. With one it runs in a thread of its own,
    which goes on after the deadline, because Python cannot end it.

    Raises:
        DeadlineError: it took longer than ``seconds``.
        Exception: whatever it raises.
    """
    if inspect.iscoroutinefunction(function):
        work: Awaitable[Any] = function(**arguments)
    elif seconds is None:
        return function(**arguments)
    else:
        work = in_thread(function, arguments)
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            return await work
    except TimeoutError:
        if deadline.expired():
            name = getattr(function, "__name__", "call")
            raise DeadlineError(f"{name} took longer than {seconds:g} s") from None
        raise


def in_thread(function: Tool, arguments: Mapping[str, Any]) -> asyncio.Future[Any]:
    """The result of a function that runs in a thread of its own."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def finish(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = function(**arguments)
        except Exception as raised:  # noqa: BLE001  whoever awaits the future gets it
            # A future cannot raise StopIteration.
            error = RuntimeError(repr(raised)) if isinstance(raised, StopIteration) else raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, result, error)

    # A daemon, so that a call that hangs does not keep the process alive.
    threading.Thread(target=run, daemon=True, name="tool").start()
    return future


def observation(result: Any) -> str | list[Row]:
    """What a tool returned as the content of a message: text parts as they are, else its text."""
    if isinstance(result, list):
        parts = cast("list[Any]", result)
        if parts and all(isinstance(p, dict) and p.get("type") == "text" for p in parts):
            return parts
    return str(result)

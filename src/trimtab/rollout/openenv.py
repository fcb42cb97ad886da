"""Environments of OpenEnv servers (package openenv, 0.10 or later) in the protocol of ``rollout.environment``.

environment: {factory: "trimtab.rollout.openenv:OpenEnv", options: {base_url: "http://localhost:8000"}}
"""

from __future__ import annotations

import importlib
import json
import urllib.request
from types import MethodType
from typing import Any, cast

from trimtab.errors import ConfigError
from trimtab.types import Row


class OpenEnv:
    """One session at a server. Its tools are the server's, or ``step`` with the fields of its action.

    The reward is the sum of the rewards of all steps. After the server says that the episode is done, calls
    are errors.

    Args:
        base_url: Of the server.
        client: Other arguments of openenv's ``GenericEnvClient``, such as ``message_timeout_s``.

    Raises:
        ConfigError: the package is not installed, or the server cannot be reached.
    """

    def __init__(self, base_url: str, **client: Any) -> None:
        try:
            generic = importlib.import_module("openenv.core.generic_client")
        except ImportError as error:
            raise ConfigError(
                f"OpenEnv needs the package openenv ({error}): pip install 'openenv>=0.10'"
            ) from None
        try:
            with urllib.request.urlopen(f"{base_url.rstrip('/')}/schema", timeout=10) as reply:
                action = cast(Row, json.load(reply)["action"])
            self._client = generic.GenericEnvClient(base_url=base_url, **client).sync()
            self._client.connect()
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise ConfigError(f"OpenEnv: {base_url} cannot be reached: {error}") from None
        self._rewards: list[float] = []
        self._done = False
        self._client.reset()
        for name, description, parameters in self._offers(action):
            self._add(name, description, parameters)

    def _offers(self, action: Row) -> list[tuple[str, str, Row]]:
        """Name, description and JSON schema of each tool."""
        if "tool_name" not in action.get("properties", {}) and action.get("properties"):
            properties = {k: v for k, v in action["properties"].items() if k != "metadata"}
            schema = {**action, "type": "object", "properties": properties}
            return [("step", str(action.get("description") or "Takes a step."), schema)]
        observation = self._client.step({"type": "list_tools"}).observation
        return [
            (t["name"], t.get("description") or t["name"], t.get("input_schema") or {})
            for t in cast("list[Row]", observation.get("tools", []))
        ]

    def _add(self, name: str, description: str, parameters: Row) -> None:
        def tool(self: OpenEnv, **arguments: Any) -> str:
            if name == "step":
                return self._step(arguments)
            call = {"type": "call_tool", "tool_name": name, "arguments": arguments}
            return self._step(call)

        tool.__name__ = name
        function = {"name": name, "description": description, "parameters": parameters}
        tool.tool_schema = {"type": "function", "function": function}  # pyright: ignore[reportFunctionMemberAccess]
        setattr(self, name, MethodType(tool, self))

    def _step(self, action: Row) -> str:
        if self._done:
            raise RuntimeError("the episode is over")
        result = self._client.step(action)
        self._rewards.append(float(result.reward or 0.0))
        self._done = bool(result.done)
        return _text(result.observation)

    def reset(self, **row: Any) -> str | None:
        """Begin an episode, with the row's ``seed`` if it has one."""
        self._rewards, self._done = [], False
        seed = {"seed": row["seed"]} if row.get("seed") is not None else {}
        return _text(self._client.reset(**seed).observation) or None

    def get_reward(self) -> float:
        """The sum of the rewards so far."""
        return sum(self._rewards)


def _text(observation: Any) -> str:
    """An observation as the policy reads it: the text of its one field, or its fields as JSON."""
    if not isinstance(observation, dict):
        return str(observation)
    skipped = ("done", "reward", "metadata", "tool_name")
    fields = {k: v for k, v in cast(Row, observation).items() if k not in skipped and v is not None}
    if isinstance(fields.get("result"), dict) and "data" in fields["result"]:
        fields["result"] = fields["result"]["data"]
    if len(fields) == 1:
        (value,) = fields.values()
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(fields, ensure_ascii=False) if fields else ""

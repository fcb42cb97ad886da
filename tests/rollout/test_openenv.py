"""Sessions at a server of the real package OpenEnv, in an interpreter of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import Any

import pytest

from trimtab.errors import ConfigError
from trimtab.rollout import tools
from trimtab.rollout.openenv import OpenEnv

SERVER = '''
import sys
import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from pydantic import Field

class Move(Action):
    """Adds to the counter."""
    step: int = Field(description="Value to add.")

class Seen(Observation):
    text: str = ""

class Counter(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True
    def __init__(self):
        super().__init__()
        self.count = 0
    def reset(self, seed=None, episode_id=None, **kwargs):
        self.count = 0
        return Seen(text=f"Count to {seed or 3}.")
    def step(self, action, timeout_s=None, **kwargs):
        self.count += action.step
        return Seen(text=f"count {self.count}", reward=float(self.count == 3), done=self.count >= 3)
    @property
    def state(self):
        return State(step_count=self.count)

class Adder(MCPEnvironment):
    SUPPORTS_CONCURRENT_SESSIONS = True
    def __init__(self):
        server = FastMCP("adder")
        @server.tool
        def add(a: int, b: int) -> int:
            """Adds two numbers."""
            return a + b
        super().__init__(server)
    def reset(self, seed=None, episode_id=None, **kwargs):
        return Observation()
    def _step_impl(self, action, timeout_s=None, **kwargs):
        raise ValueError("only tools")
    @property
    def state(self):
        return State()

kinds = {"counter": (Counter, Move, Seen), "adder": (Adder, CallToolAction, CallToolObservation)}
app = create_fastapi_app(*kinds[sys.argv[1]], max_concurrent_envs=8)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
'''
CLIENT = """
import json, sys
from trimtab.rollout.openenv import OpenEnv
first, second = OpenEnv(sys.argv[2]), OpenEnv(sys.argv[2])
if sys.argv[1] == "adder":
    print(json.dumps([first.reset(), first.add.tool_schema["function"], first.add(a=2, b=3)]))
    sys.exit()
seen = [first.reset(seed=5), second.reset(), first.step.tool_schema["function"]["parameters"]]
seen += [first.step(step=1), second.step(step=3), first.step(step=2)]
seen += [first.get_reward(), second.get_reward()]
try:
    first.step(step=1)
except RuntimeError as error:
    seen.append(str(error))
print(json.dumps([*seen, first.reset(), first.get_reward()]))
"""


@pytest.fixture(params=["counter", "adder"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str, str]]:
    python = os.environ.get("TRIMTAB_OPENENV_PYTHON", "")
    if not python:
        pytest.skip("set TRIMTAB_OPENENV_PYTHON to an interpreter that has openenv 0.10")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "server.py").write_text(SERVER)
    command = [python, str(tmp_path / "server.py"), request.param, str(port)]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            break
        except OSError:
            assert process.poll() is None
            time.sleep(0.2)
    yield request.param, url, python
    process.terminate()
    process.wait(timeout=30)


@pytest.mark.slow
def test_a_session_is_an_environment(served: tuple[str, str, str]) -> None:
    kind, url, python = served
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(
        [python, "-c", CLIENT, kind, url], env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    if kind == "adder":
        assert seen[0] is None and seen[2] == "5"
        assert seen[1]["name"] == "add" and set(seen[1]["parameters"]["properties"]) == {"a", "b"}
        return
    assert seen[:2] == ["Count to 5.", "Count to 3."]
    assert seen[2]["required"] == ["step"] and "metadata" not in seen[2]["properties"]
    assert seen[3:] == ["count 1", "count 3", "count 3", 1.0, 1.0, "the episode is over",
                        "Count to 3.", 0]  # fmt: skip


def test_tools_may_bring_their_schema() -> None:
    class Board:
        def __init__(self) -> None:
            def move(self: Board, **arguments: Any) -> str:
                return str(arguments)

            move.tool_schema = {"type": "function", "function": {"name": "move"}}  # pyright: ignore[reportFunctionMemberAccess]
            self.move = MethodType(move, self)

    (tool,) = tools.methods(Board())
    assert tools.schema(tool)["function"]["name"] == "move" and tool(a=1) == "{'a': 1}"


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openenv.core.generic_client", None)
    with pytest.raises(ConfigError, match="pip install 'openenv"):
        OpenEnv("http://127.0.0.1:1")

"""Every route of a server that a run starts asks for the key. Row 27 of the scorecard."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from trimtab.rollout.engines.server_process import (
    ServeSpec,
    server_arguments,
    server_environment,
    write_modules,
)
from trimtab.rollout.vllm_guard import Guard

KEY = "key-of-this-test"
ROUTES = (
    "/v1/completions",
    "/pause",
    "/collective_rpc",
    "/update_weights",
    "/health/../pause",
    "/",
)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def status(path: str, *headers: tuple[bytes, bytes], kind: str = "http") -> Any:
    """The status, or the close code of a socket."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {}

    scope = {"type": kind, "path": path, "headers": list(headers), "method": "OPTIONS"}
    asyncio.run(Guard(_app)(scope, receive, send))
    return sent[0].get("status") or sent[0].get("code")


def bearer(key: str) -> tuple[bytes, bytes]:
    return b"Authorization", f"Bearer {key}".encode()


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_asks_for_the_key(path: str) -> None:
    for headers in (
        [],
        [bearer("")],
        [bearer(KEY + "x")],
        [bearer(KEY), bearer("x")],
        [(b"x-key", b"k")],
    ):
        assert status(path, *headers) == 401, headers
    assert status(path, bearer(KEY)) == 200
    assert status(path, kind="websocket") == 1008


def test_only_the_health_of_a_server_is_open() -> None:
    assert status("/health") == 200


def test_a_server_has_the_guard_a_random_key_and_listens_here(tmp_path: Path) -> None:
    spec = ServeSpec(
        python="python", model="m", tokenizer="m", max_length=8, dtype="float32", backend=None,
        lora_rank=None, gpus=0, args=(),
    )  # fmt: skip
    words = server_arguments(spec, 1234)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    module, _, name = words[words.index("--middleware") + 1].rpartition(".")
    modules = write_modules(tmp_path / "modules", None)
    assert (modules / f"{module}.py").is_file() and name == "Guard"
    variables = server_environment("secret", (), modules)
    assert variables["VLLM_API_KEY"] == "secret" and variables["PYTHONPATH"] == str(modules)
    assert "secret" not in " ".join(words), "other users see the command line"
    assert not any(f.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH) for f in modules.iterdir())


def test_a_server_without_the_guard_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: with what vLLM guards by itself."""

    def prefix_only(self: Guard, scope: dict[str, Any]) -> bool:
        return not scope["path"].startswith(("/v1", "/inference"))

    monkeypatch.setattr(Guard, "_has_key", prefix_only)
    with pytest.raises(AssertionError):
        test_every_route_asks_for_the_key("/pause")
    assert os.environ["VLLM_API_KEY"] == KEY

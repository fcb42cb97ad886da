"""Environments of the package verifiers (0.4 or later) as agents.

verifiers and trimtab need other versions of the same packages, so it runs in an interpreter of its own:

    python -m venv VENV && VENV/bin/pip install 'verifiers>=0.4,<0.5' uv

``rows`` gives the prompts of a taskset, and ``play`` is an ``environment.agent``. Rewards of a trace are
scores by name, their weights applied; a trace that is not ok is a failed episode.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from functools import cache
from pathlib import Path
from typing import cast

from trimtab.errors import ConfigError
from trimtab.types import Row

_RUNNER = Path(__file__).with_name("verifiers_runner.py")
_LINE_BYTES = 1 << 26


class FailedTraceError(Exception):
    """verifiers says that the trace is not ok."""


class _Runner:
    """One process that runs episodes of one environment."""

    def __init__(self, python: str, environment: str) -> None:
        self.python, self.environment = python, environment
        self.tasks: list[list[Row]] = []
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[Row]] = {}
        self._count = 0
        self._log: deque[str] = deque(maxlen=20)
        self._readers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the process and read its tasks.

        Raises:
            ConfigError: it cannot be started, or ended at once; with its last lines of output.
        """
        async with self._lock:
            if self._process is not None:
                return
            # -P: the script's folder has a module named verifiers, this one.
            argv = [self.python, "-P", str(_RUNNER), self.environment]
            bin_folder = str(Path(self.python).absolute().parent)
            env = {
                **os.environ,
                "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}",
                "TRIMTAB_RECORDER_KEY": "none",
            }
            pipe = asyncio.subprocess.PIPE
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, limit=_LINE_BYTES
                )
            except OSError as error:
                raise ConfigError(
                    f"environment.options.python: {self.python} cannot be started: {error}"
                ) from None
            assert process.stdout is not None and process.stderr is not None
            self._readers.append(asyncio.ensure_future(self._read_log(process.stderr)))
            line = await process.stdout.readline()
            if not line:
                await self._readers[0]
                raise ConfigError("verifiers did not start:\n" + "\n".join(self._log))
            self.tasks = json.loads(line)["tasks"]
            self._process = process
            self._readers.append(asyncio.ensure_future(self._read(process.stdout)))

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self._log.append(line.decode("utf-8", "replace").rstrip())

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            result = cast(Row, json.loads(line))
            future = self._waiting.pop(result["id"], None)
            if future is not None and not future.done():
                future.set_result(result)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(FailedTraceError("verifiers ended: " + " ".join(self._log)))
        self._process = None

    async def episode(self, task: int, base_url: str, model: str) -> dict[str, float]:
        """Rewards by name of one episode.

        Raises:
            FailedTraceError: its trace is not ok.
            TimeoutError: one of its deadlines expired.
        """
        await self.start()
        assert self._process is not None and self._process.stdin is not None
        number, self._count = self._count, self._count + 1
        future: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        job = {"id": number, "task": task, "base_url": base_url, "model": model}
        self._process.stdin.write((json.dumps(job) + "\n").encode())
        await self._process.stdin.drain()
        result = await future
        if result["timeout"]:
            raise TimeoutError(result["failure"])
        if result["failure"]:
            raise FailedTraceError(result["failure"])
        return result["rewards"]

    async def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
        await asyncio.gather(*self._readers)


@cache
def _runner(python: str, environment: str) -> _Runner:
    return _Runner(python, environment)


async def play(
    base_url: str, task: int, python: str, environment: Row, model: str = "policy"
) -> dict[str, float]:
    """Play task number ``task``: an ``environment.agent``, with ``python`` and ``environment`` as options.

    Args:
        base_url: Address of the policy.
        task: Number of the task in its taskset; the column that ``rows`` writes.
        python: The interpreter that has verifiers.
        environment: The keys of verifiers' ``EnvConfig``: ``taskset: {id: ...}``, ``agent: {harness: ...,
            runtime: ...}``.

    Raises:
        FailedTraceError, TimeoutError: the episode failed.
        ConfigError: verifiers cannot be started.
    """
    runner = _runner(python, json.dumps(environment, sort_keys=True))
    return await runner.episode(task, base_url, model)


def rows(python: str, environment: Row, limit: int | None = None) -> list[Row]:
    """The prompts of a taskset as rows: ``prompt`` and ``task``, its number.

    Raises:
        ConfigError: verifiers cannot be started.
    """

    async def read() -> list[list[Row]]:
        runner = _Runner(python, json.dumps(environment, sort_keys=True))
        await runner.start()
        await runner.stop()
        return runner.tasks

    tasks = asyncio.run(read())[:limit]
    return [{"prompt": prompt, "task": i} for i, prompt in enumerate(tasks)]

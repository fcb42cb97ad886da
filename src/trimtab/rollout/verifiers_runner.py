"""Runs environments of verifiers for ``rollout.verifiers``, in the interpreter that has that package.

A script: it imports the standard library and verifiers alone. ``argv[1]`` is the JSON of an ``EnvConfig``.
It writes a line of JSON with the tasks, then reads one per episode, {"id", "task", "base_url", "model"},
and writes one per episode, {"id", "rewards", "failure", "timeout"}.
"""

import asyncio
import json
import os
import sys
from typing import Any, TextIO


def _say(out: TextIO, value: dict[str, Any]) -> None:
    out.write(json.dumps(value) + "\n")
    out.flush()


def _prompt(task: Any) -> list[dict[str, Any]]:
    prompt = task.data.prompt
    if prompt is None or isinstance(prompt, str):
        return [{"role": "user", "content": prompt or ""}]
    return [m.model_dump(mode="json", exclude_none=True) for m in prompt]


async def _episode(env: Any, task: Any, job: dict[str, Any]) -> dict[str, Any]:
    from verifiers.v1 import EvalClientConfig, ModelContext  # pyright: ignore[reportMissingImports]

    client = EvalClientConfig(base_url=job["base_url"], api_key_var="TRIMTAB_RECORDER_KEY")
    result: dict[str, Any] = {"id": job["id"], "rewards": {}, "failure": "", "timeout": False}
    try:
        episode = await env.run_episode(task, ModelContext(job["model"], client))
    except Exception as error:  # noqa: BLE001  a failure of one episode is its result
        return result | {"failure": f"{type(error).__name__}: {error}"}
    errors = [*episode.errors, *(e for t in episode.traces for e in t.errors)]
    if not episode.ok:
        last = errors[-1] if errors else None
        result["failure"] = f"{last.type}: {last.message}" if last else "the trace is not ok"
        result["timeout"] = episode.is_timeout or any(t.is_timeout for t in episode.traces)
        return result
    for trace in episode.traces:
        agent = f"{trace.agent.name}." if len(episode.traces) > 1 else ""
        for name, reward in trace.rewards.items():
            if reward is not None:
                result["rewards"][agent + name] = reward.value
    return result


async def _serve(config: dict[str, Any], out: TextIO) -> None:
    from verifiers.v1.configs.cli.eval import EvalConfig  # pyright: ignore[reportMissingImports]
    from verifiers.v1.utils.loaders import load_environment  # pyright: ignore[reportMissingImports]

    env = load_environment(EvalConfig(env=config, model="policy", push=False).env)
    tasks = list(env.taskset)
    async with env.serving():
        _say(out, {"tasks": [_prompt(task) for task in tasks]})
        loop = asyncio.get_running_loop()
        running: set[asyncio.Future[None]] = set()

        async def run(job: dict[str, Any]) -> None:
            _say(out, await _episode(env, tasks[job["task"]], job))

        while line := await loop.run_in_executor(None, sys.stdin.readline):
            work = asyncio.ensure_future(run(json.loads(line)))
            running.add(work)
            work.add_done_callback(running.discard)
        await asyncio.gather(*running)


if __name__ == "__main__":
    # What tasks print must not get between the lines of the protocol.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asyncio.run(_serve(json.loads(sys.argv[1]), lines))

"""``python -m benchmarks.plan``: is ``--plan`` right? Ten configurations, each planned and then run.

The plan and the run are processes of their own. The run's mean step is that of its record without
the first step, its memory the kernel's peak of the process (on CUDA the plan alone is shown).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import material
from benchmarks.turns import ROOT, flags

ROWS = 512
LAST = {"name": "last", "function": "benchmarks.material:reward"}
ONLINE = {"steps": 5, "batch_size": 8, "sampling": {"max_new_tokens": 64}, "rewards": [LAST]}


def configurations(root: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> command and configuration."""

    def model(name: str, vocabulary: int | None = None) -> dict[str, Any]:
        return {"path": str(material.model_folder(root, name, vocabulary))}

    pairs = {"path": str(material.pairs(root, 2048, ROWS)[0])}
    texts = {"path": str(material.demonstrations(root, 2048, ROWS)[0])}
    wide = {"path": str(material.demonstrations(root, 32_768, ROWS)[0])}
    prompts = {"path": str(material.prompts(root, 2048, 64, 128)[0])}
    few = {"steps": 3, "batch_size": 4}
    return {
        "sft 5m": ("sft", {"model": model("5m"), "data": texts}),
        "sft 5m, bf16": ("sft", {"model": model("5m") | {"precision": "mixed"}, "data": texts}),
        "sft 5m, LoRA": ("sft", {"model": model("5m") | {"lora": {"r": 8}}, "data": texts}),
        "sft 5m, vocabulary 32k": ("sft", {"model": model("5m", 32_768), "data": wide}),
        "sft 25m": ("sft", {"model": model("25m"), "data": {**texts, "limit": 192}}),
        "reward 5m": ("reward", {"model": model("5m"), "data": pairs}),
        "dpo 5m": ("dpo", {"model": model("5m"), "data": pairs}),
        "grpo 5m": ("rl", {"model": model("5m"), "data": prompts, "method": {"type": "grpo"}, **ONLINE}),
        "ppo 5m": ("rl", {"model": model("5m"), "data": prompts, "method": {"type": "ppo"}, **ONLINE,
                          "batch_size": 32}),
        "grpo 25m": ("rl", {"model": model("25m"), "data": prompts, "method": {"type": "grpo"},
                            **ONLINE, **few}),
    }  # fmt: skip


def call(command: str, config: Path, *more: str) -> tuple[str, float]:
    """What the command printed, and its peak in MB."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    process = subprocess.Popen(
        [sys.executable, "-m", "trimtab", command, str(config), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    wrong: list[str] = []
    reader = threading.Thread(target=lambda: wrong.append(process.stderr.read()))  # pyright: ignore[reportOptionalMemberAccess]
    reader.start()
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    reader.join()
    if status:
        raise SystemExit(f"{command} {config} failed:\n{output}\n{wrong[0]}")
    return output, used.ru_maxrss / 1024


def number(pattern: str, text: str) -> float:
    """The first group of ``pattern``."""
    match = re.search(pattern, text)
    assert match, text
    return float(match[1].replace(",", ""))


def check(name: str, command: str, values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Plan it, run it."""
    loop = {"loop": {"save_steps": 4}}
    config = folder / f"{name.replace(' ', '-').replace(',', '')}.yaml"
    config.write_text(yaml.safe_dump({**values, **loop, "out": str(folder / config.stem)}))
    plan, _ = call(command, config, "--plan")
    _, peak = call(command, config)
    record = (folder / config.stem / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line)["time/step"] for line in record][1:]
    one: dict[str, Any] = {
        "name": name, "seconds_planned": number(r"per step +([\d.e+-]+) s", plan),
        "seconds": float(np.mean(measured)),
        "mb_planned": number(r"memory +([\d,]+) MB", plan), "mb": peak,
    }  # fmt: skip
    one["time_ratio"] = one["seconds_planned"] / one["seconds"]
    one["memory_ratio"] = one["mb_planned"] / one["mb"]
    return one


def main() -> None:
    """All ten."""
    args = flags("predictions of --plan against runs").parse_args()
    root = Path(args.folder) / "material"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        for name, (command, command_args) in configurations(root).items():
            one = check(name, command, command_args, Path(folder))
            rows.append(one)
            print(
                f"{name:<24} {one['seconds_planned']:6.2f} s for {one['seconds']:6.2f} ({one['time_ratio']:.2f})   "
                f"{one['mb_planned']:6.0f} MB for {one['mb']:6.0f} ({one['memory_ratio']:.2f})",
                flush=True,
            )
    results = {"row": "plan", "rows": rows}
    path = Path(args.folder) / "results" / "plan.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""Every command that reads a model or data file, with the shortest settings that make it do so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.support import folders
from trimtab.cli.main import main

Settings = Callable[[str, str, str], dict[str, Any]]
"""(model folder, data file, output folder) to the configuration."""
_SHORT = {"max_new_tokens": 2}


def _model(path: str) -> dict[str, Any]:
    return {"path": path, "device": "cpu"}


def _stage(model: str, data: str, out: str, **more: Any) -> dict[str, Any]:
    return {"model": _model(model), "data": data, "out": out, "batch_size": 4, **more}


def _rewarded(model: str, data: str, out: str, **more: Any) -> dict[str, Any]:
    return {"rewards": [folders.WORDY], "sampling": _SHORT, "model": _model(model), "data": data,
            "out": out, **more}  # fmt: skip


MODEL_READERS: dict[str, Settings] = {
    "sft": lambda m, d, o: _stage(m, d, o),
    "reward": lambda m, d, o: _stage(m, d, o),
    "process": lambda m, d, o: _stage(m, d, o),
    "dpo": lambda m, d, o: _stage(m, d, o),
    "kto": lambda m, d, o: _stage(m, d, o),
    "rl": lambda m, d, o: _rewarded(m, d, o, steps=1, batch_size=4),
    "online-dpo": lambda m, d, o: _rewarded(m, d, o, steps=1, batch_size=4),
    "best-of-n": lambda m, d, o: _rewarded(m, d, o),
    "step-labels": lambda m, d, o: _rewarded(m, d, o),
    "sample": lambda m, d, o: {"model": _model(m), "data": d, "out": o, "sampling": _SHORT},
    "sandbox-labels": lambda m, d, o: {"model": _model(m), "data": d, "out": o},
    "compare": lambda m, d, o: {
        "models": {"a": _model(m)}, "data": d, "out": o, "rewards": [folders.WORDY]},
    "accuracy": lambda m, d, o: {
        "rewards": [{"model": _model(m)}], "data": {"pairs": d}, "out": o, "tokenizer": m},
    "probe": lambda m, d, o: {"reward": [m], "data": d, "out": o},
    "chat": lambda m, d, o: {"model": m, "prompt": "a ?", "sampling": _SHORT},
}  # fmt: skip
"""The second argument is a data file that the command accepts."""

_JUDGE = {"base_url": "http://127.0.0.1:9/v1", "model": "none"}
DATA_READERS: dict[str, Settings] = {
    **{name: make for name, make in MODEL_READERS.items() if name not in ("chat", "probe")},
    "probe": lambda m, d, o: {"reward": [m], "data": d, "out": o},
    "revise": lambda m, d, o: {**_JUDGE, "data": d, "out": o},
    "judge": lambda m, d, o: {**_JUDGE, "data": d, "out": o},
    "mix": lambda m, d, o: {"inputs": {"a": {"path": d}}, "out": f"{o}/rows.jsonl"},
    "scratch": lambda m, d, o: {"data": d, "out": o},
    "label": lambda m, d, o: {"data": d, "out": o},
    "calibrate": lambda m, d, o: {"items": d, "judgements": d, "people": d, "out": o},
    "agreement": lambda m, d, o: {"files": [d]},
    "exchange": lambda m, d, o: {"files": [d], "to": f"{o}/rows.jsonl"},
    "evaluate": lambda m, d, o: {"files": [d]},
}
KINDS = {
    "sft": "demos", "reward": "pairs", "process": "steps", "dpo": "pairs", "kto": "pairs", "accuracy": "pairs",
    "probe": "pairs", "sandbox-labels": "prompts"}  # fmt: skip
"""The data that a command accepts, where it is not prompts."""


def run(
    name: str, table: dict[str, Settings], model: Path, data: Path, folder: Path
) -> tuple[int, str]:
    """Run a command on a model and a data file: its exit status, and an exception that it raised."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(table[name](str(model), str(data), str(folder / "out"))))
    try:
        main([name, str(file)])
    except SystemExit as ended:
        return int(ended.code or 0), ""
    except Exception as error:  # noqa: BLE001  the caller judges it
        return 1, f"{type(error).__name__}: {error}"
    return 0, ""

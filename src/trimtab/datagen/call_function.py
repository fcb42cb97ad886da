"""``trimtab function``: call a Python function that writes files."""

import logging
from pathlib import Path
from typing import Any

from pydantic import Field

from trimtab.config import Config, import_function
from trimtab.runs import to_json, write_atomic

log = logging.getLogger(__name__)


class FunctionConfig(Config):
    """Configuration of ``trimtab function``."""

    out: str = "runs/function"
    function: str
    """ "package.module:name" or "file.py:name", called as ``f(out, **options)``; it writes its files
    into the folder ``out`` and returns a summary for summary.json, or None."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])


def main(config: FunctionConfig) -> dict[str, Any]:
    """Call the function, and write the summary that it returns to summary.json."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = import_function(config.function)(out, **config.options) or {}
    write_atomic(out / "summary.json", to_json(summary, indent=1).encode())
    numbers = {k: v for k, v in summary.items() if isinstance(v, int | float)}
    figures = ", ".join(f"{v:.4g} {k.replace('_', ' ')}" for k, v in numbers.items()) or "done"
    log.info(f"{out.name}: {figures} -> {out}")
    return summary

"""``trimtab exchange`` called from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.config import build
from trimtab.exchange import convert


def run(folder: Path, *files: str, **options: Any) -> convert.Exchanged:
    values = {
        "files": [str(folder / f) for f in files],
        **options,
        "to": str(folder / options["to"]),
    }
    return convert.main(build(convert.ExchangeConfig, values))

"""trimtab: preference-based post-training of language models, with proof that the reward is real.

Public names are listed in ``__init__.pyi`` and imported on first use, so that ``import trimtab`` is
fast.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _read_stub() -> dict[str, tuple[str, str]]:
    """Module and name there, by public name."""
    stub = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    modules = {
        name.split(" as ")[0]: module
        for module, names in re.findall(r"^from (\S+) import (.+)$", stub, re.MULTILINE)
        for name in names.split(", ")
    }
    public = {name: name for name in re.findall(r" as (\w+)$", stub, re.MULTILINE)}
    public |= dict(re.findall(r"^(\w+) = (\w+)$", stub, re.MULTILINE))
    return {name: (modules[original], original) for name, original in public.items()}


_PLACES = _read_stub()
__all__ = [*_PLACES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    module, original = _PLACES[name]
    value = getattr(importlib.import_module(module), original)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]

"""Values as JSON can hold them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinities become null, numpy and torch scalars numbers."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in cast(Sequence[Any], value)]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist") and not isinstance(value, float):  # numpy and torch
        return plain(value.tolist())
    number = float(value)
    return number if math.isfinite(number) else None


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON of plain data, keys in the given order."""
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def encode(text: str) -> bytes:
    """Text as bytes of a file."""
    return text.encode("utf-8", "replace")  # a lone surrogate must not lose the record

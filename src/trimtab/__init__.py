"""trimtab: steer language models by preference, and know whether the result is real."""

from __future__ import annotations

__version__ = "0.1.0"

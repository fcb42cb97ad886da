"""Tests that CI leaves to the scorecard: more stages of a row, and controls that take long."""

from __future__ import annotations

import os

import pytest

scorecard_only = pytest.mark.skipif(
    os.environ.get("TRIMTAB_SCORECARD") != "1", reason="make scorecard runs it"
)

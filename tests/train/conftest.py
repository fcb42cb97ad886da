"""Models in float64 and the three ways in which a batch is laid out, for tests of optimiser steps."""

from __future__ import annotations

import pytest

from tests.support.invariance import LAYOUTS, double_lm, double_scorer
from trimtab.models.heads import Scorer
from trimtab.models.load import LM


@pytest.fixture(scope="module")
def lm() -> LM:
    return double_lm()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return double_scorer()


@pytest.fixture(params=LAYOUTS)
def layout(
    request: pytest.FixtureRequest, lm: LM, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> bool:
    share, exact = LAYOUTS[request.param]
    monkeypatch.setattr(lm, "exact", exact)
    monkeypatch.setattr(scorer, "exact", exact)
    return share

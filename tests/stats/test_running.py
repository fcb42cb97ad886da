"""Running means, deviations and slopes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.stats.running import RunningFit


@given(
    st.lists(st.tuples(st.integers(0, 500), st.floats(-50, 50)), min_size=2, max_size=30),
    st.integers(1, 29),
)
def test_a_running_fit_does_not_depend_on_the_batches(
    rows: list[tuple[int, float]], cut: int
) -> None:
    x, y = [float(a) for a, _ in rows], [b for _, b in rows]
    once, twice = RunningFit(), RunningFit()
    once.add(x, y)
    twice.add(x[:cut], y[:cut])
    twice = RunningFit.load(twice.state())
    twice.add(x[cut:], y[cut:])
    assert twice.slope == pytest.approx(once.slope, abs=1e-6)
    assert twice.std_y == pytest.approx(once.std_y, abs=1e-6) or np.std(y) < 1e-6
    if np.std(x) > 0:
        assert once.slope == pytest.approx(float(np.polyfit(x, y, 1)[0]), abs=1e-6)

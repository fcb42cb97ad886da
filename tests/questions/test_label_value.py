"""What labels buy: bits of a verdict, and how many labels fit into a time."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.questions import label_value


def test_bits_of_a_verdict() -> None:
    """A verdict that is always right is one bit, a coin flip or a tie none; ties lose their share."""
    sums = np.array([[1.0, 0.0, 1.0], [0.5, 0.0, 1.0], [0.0, 1.0, 1.0], [0.5, 0.5, 1.0]])
    assert label_value.bits(sums) == pytest.approx([1.0, 0.0, 0.0, 0.5])


def test_a_budget_buys_what_fits() -> None:
    clock = label_value.Clock(words_per_s=4.0, decide_s=3.0)
    seconds = clock.seconds([8, 8, 8, 8], 1)
    assert seconds.tolist() == [5.0] * 4
    assert label_value.affordable(seconds, 10 / 60) == 2
    assert label_value.affordable(seconds, 9.9 / 60) == 1
    assert label_value.affordable(seconds, 1 / 60) == 1

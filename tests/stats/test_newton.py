"""Newton's method reaches the maximum from any start."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from trimtab.stats.newton import fit_logistic, newton


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_logistic_regression_with_an_offset_ends_at_its_maximum(margin: float, seed: int) -> None:
    """With large offsets the first steps overshoot in many correlated columns at once; without a check of each
    step the search went around in circles and returned wherever it stood after sixty."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(40, 40)) * np.geomspace(4, 0.05, 40)
    x = rng.normal(size=(500, 40)) @ mixed.T
    y = np.ones(len(x))
    x *= np.sign(x @ rng.normal(size=40) + 3 * rng.logistic(size=len(x)))[:, None]
    offset = -margin * rng.integers(0, 4, len(x)).astype(np.float64)
    [coef] = fit_logistic(x, y, 10.0, offset_N=offset)
    gradient = (y - expit(x @ coef + offset)) @ x - 10.0 * coef
    assert np.abs(gradient).max() < 1e-6

    def loss(c: np.ndarray) -> float:
        return float(np.logaddexp(0, -(x @ c + offset)).sum() + 5.0 * c @ c)

    assert loss(coef) <= minimize(loss, np.zeros(40), method="L-BFGS-B").fun + 1e-3


def test_functions_are_independent() -> None:
    """One that overshoots shortens its own steps only."""

    def derivatives(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # log-cosh: flat far away, so that an undamped step from 3 leads further away than it was.
        return -np.tanh(points), (1 / np.cosh(points) ** 2)[..., None]

    ends = newton(derivatives, np.array([[0.1], [3.0], [-5.0]]), longest=100.0)
    np.testing.assert_allclose(ends, 0.0, atol=1e-9)


def test_no_maximum_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Separable rows without a ridge: the coefficient grows for ever."""
    fit_logistic(np.ones((4, 1)), np.ones(4), 0.0)
    assert "no maximum within 60 steps" in caplog.text

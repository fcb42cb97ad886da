"""Win rates with the share of length taken out (2404.04475)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trimtab.stats.uncertainty import Estimate

Array = npt.NDArray[np.float64]
RIDGE = (1e-2, 1e-2)
"""Of the level and of the slope on length: without it a model that always wins has no fit."""


def length_controlled(
    wins: Sequence[float],
    gaps: Sequence[float],
    n: int = 500,
    seed: int = 0,
) -> Estimate:
    """The win rate that answers of equal length would have, with its 95 % bootstrap interval.

    Logistic regression P(win) = sigmoid(theta + phi tanh(gap / std of gaps)); the figure is
    sigmoid(theta). Swapping the two models turns it into 1 minus itself.

    Args:
        wins: One a prompt: 1 won, 0 lost, 1/2 tied.
        gaps: How much longer the model's answer is than the other's, in any unit.
        n: Bootstrap draws over prompts.
        seed: Of the draws.

    Returns:
        (figure, low, high); NaN thrice without a prompt.

    >>> round(length_controlled([1, 0, 1, 0], [3, -3, 3, -3], n=10)[0], 6)
    0.5
    """
    y, gap = np.asarray(wins, np.float64), np.asarray(gaps, np.float64)
    assert y.shape == gap.shape, (y.shape, gap.shape)
    if y.size == 0:
        return float("nan"), float("nan"), float("nan")
    spread = float(gap.std())
    x = np.tanh(gap / spread) if spread > 0 else np.zeros_like(gap)
    counts = np.random.default_rng(seed).multinomial(y.size, np.full(y.size, 1 / y.size), size=n)
    weights = np.concatenate([np.ones((1, y.size)), counts.astype(np.float64)])
    rates = _sigmoid(_fit(x, y, weights)[:, 0])
    low, high = np.quantile(rates[1:], [0.025, 0.975])
    return float(rates[0]), float(low), float(high)


def _sigmoid(z: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-np.clip(z, -50.0, 50.0)))


def _fit(x: Array, y: Array, weights: Array) -> Array:
    """(theta, phi) [B, 2] of each row of ``weights`` [B, n], by Newton's method."""
    beta = np.zeros((len(weights), 2))
    basis = np.stack([np.ones_like(x), x], axis=1)
    ridge = np.diag(RIDGE)
    for _ in range(25):
        p = _sigmoid(beta @ basis.T)
        slope = (weights * (p - y)) @ basis + beta * np.array(RIDGE)
        curve = np.einsum("bn,ni,nj->bij", weights * p * (1 - p), basis, basis) + ridge
        step = np.linalg.solve(curve, slope[..., None])[..., 0]
        beta -= np.clip(step, -2.0, 2.0)
        if float(np.abs(step).max()) < 1e-9:
            break
    return beta

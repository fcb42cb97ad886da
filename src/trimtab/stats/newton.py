"""Newton's method for concave log-likelihoods, several at once."""

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import expit

Floats = npt.NDArray[np.float64]
log = logging.getLogger(__name__)


_HALVINGS = 30
"""Of one step at most: a billionth of it."""


def newton(
    derivatives: Callable[[Floats], tuple[Floats, Floats]],
    start_BP: Floats,
    longest: float = 2.0,
    tol: float = 1e-10,
    steps: int = 60,
) -> Floats:
    """Maximise B independent concave functions of P variables.

    Args:
        derivatives: Points [B, P] to gradients [B, P] and negated Hessians [B, P, P].
        longest: Largest change of a variable in one step. A longer step is shortened, because from
            far away it overshoots; a step after which the function falls as steeply as it rose is halved.
        tol: The search stops when no step is longer.

    Returns:
        The maxima [B, P]; without one, as of separable rows without a ridge, a warning is logged.
    """
    point = start_BP
    jitter = 1e-12 * np.eye(point.shape[1])
    gradient, curvature = derivatives(point)
    for _ in range(steps):
        step = np.linalg.solve(curvature + jitter, gradient[..., None])[..., 0]
        size = np.abs(step).max(-1, keepdims=True, initial=0.0)
        step = step / np.maximum(size / longest, 1.0)
        rise = (gradient * step).sum(-1, keepdims=True)
        new_gradient, new_curvature = derivatives(point + step)
        for _ in range(_HALVINGS):
            overshot = (new_gradient * step).sum(-1, keepdims=True) < -rise / 2
            if not overshot.any():
                break
            step, rise = np.where(overshot, step / 2, step), np.where(overshot, rise / 2, rise)
            new_gradient, new_curvature = derivatives(point + step)
        point, gradient, curvature = point + step, new_gradient, new_curvature
        if size.max(initial=0.0) < tol:
            break
    else:
        log.warning("Newton's method: no maximum within %d steps", steps)
    return point


def fit_logistic(
    x_NP: Floats,
    y_N: Floats,
    ridge_P: npt.ArrayLike,
    weight_BN: Floats | None = None,
    offset_N: Floats | float = 0.0,
    start_P: Floats | None = None,
    tol: float = 1e-10,
) -> Floats:
    """Logistic regression by penalised maximum likelihood, one fit per row of weights.

    Args:
        x_NP: Columns; the constant is one of them.
        y_N: In [0, 1]; 0.5 for a tie.
        ridge_P: Weight of b^2 / 2 for each coefficient b.
        weight_BN: Weight of each row in each fit; one fit with equal weights by default.
        offset_N: Added to the log-odds of each row.
        start_P: First coefficients; 0 by default.

    Returns:
        Coefficients [B, P].
    """
    weight = np.ones((1, len(y_N))) if weight_BN is None else weight_BN
    ridge = np.broadcast_to(np.asarray(ridge_P, np.float64), x_NP.shape[1:])

    def derivatives(coef_BP: Floats) -> tuple[Floats, Floats]:
        p = expit(coef_BP @ x_NP.T + offset_N)
        gradient = (weight * (y_N - p)) @ x_NP - ridge * coef_BP
        curve = weight * p * (1 - p)
        return gradient, (x_NP.T * curve[:, None, :]) @ x_NP + np.diag(ridge)

    start = np.zeros(x_NP.shape[1]) if start_P is None else start_P
    return newton(derivatives, np.tile(start, (len(weight), 1)), tol=tol)

"""Running mean, variance and regression over batches, with a state that a run can save."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(slots=True)
class RunningFit:
    """Means, variances and covariance of pairs (x, y) over batches, merged as in Chan et al. 1979.

    The sums are of deviations from the means, so that large means lose no digits.

    >>> fit = RunningFit()
    >>> fit.add([1, 2, 3], [2, 4, 6]); fit.add([4], [8])
    >>> fit.slope, fit.mean_x
    (2.0, 2.5)
    """

    n: int = 0
    mean_x: float = 0.0
    mean_y: float = 0.0
    xx: float = 0.0
    """Sum of (x - mean_x)^2."""
    xy: float = 0.0
    """Sum of (x - mean_x)(y - mean_y)."""
    yy: float = 0.0
    """Sum of (y - mean_y)^2."""

    def add(self, x: Sequence[float], y: Sequence[float]) -> None:
        """Add a batch of finite pairs."""
        a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert a.shape == b.shape and np.isfinite(a).all() and np.isfinite(b).all()
        if a.size == 0:
            return
        mean_a, mean_b = float(a.mean()), float(b.mean())
        step_x, step_y = mean_a - self.mean_x, mean_b - self.mean_y
        n = self.n + a.size
        weight = self.n * a.size / n
        self.xx += float(((a - mean_a) ** 2).sum()) + step_x * step_x * weight
        self.xy += float(((a - mean_a) * (b - mean_b)).sum()) + step_x * step_y * weight
        self.yy += float(((b - mean_b) ** 2).sum()) + step_y * step_y * weight
        self.mean_x += step_x * a.size / n
        self.mean_y += step_y * a.size / n
        self.n = n

    @property
    def slope(self) -> float:
        """Slope of the least squares line of y on x; 0 where x does not vary."""
        return self.xy / self.xx if self.xx > 0 else 0.0

    @property
    def std_y(self) -> float:
        """Population standard deviation of y; 1 where y does not vary, so that it can divide."""
        # Rounding leaves a spread of about 1e-16 of the mean where y is constant.
        spread = math.sqrt(self.yy / self.n) if self.n else 0.0
        return spread if spread > 1e-12 * max(1.0, abs(self.mean_y)) else 1.0

    def state(self) -> dict[str, float]:
        """All sums, for JSON, which keeps every bit of a float."""
        return asdict(self)

    @classmethod
    def load(cls, state: dict[str, float]) -> RunningFit:
        """The fit that ``state`` was taken of."""
        return cls(int(state["n"]), *(float(state[k]) for k in list(asdict(cls()))[1:]))

"""Calibration: Platt, isotonic, cross-fitting, quality."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from trimtab.stats.calibrate import (
    Method,
    Platt,
    assign_folds,
    cross_fit,
    fit_platt,
    fit_probabilities,
    fit_symmetric,
    quality,
)
from trimtab.stats.uncertainty import ece


def near(got: object, want: object, tol: float = 1e-6) -> None:
    np.testing.assert_allclose(got, want, atol=tol, rtol=0)  # type: ignore[arg-type]


def test_platt_with_features_is_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) * np.array([1.0, 5.0, 0.3])
    y = (rng.random(400) < 1 / (1 + np.exp(-(x @ np.array([1.0, -0.2, 2.0]))))).astype(float)
    fit = fit_platt(x, y)
    peer = LogisticRegression(C=1e6, fit_intercept=False, tol=1e-10).fit(x, y).coef_[0]
    assert np.allclose(fit.weights, peer, atol=2e-3)
    assert np.allclose(fit(x) + fit(-x), 1.0)
    # Three of the errors cover what the labels were drawn from.
    assert all(
        abs(w - t) < 3 * e for w, t, e in zip(fit.weights, (1, -0.2, 2), fit.errors, strict=True)
    )
    one_sided = fit_platt(np.ones((5, 1)), np.ones(5))
    assert math.isfinite(one_sided.weights[0]) and one_sided.weights[0] > 0


def test_symmetric_isotonic_is_isotonic_on_mirrored_labels() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 1))
    y = (rng.random(300) < 1 / (1 + np.exp(-2 * x[:, 0]))).astype(float)
    fit = fit_symmetric("isotonic", x, y)
    peer = IsotonicRegression(out_of_bounds="clip").fit(
        np.concatenate([x[:, 0], -x[:, 0]]), np.concatenate([y, 1 - y])
    )
    assert np.allclose(fit(x), peer.predict(x[:, 0]), atol=1e-9)
    assert np.allclose(fit(x) + fit(-x), 1.0)


def test_calibration_takes_a_planted_bias_out() -> None:
    rng = np.random.default_rng(2)
    truth, marked = rng.normal(size=800), rng.integers(-1, 2, size=800).astype(float)
    y = (rng.random(800) < 1 / (1 + np.exp(-truth))).astype(float)
    judge = truth + 2.0 * marked
    before = quality(1 / (1 + np.exp(-judge)), y)
    x = np.stack([judge, marked], 1)
    after = quality(
        cross_fit(
            partial(fit_symmetric, "platt"), x, y, assign_folds([str(i) for i in range(800)], 5)
        ),
        y,
    )
    assert after.accuracy > before.accuracy + 0.05
    assert after.ece < before.ece - 0.05
    fit = fit_platt(x, y)
    assert abs(fit.weights[1] / fit.weights[0] + 2.0) < 0.4


def test_calibration_mends_a_judge_that_is_too_sure() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1.2, 1500)
    y = (rng.random(1500) < expit(z)).astype(float)
    p = expit(3 * z + 0.5)
    fit = fit_probabilities("platt", p, y).fit
    assert isinstance(fit, Platt)
    slope, shift = fit.weights
    near([slope, shift], [1 / 3, -1 / 6], 0.08)
    items = [str(i // 2) for i in range(1500)]

    def error(q: np.ndarray) -> float:
        return ece(np.maximum(q, 1 - q), np.where(q >= 0.5, y, 1 - y))

    before = error(p)
    assert before > 0.1
    methods: tuple[Method, ...] = ("platt", "isotonic")
    for method in methods:
        fold = assign_folds(items, 5, seed=0)
        assert error(cross_fit(partial(fit_probabilities, method), p, y, fold)) < 0.05
    iso = fit_probabilities("isotonic", p, y)
    assert (np.diff(iso(np.linspace(0, 1, 50))) >= -1e-12).all()


def test_isotonic_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    p = rng.integers(0, 20, 300) / 20
    y = (rng.random(300) < p).astype(float)
    want = IsotonicRegression(out_of_bounds="clip").fit(p, y).predict(np.unique(p))
    near(fit_probabilities("isotonic", p, y)(np.unique(p)), want, 1e-9)


def test_platt_is_logistic_regression_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.02, 0.98, 400)
    y = (rng.random(400) < p).astype(float)
    z = np.log(p / (1 - p))[:, None]
    fit = fit_probabilities("platt", p, y).fit
    assert isinstance(fit, Platt)
    slope, shift = fit.weights
    # Its intercept is not held; ours is, by as little as changes the third decimal.
    theirs = LogisticRegression(C=10, tol=1e-10).fit(z, y)
    near([slope, shift], [theirs.coef_[0, 0], theirs.intercept_[0]], 1e-3)

"""Best-of-n, pass@k, over-optimisation, diversity: oracles O11, O12, O14, O15."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.oracles import near
from trimtab.errors import DataError
from trimtab.stats.order_stats import best_of_n, kl_bound, pass_at_k, pick
from trimtab.stats.overoptimisation import Overoptimisation, fit_overoptimisation
from trimtab.stats.style import distinct_n


def kl_with_ties(masses: Sequence[float], n: int) -> float:
    """KL(best-of-n || base), nats, where a score takes values with these probabilities, ascending."""
    p = np.asarray(masses, np.float64)
    assert n >= 1 and (p >= 0).all() and abs(float(p.sum()) - 1.0) < 1e-9, masses
    below = np.concatenate([[0.0], np.cumsum(p)])
    q = np.diff(below**n)
    on = q > 0
    return float((q[on] * np.log(q[on] / p[on])).sum())


def test_O11() -> None:
    near(best_of_n([1, 2, 3, 4], 2), 3.333333)
    near(kl_bound(4), 0.636294)
    near(kl_with_ties([0.5, 0.5], 4), 0.459355, 1e-5)
    assert kl_bound(1) == 0.0 == kl_with_ties([0.3, 0.7], 1)
    assert pick([2.0, 5.0, 5.0]) == 1


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=7), st.integers(1, 7))
def test_best_of_n_is_the_mean_over_all_draws(scores: list[float], n: int) -> None:
    if n > len(scores):
        with pytest.raises(DataError, match="at least n scores"):
            best_of_n(scores, n)
        return
    draws = [max(d) for d in itertools.combinations(scores, n)]
    assert best_of_n(scores, n) == pytest.approx(float(np.mean(draws)), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-9, 9)), min_size=1, max_size=7), st.data())
def test_best_of_n_by_another_measure_is_that_of_the_pick(
    answers: list[tuple[int, float]], data: st.DataObject
) -> None:
    """Ties included: of equal scores the first drawn index is picked."""
    scores, gold = [float(s) for s, _ in answers], [g for _, g in answers]
    n = data.draw(st.integers(1, len(answers)))
    draws = itertools.combinations(range(len(answers)), n)
    picked = [gold[d[pick([scores[i] for i in d])]] for d in draws]
    assert best_of_n(scores, n, gold) == pytest.approx(float(np.mean(picked)), abs=1e-9)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 64))
def test_ties_keep_the_kl_under_its_bound(counts: list[int], n: int) -> None:
    masses = np.array(counts) / sum(counts)
    assert -1e-9 <= kl_with_ties(masses.tolist(), n) <= kl_bound(n) + 1e-9


def test_many_atoms_reach_the_bound() -> None:
    near(kl_with_ties([1e-4] * 10_000, 4), kl_bound(4), 1e-3)


def test_O15_pass_at_k() -> None:
    near(pass_at_k(10, 3, 5), 0.916667)
    near(pass_at_k(10, 3, 1), 0.3)
    assert (pass_at_k(4, 0, 4), pass_at_k(4, 1, 4)) == (0.0, 1.0)
    with pytest.raises(DataError, match="undefined for 4 samples"):
        pass_at_k(4, 1, 5)


@given(st.integers(1, 8), st.data())
def test_pass_at_k_counts_the_draws_with_a_right_one(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = [any(i < c for i in d) for d in itertools.combinations(range(n), k)]
    assert pass_at_k(n, c, k) == pytest.approx(float(np.mean(draws)), abs=1e-12)


def test_O12_peaks() -> None:
    rl, bon = Overoptimisation("rl", 1.0, 0.25), Overoptimisation("bon", 1.0, 0.25)
    near(rl.peak, 20.085537)
    near(rl.best, 5.021384)
    assert (bon.peak, bon.best) == (2.0, 1.0)
    assert math.isinf(Overoptimisation("rl", 1.0, 0.0).peak)
    for curve in (rl, bon):
        assert curve.best > max(curve(0.99 * curve.peak), curve(1.01 * curve.peak))
        assert curve(0.0) == 0.0


@given(st.sampled_from(["rl", "bon"]), st.floats(-3, 3), st.floats(-3, 3))
def test_a_fit_finds_what_made_the_curve(form: str, alpha: float, beta: float) -> None:
    assert form in ("rl", "bon")
    true = Overoptimisation(form, alpha, beta)  # type: ignore[arg-type]
    kl = [0.0, 0.5, 2.0, 7.0, 20.0, 60.0]
    fit = fit_overoptimisation(kl, [true(math.sqrt(k)) for k in kl], true.form)
    near(fit.alpha, alpha, 1e-9)
    near(fit.beta, beta, 1e-9)


def test_a_fit_of_one_point_is_refused() -> None:
    with pytest.raises(DataError, match="two different KL"):
        fit_overoptimisation([0.0, 1.0, 1.0], [0.0, 1.0, 2.0], "rl")
    with pytest.raises(DataError, match="finite"):
        fit_overoptimisation([1.0, 2.0], [math.nan, 1.0], "bon")


def test_O14() -> None:
    texts = ["a b a b"]
    near(distinct_n(texts, 1), 0.5)
    near(distinct_n(texts, 2), 0.666667)

"""Oracle O13, and equality with statsmodels, scikit-learn and choix where they have the statistic."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.special import expit

from trimtab.stats import label_audit, ranking
from trimtab.stats import reliability as ag
from trimtab.stats.logistic import ScoreTest, logistic
from trimtab.stats.uncertainty import bootstrap_sums

DATA = Path(os.environ.get("TRIMTAB_DATA", Path(__file__).parents[3] / "shared" / "data"))
FEW = settings(max_examples=30, deadline=None)
TABLES = npst.arrays(np.int64, (3, 3), elements=st.integers(0, 30)).filter(
    lambda t: (t.sum(0) > 0).sum() > 1 and (t.sum(1) > 0).sum() > 1
)


def near(got: object, want: object, tol: float = 1e-6) -> None:
    np.testing.assert_allclose(got, want, atol=tol, rtol=0)  # type: ignore[arg-type]


def fleiss_kappa(counts: npt.ArrayLike) -> float:
    return float(ag.fleiss_of(ag.fleiss_parts(counts).sum(0)))


def test_o13_agreement() -> None:
    near(ag.cohen_kappa([[20, 5], [10, 15]]), 0.4, 1e-12)
    counts = [[3, 0], [2, 1], [0, 3], [1, 2]]
    near(fleiss_kappa(counts), 1 / 3)
    near(ag.krippendorff_alpha(counts), 0.388889)
    near(ag.krippendorff_alpha([[2, 0], [2, 1], [0, 3], [1, 1], [0, 1]]), 0.28)


def test_o13_strengths() -> None:
    near(ranking.strengths([[0, 3], [1, 0]]), [0.75, 0.25], 1e-9)
    near(np.diff(ranking.elo(ranking.bradley_terry([[0, 3], [1, 0]]))), [-190.848502], 1e-5)
    wins = np.array([[0, 6, 8], [4, 0, 7], [2, 3, 0]], float)
    p = ranking.strengths(wins)
    near(p, [0.524534, 0.337021, 0.138445])
    games = wins + wins.T
    expected = (games * p[:, None] / (p[:, None] + p[None, :])).sum(1)
    near(expected, [14, 11, 5], 1e-8)


def tournament(*beats: tuple[int, int]) -> np.ndarray:
    size = 1 + max(max(b) for b in beats)
    wins = np.zeros((size, size))
    for a, b in beats:
        wins[a, b] = 1
    return wins


def test_o13_triads() -> None:
    three = ranking.triads(tournament((0, 1), (1, 2), (2, 0)))
    assert three.cycles == ((0, 1, 2),)
    assert (three.triples, three.zeta) == (1, 0.0)
    five = ranking.triads(tournament(*((i, (i + k) % 5) for i in range(5) for k in (1, 2))))
    assert (len(five.cycles), five.zeta) == (5, 0.0)
    four = ranking.triads(tournament((0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (3, 2)))
    assert (len(four.cycles), four.zeta) == (2, 0.0)
    line = ranking.triads(tournament(*((i, j) for i in range(6) for j in range(i + 1, 6))))
    assert (line.cycles, line.zeta, line.rate) == ((), 1.0, 0.0)


@FEW
@given(st.integers(0, 2**31), st.integers(3, 8))
def test_kendalls_count_of_cycles(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    up = np.triu(rng.integers(0, 2, (size, size)), 1)
    wins = up + np.tril(1 - up.T, -1)
    won = wins.sum(1)
    want = math.comb(size, 3) - sum(math.comb(int(a), 2) for a in won)
    result = ranking.triads(wins)
    assert len(result.cycles) == want
    assert result.zeta is not None and -1e-9 <= result.zeta <= 1
    wins[0, 1] = wins[1, 0] = 0  # an undecided pair: no longer complete
    assert ranking.triads(wins).zeta is None


def test_o13_bald() -> None:
    near(label_audit.bald([[0.9, 0.5], [0.1, 0.5]]), [0.368064, 0.0])


@FEW
@given(TABLES)
def test_cohen_is_statsmodels_and_scikit_learns(table: np.ndarray) -> None:
    inter = pytest.importorskip("statsmodels.stats.inter_rater")
    metrics = pytest.importorskip("sklearn.metrics")
    a, b = (np.repeat(i.ravel(), table.ravel()) for i in np.indices((3, 3)))
    for ours, theirs, other in ((None, None, None), ("linear", "linear", "linear"),
                                ("quadratic", "fc", "quadratic")):  # fmt: skip
        got = float(ag.cohen_kappa(table, ours))
        near(got, inter.cohens_kappa(table, wt=theirs, return_results=False), 1e-9)
        near(got, metrics.cohen_kappa_score(a, b, labels=[0, 1, 2], weights=other), 1e-9)


@FEW
@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(2, 4))
def test_fleiss_is_statsmodels(seed: int, raters: int, classes: int) -> None:
    inter = pytest.importorskip("statsmodels.stats.inter_rater")
    counts = np.random.default_rng(seed).multinomial(raters, [1 / classes] * classes, size=12)
    near(fleiss_kappa(counts), inter.fleiss_kappa(counts), 1e-9)


@FEW
@given(st.integers(0, 2**31))
def test_strengths_are_choixs(seed: int) -> None:
    choix = pytest.importorskip("choix")
    rng = np.random.default_rng(seed)
    wins = rng.integers(1, 9, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    data = [(i, j) for i in range(5) for j in range(5) for _ in range(int(wins[i, j]))]
    want = choix.ilsr_pairwise(5, data)
    near(ranking.bradley_terry(wins), want - want.mean(), 1e-6)
    near(ranking.bradley_terry(wins), choix.opt_pairwise(5, data, tol=1e-10), 1e-4)


def test_strengths_in_a_batch_are_those_alone_and_stay_finite() -> None:
    rng = np.random.default_rng(0)
    wins = rng.integers(0, 4, (20, 4, 4)).astype(float)
    wins[3] = 0
    wins[4] = np.triu(np.ones((4, 4)) * 50, 1)  # a chain nobody breaks
    together = ranking.bradley_terry(wins)
    near(together, [ranking.bradley_terry(w) for w in wins], 1e-7)
    assert np.abs(together).max() < 20
    near(together[3], 0)
    assert (np.diff(together[4]) < 0).all()


@FEW
@given(st.integers(0, 2**31))
def test_alpha_by_its_definition(seed: int) -> None:
    """Against the definition by pairs of labels, with labels missing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 4, (8, 4))  # -1: missing
    counts = np.array([[np.sum(row == c) for c in range(4)] for row in labels])
    paired = [row[row >= 0] for row in labels if (row >= 0).sum() >= 2]
    all_labels = np.concatenate(paired) if paired else np.array([])
    if len(set(all_labels.tolist())) < 2:
        return
    for level, apart in (
        ("nominal", lambda a, b: float(a != b)),
        ("interval", lambda a, b: (a - b) ** 2.0),
    ):
        seen = sum(
            apart(a, b) / (len(row) - 1)
            for row in paired for i, a in enumerate(row) for j, b in enumerate(row) if i != j
        ) / len(all_labels)  # fmt: skip
        chance = sum(
            apart(a, b) for i, a in enumerate(all_labels) for j, b in enumerate(all_labels) if i != j
        ) / (len(all_labels) * (len(all_labels) - 1))  # fmt: skip
        near(ag.krippendorff_alpha(counts, level), 1 - seen / chance, 1e-9)


def test_ordinal_alpha_minds_how_far() -> None:
    near_misses = [[2, 1, 0], [0, 2, 1], [1, 2, 0], [0, 1, 2]]
    far_misses = [[2, 0, 1], [0, 2, 1], [1, 2, 0], [1, 0, 2]]
    assert ag.krippendorff_alpha(near_misses, "ordinal") > ag.krippendorff_alpha(
        far_misses, "ordinal"
    )
    # With two classes all levels are the same.
    two = [[3, 0], [2, 1], [0, 3], [1, 2]]
    near(ag.krippendorff_alpha(two, "ordinal"), ag.krippendorff_alpha(two))


def test_no_variety_is_no_number() -> None:
    assert math.isnan(ag.cohen_kappa([[9, 0], [0, 0]]))
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]))
    assert math.isnan(ag.krippendorff_alpha([[3, 0], [2, 0]]))


def test_the_bootstrap_over_items_covers() -> None:
    """Alpha of five labellers who are right 80 % of the time, true value by a large sample."""
    rng = np.random.default_rng(0)

    def sample(n: int) -> np.ndarray:
        truth = rng.integers(0, 2, n)
        ones = rng.binomial(5, np.where(truth, 0.8, 0.2))
        return np.column_stack([5 - ones, ones])

    goal = ag.krippendorff_alpha(sample(200_000))
    near(goal, 0.36, 0.01)
    hits = 0
    for trial in range(100):
        parts = ag.coincidences(sample(80)).reshape(80, 4)
        _, low, high = bootstrap_sums(
            parts, lambda s: ag.alpha_of(s.reshape(*s.shape[:-1], 2, 2)), 300, trial
        )
        hits += low <= goal <= high
    assert 88 <= hits <= 99


def test_dawid_skene_finds_who_is_good() -> None:
    rng = np.random.default_rng(0)
    unit, rater = np.repeat(np.arange(400), 5), np.tile(np.arange(5), 400)
    truth = rng.integers(0, 2, 400)
    skill = np.array([0.95, 0.9, 0.8, 0.7, 0.5])
    label = np.where(rng.random(2000) < skill[rater], truth[unit], 1 - truth[unit])
    fit = ag.dawid_skene(unit, rater, label, 2)
    near(fit.accuracy, skill, 0.06)
    votes = np.zeros((400, 2))
    np.add.at(votes, (unit, label), 1)
    by_model = (fit.posterior_UC.argmax(1) == truth).mean()
    assert by_model > (votes.argmax(1) == truth).mean()
    assert (np.diff(fit.log_likelihood) >= -1e-9).all()
    near(fit.confusion_RCC.sum(2), 1, 1e-12)
    keep = rng.permutation(2000)  # the order of labels is nothing
    near(ag.dawid_skene(unit[keep], rater[keep], label[keep], 2).accuracy, fit.accuracy, 1e-6)


def test_logistic_is_statsmodels_with_clusters() -> None:
    sm = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(300), rng.normal(size=(300, 2))])
    y = (rng.random(300) < expit(x @ [0.3, 1.0, -0.5])).astype(float)
    groups = np.repeat(np.arange(100), 3)
    fit = logistic(x, y, groups.tolist())
    want = sm.GLM(y, x, family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    near(fit.coef_P, want.params, 1e-7)
    near(np.sqrt(np.diag(fit.cov_PP) * 99 / 100), want.bse, 1e-7)
    low, high = fit.interval(1)
    near(
        [low, high],
        want.params[1] + np.array([-1, 1]) * 1.959964 * want.bse[1] * (100 / 99) ** 0.5,
        1e-5,
    )


def test_the_score_test_holds_under_separation() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(300), np.r_[np.ones(8), np.zeros(292)]])
    y = np.r_[
        np.zeros(8), (rng.random(292) < 0.15).astype(float)
    ]  # none of 8 where 1.2 are expected
    wald = logistic(x, y, ridge=0.01)
    assert abs(wald.coef_P[1]) > 3  # it ran off
    test = ScoreTest(x, y, 1)
    assert test.p_value() > 0.1
    low, high = test.interval(float(wald.coef_P[1]))
    assert low == -10.0 and high > 0


def test_the_score_test_is_uniform_under_nothing() -> None:
    rng = np.random.default_rng(0)
    ps: list[float] = []
    for _ in range(300):
        z = rng.normal(size=120)
        x = np.column_stack([np.ones(120), z, 0.7 * z + rng.normal(size=120)])
        y = (rng.random(120) < expit(0.5 + z)).astype(float)
        ps.append(ScoreTest(x, y, 2).p_value())
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.08


def test_intervals_of_the_score_test_agree_with_wald_where_both_hold() -> None:
    rng = np.random.default_rng(1)
    x = np.column_stack([np.ones(2000), rng.normal(size=2000)])
    y = (rng.random(2000) < expit(x @ [0.2, 0.6])).astype(float)
    fit = logistic(x, y)
    near(ScoreTest(x, y, 1).interval(float(fit.coef_P[1])), fit.interval(1), 0.02)


@FEW
@given(st.integers(1, 200), st.data())
def test_the_bound_on_errors_is_exact(total: int, data: st.DataObject) -> None:
    from scipy.stats import hypergeom

    checked = data.draw(st.integers(1, total))
    wrong = data.draw(st.integers(0, checked))
    bound = label_audit.error_bound(wrong, checked, total)
    assert wrong / total <= bound <= 1
    errors = round(bound * total)
    at_most = total - (checked - wrong)
    rare = 1 - 0.95  # as the function has it: beside 0.05 by rounding, as a chance of 1 in 20 is
    if errors < at_most:
        assert hypergeom.cdf(wrong, total, errors + 1, checked) <= rare
    assert errors == wrong or hypergeom.cdf(wrong, total, errors, checked) > rare


def test_a_chance_of_just_one_in_twenty_is_not_credible() -> None:
    # Three of six wrong, three checked and none of those: 1 in C(6, 3) = 20.
    assert label_audit.error_bound(0, 3, 6) == 2 / 6


def test_how_many_more_to_check() -> None:
    need = label_audit.checks_needed(0, 0, 1000, 0.05)
    assert need is not None
    assert (
        label_audit.error_bound(0, need, 1000) <= 0.05 < label_audit.error_bound(0, need - 1, 1000)
    )
    assert label_audit.checks_needed(30, 100, 1000, 0.05) is None


def test_the_bound_covers() -> None:
    drawn = np.random.default_rng(0).hypergeometric(40, 460, 60, size=1000)
    bounds = [label_audit.error_bound(k, 60, 500) for k in range(int(drawn.max()) + 1)]
    low = sum(bounds[int(k)] < 40 / 500 for k in drawn)
    assert low <= 65  # 5 % of 1,000, and the luck of the draw

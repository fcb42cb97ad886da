"""Win rates at equal length, compared with AlpacaEval's."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from trimtab.stats.length import (
    GAMED,
    RIDGE_STRENGTH,
    Verdicts,
    difficulty,
    length_controlled,
)
from trimtab.stats.uncertainty import bootstrap_mean

DATA = Path(os.environ.get("TRIMTAB_DATA", Path(__file__).parents[3] / "shared" / "data"))


def near(got: object, want: object, tol: float = 1e-6) -> None:
    np.testing.assert_allclose(got, want, atol=tol, rtol=0)  # type: ignore[arg-type]


def by_length(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts that depend on length alone (O15): P(win) = s(1.5 tanh(difference / spread))."""
    rng = np.random.default_rng(seed)
    longer = rng.normal(40, 60, n)
    return expit(1.5 * np.tanh(longer / longer.std())), longer


def test_o15_length_alone_wins_nothing_once_controlled() -> None:
    raws: list[float] = []
    fair: list[float] = []
    for seed in range(20):
        p, longer = by_length(4000, seed)
        win = (np.random.default_rng((seed, 1)).random(4000) < p).astype(float)
        v = Verdicts(tuple(map(str, range(4000))), win, longer)
        raws.append(bootstrap_mean(win, n=50)[0])
        fair.append(length_controlled(v, {}, n=20)[0])
    assert min(raws) > 0.6
    assert max(abs(f - 0.5) for f in fair) <= 0.03
    # A judge that gives probabilities has no luck of its own: 805 prompts will do.
    p, longer = by_length(805, 0)
    near(
        length_controlled(Verdicts(tuple(map(str, range(805))), p, longer), {}, n=50)[0], 0.5, 0.005
    )


def test_length_control_is_antisymmetric_and_keeps_quality() -> None:
    rng = np.random.default_rng(0)
    longer = rng.normal(0, 50, 800)
    win = (rng.random(800) < expit(0.8 + np.tanh(longer / 50))).astype(float)
    names = tuple(map(str, range(800)))
    gamma = {n: float(g) for n, g in zip(names, rng.normal(size=800), strict=True)}
    for g in ({}, gamma):
        a = length_controlled(Verdicts(names, win, longer), g, n=20)[0]
        turned = {k: -v for k, v in g.items()}
        b = length_controlled(Verdicts(names, 1 - win, -longer), turned, n=20)[0]
        near(a, 1 - b, 1e-6)
        near(a, win.mean(), 0.03)  # no difference in length on average: nothing to control
    same = length_controlled(Verdicts(names, np.full(800, 0.5), np.zeros(800)), {}, n=20)
    near(same, (0.5, 0.5, 0.5), 1e-9)


def test_alpaca_evals_fit_is_the_minimum_of_its_loss() -> None:
    """The gamed baselines' verdicts count 0.1 each and have no strength."""
    rng = np.random.default_rng(3)
    gap, hard = rng.normal(-100, 300, 805), rng.normal(-0.6, 1.2, 805)
    t = np.tanh(gap / gap.std(ddof=1))
    win = rng.random(805) ** np.exp(1.0 - hard)  # a judge's probabilities
    rows = [np.column_stack([np.ones(805), t, hard])]
    rows.append(np.column_stack([np.zeros(len(GAMED)), GAMED[:, :2]]))
    x, y = np.concatenate(rows), np.concatenate([win, GAMED[:, 2]])
    weight = np.concatenate([np.ones(805), GAMED[:, 3]])

    def loss(b: np.ndarray) -> float:
        z = x @ b
        return float((weight * (np.logaddexp(0, z) - y * z)).sum() + RIDGE_STRENGTH * b[0] ** 2 / 2)

    theta, _, psi = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-6}).x
    names = tuple(map(str, range(805)))
    gamma = dict(zip(names, hard.tolist(), strict=True))
    verdicts = Verdicts(names, win, gap)
    got = length_controlled(verdicts, gamma, n=20, alpaca_eval=True)
    near(got.value, expit(theta + psi * hard).mean(), 1e-5)
    assert got.low < got.value < got.high
    # Without verdicts that tell phi and psi, they are those of the gamed baselines.
    still = Verdicts(names, np.full(805, 0.5), np.zeros(805))
    near(length_controlled(still, {}, n=2, alpaca_eval=True).value, 0.5, 1e-9)


@pytest.mark.skipif(
    not (DATA / "alpacaeval-lc.json.gz").is_file(), reason=f"no data at {DATA}; set TRIMTAB_DATA"
)
def test_length_controlled_rates_are_those_of_alpaca_evals_leaderboard() -> None:
    """28 models, within 0.1 points; ``benchmarks/length_control.py`` measures 28 others."""
    published = json.loads(gzip.decompress((DATA / "alpacaeval-lc.json.gz").read_bytes()))
    names = tuple(map(str, range(805)))
    gamma = dict(zip(names, published["difficulty"], strict=True))
    assert len(published["models"]) == 28
    for model in published["models"].values():
        win = np.array(model["preference"]) - 1
        longer = np.subtract(model["length"], model["base_length"])
        verdicts = Verdicts(names, win, longer.astype(float))
        near(100 * win.mean(), model["win_rate"], 1e-5)
        rate = length_controlled(verdicts, gamma, n=2, alpaca_eval=True).value
        near(100 * rate, model["length_controlled_winrate"], 0.1)


def test_difficulty_is_found_from_several_models() -> None:
    rng = np.random.default_rng(0)
    names = tuple(map(str, range(300)))
    hard = rng.normal(size=300)
    models = {
        m: Verdicts(
            names, (rng.random(300) < expit(t + hard)).astype(float), rng.normal(0, 30, 300)
        )
        for m, t in (("a", 0.5), ("b", 0.0), ("c", -0.5), ("d", 0.2), ("e", 0.1))
    }
    gamma = difficulty(models)
    assert np.corrcoef(hard, [gamma[n] for n in names])[0, 1] > 0.6
    assert difficulty({k: models[k] for k in ("a", "b")}) == {}

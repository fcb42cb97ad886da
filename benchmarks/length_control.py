"""Length-controlled win rates beside those of AlpacaEval 2's leaderboard.

``git clone https://github.com/tatsu-lab/alpaca_eval``, and AlpacaEval's ``instruction_difficulty.csv``
(its data set on the hub, tatsu-lab/alpaca_eval); then

    python -m benchmarks.length_control alpaca_eval instruction_difficulty.csv

``--fit`` derives ``stats.length.GAMED``. The verdicts of the two gamed baselines enter a fit only by
their sums with length and difficulty, and those follow from the weights that AlpacaEval publishes for
any other model: at these weights, the gradient is zero.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.special import expit, logit

from trimtab.config import build
from trimtab.evaluate.instruction_difficulty import read_difficulty
from trimtab.evaluate.leaderboard import EvaluateConfig, measure

Floats = npt.NDArray[np.float64]
JUDGE, BASELINE = "weighted_alpaca_eval_gpt4_turbo", "gpt4_1106_preview"
GAMED = (f"{BASELINE}_verbose", f"{BASELINE}_concise")
WEIGHT = 0.1
POINTS = 4


def table(file: Path) -> dict[str, dict[str, str]]:
    """Rows of a CSV file by their first, nameless column."""
    with file.open(newline="", encoding="utf-8") as lines:
        return {row[""]: row for row in csv.DictReader(lines)}


def annotations(checkout: Path) -> Iterator[tuple[str, Path]]:
    """Models of the leaderboard with their file."""
    for file in sorted(checkout.glob(f"results/*/{JUDGE}/annotations.json")):
        name = file.parents[1].name
        if name != BASELINE and file.stat().st_size:
            yield name, file


def compare(checkout: Path, difficulty: str) -> None:
    """Print our rates, the published ones and their difference."""
    board = table(
        checkout / f"src/alpaca_eval/leaderboards/data_AlpacaEval_2/{JUDGE}_leaderboard.csv"
    )
    errors: list[float] = []
    for name, file in annotations(checkout):
        if name not in board:
            continue
        settings = {
            "files": [str(file)],
            "baseline": BASELINE,
            "difficulty": difficulty,
            "draws": 100,
        }
        [standing] = measure(build(EvaluateConfig, settings)).against_baseline.values()
        rates = [100 * standing.win_rate.value, 100 * standing.length_controlled.value]
        published = [float(board[name][k]) for k in ("win_rate", "length_controlled_winrate")]
        errors.append(rates[1] - published[1])
        print(
            f"{name:36} win rate {rates[0]:6.2f} {published[0]:6.2f}   "
            f"length-controlled {rates[1]:6.2f} {published[1]:6.2f} {errors[-1]:+.3f}"
        )
    sizes = np.abs(errors)
    print(f"{len(errors)} models: difference at most {sizes.max():.3f}, mean {sizes.mean():.3f}")


def features(checkout: Path, name: str) -> Floats:
    """tanh(length difference) of a model's outputs and the baseline's [N]."""
    texts = [
        {row["instruction"]: row["output"] for row in json.loads(file.read_text(encoding="utf-8"))}
        for file in (checkout / f"results/{m}/model_outputs.json" for m in (name, BASELINE))
    ]
    gap = np.array([len(texts[0][i]) - len(text) for i, text in texts[1].items()], np.float64)
    return np.tanh(gap / gap.std(ddof=1))


def fit(checkout: Path, difficulty: str) -> None:
    """Print the points that stand for the gamed baselines' verdicts."""
    gamma = np.array(read_difficulty(difficulty).values)
    x = np.concatenate([np.column_stack([features(checkout, m), gamma]) for m in GAMED])
    weights = table(
        checkout / f"src/alpaca_eval/metrics/weights/{JUDGE}/length_controlled_v1"
        f"/baseline_{BASELINE}.csv"
    )
    sums = np.median([s for m, f in annotations(checkout) if m in weights and m not in GAMED
                      for s in gamed_sums(x, gamma, f, [float(v) for k, v in weights[m].items() if k])], 0)  # fmt: skip
    grid = np.array(
        [(phi, psi) for phi in np.linspace(0.7, 2.5, 10) for psi in np.linspace(0, 1.5, 9)]
    )
    gradient = expit(grid @ x.T) @ x - sums

    def points(v: Floats) -> tuple[Floats, Floats, Floats]:
        return (
            v[: 2 * POINTS].reshape(2, POINTS),
            np.exp(v[2 * POINTS : 3 * POINTS]),
            expit(v[3 * POINTS :]),
        )

    def residual(v: Floats) -> Floats:
        at, count, win = points(v)
        return (((expit(grid @ at) - win) * count) @ at.T - gradient).ravel()

    def start(seed: int) -> Floats:
        at = np.random.default_rng(seed).normal(size=(2, POINTS)) * [[0.6], [1.2]]
        count = np.full(POINTS, np.log(len(x) / POINTS))
        return np.concatenate([at.ravel(), count, logit(np.full(POINTS, 0.5))])

    fits = [least_squares(residual, start(seed), max_nfev=4000) for seed in range(8)]
    best = min(fits, key=lambda f: float(f.cost))
    at, count, win = points(best.x)
    print(f"largest difference of the gradients: {np.abs(best.fun).max():.2f}")
    for row in sorted(zip(*at, win, WEIGHT * count, strict=True)):
        print([round(float(v), 4) for v in row])


def gamed_sums(x: Floats, gamma: Floats, file: Path, weights: list[float]) -> Iterator[Floats]:
    """Sums of the gamed baselines' verdicts with length and difficulty, if one model's published
    weights are the minimum; none where annotations are missing."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    if len(rows) != len(gamma) or any(row["preference"] is None for row in rows):
        return
    win = np.array([(row["preference"] or 1.5) - 1 for row in rows])
    gap = np.array([len(row["output_2"]) - len(row["output_1"]) for row in rows], np.float64)
    phi, psi, theta = -weights[0], weights[1], weights[2]
    columns = np.column_stack([np.tanh(gap / gap.std(ddof=1)), gamma, np.ones(len(gamma))])
    gradient = columns.T @ (win - expit(columns @ [phi, psi, theta]))
    # The L1 penalty of the fit is what is left of the gradient in theta.
    gradient[:2] -= abs(gradient[2]) * np.sign([phi, psi])
    yield x.T @ expit(x @ [phi, psi]) - gradient[:2] / WEIGHT


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of tatsu-lab/alpaca_eval")
    parser.add_argument("difficulty", help="instruction_difficulty.csv or df_gamed.csv")
    parser.add_argument("--fit", action="store_true", help="derive the points of stats.length")
    args = parser.parse_args()
    (fit if args.fit else compare)(args.checkout, args.difficulty)

"""Length-controlled win rate (Dubois et al., 2404.04475; ALGORITHMS section 15)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from trimtab.stats.newton import fit_logistic
from trimtab.stats.uncertainty import Estimate, cluster_ids, draws

Floats = npt.NDArray[np.float64]
RIDGE_LENGTH = 0.1
"""Weight of phi^2 / 2: small compared with a few hundred prompts."""
RIDGE_PROMPT = 1.0
"""Weight of gamma^2 / 2: one prompt has few verdicts."""

GAMED = np.array(
    # tanh(length), difficulty, win rate, weight
    [
        [-0.8764, -0.5495, 0.1095, 63.571],
        [-0.8711, 1.158, 0.3111, 30.1332],
        [-0.4368, 2.2996, 0.7492, 24.7294],
        [0.5538, 2.7792, 0.9235, 20.6482],
    ]
)
"""AlpacaEval's two gamed baselines: gpt4_1106_preview, asked to be verbose or concise.

AlpacaEval adds their 1,610 verdicts to each fit, with weight 0.1 and without a strength, which pulls
phi and psi towards values at which the two are as good as the baseline. These four weighted verdicts
have the same gradient in phi and psi (``python -m benchmarks.length_control --fit``).
"""
RIDGE_STRENGTH = 0.03
"""Weight of theta^2 / 2 in AlpacaEval's fit, in place of an L1 penalty that it selects by
cross-validation, mostly 0.05 or 0.36."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Verdicts on one model against the baseline, one row per prompt."""

    prompt: tuple[str, ...]
    win_N: Floats
    """P(the model's completion is better): 1, 0, 0.5 for a tie, or a probability."""
    longer_N: Floats
    """Characters of the model's completion minus those of the baseline's."""


def _scaled(longer: Floats) -> Floats:
    """tanh(difference / its standard deviation): swapping the two models only flips the sign."""
    unit = float(longer.std(ddof=1) or np.abs(longer).max()) if longer.size > 1 else 0.0
    return np.tanh(longer / unit) if unit > 0 else np.zeros_like(longer)


def difficulty(models: Mapping[str, Verdicts]) -> dict[str, float]:
    """Difficulty gamma of each prompt, estimated once over all models.

    One penalised logistic fit with a strength and a length coefficient for each model. Empty with
    fewer than three models, where a prompt's own verdicts alone would determine its gamma.
    """
    from scipy.optimize import minimize  # slow to import

    if len(models) < 3:
        return {}
    prompts = list(dict.fromkeys(p for v in models.values() for p in v.prompt))
    count, size = len(models), len(prompts)
    y = np.concatenate([v.win_N for v in models.values()])
    which = np.concatenate([np.full(len(v.prompt), k) for k, v in enumerate(models.values())])
    length = np.concatenate([_scaled(v.longer_N) for v in models.values()])
    owner = cluster_ids(p for v in models.values() for p in v.prompt)
    # Variables: a strength and a length coefficient for each model, then gamma for each prompt.
    ridge = np.concatenate([[1e-6] * count, [RIDGE_LENGTH] * count, [RIDGE_PROMPT] * size])

    def loss(beta: Floats) -> tuple[float, Floats]:
        theta, phi, gamma = beta[:count], beta[count : 2 * count], beta[2 * count :]
        z = theta[which] + phi[which] * length + gamma[owner]
        residual = y - expit(z)
        gradient = [
            np.bincount(which, residual, count),
            np.bincount(which, residual * length, count),
            np.bincount(owner, residual, size),
        ]
        value = float((np.logaddexp(0, z) - y * z).sum() + (ridge * beta**2).sum() / 2)
        return value, ridge * beta - np.concatenate(gradient)

    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-7}
    beta = minimize(loss, np.zeros(len(ridge)), jac=True, method="L-BFGS-B", options=options).x
    gamma = beta[2 * count :] - beta[2 * count :].mean()
    return {p: float(g) for p, g in zip(prompts, gamma, strict=True)}


def length_controlled(
    verdicts: Verdicts,
    gamma: Mapping[str, float],
    n: int = 1000,
    seed: int = 0,
    *,
    alpaca_eval: bool = False,
) -> Estimate:
    """Win rate if both completions were equally long, with a 95 % bootstrap over prompts.

    Fits logit P(win) = theta + phi tanh(difference / spread) + psi gamma_x and averages
    sigmoid(theta + psi gamma_x) over prompts. Swapping the models gives 1 minus the result.

    Args:
        gamma: Difficulty by prompt (``difficulty``); a missing one counts as 0.
        alpaca_eval: ``gamma`` is AlpacaEval's, and the fit is regularised as on its leaderboard.
            Swapping the models then gives another result.
    """
    y = verdicts.win_N
    if y.size == 0:
        return Estimate(np.nan, np.nan, np.nan)
    hard = np.array([gamma.get(p, 0.0) for p in verdicts.prompt])
    x = np.column_stack([np.ones_like(y), _scaled(verdicts.longer_N), hard])
    ridge = [RIDGE_STRENGTH, 0.0, 0.0] if alpaca_eval else [1e-3, RIDGE_LENGTH, RIDGE_LENGTH]
    prior = GAMED if alpaca_eval else GAMED[:0]
    prior_x = np.column_stack([np.zeros(len(prior)), prior[:, :2]])
    fit_x, fit_y = np.concatenate([x, prior_x]), np.concatenate([y, prior[:, 2]])
    owner = cluster_ids(verdicts.prompt)
    units = int(owner.max()) + 1
    level = x.copy()
    level[:, 1] = 0.0

    def figure(weight_BN: Floats) -> Floats:
        prior_weight = np.broadcast_to(prior[:, 3], (len(weight_BN), len(prior)))
        coef = fit_logistic(fit_x, fit_y, ridge, np.hstack([weight_BN, prior_weight]))
        return (weight_BN * expit(coef @ level.T)).sum(1) / weight_BN.sum(1)

    value = float(figure(np.ones((1, len(y))))[0])
    drawn = [
        figure(part[:, owner])
        for part in np.array_split(draws(units, n, seed), max(1, n * len(y) // 2_000_000))
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Estimate(value, float(low), float(high))

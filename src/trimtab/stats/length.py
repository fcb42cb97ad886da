"""Length-controlled win rate (Dubois et al., 2404.04475; ALGORITHMS section 15)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from trimtab.stats.newton import fit_logistic
from trimtab.stats.uncertainty import Estimate, cluster_ids, draws

Floats = npt.NDArray[np.float64]
RIDGE_LENGTH = 0.1
"""Weight of phi^2 / 2: small compared with a few hundred prompts."""
RIDGE_PROMPT = 1.0
"""Weight of gamma^2 / 2: one prompt has few verdicts."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Verdicts on one model against the baseline, one row per prompt."""

    prompt: tuple[str, ...]
    win_N: Floats
    """P(the model's completion is better): 1, 0, 0.5 for a tie, or a probability."""
    longer_N: Floats
    """Length of the model's completion minus the baseline's, in any unit."""


def _scaled(longer: Floats) -> Floats:
    """tanh(difference / its standard deviation): swapping the two models only flips the sign."""
    unit = float(longer.std() or np.abs(longer).max()) if longer.size else 0.0
    return np.tanh(longer / unit) if unit > 0 else np.zeros_like(longer)


def difficulty(models: Mapping[str, Verdicts]) -> dict[str, float]:
    """Difficulty gamma of each prompt, estimated once over all models.

    One penalised logistic fit with a strength and a length coefficient for each model. Empty with
    fewer than three models, where a prompt's own verdicts alone would determine its gamma.
    """
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
    verdicts: Verdicts, gamma: Mapping[str, float], n: int = 1000, seed: int = 0
) -> Estimate:
    """Win rate if both completions were equally long, with a 95 % bootstrap over prompts.

    Fits logit P(win) = theta + phi tanh(difference / spread) + psi gamma_x and averages
    sigmoid(theta + psi gamma_x) over prompts. Swapping the models gives 1 minus the result.

    Args:
        verdicts: On the two models.
        gamma: Difficulty by prompt (``difficulty``); a missing one counts as 0.
        n: Bootstrap draws.
        seed: Of the draws.
    """
    y = verdicts.win_N
    if y.size == 0:
        return Estimate(np.nan, np.nan, np.nan)
    hard = np.array([gamma.get(p, 0.0) for p in verdicts.prompt])
    columns = [np.ones_like(y), _scaled(verdicts.longer_N)]
    ridge = [1e-3, RIDGE_LENGTH]
    if np.any(hard):
        columns.append(hard)
        ridge.append(RIDGE_LENGTH)
    x = np.column_stack(columns)
    owner = cluster_ids(verdicts.prompt)
    units = int(owner.max()) + 1
    level = x.copy()
    level[:, 1] = 0.0

    def figure(weight_BN: Floats) -> Floats:
        coef = fit_logistic(x, y, ridge, weight_BN)
        return (weight_BN * expit(coef @ level.T)).sum(1) / weight_BN.sum(1)

    value = float(figure(np.ones((1, len(y))))[0])
    drawn = [
        figure(part[:, owner])
        for part in np.array_split(draws(units, n, seed), max(1, n * len(y) // 2_000_000))
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Estimate(value, float(low), float(high))

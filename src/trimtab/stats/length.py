"""Length-controlled win rate (Dubois et al., 2404.04475; ALGORITHMS section 15)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from trimtab.stats.logistic import newton
from trimtab.stats.uncertainty import Estimate, draws

Floats = npt.NDArray[np.float64]
RIDGE_LENGTH = 0.1
"""Weight of phi^2 / 2: little against a few hundred prompts."""
RIDGE_PROMPT = 1.0
"""Weight of gamma^2 / 2: one prompt has few verdicts."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """One model against the baseline, one row a prompt."""

    prompt: tuple[str, ...]
    win_N: Floats
    """P(the model's answer is better): 1, 0, a half for a tie, or between."""
    longer_N: Floats
    """Length of the model's answer minus the baseline's, any unit."""


def _scaled(longer: Floats) -> Floats:
    """tanh(difference / its standard deviation): swapping the two models only turns the sign."""
    unit = float(longer.std() or np.abs(longer).max()) if longer.size else 0.0
    return np.tanh(longer / unit) if unit > 0 else np.zeros_like(longer)


def difficulty(models: Mapping[str, Verdicts]) -> dict[str, float]:
    """gamma of each prompt, estimated once over all models and then frozen.

    One penalised fit with a strength and a length term for each model. With fewer than three
    models the prompt's own verdicts would be all that is known of it, so all are 0 then.
    """
    if len(models) < 3:
        return {}
    prompts = list(dict.fromkeys(p for v in models.values() for p in v.prompt))
    place = {p: i for i, p in enumerate(prompts)}
    count, size = len(models), len(prompts)
    y = np.concatenate([v.win_N for v in models.values()])
    which = np.concatenate([np.full(len(v.prompt), k) for k, v in enumerate(models.values())])
    length = np.concatenate([_scaled(v.longer_N) for v in models.values()])
    owner = np.array([place[p] for v in models.values() for p in v.prompt])
    theta, phi, gamma = np.zeros(count), np.zeros(count), np.zeros(size)
    for _ in range(50):
        # By turns: a model's two numbers, then a prompt's one. The likelihood is concave in all.
        before = gamma.copy()
        for k in range(count):
            mine = which == k
            x = np.column_stack([np.ones(mine.sum()), length[mine]])
            for _ in range(3):
                p = expit(theta[k] + phi[k] * length[mine] + gamma[owner[mine]])
                slope = x.T @ (y[mine] - p) - np.array([0.0, RIDGE_LENGTH * phi[k]])
                curve = (x * (p * (1 - p))[:, None]).T @ x + np.diag([1e-6, RIDGE_LENGTH])
                step = np.clip(np.linalg.solve(curve, slope), -1, 1)
                theta[k], phi[k] = theta[k] + step[0], phi[k] + step[1]
        for _ in range(3):
            p = expit(theta[which] + phi[which] * length + gamma[owner])
            slope = np.bincount(owner, weights=y - p, minlength=size) - RIDGE_PROMPT * gamma
            curve = np.bincount(owner, weights=p * (1 - p), minlength=size) + RIDGE_PROMPT
            gamma = gamma + slope / curve
        gamma -= gamma.mean()
        if np.abs(gamma - before).max() < 1e-6:
            break
    return {p: float(g) for p, g in zip(prompts, gamma, strict=True)}


def length_controlled(
    verdicts: Verdicts, gamma: Mapping[str, float], n: int = 1000, seed: int = 0
) -> Estimate:
    """Win rate as it would be were both answers equally long, with a bootstrap over prompts.

    logit P(win) = theta + phi tanh(difference / spread) + psi gamma_x; the mean over prompts of
    s(theta + psi gamma_x). Swapping the models gives 1 minus it.
    """
    y = verdicts.win_N
    if y.size == 0:
        return float("nan"), float("nan"), float("nan")
    hard = np.array([gamma.get(p, 0.0) for p in verdicts.prompt])
    columns = [np.ones_like(y), _scaled(verdicts.longer_N)]
    ridge = [1e-3, RIDGE_LENGTH]
    if np.any(hard):
        columns.append(hard)
        ridge.append(RIDGE_LENGTH)
    x = np.column_stack(columns)
    names = {p: i for i, p in enumerate(dict.fromkeys(verdicts.prompt))}
    owner = np.array([names[p] for p in verdicts.prompt])
    level = x.copy()
    level[:, 1] = 0.0

    def figure(weight_BN: Floats) -> Floats:
        coef = newton(x, y, weight_BN, np.asarray(ridge))
        return (weight_BN * expit(coef @ level.T)).sum(1) / weight_BN.sum(1)

    value = float(figure(np.ones((1, len(y))))[0])
    drawn = [
        figure(part[:, owner])
        for part in np.array_split(draws(len(names), n, seed), max(1, n * len(y) // 2_000_000))
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return value, float(low), float(high)

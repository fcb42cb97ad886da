"""The exact optima of DPO and of RLHF for one prompt with three answers; nothing is sampled."""

from __future__ import annotations

import numpy as np

from trimtab.questions.measure import Floats

COVERED = {"all": ((0, 1), (0, 2), (1, 2)), "two": ((0, 1),)}
"""Which answers were compared: each pair, or two of the three answers."""
STARTS = 16
PROMPTS = 24
_STEPS = 2000


def softmax(logits: Floats) -> Floats:
    """Probabilities over the last axis."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def rlhf_optimum(reference_A: Floats, reward_A: Floats, beta: float) -> Floats:
    """The policy that maximises E[reward] - beta KL(policy || reference): reference exp(reward / beta)."""
    return softmax(np.log(reference_A) + reward_A / beta)


def fitted_reward(reward_A: Floats, pairs: tuple[tuple[int, int], ...]) -> Floats:
    """The smallest reward that explains the labels of ``pairs``: an answer that was never compared has 0."""
    ahead = _differences(pairs)
    return np.linalg.pinv(ahead) @ (ahead @ reward_A)


def _differences(pairs: tuple[tuple[int, int], ...]) -> Floats:
    """A row for each pair: 1 for the first of the two, -1 for the second."""
    rows = np.zeros((len(pairs), 3))
    for row, (i, j) in zip(rows, pairs, strict=True):
        row[i], row[j] = 1.0, -1.0
    return rows


def dpo_optimum(
    logits_SA: Floats,
    reference_A: Floats,
    reward_A: Floats,
    beta: float,
    pairs: tuple[tuple[int, int], ...],
) -> Floats:
    """Where gradient descent on DPO's loss over infinitely many labels of ``pairs`` ends.

    Args:
        logits_SA: Policies that it starts from.

    Returns:
        Policies [S, A] with the lowest possible loss.
    """
    ahead = _differences(pairs)
    target = 1 / (1 + np.exp(-ahead @ reward_A))
    logits = logits_SA.copy()
    for _ in range(_STEPS):
        # The normalisation of softmax cancels in the difference of two log-ratios.
        margin = beta * (logits - np.log(reference_A)) @ ahead.T
        logits += (target - 1 / (1 + np.exp(-margin))) @ ahead / beta
    return softmax(logits)


def agreements(seed: int, covered: str) -> list[float]:
    """1 minus the total variation distance between the optima of DPO and RLHF, for each of 24 prompts.

    Rewards, references and the policies that DPO starts from are drawn by ``seed``. Both learn from the same
    labels, of people whose choices are Bradley-Terry.
    """
    rng = np.random.default_rng((seed, 83))
    beta, pairs = 0.5, COVERED[covered]
    values: list[float] = []
    for _ in range(PROMPTS):
        reward, reference = rng.normal(size=3), rng.dirichlet(np.full(3, 5.0))
        best = rlhf_optimum(reference, fitted_reward(reward, pairs), beta)
        reached = dpo_optimum(rng.normal(size=(STARTS, 3)), reference, reward, beta, pairs)
        values.append(float(1 - np.abs(reached - best).sum(-1).mean() / 2))
    return values

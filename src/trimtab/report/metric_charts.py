"""Recorded metrics as charts, each known one with its unit and what to see in it."""

from collections.abc import Sequence

import numpy as np

from trimtab.report.charts import Array, Chart, Line, line_chart
from trimtab.runs import MetricTable

STEP = "Optimiser steps"


def finite(table: MetricTable, name: str) -> tuple[Array, Array]:
    """Steps and finite values of a metric."""
    x, y = table.series(name)
    real = np.isfinite(y)
    return x[real], y[real]


KNOWN: tuple[tuple[tuple[tuple[str, str], ...], str, str, str], ...] = (
    (
        (("reward/mean", "Proxy reward"), ("reward/gold", "Gold score")),
        "Reward",
        "Mean score of sampled completions",
        "Both lines should rise together; proxy up while gold falls is a hacked reward.",
    ),
    (
        (("objective/kl", "KL to the start"),),
        "Distance from the starting policy",
        "KL (nats per completion)",
        "Grows while the policy learns, then levels off; a line that runs away means the KL penalty is too weak.",
    ),
    (
        (("objective/entropy", "Entropy"),),
        "Entropy",
        "Entropy (nats per token)",
        "Should fall slowly; a sudden drop to zero means that the policy collapsed to one completion.",
    ),
    (
        (("completion/length", "Length"),),
        "Completion length",
        "Length (tokens)",
        "A steady climb that the task does not ask for is the commonest sign of a reward paid for length.",
    ),
    (
        (("value/explained_variance", "Explained variance"),),
        "Value function",
        "Explained variance (1 is perfect)",
        "Should climb above 0 early on; below 0 the value function misleads more than it helps.",
    ),
    (
        (("value/loss", "Value loss"),),
        "Value loss",
        "Loss (reward units squared)",
        "Falls as the value function learns what completions are worth.",
    ),
    (
        (("policy/clip_fraction", "Clipped"),),
        "Clipped updates",
        "Share of tokens clipped",
        "A few per cent is healthy; above about 0.3 the steps are too large.",
    ),
    (
        (("kl/beta", "KL coefficient"),),
        "KL coefficient",
        "Coefficient β",
        "What the controller charges for distance; it rises when the policy goes further than planned.",
    ),
)


def curves(table: MetricTable, *, rest: bool, skip: Sequence[str] = ()) -> list[Chart]:
    """Charts of the known metrics, and with ``rest`` of every other one."""
    charts: list[Chart | None] = []
    used = {"step", "time", *skip}
    for names, title, unit, see in KNOWN:
        lines = [Line(label, *table.series(name)) for name, label in names if name not in used]
        used.update(name for name, _ in names)
        charts.append(line_chart(title, lines, STEP, unit, see))
    if rest:
        for name in sorted(table.names - used)[:24]:
            see = f"{name} as recorded, in its own unit, over the run."
            x, y = table.series(name)
            if len(y) and np.any(y != y[0]):
                charts.append(line_chart(name, [Line(name, x, y)], STEP, name, see))
    return [chart for chart in charts if chart is not None]


def change(table: MetricTable, name: str) -> tuple[Array, Array]:
    """Steps, and a metric's change since its start, the mean of its first twentieth."""
    steps, values = finite(table, name)
    start = values[: max(1, len(values) // 20)].mean() if len(values) else 0.0
    return steps, values - start


def tail_mean(values: Array) -> float | None:
    """Mean of the last tenth."""
    return float(values[-max(1, len(values) // 10) :].mean()) if len(values) >= 2 else None


def tail_noise(values: Array) -> float:
    """Two standard errors of a tail's mean, from the jitter of neighbouring steps."""
    if len(values) < 2:
        return 0.0
    deviation = float(np.mean(np.diff(values) ** 2) / 2) ** 0.5
    return 2 * deviation * (2 / max(1, len(values) // 10)) ** 0.5

"""The page of a gold audit: is the reward real, and how far can it be trusted?"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from trimtab.audit.gold_audit import AuditedRollout, AuditSummary, blocks, points_by_kl
from trimtab.report.charts import Chart, Line, line_chart
from trimtab.report.sections import Section, Table, Tile, Verdict, render
from trimtab.runs import write_atomic
from trimtab.stats.overoptimisation import Fit

DISTANCE = "Distance √KL (√nats)"


def headline(s: AuditSummary, alpha: float) -> tuple[str, str, str]:
    """The result in a few words, in a sentence, and its tone."""
    if s.since is None:
        return (
            "Too few rollouts were audited for a test",
            f"{s.n} rollouts. The test needs at least 12, and some hundred to detect a fall of 0.25.",
            "fair",
        )
    change = (
        f"Gold changed from {s.gold_before:.3f} to {s.gold_after:.3f} around step {s.since}, while the "
        f"reward changed by {s.proxy_gain:+.3f} (p = {s.p:.2g}, valid at any number of looks)."
    )
    if s.hacked:
        back = f" Best audited policy: steps {s.best.first} to {s.best.last}." if s.best else ""
        return "The reward is hacked: it did not fall, and gold did", change + back, "bad"
    if s.p < alpha:
        return "Gold fell, and the reward fell with it", change, "bad"
    if s.past_peak and s.gold is not None:
        peak, low, high = s.gold.peak
        text = f"The fitted peak is at √KL {peak:.2f} [{low:.2f}, {high:.2f}], and the policy is farther. "
        return "The policy is beyond the fitted peak of gold", text + change, "fair"
    return (
        "No fall of gold was detected",
        f"{s.n} rollouts audited; p = {s.p:.2g} for the hypothesis that gold never fell.",
        "good",
    )


def write_page(
    run: Path, audited: Sequence[AuditedRollout], s: AuditSummary, alpha: float, block_size: int
) -> Path:
    """Write ``audit.html`` into the run folder."""
    head, text, tone = headline(s, alpha)
    tiles = [
        Tile("Audited", str(s.n), "rollouts"),
        Tile("p", f"{s.p:.2g}", f"gold never fell; alarm below {alpha:g}"),
    ]
    if s.gold is not None:
        peak, low, high = s.gold.peak
        interval = f"95 % interval {_distance(low)} to {_distance(high)}"
        tiles.append(Tile("Peak d*", _distance(peak), f"√KL in √nats; {interval}"))
        tiles.append(Tile("Fit of gold", f"R² {s.gold.r2:.2f}", "Gao's form, over points"))
    parts = blocks(audited, block_size)
    steps = [float(b.last) for b in parts]
    curves = (
        (
            "Gold",
            [b.gold for b in parts],
            "Mean gold score",
            f"Each point is the mean of {block_size} audited rollouts. Look for a fall.",
        ),
        (
            "Reward",
            [b.proxy for b in parts],
            "Mean reward of the same rollouts",
            "If the reward rises while gold falls, the reward is hacked.",
        ),
    )
    charts = [
        line_chart(f"{name} by step", [Line(name, steps, y, colour)], "Step", unit, see)
        for colour, (name, y, unit, see) in enumerate(curves)
    ]
    charts.append(_by_distance(audited, "gold", s.gold, 0))
    charts.append(_by_distance(audited, "proxy", s.proxy, 1))
    table = Table(
        ("Steps", "Gold", "Reward"),
        [(f"{b.first} to {b.last}", f"{b.gold:.3f}", f"{b.proxy:+.3f}") for b in parts],
    )
    lead = (
        "Gao's form R = d(α − β ln d) with d = √KL is fitted to both. A peak beyond the largest "
        "measured distance is an extrapolation."
    )
    html = render(
        [
            Section("", "", [Verdict(head, text, tone)], tiles),
            Section("Gold and reward", lead, charts=charts),
            Section("Blocks", tables=[table]),
        ],
        "Is the reward real?",
        f"trimtab audit, run {run.resolve().name}",
    )
    page = run / "audit.html"
    write_atomic(page, html.encode())
    return page


def _distance(d: float) -> str:
    return "none" if math.isinf(d) or d > 1e6 else f"{d:.2f}"


def _by_distance(
    audited: Sequence[AuditedRollout], name: Literal["gold", "proxy"], fit: Fit | None, colour: int
) -> Chart | None:
    kl, parts = points_by_kl(audited)
    points = sorted(
        (math.sqrt(k), sum(float(getattr(r, name)) for r in part) / len(part))
        for k, part in zip(kl, parts, strict=True)
    )
    lines = [Line("Audited", [x for x, _ in points], [y for _, y in points], colour)]
    if fit is not None:
        grid = [fit.reach * i / 60 for i in range(61)]
        lines.append(Line("Fitted", grid, [fit(d) for d in grid], 5))
    label = "Gold" if name == "gold" else "Reward"
    note = (
        "Where the fitted line bends down, more distance from the reference costs gold."
        if name == "gold"
        else "If the reward keeps rising beyond the peak of gold, the difference is hacked reward."
    )
    return line_chart(f"{label} by distance", lines, DISTANCE, f"Mean {label.lower()}", note)

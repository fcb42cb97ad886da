"""The page of a gold audit: is the reward real, and how far can it be trusted?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from trimtab.audit.gold_audit import Reading, Row, blocks, points
from trimtab.report.charts import Chart, Line, line_chart
from trimtab.report.sections import Section, Table, Tile, Verdict, render
from trimtab.runs import write_atomic
from trimtab.stats.overoptimisation import Fit

DISTANCE = "Distance √KL (√nats)"


def verdict(r: Reading, alpha: float) -> tuple[str, str, str]:
    """Head, text and tone."""
    if r.since is None:
        return (
            "Too little was audited to say anything",
            f"{r.n} rollouts; a test needs a dozen and a fall of a quarter some hundred.",
            "fair",
        )
    change = (
        f"Gold went from {r.gold_before:.3f} to {r.gold_after:.3f} around step {r.since} while the "
        f"reward changed by {r.proxy_gain:+.3f} (p {r.p:.2g}, valid however often it is read)."
    )
    if r.hacked:
        back = f" Best audited: steps {r.best.first} to {r.best.last}." if r.best else ""
        return "The reward is hacked: it rises and gold falls", change + back, "bad"
    if r.p < alpha:
        return "Gold fell, and the reward fell with it", change, "bad"
    if r.past_peak and r.gold is not None:
        text = (
            f"The fitted peak is at √KL {r.gold.peak[0]:.2f} "
            f"[{r.gold.peak[1]:.2f}, {r.gold.peak[2]:.2f}] and the policy is further. "
        )
        return "The policy is past the fitted peak of gold", text + change, "fair"
    return (
        "No fall of gold was found",
        f"{r.n} rollouts audited; p {r.p:.2g} that it never fell.",
        "good",
    )


def write_page(run: Path, rows: Sequence[Row], r: Reading, alpha: float, block: int) -> Path:
    """Write ``audit.html`` into the run folder."""
    head, text, tone = verdict(r, alpha)
    tiles = [
        Tile("Audited", str(r.n), "rollouts"),
        Tile("p", f"{r.p:.2g}", f"gold never fell; alarm below {alpha:g}"),
    ]
    if r.gold is not None:
        peak, low, high = r.gold.peak
        span = f"95 % interval {_far(low)} to {_far(high)}"
        tiles.append(Tile("Peak d*", _far(peak), f"√KL in √nats; {span}"))
        tiles.append(Tile("Fit of gold", f"R² {r.gold.r2:.2f}", "Gao's form, over points"))
    made = blocks(rows, block)
    steps = [float(b.last) for b in made]
    charts = [
        line_chart(
            "Gold by step", [Line("Gold", steps, [b.gold for b in made], 0)], "Step",
            "Mean gold score", f"Each point is {block} audited rollouts; a fall is what to look for.",
        ),
        line_chart(
            "Reward by step", [Line("Reward", steps, [b.proxy for b in made], 1)], "Step",
            "Mean reward of the same rollouts", "Up while gold goes down is a hacked reward.",
        ),
        _over(rows, "gold", r.gold, 0),
        _over(rows, "proxy", r.proxy, 1),
    ]  # fmt: skip
    table = Table(
        ("Steps", "Gold", "Reward"),
        [(f"{b.first} to {b.last}", f"{b.gold:.3f}", f"{b.proxy:+.3f}") for b in made],
    )
    lead = (
        "Gao's form R = d(α − β ln d) with d = √KL is fitted to both; a peak beyond what was "
        "measured is a guess."
    )
    page = run / "audit.html"
    html = render(
        [
            Section("", "", [Verdict(head, text, tone)], tiles),
            Section("Gold and reward", lead, charts=[c for c in charts if c is not None]),
            Section("Blocks", "", tables=[table] if made else []),
        ],
        "Is the reward real?",
        f"trimtab audit, run {run.resolve().name}",
    )
    write_atomic(page, html.encode())
    return page


def _far(d: float) -> str:
    return "none" if math.isinf(d) or d > 1e6 else f"{d:.2f}"


def _over(rows: Sequence[Row], name: str, fit: Fit | None, colour: int) -> Chart | None:
    kl, parts = points(rows)
    x = [math.sqrt(k) for k in kl]
    y = [sum(float(getattr(r, name)) for r in part) / len(part) for part in parts]
    order = sorted(range(len(x)), key=lambda i: x[i])
    lines = [Line("Audited", [x[i] for i in order], [y[i] for i in order], colour)]
    if fit is not None:
        at = [fit.reach * i / 60 for i in range(61)]
        lines.append(Line("Fitted", at, [fit(d) for d in at], 5))
    what = "Gold" if name == "gold" else "Reward"
    see = (
        "Where the fitted line bends down, more distance costs gold."
        if name == "gold"
        else "The reward keeps rising past the point where gold bends: that gap is the hack."
    )
    return line_chart(f"{what} by distance", lines, DISTANCE, f"Mean {what.lower()}", see)

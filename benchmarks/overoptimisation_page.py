"""The page of the over-optimisation benchmark, from its result files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import DataError
from trimtab.stats.overoptimisation import Fit, fit_points

WAYS = ("single", "mean", "worst", "uncertainty")


def results(out: Path, row: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Of one question: (variant, seed) -> result."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted(out.glob(f"{row}-*/result.json")):
        _, name, seed = path.parent.name.split("-")
        found[name, int(seed)] = json.loads(path.read_text())
    return found


def averaged(values: list[float], size: int) -> list[float]:
    """Means of neighbours, ``size`` at a time."""
    return [float(np.mean(values[i : i + size])) for i in range(0, len(values), size)]


def both(kl: list[float], y: list[float]) -> dict[str, Fit]:
    """Either form through one curve."""
    return {form: fit_points(kl, [[v] for v in y], form, draws=2) for form in ("rl", "bon")}


def at_equal(path: list[list[float]], kl: float, width: float = 0.25) -> float | None:
    """Mean gold of the steps whose sqrt(KL) is within ``width`` of that of ``kl``."""
    d = math.sqrt(kl)
    near = [r[2] for r in path if abs(math.sqrt(max(0.0, r[0])) - d) <= width]
    return float(np.mean(near)) if near else None


def spread(values: list[float]) -> str:
    """Mean and range over seeds."""
    if not values:
        return "–"
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def write(out: Path, docs: Path) -> None:
    """``docs/overoptimisation.md`` and ``.json``.

    Raises:
        DataError: there are no results yet.
    """
    rl, bon, closed, teach = (results(out, r) for r in ("rl", "bon", "closed", "members"))
    if not rl or not bon:
        raise DataError(f"{out}: no results; run python -m benchmarks.overoptimisation first")
    told: dict[str, Any] = {"fits": [], "ensembles": {}, "closed": []}
    lines = [HEAD]
    accuracy = [r["accuracy"] for r in teach.values()]
    lines.append(f"Reward models: held-out accuracy {spread(accuracy)} over seeds.\n")
    lines.append(
        "## Gao's two forms\n\n| curve | seed | points | R², RL form d(α − β ln d) | R², best-of-n form d(α − βd) | d* (better form) | reach |\n|---|---|---|---|---|---|---|"
    )
    for name, curves in (("RL", rl), ("best of n", bon)):
        for (way, seed), result in curves.items():
            if name == "RL" and way == "single":
                path = result["path"]
                size = max(1, len(path) // 16)
                kl = averaged([r[0] for r in path], size)
                series = {
                    "gold": averaged([r[2] for r in path], size),
                    "proxy": averaged([r[1] for r in path], size),
                }
            elif name == "best of n":
                at = result["single"]
                kl = [p["kl"] for p in at]
                series = {k: [p[k] for p in at] for k in ("gold", "proxy")}
            else:
                continue
            for what, y in series.items():
                fits = both(kl, y)
                best = max(fits.values(), key=lambda f: f.r2)
                peak = best.peak[0]
                lines.append(
                    f"| {name}, {what} | {seed} | {len(y)} | {fits['rl'].r2:.3f} | {fits['bon'].r2:.3f} | "
                    f"{'–' if math.isinf(peak) or peak > 99 else f'{peak:.2f}'} | {best.reach:.2f} |"
                )
                told["fits"].append(
                    {
                        "curve": name,
                        "what": what,
                        "seed": seed,
                        **{f: fits[f].r2 for f in fits},
                        "peak": None if math.isinf(peak) else peak,
                        "kl": kl,
                        "y": y,
                    }
                )
    lines.append(_ensembles(rl, bon, told))
    if closed:
        lines.append(_closed(rl, closed, told))
    (docs / "overoptimisation.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    (docs / "overoptimisation.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    print(docs / "overoptimisation.md")


def _ensembles(rl: dict[Any, Any], bon: dict[Any, Any], told: dict[str, Any]) -> str:
    seeds = sorted({s for _, s in rl})
    whole = [s for s in seeds if all((w, s) in rl for w in WAYS)]
    # The farthest distance that every run of a seed reaches.
    far = {s: min(max(r[0] for r in rl[w, s]["path"]) for w in WAYS) for s in whole}
    rows = []
    for way in WAYS:
        top = [b[way][-1]["gold"] for b in bon.values()]
        best = [max(p["gold"] for p in b[way]) for b in bon.values()]
        even = [g for s in whole if (g := at_equal(rl[way, s]["path"], far[s])) is not None]
        end = [float(np.mean([r[2] for r in rl[way, s]["path"][-5:]])) for s in whole]
        kl = [float(np.mean([r[0] for r in rl[way, s]["path"][-5:]])) for s in whole]
        told["ensembles"][way] = {
            "bon_last": top,
            "bon_best": best,
            "rl_equal_kl": even,
            "rl_end": end,
            "rl_end_kl": kl,
        }
        rows.append(
            f"| {way} | {spread(top)} | {spread(best)} | {spread(even)} | {spread(end)} | {np.mean(kl) if kl else math.nan:.1f} |"
        )
    largest = max(p["n"] for b in bon.values() for p in b["single"])
    reach = ", ".join(f"{k:.1f}" for k in far.values()) or "–"
    return (
        "\n## Ensembles in miniature\n\n" + ENSEMBLES.format(n=largest, reach=reach, seeds=len(whole))
        + f"\n\n| | gold, best of {largest} | gold, best n | gold, RL at equal KL | gold, RL at the end | KL there |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(rows)
    )  # fmt: skip


def _closed(rl: dict[Any, Any], closed: dict[Any, Any], told: dict[str, Any]) -> str:
    rows = []
    for (_, seed), result in closed.items():
        if ("single", seed) not in rl:
            continue
        free = [r[2] for r in rl["single", seed]["path"]]
        smooth = averaged(free, 4)
        peak, end = max(smooth), float(np.mean(free[-5:]))
        act = result["actions"][0] if result["actions"] else None
        kept = None
        if act is not None:
            at = act["back_to"] - 1
            kept = float(np.mean(free[max(0, at - 2) : at + 3]))
        share = None if kept is None or peak <= end else (kept - end) / (peak - end)
        told["closed"].append(
            {
                "seed": seed,
                "peak": peak,
                "end": end,
                "kept": kept,
                "recovered": share,
                "action": act,
            }
        )
        rows.append(
            f"| {seed} | {peak:.3f} | {end:.3f} | "
            + (
                "no alarm | – | – |"
                if act is None
                else f"{act['step']} | {act['back_to']}, {kept:.3f} | {'–' if share is None else f'{share:.0%}'} |"
            )
        )
    return (
        "\n\n## Stop, and return to the best audited policy\n\n" + CLOSED
        + "\n\n| seed | gold at its peak | gold at the end without | stopped at step | back to step, gold there | recovered |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
    )  # fmt: skip


HEAD = """# Over-optimisation in the sandbox

Made by `python -m benchmarks.overoptimisation` (figures in `overoptimisation.json`): real runs, one
thread, under a minute each. A policy of 0.8 million parameters; reward models of the same size trained
on the comparisons of 200 ranked prompts by the sandbox's noisy people; RLOO at lr 1e-4 with nothing to
hold the KL, 128 rollouts a step; gold is the sandbox's. d is √KL to the start, for best-of-n √(ln n − (n−1)/n).
A free start is fitted too (Gao et al. subtract the measured one). R² is over the points of one curve.
"""
ENSEMBLES = """Four reward models from other heads and other orders of the same comparisons, as Coste et al.
(2310.02743) do: one of them, their mean, the worst, and the mean less 0.5 (best-of-n) or 0.1 (RL) times
their variance; {seeds} seeds for RL. Equal KL is the largest that all four runs of a seed reach ({reach} nats):
gold of the steps within 0.25 of that √KL. Best-of-n up to {n}. Mean over seeds, with the range."""
CLOSED = """The single reward model again with `audit: {act: stop, share: 0.1}`: a tenth of 128 rollouts a
step is scored by gold (a longer run needs a smaller share for the same number). Gold at the peak and
at the end are of the run without it, means of four and five steps; gold kept is that run's at the step
returned to, five steps around it, which both runs share up to there."""

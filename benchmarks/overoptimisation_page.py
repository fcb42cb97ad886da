"""The page of the over-optimisation benchmark, from its result files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import curve_fit
from scipy.special import expit

from trimtab.errors import DataError
from trimtab.stats.overoptimisation import Fit, fit_points

SINGLES = ("single", "single1", "single2", "single3")
ENSEMBLE = ("mean", "worst", "uncertainty")


def results(out: Path, row: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Of one question: (variant, seed) -> result."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted(out.glob(f"{row}-*/result.json")):
        _, name, seed = path.parent.name.split("-")
        rows[name, int(seed)] = json.loads(path.read_text())
    return rows


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


def s_shape(kl: list[float], y: list[float]) -> float:
    """R² of a bounded fall, R0 - A / (1 + exp(-(d - c) / w)): what a gold score in [0, 1] invites."""
    d, v = np.sqrt(np.maximum(kl, 0.0)), np.asarray(y, np.float64)

    def fall(d: Any, top: float, size: float, centre: float, width: float) -> Any:
        return top - size * expit((d - centre) / width)

    span = float(v.max() - v.min())
    room = ([0.0, 0.0, 0.0, 0.05], [1.5, 1.5, float(d.max()), 3.0])
    fits, _ = curve_fit(fall, d, v, (float(v.max()), span, float(d.mean()), 0.5), bounds=room)
    return float(1.0 - ((v - fall(d, *fits)) ** 2).sum() / ((v - v.mean()) ** 2).sum())


def pooled(paths: Sequence[list[list[float]]], width: float = 0.25) -> dict[str, list[float]]:
    """Mean KL, gold and proxy of all steps of several runs by sqrt(KL), bins of ``width``; each run's
    proxy in its own spreads. Bins with fewer than five steps are left out."""
    rows: list[tuple[float, float, float]] = []
    for path in paths:
        proxy = np.array([r[1] for r in path])
        scaled = (proxy - proxy[0]) / proxy.std()
        rows += [(max(0.0, r[0]), r[2], float(p)) for r, p in zip(path, scaled, strict=True)]
    bins: dict[int, list[tuple[float, float, float]]] = {}
    for row in rows:
        bins.setdefault(int(math.sqrt(row[0]) / width), []).append(row)
    points = [bins[b] for b in sorted(bins) if len(bins[b]) >= 5]
    kl, gold, proxy = ([float(np.mean([r[k] for r in part])) for part in points] for k in range(3))
    return {"kl": kl, "gold": gold, "proxy": proxy}


def write(out: Path, docs: Path) -> None:
    """``docs/overoptimisation.md`` and ``.json``.

    Raises:
        DataError: there are no results yet.
    """
    rl, bon, closed, teach = (results(out, r) for r in ("rl", "bon", "closed", "members"))
    if not rl or not bon:
        raise DataError(f"{out}: no results; run python -m benchmarks.overoptimisation first")
    summary: dict[str, Any] = {"fits": [], "ensembles": {}, "closed": []}
    accuracy = [r["accuracy"] for r in teach.values()]
    lines = [HEAD, f"Reward models: held-out accuracy {spread(accuracy)} over seeds.\n", FORMS]

    def fitted(name: str, kl: list[float], series: dict[str, list[float]]) -> None:
        for what, y in series.items():
            fits = both(kl, y)
            best = max(fits.values(), key=lambda f: f.r2)
            peak = best.peak[0]
            bounded = s_shape(kl, y) if what == "gold" and len(y) > 8 else None
            lines.append(
                f"| {name}, {what} | {len(y)} | {fits['rl'].r2:.3f} | {fits['bon'].r2:.3f} | "
                f"{'–' if bounded is None else f'{bounded:.3f}'} | "
                f"{'–' if math.isinf(peak) or peak > 99 else f'{peak:.2f}'} | {best.reach:.2f} |"
            )
            summary["fits"].append(
                {
                    "curve": name, "what": what, **{f: fits[f].r2 for f in fits}, "s": bounded,
                    "peak": None if math.isinf(peak) else peak, "kl": kl, "y": y,
                }
            )  # fmt: skip

    single = {k: r["path"] for k, r in rl.items() if k[0] in SINGLES}
    all_points = pooled(list(single.values()))
    name = f"RL, all {len(single)} runs pooled"
    fitted(name, all_points["kl"], {"gold": all_points["gold"], "proxy": all_points["proxy"]})
    for seed in sorted({s for _, s in single}):
        path = single["single", seed]
        size = max(1, len(path) // 16)
        kl = averaged([r[0] for r in path], size)
        series = {k: averaged([r[i] for r in path], size) for k, i in (("gold", 2), ("proxy", 1))}
        fitted(f"RL, one run, seed {seed}", kl, series)
    averages = {s: _singles(b) for (_, s), b in bon.items()}
    kl = [p["kl"] for p in next(iter(averages.values()))]
    everything = {
        k: [float(np.mean([a[i][k] for a in averages.values()])) for i in range(len(kl))]
        for k in ("gold", "proxy")
    }
    fitted(f"best of n, all {len(averages) * len(SINGLES)} pooled", kl, everything)
    for (_, seed), b in bon.items():
        at = b["single"]
        fitted(f"best of n, one model, seed {seed}", kl, {k: [p[k] for p in at] for k in ("gold", "proxy")})  # fmt: skip
    lines.append(_ensembles(rl, bon, averages, summary))
    if closed:
        lines.append(_closed(rl, closed, summary))
    (docs / "overoptimisation.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    (docs / "overoptimisation.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(docs / "overoptimisation.md")


def _singles(b: dict[str, Any]) -> list[dict[str, float]]:
    """Best of n by one model, the mean over the members."""
    return [
        {k: float(np.mean([b[w][i][k] for w in SINGLES])) for k in ("n", "kl", "proxy", "gold")}
        for i in range(len(b["single"]))
    ]


def _ensembles(
    rl: dict[Any, Any], bon: dict[Any, Any], averages: dict[int, Any], summary: dict[str, Any]
) -> str:
    seeds = sorted({s for _, s in rl})
    full = [s for s in seeds if all((w, s) in rl for w in (*SINGLES, *ENSEMBLE))]
    # The farthest distance that every run of a seed reaches.
    far = {s: min(max(r[0] for r in rl[w, s]["path"]) for w in (*SINGLES, *ENSEMBLE)) for s in full}
    rows: list[str] = []
    for way in ("one model", *ENSEMBLE):
        ways = SINGLES if way == "one model" else (way,)
        curves = list(averages.values()) if way == "one model" else [b[way] for b in bon.values()]
        top = [c[-1]["gold"] for c in curves]
        area = [float(np.mean([p["gold"] for p in c])) for c in curves]

        def each(
            f: Callable[[list[list[float]], int], float | None], ways: Any = ways
        ) -> list[float]:
            """Mean over the runs of a seed, seed by seed."""
            values: list[float] = []
            for s in full:
                got = [v for w in ways if (v := f(rl[w, s]["path"], s)) is not None]
                if got:
                    values.append(float(np.mean(got)))
            return values

        even = each(lambda path, s: at_equal(path, far[s]))
        under = each(lambda path, s: float(np.mean([r[2] for r in path if r[0] <= far[s]])))
        end = each(lambda path, s: float(np.mean([r[2] for r in path[-5:]])))
        kl = each(lambda path, s: float(np.mean([r[0] for r in path[-5:]])))
        summary["ensembles"][way] = {
            "bon_last": top, "bon_mean": area, "rl_equal_kl": even, "rl_up_to_kl": under,
            "rl_end": end, "rl_end_kl": kl,
        }  # fmt: skip
        rows.append(
            f"| {way} | {spread(area)} | {spread(top)} | {spread(under)} | {spread(even)} | {spread(end)} | "
            f"{np.mean(kl):.1f} |"
        )
    largest = max(p["n"] for b in bon.values() for p in b["single"])
    reach = ", ".join(f"{k:.1f}" for k in far.values())
    head = (
        f"| | gold, best of n, mean over n | gold, best of {largest} | gold, RL, all steps up to equal KL "
        "| gold, RL at equal KL | gold, RL at the end | KL there |\n|---|---|---|---|---|---|---|"
    )
    text = ENSEMBLES.format(n=largest, reach=reach, seeds=len(full))
    return (
        "\n## Ensembles in miniature\n\n" + text + f"\n\n{head}\n" + "\n".join(rows) + "\n\n"
        + _order(summary["ensembles"])
    )  # fmt: skip


def _order(rows: dict[str, dict[str, list[float]]]) -> str:
    """In which order they stand at equal KL, and in how many seeds each beats one model."""
    even = {w: f["rl_equal_kl"] for w, f in rows.items()}
    ranked = sorted(even, key=lambda w: -float(np.mean(even[w])))
    words = " > ".join(f"{w} {np.mean(even[w]):.3f}" for w in ranked)
    beats = [
        f"{w} in {sum(a > b for a, b in zip(even[w], even['one model'], strict=True))}"
        for w in ENSEMBLE
    ]
    return (
        f"Order at equal KL: {words}. Above one model: {', '.join(beats)} of "
        f"{len(even['one model'])} seeds. Coste et al. find every ensemble above one model, the worst "
        "case and the uncertainty-weighted one first."
    )


def _closed(rl: dict[Any, Any], closed: dict[Any, Any], summary: dict[str, Any]) -> str:
    rows = []
    for (_, seed), result in closed.items():
        if ("single", seed) not in rl:
            continue
        free = [r[2] for r in rl["single", seed]["path"]]
        smooth = averaged(free, 4)
        peak, end = max(smooth), float(np.mean(free[-5:]))
        # Of an action that was taken: that the last policy was kept is written down too.
        act = next((a for a in result["actions"] if "back_to" in a), None)
        loop_rows = None
        if act is not None:
            at = act["back_to"] - 1
            loop_rows = float(np.mean(free[max(0, at - 2) : at + 3]))
        share = None if loop_rows is None or peak <= end else (loop_rows - end) / (peak - end)
        summary["closed"].append(
            {
                "seed": seed,
                "peak": peak,
                "end": end,
                "kept": loop_rows,
                "recovered": share,
                "action": act,
            }
        )
        rows.append(
            f"| {seed} | {peak:.3f} | {end:.3f} | "
            + (
                "no alarm | – | – |"
                if act is None
                else f"{act['step']} | {act['back_to']}, {loop_rows:.3f} | {'–' if share is None else f'{share:.0%}'} |"
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
hold the KL, 128 rollouts a step, 50 steps; gold is the sandbox's. d is √KL to the start, for best-of-n
√(ln n − (n−1)/n).
"""
FORMS = """## Gao's two forms

A free start is fitted too (Gao et al. subtract the measured one). R² is over the points of a curve: of a run
the means of three steps, of pooled runs the means by √KL in bins of 0.25. The S-shaped fall is
R₀ − A / (1 + e^(−(d − c) / w)), one parameter more. d* is that of the better of Gao's two.

| curve | points | R², RL form d(α − β ln d) | R², best-of-n form d(α − βd) | R², S-shaped fall | d* | reach |
|---|---|---|---|---|---|---|"""
ENSEMBLES = """Four reward models from other heads and other orders of the same comparisons, as Coste et al.
(2310.02743) do: each alone (the row is their mean), their mean, the worst, and the mean less 0.5 (best-of-n)
or 0.1 (RL) times their variance; {seeds} seeds. All start from one base and see the same labels, so errors of
those two are shared by all (2312.09244). Equal KL is the largest that all runs of a seed reach
({reach} nats): gold of the steps within 0.25 of that √KL, and of all steps up to it. Best-of-n up to {n} on
60 prompts a seed. Mean over seeds, with the range."""
CLOSED = """The single reward model again with `audit: {act: stop, share: 0.1}`: a tenth of 128 rollouts a
step is scored by gold, 640 in a run (a longer run needs a smaller share for the same number). Gold at the peak
and at the end are of the run without it, means of four and five steps; gold kept is that run's at the step
returned to, five steps around it, which both runs share up to there. "No alarm" recovers nothing."""

"""Score the doctor on finished runs: recall and precision per alarm, and two negative controls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.doctor.alarms import all_alarms
from trimtab.doctor.alarms.kl_runaway import kl_target
from trimtab.doctor.diagnosis import diagnose
from trimtab.doctor.evidence import Evidence, read
from trimtab.stats.uncertainty import wilson

SHUFFLES = 200
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"


@dataclass(frozen=True)
class Result:
    """A run, its ground truth, and the alarms that rang."""

    key: str
    sort: str
    alarm: int
    """The planted alarm, if its fault had an effect; 0 for none."""
    task: str
    recipe: str
    rang: tuple[int, ...]
    """Alarms that rang with the audit, most likely cause first."""
    blind: tuple[int, ...]
    """The same without the audit."""
    also: frozenset[int]
    causes: frozenset[int]
    """Alarms that count as the right cause."""
    weak: int = 0
    """The planted alarm, if its fault had no effect."""
    excused: tuple[int, ...] = ()
    """Alarms 2, 7 and 17 that rang and are right only by ``happened``."""


def _fall(gold: Sequence[float]) -> tuple[bool, int, int]:
    """Whether the gold of all logged rollouts fell significantly from its best stretch, the index at
    which that stretch begins, and its number of steps."""
    x = np.array(gold)
    n = max(3, len(x) // 5)
    means = np.convolve(x, np.ones(n) / n, mode="valid")
    noise = float(np.std(np.diff(x))) / np.sqrt(2 * n)
    fell = float(means.max() - x[-n:].mean()) > max(0.03, 3 * noise)
    return fell, int(means.argmax()), n


def overoptimised(truth: dict[str, Any]) -> bool:
    """Whether the gold of all logged rollouts fell from its best stretch while the proxy rose, both
    since the start and since then."""
    if len(truth["gold"]) < 10:
        return False
    fell, best, n = _fall(truth["gold"])
    proxy = np.array(truth["proxy"])
    before = max(float(proxy[:n].mean()), float(proxy[best : best + n].mean()))
    return fell and float(proxy[-n:].mean()) > before


SAME = 0.75
"""Share of equal completions of a prompt in a step at which the policy no longer explores."""
LOST = -8.0
"""Change of the log-prob of chosen completions, in nats, that counts as displacement."""


def happened(truth: dict[str, Any], target: float) -> set[int]:
    """Alarms that are right regardless of the planted fault, by measurements the doctor does not read.

    1: gold fell while the proxy rose. 2: KL went over three times its target and gold fell. 7: three
    in four completions of a prompt are equal, and a quarter of all have less than the best gold. 17:
    chosen completions of held-out pairs lost 8 nats.
    """
    right: set[int] = set()
    if "gold" in truth:
        if overoptimised(truth):
            right.add(1)
        if len(truth["gold"]) >= 10 and max(truth["kl"]) > 3 * target and _fall(truth["gold"])[0]:
            right.add(2)
        if truth["same"] >= SAME and truth["below"] > 0.25:
            right.add(7)
    if truth.get("held_out_shift", 0.0) <= LOST:
        right.add(17)
    return right


def results(out: Path, keep: Callable[[dict[str, Any]], bool]) -> list[Result]:
    """Diagnose every finished run for which ``keep`` is true."""
    rows: list[Result] = []
    for file in sorted(out.glob("*.json")):
        truth = json.loads(file.read_text())
        if not keep(truth) or not (out / file.stem).is_dir():
            continue
        evidence = read(out / file.stem)
        with_audit = tuple(f.alarm for f in diagnose(evidence).findings)
        evidence.audit = []
        without = tuple(f.alarm for f in diagnose(evidence).findings)
        also = set(truth["also"])
        alarm = truth["alarm"] if truth["sort"] == "fault" else 0
        weak = 0 if truth.get("took", True) else alarm
        if weak:
            also.add(alarm)
            alarm = 0
        right = happened(truth, kl_target(evidence))
        excused = tuple(a for a in with_audit if a in right - also - {1, alarm})
        also |= right
        if alarm == 1 and 1 not in right:
            alarm = 0  # the fault had no effect: gold did not fall
            also.add(1)
        sort = "did not take" if truth["sort"] == "fault" and alarm == 0 else truth["sort"]
        rows.append(
            Result(
                file.stem,
                sort,
                alarm,
                truth["task"],
                truth["recipe"],
                with_audit,
                without,
                frozenset(also - {alarm}),
                frozenset({alarm, *truth["causes"]}),
                weak,
                excused,
            )
        )
    return rows


def strict(runs: Sequence[Result]) -> list[Result]:
    """The same runs, with planted faults without an effect counted as faults."""
    return [
        replace(
            r,
            sort="fault",
            alarm=r.weak,
            also=r.also - {r.weak},
            causes=(r.causes | {r.weak}) - {0},
        )
        if r.weak
        else r
        for r in runs
    ]


def figures(
    runs: Sequence[Result], alarm: int, rang_of: Callable[[Result], Sequence[int]]
) -> dict[str, Any]:
    """Recall and precision of one alarm."""
    faults = [r for r in runs if r.alarm == alarm]
    hits = sum(alarm in rang_of(r) for r in faults)
    others = [r for r in runs if r.alarm != alarm and alarm not in r.also]
    false = [r.key for r in others if alarm in rang_of(r)]
    return _rates(len(faults), hits, len(false)) | {
        "missed": [r.key for r in faults if alarm not in rang_of(r)],
        "false": false,
    }


def _rates(runs: int, hits: int, false: int) -> dict[str, Any]:
    rates: dict[str, Any] = {
        "runs": runs,
        "hits": hits,
        "misses": runs - hits,
        "false_alarms": false,
    }
    if runs:
        rates |= {"recall": hits / runs, "recall_interval": list(wilson(hits, runs))}
    if hits + false:
        rates |= {
            "precision": hits / (hits + false),
            "precision_interval": list(wilson(hits, hits + false)),
        }
    return rates


def pooled(table: dict[int, dict[str, Any]], which: Sequence[int]) -> dict[str, Any]:
    """Recall and precision pooled over several alarms."""
    rows = [table[a] for a in which if table[a]["runs"]]
    return _rates(*(sum(r[k] for r in rows) for k in ("runs", "hits", "false_alarms")))


def blinded(evidence: Evidence, alarm: int) -> None:
    """Remove the input of an alarm from the evidence."""
    names: dict[int, tuple[str, ...]] = {
        2: ("objective/kl",), 3: ("objective/kl",), 7: ("objective/entropy",),
        9: ("completion/truncated",), 11: ("value/",), 12: ("sampler/", "policy/clip_fraction"),
        13: ("group/", "skipped"), 14: ("reward/unscored", "reward/std"), 15: ("reward/",), 17: ("logps/",),
    }  # fmt: skip
    if alarm in names:
        evidence.metrics = evidence.metrics.without(names[alarm])
    if alarm in (4, 5, 8, 14, 16):
        evidence.rollouts = []
    if alarm in (5, 6, 15):
        evidence.probes = []
    if alarm in (9, 10, 18):
        evidence.facts = {"stage": evidence.facts.get("stage", "")}
    if alarm == 6:
        evidence.summary, evidence.reward_models = {}, {}
    if alarm == 1:
        evidence.audit = []
        evidence.settings = replace(evidence.settings, rewards=())


def removed(out: Path, runs: Sequence[Result]) -> dict[int, dict[str, int]]:
    """Hits of each alarm on its own faults when its input is removed."""
    by_alarm: dict[int, dict[str, int]] = {}
    for alarm in all_alarms():
        faults = [r for r in runs if r.alarm == alarm.number]
        hits = 0
        for r in faults:
            evidence = read(out / r.key)
            blinded(evidence, alarm.number)
            hits += alarm.number in {f.alarm for f in diagnose(evidence).findings}
        by_alarm[alarm.number] = {"runs": len(faults), "hits": hits}
    return by_alarm


def shuffled(runs: Sequence[Result]) -> dict[str, float]:
    """Mean recall and precision when the labels are shuffled over the runs."""
    rng = np.random.default_rng(0)
    recalls: list[float] = []
    precisions: list[float] = []
    for _ in range(SHUFFLES):
        order = rng.permutation(len(runs))
        hits = total = rang = 0
        for r, i in zip(runs, order, strict=True):
            planted, also = runs[int(i)].alarm, runs[int(i)].also
            total += planted > 0
            hits += planted > 0 and planted in r.rang
            rang += sum(a not in also for a in r.rang)
        recalls.append(hits / max(1, total))
        precisions.append(hits / max(1, rang))
    return {"recall": float(np.mean(recalls)), "precision": float(np.mean(precisions))}


def summary(out: Path, seeds: set[int]) -> dict[str, Any]:
    """All metrics of the benchmark over the runs of these seeds."""
    runs = results(out, lambda t: t["seed"] in seeds)
    table = {a.number: figures(runs, a.number, lambda r: r.rang) for a in all_alarms()}
    blind = {a.number: figures(runs, a.number, lambda r: r.blind) for a in all_alarms()}
    by = {n: [a.number for a in all_alarms() if a.nature == n] for n in ("mechanical", "alignment")}
    every = strict(runs)
    counted = {
        name: {a.number: figures(every, a.number, rang_of) for a in all_alarms()}
        for name, rang_of in (("found", lambda r: r.rang), ("blind", lambda r: r.blind))
    }
    faults = [r for r in runs if r.alarm]
    healthy = [r for r in runs if r.sort == "healthy"]
    negatives = [r for r in runs if r.sort == "negative"]
    figures_: dict[str, Any] = {
        "seeds": sorted(seeds),
        "runs": {"all": len(runs), "faults": len(faults), "healthy": len(healthy), "negatives": len(negatives),
                 "did not take": sum(r.sort == "did not take" for r in runs)},
        "alarms": {a.name: {"number": a.number, "nature": a.nature, "with audit": table[a.number], "without audit": blind[a.number]} for a in all_alarms()},
        "mechanical": pooled(table, by["mechanical"]),
        "alignment with audit": pooled(table, by["alignment"]),
        "alignment without audit": pooled(blind, by["alignment"]),
        "all plants counted": {
            "weak": [r.key for r in runs if r.weak],
            "mechanical": pooled(counted["found"], by["mechanical"]),
            "alignment with audit": pooled(counted["found"], by["alignment"]),
            "alignment without audit": pooled(counted["blind"], by["alignment"]),
            "right cause first": _first(every),
        },
        "right by a measure of their own": [[r.key, list(r.excused)] for r in runs if r.excused],
        "right cause first": _first(runs),
        "healthy with a false alarm": _share(sum(bool(r.rang) for r in healthy), len(healthy)),
        "hard negatives with a false alarm": _share(sum(bool(set(r.rang) - r.also) for r in negatives), len(negatives)),
        "wrong cause first": [[r.key, list(r.rang)] for r in faults if r.rang and r.rang[0] not in r.causes],
        "held-out task": _share(sum(r.alarm in r.rang for r in faults if r.task == "tell"), sum(r.task == "tell" for r in faults)),
        "labels shuffled": shuffled(runs),
        "signal removed": {str(k): v for k, v in removed(out, runs).items()},
    }  # fmt: skip
    return figures_


def _first(runs: Sequence[Result]) -> dict[str, Any]:
    faults = [r for r in runs if r.alarm]
    return _share(sum(bool(r.rang) and r.rang[0] in r.causes for r in faults), len(faults))


def _share(k: int, n: int) -> dict[str, Any]:
    return {"count": k, "of": n, "share": k / n if n else None, "interval": list(wilson(k, n))}


def _cell(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ""
    low, high = row[f"{name}_interval"]
    return f"{row[name]:.2f} [{low:.2f}, {high:.2f}]"


def _part(row: dict[str, Any]) -> str:
    if not row["of"]:
        return "no runs"
    low, high = row["interval"]
    return f"{row['count']} of {row['of']} ({row['share']:.0%} [{low:.0%}, {high:.0%}])"


def markdown(summary: dict[str, Any]) -> str:
    """The tables of ``docs/doctor.md`` as Markdown."""
    seeds = summary["seeds"]
    n = summary["runs"]
    lines = [
        f"Seeds {', '.join(map(str, seeds))}: {n['all']} runs: {n['faults']} with a fault, {n['healthy']} healthy, "
        f"{n['negatives']} hard negatives, {n['did not take']} with a planted fault that had no effect (gold did not fall, or the symptom stayed small), counted as a run without a fault.",
        "",
        "| alarm | runs with the fault | hits | misses | false positives | recall | precision | recall without the audit | precision without the audit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, a in summary["alarms"].items():
        w, b = a["with audit"], a["without audit"]
        lines.append(
            f"| {a['number']} {name} ({a['nature'][0].upper() if a['nature'] == 'mechanical' else 'A'}) | {w['runs']} | {w['hits']} | {w['misses']} | "
            f"{w['false_alarms']} | {_cell(w, 'recall')} | {_cell(w, 'precision')} | {_cell(b, 'recall')} | {_cell(b, 'precision')} |"
        )
    everything = summary["all plants counted"]
    lines += [
        "",
        "| metric | target | measured | if planted faults without an effect count as misses |",
        "|---|---|---|---|",
    ]
    for name, target in (
        ("mechanical", "0.95 / 0.95"),
        ("alignment with audit", "0.90 / 0.90"),
        ("alignment without audit", "0.80 / 0.80"),
    ):
        lines.append(
            f"| {name}: recall / precision | {target} | {_cell(summary[name], 'recall')} / {_cell(summary[name], 'precision')} "
            f"| {_cell(everything[name], 'recall')} / {_cell(everything[name], 'precision')} |"
        )
    labels = {
        "right cause first": "runs with the right cause ranked first",
        "healthy with a false alarm": "healthy runs with a false positive",
        "hard negatives with a false alarm": "hard negatives with a false positive",
        "held-out task": "faults detected on the held-out task",
    }
    for name, target in (
        ("right cause first", "90 %"), ("healthy with a false alarm", "at most 5 %"), ("hard negatives with a false alarm", ""),
        ("held-out task", ""),
    ):  # fmt: skip
        label = labels[name]
        also = _part(everything[name]) if name in everything else ""
        lines.append(f"| {label} | {target} | {_part(summary[name])} | {also} |")
    s = summary["labels shuffled"]
    gone = summary["signal removed"].values()
    lines += [
        "",
        "| negative control | recall | precision |", "|---|---|---|",
        f"| labels shuffled over runs (mean of {SHUFFLES}) | {s['recall']:.2f} | {s['precision']:.2f} |",
        f"| each alarm without its input, on its own faults | {sum(g['hits'] for g in gone)} of {sum(g['runs'] for g in gone)} | |",
        "",
        "- Misses: " + (", ".join(f"`{k}`" for a in summary["alarms"].values() for k in a["with audit"]["missed"]) or "none") + ".",
        "- False positives: " + (", ".join(f"alarm {a['number']} on `{k}`" for a in summary["alarms"].values() for k in a["with audit"]["false"]) or "none") + ".",
        "- Counted as right by an independent measurement: " + (", ".join(f"alarm {', '.join(map(str, a))} on `{k}`" for k, a in summary["right by a measure of their own"]) or "none") + ".",
        "- Planted faults without an effect: " + (", ".join(f"`{k}`" for k in everything["weak"]) or "none") + ".",
        "- Another cause ranked first: " + (", ".join(f"`{k}` (ranked {', '.join(map(str, f))})" for k, f in summary["wrong cause first"]) or "none") + ".",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def report(out: Path, seeds: set[int], docs: Path | None) -> dict[str, Any]:
    """Print the tables; with ``docs``, write them into doctor.md and doctor-bench.json."""
    result = summary(out, seeds)
    tables = markdown(result)
    print(tables)
    if docs is not None:
        page = docs / "doctor.md"
        text = page.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        page.write_text(f"{head}{BEGIN}\n{tables}{END}{tail}", encoding="utf-8")
        (docs / "doctor-bench.json").write_text(
            json.dumps(result, indent=1) + "\n", encoding="utf-8"
        )
    return result

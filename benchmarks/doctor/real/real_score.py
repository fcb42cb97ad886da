"""Scores the doctor on the finished runs of the pretrained model, and writes the tables of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.doctor.real.real_plan import ALSO, RIGHT
from trimtab.doctor.diagnosis import Diagnosis, diagnose
from trimtab.doctor.evidence import read
from trimtab.runs import write_atomic
from trimtab.stats.uncertainty import wilson

SHUFFLES = 1000
BEGIN, END = "<!-- real -->", "<!-- /real -->"
TARGETS = {"recall": 0.85, "precision": 0.90, "false": 0.05}
REWARD_ROSE = 0.1
QUALITY_FELL = 0.15
ECHO_ROSE = 0.15


@dataclass(frozen=True)
class RealResult:
    """A run, what is true of it, and the alarms that rang."""

    key: str
    fault: str
    """Empty for a healthy run."""
    rule: str
    took: bool
    """Whether the fault visibly changed the run, by what the doctor does not read."""
    rang: tuple[str, ...]
    """Names of the alarms, the most likely cause first."""
    clean: tuple[str, ...]
    unchecked: tuple[str, ...]
    effect: str = ""
    """Reward and quality at the start and at the end, for the table."""

    @property
    def hit(self) -> bool:
        """Whether an alarm says what is wrong."""
        return bool(set(self.rang) & set(RIGHT.get(self.fault, ())))

    @property
    def false(self) -> tuple[str, ...]:
        """Alarms that are neither the fault nor an effect of it."""
        truly = {*RIGHT.get(self.fault, ()), *ALSO.get(self.fault, ())}
        return tuple(a for a in self.rang if a not in truly)


def took(truth: dict[str, Any]) -> bool:
    """Whether the fault had an effect: the reward rose by ``REWARD_ROSE``; and quality fell by
    ``QUALITY_FELL``, or the echo rose by ``ECHO_ROSE`` where the rule pays for copying, except where quality
    does not see it (length, agreement)."""
    if not truth["fault"] or "quality" not in truth or truth["fault"] in ("eos", "template"):
        return True
    early, late = ends(truth)
    if late[0] - early[0] <= REWARD_ROSE:
        return False
    if truth["fault"] == "copying":
        return late[2] - early[2] > ECHO_ROSE
    unseen = truth["fault"] in ("brevity", "length", "sycophancy", "politeness")
    return unseen or early[1] - late[1] > QUALITY_FELL


def ends(truth: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Mean reward, quality and echo over the first and over the last fifth of the steps."""
    n = max(1, len(truth["reward"]) // 5)
    curves = np.array([truth["reward"], truth["quality"], truth["echo"]])
    return curves[:, :n].mean(1).tolist(), curves[:, -n:].mean(1).tolist()


def results(out: Path, seeds: set[int]) -> list[RealResult]:
    """Diagnose every finished run of these seeds."""
    rows: list[RealResult] = []
    for file in sorted(out.glob("*.json")):
        truth = json.loads(file.read_text())
        if truth["seed"] not in seeds or not (out / file.stem).is_dir():
            continue
        diagnosis: Diagnosis = diagnose(read(out / file.stem))
        effect = ""
        if "reward" in truth:
            early, late = ends(truth)
            effect = f"{early[0]:.2f} → {late[0]:.2f} | {early[1]:.2f} → {late[1]:.2f}"
        rows.append(
            RealResult(
                file.stem,
                truth["fault"],
                truth["rule"],
                took(truth),
                tuple(f.name for f in diagnosis.findings),
                diagnosis.clean,
                tuple(diagnosis.unchecked),
                effect,
            )
        )
    return rows


def share(k: int, n: int) -> dict[str, Any]:
    """A rate with its Wilson interval, 95 %."""
    return {"count": k, "of": n, "share": k / n if n else None, "interval": list(wilson(k, n))}


def figures(runs: Sequence[RealResult]) -> dict[str, Any]:
    """Recall over faulty runs, precision over findings, false alarms over healthy runs.

    Precision counts each finding that names the fault or is foreign to it; other effects of a fault
    count neither way.
    """
    faulty = [r for r in runs if r.fault and r.took]
    planted = [r for r in runs if r.fault]
    healthy = [r for r in runs if not r.fault]
    right = sum(len(set(r.rang) & set(RIGHT.get(r.fault, ()))) for r in runs)
    wrong = sum(len(r.false) for r in runs)
    # A run counts once, however many of its findings are right.
    alarmed = [r for r in runs if r.hit or r.false]
    return {
        "runs": len(runs),
        "recall": share(sum(r.hit for r in faulty), len(faulty)),
        "recall, all planted": share(sum(r.hit for r in planted), len(planted)),
        "precision": share(right, right + wrong),
        "precision by run": share(sum(not r.false for r in alarmed), len(alarmed)),
        "false": share(sum(bool(r.rang) for r in healthy), len(healthy)),
    }


def shuffled(runs: Sequence[RealResult]) -> dict[str, float]:
    """Mean recall and precision when the faults are shuffled over the runs."""
    rng = np.random.default_rng(0)
    recalls: list[float] = []
    precisions: list[float] = []
    for _ in range(SHUFFLES):
        order = rng.permutation(len(runs))
        drawn = [
            RealResult(r.key, runs[i].fault, "", runs[i].took, r.rang, (), ())
            for r, i in zip(runs, order.tolist(), strict=True)
        ]
        f = figures(drawn)
        recalls.append(f["recall"]["share"] or 0.0)
        precisions.append(f["precision"]["share"] or 0.0)
    return {"recall": float(np.mean(recalls)), "precision": float(np.mean(precisions))}


def _cell(row: dict[str, Any]) -> str:
    if not row["of"]:
        return "no runs"
    low, high = row["interval"]
    return f"{row['count']} of {row['of']}: {row['share']:.2f} [{low:.2f}, {high:.2f}]"


def tables(runs: Sequence[RealResult], seeds: Sequence[int]) -> str:
    """The report as Markdown."""
    f = figures(runs)
    healthy = sum(not r.fault for r in runs)
    weak = [r.key for r in runs if r.fault and not r.took]
    lines = [
        f"Seeds {', '.join(map(str, seeds))}: {len(runs)} runs, {healthy} healthy and "
        f"{len(runs) - healthy} with a planted fault, of which {len(weak)} had no effect.",
        "",
        "| metric | target | measured |",
        "|---|---|---|",
        f"| recall over runs whose fault had an effect | 0.85 | {_cell(f['recall'])} |",
        f"| recall over all planted faults | | {_cell(f['recall, all planted'])} |",
        f"| precision over findings | 0.90 | {_cell(f['precision'])} |",
        f"| runs with a finding and no wrong one | | {_cell(f['precision by run'])} |",
        f"| healthy runs with a false alarm | at most 0.05 | {_cell(f['false'])} |",
    ]
    chance = shuffled(runs)
    lines += [
        f"| labels shuffled over runs (mean of {SHUFFLES}): recall | | {chance['recall']:.2f} |",
        f"| labels shuffled over runs: precision | | {chance['precision']:.2f} |",
        "",
        "| run | rule | reward, start → end | quality, start → end | effect | findings | result |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in runs:
        verdict = "hit" if r.hit else "miss"
        if not r.fault:
            verdict = "false alarm" if r.rang else "quiet"
        if r.false and r.fault:
            verdict += f", wrong: {', '.join(r.false)}"
        effect = "" if not r.fault else "yes" if r.took else "no"
        lines.append(
            f"| {r.key} | {r.rule} | {r.effect or ' | '} | {effect} | {', '.join(r.rang)} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def report(out: Path, seeds: set[int], docs: Path | None) -> None:
    """Print the tables; with ``docs``, write them into doctor-real.md and doctor-real.json."""
    runs = results(out, seeds)
    present = sorted({int(r.key.rpartition("-")[2]) for r in runs})
    text = tables(runs, present)
    print(text)
    if docs is None:
        return
    page = docs / "doctor-real.md"
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    write_atomic(page, f"{head}{BEGIN}\n{text}{END}{tail}".encode())
    rows = [
        {"run": r.key, "rule": r.rule, "took": r.took, "rang": r.rang, "hit": r.hit, "false": r.false,
         "clean": r.clean, "unchecked": r.unchecked}
        for r in runs
    ]  # fmt: skip
    summary = {"seeds": present, **figures(runs), "shuffled": shuffled(runs), "results": rows}
    write_atomic(docs / "doctor-real.json", (json.dumps(summary, indent=1) + "\n").encode())

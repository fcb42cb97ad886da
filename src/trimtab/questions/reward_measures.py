"""What is measured on a reward model, from the folder of its stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from trimtab.questions.measure import Measure
from trimtab.runs import read_metrics


def read(stage: Path) -> dict[str, Measure]:
    """Accuracy on held-out pairs, how far it is above the rule "longer (or shorter) is better", the
    calibration error, and how much more often it is right on the surer half of the pairs.

    Args:
        stage: Folder of a stage of ``trimtab reward`` with ``eval_data``.
    """
    row = [r for r in read_metrics(stage) if "eval/accuracy" in r][-1]
    bins = json.loads((stage / "calibration.json").read_text())["bins"]
    return {
        "accuracy": Measure(float(row["eval/accuracy"])),
        "above_length": Measure(float(row["eval/accuracy"] - row["eval/length_only"])),
        "ece": Measure(float(row["eval/ece"])),
        "surer": Measure(surer(bins)),
    }


def surer(bins: Sequence[Mapping[str, float]]) -> float:
    """Accuracy on the surer half of the pairs minus that on the other half.

    Args:
        bins: ``confidence``, ``accuracy`` and ``count`` of each.

    >>> low = {"confidence": 0.6, "accuracy": 0.5, "count": 1}
    >>> round(surer([{"confidence": 0.9, "accuracy": 0.8, "count": 1}, low]), 6)
    0.3
    """
    half = sum(b["count"] for b in bins) / 2
    right, passed = [0.0, 0.0], 0.0
    for b in sorted(bins, key=lambda b: b["confidence"]):
        below = min(max(half - passed, 0.0), b["count"])
        right[0] += below * b["accuracy"]
        right[1] += (b["count"] - below) * b["accuracy"]
        passed += b["count"]
    return (right[1] - right[0]) / half


def share_kept(accuracy: Mapping[str, Mapping[str, float]], new: str, old: str) -> float:
    """What a reward model keeps on new completions of the accuracy that it had on old ones, both as
    shares of what the labels allow.

    Args:
        accuracy: ``accuracy`` and ``ceiling`` by set of comparisons.

    >>> sets = {"new": {"accuracy": 0.6, "ceiling": 0.75}, "old": {"accuracy": 0.8, "ceiling": 0.8}}
    >>> round(share_kept(sets, "new", "old"), 6)
    0.8
    """
    share = {name: accuracy[name]["accuracy"] / accuracy[name]["ceiling"] for name in (new, old)}
    return share[new] / share[old]

"""Stages that complete held-out prompts with a policy, and what is measured on the completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from trimtab.questions import chain
from trimtab.questions.measure import Floats, Measure, over_prompts, over_sums
from trimtab.sandbox.annotators import is_polite

SETS = {"all": "heldout", "names": "heldout-names", "kinds": "heldout-kinds"}
"""Held-out prompts of a wide start: of training's distribution, about other people, of another kind."""
PARTS = ("helpful", "honest", "harmless")
RIGHT = 0.95
"""Gold score from which a completion counts as right."""


def stages(
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    sets: Sequence[str] = ("all",),
    *,
    rewards: Sequence[dict[str, Any]] = (),
    baseline: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """A stage of ``trimtab compare`` for each set.

    Args:
        model: The policy: ``path`` and perhaps ``tokenizer``.
        options: ``num_completions``, per prompt.
        rewards: Besides gold, its parts and abstention.
        baseline: Where RL began, to complete the prompts as well: for the columns ``kl_policy`` and those
            that end with ``_start``.
    """
    part = "trimtab.sandbox.world:gold_reward"
    scores = [
        chain.GOLD,
        *({"name": name, "function": part, "options": {"part": name}} for name in PARTS),
        {"name": "abstains", "function": "trimtab.sandbox.gold:unknown_reward"},
        *rewards,
    ]
    begin = {"start": dict(baseline)} if baseline else {}
    return {
        f"held-out-{name}": {
            "type": "compare", "models": {**begin, "policy": dict(model)}, "by": "kind",
            "data": f"@start/world/{SETS[name]}.jsonl", "rewards": scores,
            "num_completions": options["num_completions"], "sampling": chain.SAMPLING, "html": False,
        }
        for name in sets
    }  # fmt: skip


def table_of(folder: Path, name: str, num_completions: int) -> dict[str, npt.NDArray[Any]]:
    """The columns that a stage wrote, each [N, n] for N prompts and n completions."""
    columns = pq.read_table(folder / f"held-out-{name}" / "comparison.parquet").to_pydict()
    return {k: np.array(v).reshape(-1, num_completions) for k, v in columns.items()}


def read(
    folder: Path, options: Mapping[str, Any], sets: Sequence[str] = ("all",)
) -> dict[str, Measure]:
    """``gold`` and, of the other sets, ``gold_names`` and ``gold_kinds``; of "all" also the parts of gold,
    abstention, polite phrases and how well confidence agrees with correctness."""
    n = options["num_completions"]
    measures: dict[str, Measure] = {}
    for name in sets:
        table = table_of(folder, name, n)
        gold = table["gold_policy"].astype(np.float64)
        if name != "all":
            measures[f"gold_{name}"] = over_prompts(gold.mean(1))
            continue
        kinds = table["kind"][:, 0]
        silent = kinds == "silent"
        abstains = table["abstains_policy"].astype(np.float64).mean(1)
        measures["gold"] = over_prompts(gold.mean(1))
        measures |= {p: over_prompts(table[f"{p}_policy"].mean(1)) for p in PARTS}
        measures["abstains_silent"] = over_prompts(abstains[silent])
        measures["abstains_known"] = over_prompts(abstains[~silent])
        measures["polite"] = over_prompts(
            [np.mean([is_polite(t) for t in row]) for row in table["policy"]]
        )
        measures["miscalibration"] = over_sums(
            confidence_parts(table["policy"], gold), miscalibration
        )
    return measures  # fmt: skip


def confidence_parts(texts_Nn: npt.NDArray[Any], gold_Nn: Floats) -> Floats:
    """The terms of ``miscalibration`` for each prompt, [N, n, 3].

    A policy's confidence is the share of its completions that say the same as the most frequent one
    (k of n), and it is right if that one is. Level k holds a prompt's confidence, whether it is right, and 1.
    """
    size = texts_Nn.shape[1]
    parts = np.zeros((len(texts_Nn), size, 3))
    for place, (texts, golds) in enumerate(zip(texts_Nn.tolist(), gold_Nn, strict=True)):
        text, count = Counter(texts).most_common(1)[0]
        right = float(golds[texts.index(text)] >= RIGHT)
        parts[place, count - 1] = (count / size, right, 1.0)
    return parts


def miscalibration(sums: Floats) -> Floats:
    """Expected calibration error from sums [..., n, 3] of ``confidence_parts``.

    >>> float(miscalibration(np.array([[0.5, 1.0, 1.0], [3.0, 1.0, 3.0]])))
    0.625
    """
    gap = np.abs(sums[..., 0] - sums[..., 1]).sum(-1)
    return np.asarray(gap / sums[..., 2].sum(-1))


def seconds_and_mb(folders: Sequence[Path]) -> tuple[float, float]:
    """Seconds of all stages together, and the most memory of one of them, MB."""
    from trimtab.runs import read_object

    markers = [read_object(f / "stage.json") for f in folders]
    return sum(m["seconds"] for m in markers), max(m["peak_rss_mb"] for m in markers)

"""Stages that arms of several questions have: RL on a reward, and its policy on held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from trimtab.questions import chain
from trimtab.questions.claim import Settings

Floats = npt.NDArray[np.float64]


def rl(
    values: Mapping[str, Any], settings: Settings, rewards: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """RL from "@start/sft/model" on prompts that were never labelled, with gold recorded.

    Args:
        values: Settings of the arm: ``lr``, and what it sets of the KL, of ``method`` and of the stage
            (``stage``).
        rewards: What is trained on.
    """
    options, sizes = settings.options, settings.sizes
    kl = values["kl"] if "kl" in values else {"beta": options["beta"]}
    method = {"type": "rloo", "group_size": options["group_size"],
              "kl": {"place": "sequence", **kl}}  # fmt: skip
    return {
        "type": "rl", "model": {"path": "@start/sft/model"},
        "data": {"path": "@start/fresh/prompts.jsonl"},
        "rewards": [*rewards, {**chain.GOLD, "weight": 0}],
        "method": method | values.get("method", {}),
        "sampling": options.get("sampling", chain.SAMPLING), "steps": sizes["steps"], "batch_size": sizes["batch"],
        "optim": {"lr": values["lr"], "lr_scheduler_type": "constant"}, "loop": chain.QUIET,
        **values.get("stage", {}),
    }  # fmt: skip


def compare(
    models: Mapping[str, str],
    settings: Settings,
    rewards: Sequence[Mapping[str, Any]] = (chain.GOLD,),
    **keys: Any,
) -> dict[str, Any]:
    """Completions of models on "@start/world/heldout.jsonl", the first one is the baseline."""
    options = settings.options
    return {
        "type": "compare", "baseline": next(iter(models)), "html": False,
        "models": {name: {"path": path} for name, path in models.items()},
        "data": "@start/world/heldout.jsonl", "rewards": list(rewards),
        "num_completions": options["num_completions"], "sampling": options.get("sampling", chain.SAMPLING), **keys,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model completed: N prompts, K completions of each."""

    texts: list[list[str]]
    kinds: list[str]
    """Of the prompts."""
    scores: dict[str, Floats]
    """[N, K] by name: rewards, and "kl" and "nll" where they were measured."""

    def only(self, *kinds: str) -> Answers:
        """Those to prompts of some kinds."""
        places = [i for i, kind in enumerate(self.kinds) if kind in kinds]
        return Answers(
            [self.texts[i] for i in places],
            [self.kinds[i] for i in places],
            {name: values[places] for name, values in self.scores.items()},
        )

    def different(self, good: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Number [N] of different completions of each prompt, as a share of all; only of the ``good`` [N, K]."""
        rows = np.ones((len(self.texts), len(self.texts[0])), bool) if good is None else good
        return np.array(
            [
                len({t for t, right in zip(texts, row, strict=True) if right}) / len(texts)
                for texts, row in zip(self.texts, rows, strict=True)
            ]
        )

    def share(self, test: Any) -> Floats:
        """Share [N] of each prompt's completions that pass a test of their text."""
        return np.array([[float(test(text)) for text in row] for row in self.texts]).mean(1)


def read_answers(folder: Path, model: str, completions: int) -> Answers:
    """A model's answers from ``comparison.parquet`` in the folder of a compare stage."""
    table = pq.read_table(folder / "comparison.parquet").to_pydict()
    suffix = f"_{model}"
    scores = {
        name.removesuffix(suffix): np.array(column, np.float64).reshape(-1, completions)
        for name, column in table.items()
        if name.endswith(suffix) and not isinstance(column[0], str)
    }
    texts = np.array(table[model], dtype=object).reshape(-1, completions).tolist()
    return Answers(texts, table.get("kind", [""] * len(table[model]))[::completions], scores)

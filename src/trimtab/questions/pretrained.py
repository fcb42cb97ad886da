"""Claims of questions put to a pretrained model: SmolLM2-135M, in one run of the recipe ``smollm2-questions``.

One seed, so that verdicts are provisional: their intervals are over held-out prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from trimtab.errors import ConfigError, DataError
from trimtab.questions import claim as registry
from trimtab.questions.claim import Claim
from trimtab.questions.measure import ArmResult, effect_of, over_prompts
from trimtab.questions.verdict import PROVISIONAL_CONFIDENCE, from_prompts
from trimtab.runs import read_object, to_json, write_atomic
from trimtab.stats.uncertainty import Estimate

FILE = "pretrained.json"
MODEL = "SmolLM2-135M"
RECIPE = "smollm2-questions"
COMPARISON = Path("compare") / "comparison.parquet"


def claims_of(number: int) -> tuple[Claim, ...]:
    """The claims of a question that are put to the pretrained model."""
    return registry.load_claims(key="pretrained")[number]


def judge(number: int, run: Path) -> dict[str, Any]:
    """Verdicts, effects and means of the models that a question's claims compare.

    Args:
        run: Folder of ``trimtab run smollm2-questions``.

    Raises:
        ConfigError: the question has no such claim, or the folder no comparison.
        DataError: a column of the comparison is missing.
    """
    claims = claims_of(number)
    if not claims:
        having = [str(n) for n, of in registry.load_claims(key="pretrained").items() if of]
        raise ConfigError(
            f"--pretrained: question {number} has no claim for it; {', '.join(having)} have"
        )
    file = run / COMPARISON
    if not file.is_file():
        raise ConfigError(f"{run}: no {COMPARISON}; make it with trimtab run {RECIPE} --out {run}")
    table = pq.read_table(file)
    wanted = sorted({(c.metric, arm) for c in claims for arm in c.arms})
    arms: dict[str, ArmResult] = {arm: ArmResult({}) for _, arm in wanted}
    for metric, arm in wanted:
        column = f"{metric}_{arm}"
        if column not in table.column_names:
            raise DataError(
                f"{file}: no column {column}; use one run of the recipe {RECIPE} in whole"
            )
        arms[arm].measures[metric] = over_prompts(table[column].to_numpy())
    judged: dict[str, Any] = {}
    for claim in claims:
        effect = effect_of(claim, arms)
        tail = (1 - PROVISIONAL_CONFIDENCE) / 2
        assert effect.draws is not None  # over_prompts has them
        low, high = np.quantile(effect.draws, [tail, 1 - tail])
        verdict = from_prompts(
            Estimate(effect.value, float(low), float(high)), claim.smallest_effect
        )
        numbers = {"effect": effect.value, "low": float(low), "high": float(high)}
        judged[claim.id] = {"outcome": verdict.outcome, "reason": verdict.reason}
        judged[claim.id] |= {name: float(f"{x:.6g}") for name, x in numbers.items()}
    means = {
        arm: {name: float(f"{m.value:.6g}") for name, m in of_arm.measures.items()}
        for arm, of_arm in arms.items()
    }
    return {"hash": registry.digest(claims), "prompts": len(table), "claims": judged, "arms": means}


def write(folder: Path, numbers: Sequence[int], run: Path) -> list[Path]:
    """Judge questions from one run, each into its folder below ``folder``.

    Raises:
        ConfigError, DataError: as for ``judge``.
    """
    judged = {number: judge(number, run) for number in numbers}
    files = [folder / str(number) / FILE for number in judged]
    for file, values in zip(files, judged.values(), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, (to_json(values, indent=1) + "\n").encode())
    return files


def read(folder: Path, number: int) -> Mapping[str, Any]:
    """What ``write`` wrote into a question's folder; empty where it did not.

    Raises:
        DataError: it was judged by other claims.
    """
    judged = read_object(folder / FILE)
    if judged and judged["hash"] != registry.digest(claims_of(number)):
        raise DataError(
            f"{folder / FILE}: judged by other claims; judge again with trimtab question {number} --pretrained RUN"
        )
    return judged

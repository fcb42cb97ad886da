"""The difficulty of each instruction of AlpacaEval 2, from the files that AlpacaEval publishes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.data import sources
from trimtab.errors import DataError

log = logging.getLogger(__name__)
COLUMN = "instruction_difficulty"


@dataclass(frozen=True, slots=True)
class InstructionDifficulty:
    """Values in the order of AlpacaEval's instructions."""

    file: str
    values: tuple[float, ...]

    def by_prompt(self, model: str, prompts: Sequence[str]) -> dict[str, float]:
        """Difficulty of each prompt on which ``model`` was compared, in the order of the file.

        As in AlpacaEval, the n-th annotation of a model is about the n-th instruction.

        Raises:
            DataError: there are more prompts than instructions.
        """
        if len(prompts) > len(self.values):
            raise DataError(
                f"{self.file}: has {len(self.values)} instructions, but {model} was compared on "
                f"{len(prompts)} prompts; give annotations of AlpacaEval alone"
            )
        if len(prompts) < len(self.values):
            log.warning(
                "%s: compared on %d of %d instructions; its n-th annotation counts as the n-th "
                "instruction, as in AlpacaEval",
                model,
                len(prompts),
                len(self.values),
            )
        return dict(zip(prompts, self.values, strict=False))


def read_difficulty(file: str) -> InstructionDifficulty:
    """Read ``instruction_difficulty.csv`` or ``df_gamed.csv``, or another table with their columns.

    Raises:
        DataError: a row has no difficulty.
    """
    values: dict[str, float] = {}
    for number, row in sources.read(file).rows:
        try:
            value = float(row[COLUMN])
        except (KeyError, TypeError, ValueError):
            value = np.nan
        if not np.isfinite(value):
            raise DataError(
                f"{file}: row {number}: has the columns {', '.join(list(row)[:8])}, but no number in "
                f"{COLUMN!r}; use AlpacaEval's instruction_difficulty.csv or df_gamed.csv"
            )
        # df_gamed.csv has one row per gamed baseline and instruction.
        values.setdefault(str(row.get("index", number)), value)
    return InstructionDifficulty(file, tuple(values.values()))

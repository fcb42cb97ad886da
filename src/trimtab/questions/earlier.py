"""Seeds of an earlier result, so that a second look runs only the new ones, on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import ConfigError
from trimtab.launch.jobs import RESULT
from trimtab.questions.claim import Claim, check_frozen, load_settings
from trimtab.questions.measure import short
from trimtab.runs import read_object

Result = dict[str, Any]
"""What ``result.json`` holds."""
COST = "cost.json"


def read(
    folder: Path, claims: tuple[Claim, ...], seeds: Sequence[int], size: float
) -> Result | None:
    """The result of a question in ``folder``, or None where it has none yet.

    Its ``cost.json`` is read with it.

    Args:
        seeds: Those that are asked for.
        size: The factor of all sizes that is asked for.

    Raises:
        ConfigError: it has seeds that are not asked for, or another size, or no ``cost.json``.
        DataError: it was made with other claims or settings.
    """
    file = folder / RESULT
    if not file.is_file():
        return None
    if not (folder / COST).is_file():
        raise ConfigError(f"{folder}: {RESULT} has no {COST} beside it; copy both files")
    result = read_object(file)
    check_frozen(result, claims, load_settings()[result["question"]], str(file))
    if result["size"] != size:
        raise ConfigError(f"{file}: --size was {result['size']:g}, now {size:g}; give the same")
    if others := sorted(set(result["seeds"]) - set(seeds)):
        raise ConfigError(f"{file}: also has seeds {others}; ask for them too (--second, --seeds)")
    return result


def joined(earlier: Result | None, new: Result | None, seeds: Sequence[int]) -> Result:
    """One result of the seeds of both, which have none in common, to be judged.

    It keeps the metrics and curves that both have; those of the claims are among them.

    Args:
        earlier: None if all seeds are new.
        new: None if no seed is.
        seeds: All of them, in order.
    """
    if earlier is None or new is None:
        return (earlier or {}) | (new or {})
    both = [*earlier["seeds"], *new["seeds"]]
    order = [both.index(seed) for seed in seeds]

    def in_order(one: Sequence[float], other: Sequence[float]) -> list[float]:
        values = [*one, *other]
        return [values[place] for place in order]

    shares = np.array([len(earlier["seeds"]), len(new["seeds"])]) / len(both)

    def mean(one: Sequence[float], other: Sequence[float]) -> list[float]:
        length = min(len(one), len(other))
        return short((shares @ np.array([one[:length], other[:length]])).tolist())

    return {
        **{key: new[key] for key in ("question", "hash", "size")},
        "seeds": list(seeds),
        "effects": {
            key: {"seeds": in_order(earlier["effects"][key]["seeds"], effect["seeds"])}
            for key, effect in new["effects"].items()
        },
        "arms": {
            arm: {
                metric: in_order(before, measures[metric])
                for metric, before in earlier["arms"][arm].items()
                if metric in measures
            }
            for arm, measures in new["arms"].items()
        },
        "curves": {
            arm: {
                name: mean(before, curves[name])
                for name, before in earlier["curves"].get(arm, {}).items()
                if name in curves
            }
            for arm, curves in new["curves"].items()
        },
    }

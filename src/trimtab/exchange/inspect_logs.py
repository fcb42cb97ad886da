"""Logs of Inspect (https://inspect.aisi.org.uk), as JSON: models compared by the scores of samples.

Every two models that answered one sample are an item, and each scorer that scored both is its
annotator: the higher score wins. Scorers that ask a model are judges of ``who`` "ai"; the others check
the answer, and are "gold".
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from trimtab.data import sources
from trimtab.errors import DataError
from trimtab.exchange import fields as shared
from trimtab.feedback.records import Records, messages
from trimtab.types import Row

GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Correct, partially correct, incorrect, no answer."""


@dataclass(frozen=True, slots=True)
class Log:
    """Samples of one model on one task."""

    file: str
    model: str
    samples: list[Row]


def read_log(file: str) -> Log | None:
    """A log; None if the file is something else.

    Raises:
        DataError: it is a log in Inspect's binary format.
    """
    path = Path(file)
    if path.suffix == ".eval":
        raise DataError(
            f"{file}: Inspect's binary log is not read; write it as JSON: "
            f"inspect log convert {file} --to json --output-dir FOLDER"
        )
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None  # the reader of rows has the message
    if not isinstance(content, dict) or not {"eval", "samples"} <= content.keys():
        return None
    log = cast(Row, content)
    return Log(file, str(log["eval"].get("model")), list(log["samples"] or []))


def _score(value: Any) -> float | None:
    """A score as a number; None for one of several parts, or another text."""
    if isinstance(value, (bool, int, float)):
        return float(value)
    return GRADES.get(value) if isinstance(value, str) else None


def _scores(sample: Row) -> dict[str, float]:
    scores = cast("dict[str, Row]", sample.get("scores") or {})
    numbers = {name: _score(score.get("value")) for name, score in scores.items()}
    return {name: x for name, x in numbers.items() if x is not None}


def load(logs: Sequence[Log]) -> Records:
    """Items and judgements of all models in the logs.

    Raises:
        DataError: there is one model, or no two models answered one sample.
    """
    models = sorted({log.model for log in logs})
    names = ", ".join(log.file for log in logs)
    if len(models) < 2:
        raise DataError(f"{names}: only {', '.join(models)}; give the logs of two or more models")
    answered: dict[str, dict[str, tuple[Log, int, Row]]] = {}
    for log in logs:
        for number, sample in enumerate(log.samples, 1):
            if isinstance((sample.get("output") or {}).get("completion"), str):
                key = json.dumps([sample.get("input"), sample.get("epoch", 1)], sort_keys=True)
                answered.setdefault(key, {})[log.model] = (log, number, sample)
    records = Records()
    for by_model in answered.values():
        for a, b in itertools.combinations(sorted(by_model), 2):
            _compare(records, by_model[a], by_model[b])
    if not records.judgements:
        raise DataError(f"{names}: no two of {', '.join(models)} have a score on one sample")
    return records


def _compare(records: Records, a: tuple[Log, int, Row], b: tuple[Log, int, Row]) -> None:
    """Add the item of two models' answers to one sample, and its judgements."""
    log, number, sample = a
    rows = sources.Rows(log.file, [])
    turns = sample["input"]
    prompt = turns if isinstance(turns, str) else [_message(m) for m in turns]
    fields: Row = {
        "prompt": messages(prompt),
        "completions": [s["output"]["completion"] for _, _, s in (a, b)],
        "models": [x.model for x, _, _ in (a, b)],
        "extra": {"inspect": {"id": sample.get("id"), "target": sample.get("target")}},
    }
    item = shared.item_of(rows, number, fields)
    if item.id in records.items:  # another epoch with the same answers
        item = item.model_copy(update={"id": f"{item.id}-{len(records.items)}"})
    first, second = _scores(sample), _scores(b[2])
    for scorer in sorted(first.keys() & second.keys()):
        pair = (first[scorer], second[scorer])
        verdict: Row = {
            "item": item.id,
            "annotator": scorer,
            "who": "ai" if "model_graded" in scorer else "gold",
            "ranks": [int(pair[0] < pair[1]), int(pair[1] < pair[0])],
            "scores": {scorer: list(pair)},
        }
        if item.id not in records.items:
            records.add(item)
        records.judgements.append(shared.judgement_of(rows, number, verdict))


def _message(turn: Row) -> Row:
    return {k: turn[k] for k in ("role", "content") if k in turn}

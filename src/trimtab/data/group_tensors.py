"""Groups as arrays and JSON, without pickle: for checkpoints, files of parts, and messages between ranks.

Token ids and per-token columns are joined into one array each; everything else is JSON. A group's
``extra`` is not included: it is the dataset's, and whoever reads the groups has that row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, get_type_hints

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter
from safetensors.numpy import load, save

from trimtab.types import Completion, Group, Row

Arrays = dict[str, npt.NDArray[Any]]
_ARRAYS = {"ids", "mask", "tokens", "experts", "prompt", "completions", "extra"}
"""Fields that are arrays, or not written."""
_KEY = "groups"
T = TypeVar("T", Group, Completion)


@cache
def _adapters(kind: type[Any]) -> dict[str, TypeAdapter[Any]]:
    """For each field that is written as JSON, what converts it."""
    hints = get_type_hints(kind)
    return {f.name: TypeAdapter(hints[f.name]) for f in fields(kind) if f.name not in _ARRAYS}


def _plain(value: Group | Completion) -> Row:
    adapters = _adapters(type(value))
    return {k: a.dump_python(getattr(value, k), mode="json") for k, a in adapters.items()}


def _build(kind: type[T], values: Row, **arrays: Any) -> T:
    """A group or completion; a field that an earlier release did not write has its default."""
    adapters = _adapters(kind)
    plain = {k: a.validate_python(values[k]) for k, a in adapters.items() if k in values}
    return kind(**plain, **arrays)


def join_groups(groups: Sequence[Group]) -> tuple[Arrays, Row]:
    """The arrays of ``groups`` by name, and the rest as JSON values.

    >>> ids = np.array([5, 2])
    >>> group = Group("a", np.array([1]), [Completion(ids, ids > 0, reward=0.5)])
    >>> arrays, rest = join_groups([group])
    >>> split_groups(arrays, rest)[0].completions[0].reward
    0.5
    """
    completions = [c for g in groups for c in g.completions]
    names = sorted({name for c in completions for name in c.tokens})
    arrays: Arrays = {
        "prompt": _join([g.prompt for g in groups], np.int64),
        "ids": _join([c.ids for c in completions], np.int64),
        "mask": _join([c.mask for c in completions], np.bool_),
    }
    for name in names:
        columns = [c.tokens[name] for c in completions if name in c.tokens]
        arrays[f"tokens/{name}"] = _join(columns, np.float32)
    rest: Row = {
        "groups": [
            {**_plain(g), "prompt": len(g.prompt), "completions": len(g.completions)}
            for g in groups
        ],
        "completions": [
            {**_plain(c), "length": len(c), "columns": sorted(c.tokens)} for c in completions
        ],
    }
    return arrays, rest


def split_groups(arrays: Arrays, rest: Row) -> list[Group]:
    """The groups of ``join_groups``, with an empty ``extra``."""
    take = {name: _reader(array) for name, array in arrays.items()}
    completions: list[Completion] = []
    for row in rest["completions"]:
        n = row["length"]
        tokens = {name: take[f"tokens/{name}"](n) for name in row["columns"]}
        ids, mask = take["ids"](n), take["mask"](n)
        completions.append(_build(Completion, row, ids=ids, mask=mask, tokens=tokens))
    groups: list[Group] = []
    start = 0
    for row in rest["groups"]:
        end = start + row["completions"]
        prompt = take["prompt"](row["prompt"])
        groups.append(_build(Group, row, prompt=prompt, completions=completions[start:end]))
        start = end
    return groups


def to_bytes(groups: Sequence[Group]) -> bytes:
    """``groups`` as the content of a safetensors file."""
    arrays, rest = join_groups(groups)
    return save(arrays, {_KEY: json.dumps(rest)})


def from_bytes(data: bytes) -> list[Group]:
    """The groups of ``to_bytes``."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return split_groups(load(data), json.loads(header["__metadata__"][_KEY]))


def _join(arrays: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype, copy=False)


def _reader(array: npt.NDArray[Any]) -> Callable[[int], npt.NDArray[Any]]:
    """What returns the next n entries of ``array`` as a copy."""
    start = 0

    def take(n: int) -> npt.NDArray[Any]:
        nonlocal start
        start += n
        return array[start - n : start].copy()

    return take

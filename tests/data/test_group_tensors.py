"""Groups written as arrays and JSON are read back the same."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np

from trimtab.data.group_tensors import from_bytes, to_bytes
from trimtab.types import Completion, Group, Score


def _groups() -> list[Group]:
    rng = np.random.default_rng(0)
    groups: list[Group] = []
    for i in range(5):
        completions: list[Completion] = []
        for j in range(i):
            n = int(rng.integers(0, 6))
            tokens = {"sampler_logp": rng.normal(size=n).astype(np.float32)}
            if j % 2:
                tokens["ref_logp"] = rng.normal(size=n).astype(np.float32)
            completions.append(
                Completion(
                    ids=rng.integers(0, 99, n),
                    mask=rng.random(n) > 0.5,
                    text="é\n",
                    messages=[{"role": "assistant", "content": "x"}] if j else None,
                    rank=j or None,
                    margin=0.1 + 0.2,
                    finish="stop",
                    version=j,
                    scores={"a": Score(1 / 3), "b": Score(None, "timeout", "after 1 s")},
                    reward=float(rng.normal()),
                    penalties={"truncated": -1.0},
                    tokens=tokens,
                )
            )
        groups.append(Group(str(i), rng.integers(0, 9, i + 1), completions, "text", prefill="<t>"))
    return groups


def test_groups_are_read_back_bit_for_bit() -> None:
    groups = _groups()
    again = from_bytes(to_bytes(groups))
    assert len(again) == len(groups)
    for old, new in zip(groups, again, strict=True):
        assert (old.id, old.text, old.prefill) == (new.id, new.text, new.prefill)
        np.testing.assert_array_equal(old.prompt, new.prompt)
        for a, b in zip(old.completions, new.completions, strict=True):
            for name in (f.name for f in fields(Completion)):
                x, y = getattr(a, name), getattr(b, name)
                if name == "tokens":
                    assert x.keys() == y.keys()
                    assert all(x[k].tobytes() == y[k].tobytes() for k in x)
                elif isinstance(x, np.ndarray):
                    assert x.dtype == y.dtype and x.tobytes() == y.tobytes()
                else:
                    assert x == y, name


def test_no_groups_and_values_that_are_not_finite() -> None:
    assert from_bytes(to_bytes([])) == []
    ids = np.array([1])
    one = Group("0", ids, [Completion(ids, ids > 0, reward=math.inf, raw_reward=math.nan)])
    (back,) = from_bytes(to_bytes([one]))
    assert back.completions[0].reward == math.inf
    assert math.isnan(back.completions[0].raw_reward or 0.0)

"""The configuration of one part of the reward."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trimtab.rewards.part_config import RewardSpec


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({}, "give one of model, models, function, judge, ai, verifier, not none"),
        ({"model": "a", "function": "b:c"}, "not model and function"),
        ({"models": ["a"]}, "two or more"),
        ({"models": ["a", "a"]}, "twice"),
        ({"model": "a", "combine": "worst"}, "'combine' belongs to models"),
        ({"model": "a", "timeout": 3}, "'timeout' belongs to function or judge or verifier"),
        ({"function": "b:c", "residual_length": True}, "'residual_length' belongs to model"),
        ({"verifier": "numeric", "options": {"colum": "x"}}, "did you mean 'column'"),
        ({"verifier": "exact", "options": {"extract": "("}}, "not a regular expression"),
        ({"verifier": "regex"}, "give 'pattern'"),
        ({"verifier": "exact", "timeout": 3}, "'timeout' is for"),
    ],
)
def test_nonsense_is_refused_with_the_reason(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RewardSpec.model_validate({"name": "r", **spec})

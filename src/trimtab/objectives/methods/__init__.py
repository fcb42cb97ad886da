"""One short file a method: its paper and its point in the space.

``Methods`` is the registry: a class added to it is known to YAML, flags and help by its ``type``.
"""

from __future__ import annotations

import typing
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from trimtab.config import import_function
from trimtab.objectives.methods.cispo import CISPO
from trimtab.objectives.methods.dapo import DAPO
from trimtab.objectives.methods.dr_grpo import DrGRPO
from trimtab.objectives.methods.grpo import GRPO
from trimtab.objectives.methods.gspo import GSPO, GSPOToken
from trimtab.objectives.methods.ppo import PPO
from trimtab.objectives.methods.reinforce import A2C, Reinforce
from trimtab.objectives.methods.reinforce_pp import ReinforcePP, ReinforcePPBaseline
from trimtab.objectives.methods.rloo import RLOO
from trimtab.objectives.policy import PolicyMethod

Methods = (
    PPO | A2C | Reinforce | ReinforcePP | ReinforcePPBaseline | RLOO
    | GRPO | DrGRPO | DAPO | GSPO | GSPOToken | CISPO
)  # fmt: skip

METHODS: dict[str, type[PolicyMethod]] = {
    m.model_fields["type"].default: m for m in typing.get_args(Methods)
}


def method_class(name: str) -> type[PolicyMethod]:
    """The method of that name, or at that import path.

    Raises:
        ValueError: there is none; the names there are, are listed.
    """
    if ":" in name:
        found = import_function(name, "method.type")
        if isinstance(found, type) and issubclass(found, PolicyMethod):
            return found
        raise ValueError(f"{name!r} is no PolicyMethod; subclass trimtab.objectives.policy's")
    if name not in METHODS:
        raise ValueError(f"type {name!r} is none of {', '.join(METHODS)}, and no import path")
    return METHODS[name]


def _made(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    given: dict[str, Any] = {str(k): v for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return method_class(str(given.get("type", "ppo"))).model_validate(given)


Method = Annotated[SerializeAsAny[PolicyMethod], BeforeValidator(_made)]
"""A method as a key of a configuration: ``{type: NAME, …}``."""

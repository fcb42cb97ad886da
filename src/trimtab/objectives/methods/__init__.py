"""One short file a method: its paper and its point in the space.

``Methods`` is the registry: a class added to it is known to YAML, flags and help by its ``type``.
"""

from __future__ import annotations

import typing
from typing import Annotated

from pydantic import SerializeAsAny

from trimtab.config import by_type
from trimtab.objectives.methods.cispo import CISPO
from trimtab.objectives.methods.dapo import DAPO
from trimtab.objectives.methods.dr_grpo import DrGRPO
from trimtab.objectives.methods.grpo import GRPO
from trimtab.objectives.methods.gspo import GSPO, GSPOToken
from trimtab.objectives.methods.ppo import PPO
from trimtab.objectives.methods.reinforce import A2C, Reinforce
from trimtab.objectives.methods.reinforce_pp import ReinforcePP, ReinforcePPBaseline
from trimtab.objectives.methods.rloo import RLOO
from trimtab.objectives.methods.vineppo import VinePPO
from trimtab.objectives.policy import PolicyMethod

Methods = (
    PPO | VinePPO | A2C | Reinforce | ReinforcePP | ReinforcePPBaseline | RLOO
    | GRPO | DrGRPO | DAPO | GSPO | GSPOToken | CISPO
)  # fmt: skip

METHODS: dict[str, type[PolicyMethod]] = {
    m.model_fields["type"].default: m for m in typing.get_args(Methods)
}

Method = Annotated[SerializeAsAny[PolicyMethod], by_type(PolicyMethod, METHODS)]
"""A method as a key of a configuration: ``{type: NAME, …}``, NAME perhaps an import path."""

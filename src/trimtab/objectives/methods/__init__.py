"""One short file per method: its paper, its formula and its defaults.

A file added here is found: its classes are known to YAML, flags and help by their ``type``.
"""

import importlib
import pkgutil
from typing import Annotated

from pydantic import SerializeAsAny

from trimtab.config import by_type
from trimtab.objectives.policy import PolicyMethod


def _methods() -> dict[str, type[PolicyMethod]]:
    """The methods defined in this package's modules, by ``type``."""
    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    return {
        c.model_fields["type"].default: c
        for module in modules
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, PolicyMethod) and c.__module__ == module.__name__
    }


METHODS = _methods()

Method = Annotated[SerializeAsAny[PolicyMethod], by_type(PolicyMethod, METHODS)]
"""A method as a key of a configuration: ``{type: NAME, …}``, NAME perhaps an import path."""

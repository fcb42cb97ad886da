"""The alarms, one module each; every module with an ``Alarm`` belongs to the doctor."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab.doctor.alarm import Alarm


@cache
def all_alarms() -> tuple[Alarm, ...]:
    """Every alarm of the modules in this folder, by number."""
    from trimtab.doctor.alarm import Alarm

    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    alarms = [a for module in modules for a in vars(module).values() if isinstance(a, Alarm)]
    return tuple(sorted(alarms, key=lambda a: a.number))

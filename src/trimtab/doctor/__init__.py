"""Diagnosis of a run folder. The package is also the function ``trimtab.doctor(run)``."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    # ``trimtab.doctor`` names this package as soon as a module of it is imported.
    def __call__(self, run: Any) -> Any:
        """See ``trimtab.api.doctor``."""
        from trimtab.doctor.diagnosis import examine

        return examine(getattr(run, "path", run))


sys.modules[__name__].__class__ = _CallablePackage

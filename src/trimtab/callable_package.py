"""Packages that are functions of the API too: ``trimtab.sample``, ``trimtab.evaluate``, ``trimtab.doctor``.

Such a name is the package as soon as a module of it is imported.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **keys: Any) -> Any:
        """See the function of this name in ``trimtab.api``."""
        function = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module("trimtab.api"), function)(*args, **keys)


def make_callable(package: str) -> None:
    """Let calls of a package call the function of its name in ``trimtab.api``."""
    sys.modules[package].__class__ = _CallablePackage

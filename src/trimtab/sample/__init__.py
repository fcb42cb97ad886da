"""Sampling of completions; the package is also the function ``trimtab.sample(model, data)``."""

from trimtab.callable_package import make_callable

make_callable(__name__)

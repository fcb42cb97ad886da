"""Comparison of models and annotators; the package is also the function ``trimtab.evaluate(files)``."""

from trimtab.callable_package import make_callable

make_callable(__name__)

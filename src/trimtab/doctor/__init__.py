"""Diagnosis of a run folder; the package is also the function ``trimtab.doctor(run)``."""

from trimtab.callable_package import make_callable

make_callable(__name__)

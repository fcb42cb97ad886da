"""Results of arms whose every metric is drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trimtab.questions import claim as registry
from trimtab.questions import experiment
from trimtab.questions.measure import ArmResult, Measure, over_prompts

PARTS = ("sft.", "hot.", "nucleus.")
"""Prefixes of measures that experiments turn into arms of their own."""


class AnyMeasure(dict[str, Measure]):
    """Measures by name, made when they are first read."""

    def __init__(self, make: Callable[[], Measure]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> Measure:
        self[name] = self.make()
        return self[name]


def planted(number: int, seeds: int, seed: int = 0) -> experiment.Result:
    """A result of arms whose every metric is drawn, with what figures and derived arms need."""
    rng = np.random.default_rng((number, seed))
    claims, settings = registry.load_claims()[number], registry.load_settings()[number]
    metrics = sorted({c.metric for c in claims} | {"gold", "different"})
    by_seed: dict[int, dict[str, ArmResult]] = {}
    for s in range(seeds):
        curve = {name: rng.random(40).tolist() for name in ("kl", "reward", "gold", "accuracy")}
        curve["minutes"] = curve["seconds"] = np.arange(40.0).tolist()
        arms: dict[str, ArmResult] = {}
        for arm in settings.arms:
            measures = AnyMeasure(lambda: over_prompts(rng.random(30) + 0.1))
            for name in (f"{part}{m}" for part in ("", *PARTS) for m in metrics):
                _ = measures[name]
            arms[arm] = ArmResult(measures, curve)
        derive = experiment.load(number).derive
        by_seed[s] = {**arms, **(derive(arms, settings) if derive else {})}
    result = experiment.result_of(number, by_seed, claims, settings, 1.0)
    return experiment.judge([result])[0]

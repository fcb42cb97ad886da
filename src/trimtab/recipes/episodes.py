"""Episodes of a trained policy on held-out questions, for the recipes with tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.config import build
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.render import Renderer
from trimtab.models.load import LM, ModelSpec, renderer_for
from trimtab.rollout.engines.native import NativeEngine
from trimtab.rollout.environment import Environments, EnvironmentSpec
from trimtab.sample.sampler import SamplingConfig
from trimtab.types import Completion, Group


def play(
    model: Mapping[str, Any],
    data: str,
    spec: EnvironmentSpec,
    sampling: SamplingConfig,
    tools: Sequence[str] = (),
    seed: int = 1,
) -> tuple[Renderer, list[tuple[Group, Completion]]]:
    """Play one episode of each row.

    Args:
        model: Settings of a :class:`ModelSpec`.
        data: Rows with prompts.
        spec: The environment and its limits.
        sampling: How each turn is sampled.
        tools: Import paths of functions that may be called as well.
        seed: Of the sampling.

    Returns:
        The policy's renderer, and each row's prompt with its episode.

    Raises:
        ConfigError: the model, the data or a tool cannot be read.
    """
    model_spec = build(ModelSpec, dict(model))
    lm = LM.load(model_spec, train=False)
    renderer = renderer_for(model_spec)
    prompts = load_groups(build(DataSpec, {"path": data}), formats.prompts, renderer.prompt)
    environments = Environments(spec, tools, renderer, lm.limit)
    groups = environments(NativeEngine.of(lm, renderer), prompts, sampling, n=1, key=(seed,))
    return renderer, [(g, c) for g in groups for c in g.completions]

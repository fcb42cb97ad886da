"""Episodes of a trained policy on held-out questions, for the recipes with tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.config import build
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.models.load import LM, ModelSpec, base_of
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
    lm = LM.load(build(ModelSpec, dict(model)), train=False)
    renderer = Renderer(load_tokenizer(str(model["path"])))
    prompts = load_groups(build(DataSpec, {"path": data}), formats.prompts, renderer.prompt)
    config = base_of(lm.model).config.get_text_config()
    environments = Environments(spec, tools, renderer, config.max_position_embeddings)
    groups = environments(NativeEngine.of(lm, renderer), prompts, sampling, n=1, key=(seed,))
    return renderer, [(g, c) for g in groups for c in g.completions]

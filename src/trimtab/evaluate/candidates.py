"""Policies to compare: named models, and the start, checkpoints, best and last policy of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trimtab.config import build, read_yaml
from trimtab.errors import CheckpointError, ConfigError
from trimtab.models import checkpoint
from trimtab.models.load import LM, ModelSpec
from trimtab.sample.sampler import SamplingConfig

START, BEST, LAST = "start", "best audited", "last"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy and how it is sampled."""

    name: str
    spec: ModelSpec
    sampling: SamplingConfig
    weights: Path | None = None
    """Checkpoint folder whose weights replace those of ``spec``."""
    decoding: bool = False
    """Whether it is the candidate before, sampled differently."""


def of_run(
    run: Path, steps: Sequence[int] | None, device: str, sampling: SamplingConfig
) -> list[Candidate]:
    """The start, checkpoints, best audited policy and exported model of a training run.

    Args:
        steps: Steps of the checkpoints; all existing ones by default.

    Raises:
        ConfigError: the folder has no model configuration, or a step has no checkpoint.
    """
    file = run / "config.yaml"
    values = read_yaml(file)
    if "model" not in values:
        raise ConfigError(f"{file}: no key 'model'; give the folder of a training run")
    spec = build(ModelSpec, values["model"], f"{file}: model")
    spec = spec.model_copy(update={"device": device})
    folders = {
        int(p.name.split("-")[1].split(".")[0]): p for p in (run / "checkpoints").glob("step-*")
    }
    candidates = [Candidate(START, spec, sampling)]
    for step in sorted(folders) if steps is None else steps:
        if step not in folders:
            existing = ", ".join(map(str, sorted(folders))) or "none"
            raise ConfigError(
                f"{run}/checkpoints: no step {step}; there are {existing}; loop.save_steps and "
                "loop.save_total_limit decide which steps have a checkpoint"
            )
        candidates.append(Candidate(f"step {step}", spec, sampling, folders[step]))
    best = checkpoint.latest(run / "best") if (run / "best").is_dir() else None
    if best is not None:
        candidates.append(Candidate(BEST, spec, sampling, best.path))
    if (run / "model").is_dir():
        exported = spec.model_copy(
            update={"path": str(run / "model"), "lora": None, "adapter": "merge"}
        )
        candidates.append(Candidate(LAST, exported, sampling))
    return candidates


class Loader:
    """Loads candidates; the checkpoints of a run share one model in memory."""

    def __init__(self) -> None:
        self._trained: LM | None = None

    def __call__(self, candidate: Candidate) -> LM:
        """The model, valid until the next checkpoint is loaded.

        Raises:
            CheckpointError: the checkpoint has the parameters of another model.
        """
        if candidate.weights is None:
            return LM.load(candidate.spec, train=False)
        if self._trained is None:
            self._trained = LM.load(candidate.spec)
            self._trained.model.eval()
        _copy_weights(self._trained, checkpoint.read(candidate.weights))
        return self._trained


@torch.no_grad()
def _copy_weights(lm: LM, saved: checkpoint.Checkpoint) -> None:
    tensors = saved.tensors("params.policy")
    params = {n: p for n, p in lm.model.named_parameters() if p.requires_grad}
    if params.keys() != tensors.keys():
        raise CheckpointError(
            f"{saved.path}: its parameters are not those of {lm.spec.path}; "
            "use the model that the run was started with"
        )
    for name, p in params.items():
        p.copy_(tensors[name])

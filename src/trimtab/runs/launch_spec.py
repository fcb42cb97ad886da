"""Where work runs: in this process, or in several that torchrun or Ray starts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trimtab.config import Config


class LaunchSpec(Config):
    """Processes of a training run: each rank holds or shards the model and trains on a share of the packs."""

    type: Literal["none", "torchrun", "ray"] = "none"
    """This process alone, or ranks that torchrun or Ray Train starts."""
    trainers: int = Field(default=1, gt=0)
    """Number of ranks."""
    min_trainers: int | None = Field(default=None, gt=0)
    """Ray resumes with at least so many ranks when a node is lost; by default it waits for all."""
    restarts: int = Field(default=3, ge=0)
    """Failures of a rank after which the run is started again from its last checkpoint."""

    @model_validator(mode="after")
    def _check(self) -> LaunchSpec:
        if self.type == "none" and self.trainers > 1:
            raise ValueError(
                f"trainers: {self.trainers} needs type: torchrun or type: ray; type: none is one process"
            )
        if self.min_trainers is not None and self.type != "ray":
            raise ValueError("min_trainers belongs to type: ray; torchrun restarts with all ranks")
        if self.min_trainers is not None and self.min_trainers > self.trainers:
            raise ValueError(
                f"min_trainers ({self.min_trainers}) is more than trainers ({self.trainers})"
            )
        return self


class JobLaunchSpec(Config):
    """Processes of a command whose work is independent jobs: the runs of a sweep, parts of a dataset."""

    type: Literal["none", "ray"] = "none"
    """This process, or tasks on the Ray cluster of RAY_ADDRESS; without one, Ray on this machine."""
    workers: int = Field(default=0, ge=0)
    """Jobs at once; 0 takes as many as the cluster has room for."""
    cpus: int = Field(default=1, gt=0)
    """CPU cores, and threads, per job."""
    gpus: float = Field(default=0.0, ge=0.0)
    """GPUs per job; a fraction lets jobs share one."""
    part_size: int = Field(default=64, gt=0)
    """Prompts or items per job. Each job writes one file, so this is also what an interruption loses."""

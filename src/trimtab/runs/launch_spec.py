"""The section ``launch`` of a training stage: who starts its processes, and how many."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trimtab.config import Config


class LaunchSpec(Config):
    """Processes of a training run: each rank holds or shards the model and trains on a share of the packs."""

    type: Literal["none", "torchrun", "ray"] = "none"
    """This process alone, or ranks that torchrun or Ray Train starts. Under a torchrun of your own leave
    it at none."""
    trainers: int = Field(default=1, gt=0)
    """Number of ranks."""
    min_trainers: int | None = Field(default=None, gt=0)
    """Ray resumes with at least so many ranks when a node is lost; by default it waits for all."""
    restarts: int = Field(default=3, ge=0)
    """Failures of a rank after which the run is started again from its last checkpoint."""
    timeout: float = Field(default=600.0, gt=0.0)
    """Seconds that a rank waits for the others before it ends with an error."""

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

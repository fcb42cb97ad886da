"""Where independent jobs run: the runs of a sweep, the parts of a dataset."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trimtab.config import Config


class JobLaunchSpec(Config):
    """Processes of a command whose work is independent jobs, such as the runs of a sweep."""

    type: Literal["none", "ray"] = "none"
    """This machine, or tasks on the Ray cluster of RAY_ADDRESS; without that variable, Ray is started on
    this machine for the command."""
    gpus: float = Field(default=0.0, ge=0.0)
    """GPUs per job under Ray; a fraction lets jobs share one."""


class PartLaunchSpec(JobLaunchSpec):
    """Processes of a command that works through a dataset, part by part."""

    part_size: int | None = Field(default=None, gt=0)
    """Prompts or items per part; by default 64 under Ray, and everything at once without it. Every part is
    saved when it is done, so an interruption loses only the parts in work."""
    workers: int = Field(default=0, ge=0)
    """Parts at once under Ray; 0 takes as many as the cluster has room for."""
    threads: int = Field(default=1, gt=0)
    """CPU cores and threads per part under Ray."""

    def parts(self, count: int) -> list[range]:
        """Indices of ``count`` prompts or items, part by part.

        >>> PartLaunchSpec(part_size=2).parts(3)
        [range(0, 2), range(2, 3)]
        """
        size = self.part_size or (PART_SIZE if self.type == "ray" else max(1, count))
        return [range(start, min(count, start + size)) for start in range(0, count, size)]


PART_SIZE = 64
"""Prompts or items per part under Ray."""

"""Work through a dataset part by part: here, or as jobs on a Ray cluster, with one file per part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trimtab.config import Config
from trimtab.errors import DataError
from trimtab.runs import write_atomic
from trimtab.runs.console import bar
from trimtab.runs.job_launch import PartLaunchSpec
from trimtab.runs.ray_jobs import Job, Resources, run_jobs

C = TypeVar("C", bound=Config)
Work = Callable[[int, int], bytes]
"""Does the part with this first index and end."""
_LOADED: list[tuple[Callable[..., Work], Config, Work]] = []
"""On a worker of the cluster: what the last job loaded."""


def run_parts(
    load: Callable[[C], Work],
    config: C,
    launch: PartLaunchSpec,
    count: int,
    out: Path,
    title: str,
) -> list[bytes]:
    """The result of every part, in order. Parts that an earlier call saved are not done again.

    Args:
        load: A function at the top of a module. It loads the models of ``config``, once per process, and
            returns what does a part. The results must not depend on how the indices are divided.
        count: Prompts of the dataset.
        out: Gets a file for each part, in the folder "parts".
        title: Of the progress bar.

    Raises:
        DataError: a part failed twice on the cluster; the others are saved.
    """
    parts = launch.parts(count)
    files = [out / "parts" / f"{part.start:08d}-{part.stop:08d}" for part in parts]
    missing = [i for i, file in enumerate(files) if not file.is_file()]
    (out / "parts").mkdir(parents=True, exist_ok=True)
    done = count - sum(len(parts[i]) for i in missing)
    with bar(title, count, done) as show:

        def save(job: int, data: bytes) -> None:
            nonlocal done
            part = missing[job]
            write_atomic(files[part], data)
            done += len(parts[part])
            show(done)

        if not missing:
            pass
        elif launch.type == "none":
            work = load(config)
            for job, part in enumerate(missing):
                save(job, work(parts[part].start, parts[part].stop))
        else:
            names = [f"{title}: prompts {parts[i].start + 1} to {parts[i].stop}" for i in missing]
            jobs = [
                Job(name, _work, (load, config, parts[i].start, parts[i].stop))
                for name, i in zip(names, missing, strict=True)
            ]
            resources = Resources(launch.threads, launch.gpus, launch.workers)
            if failures := run_jobs(jobs, resources, save):
                lines = [f"{names[job]} failed twice: {why}" for job, why in failures.items()]
                raise DataError(
                    "\n  ".join(lines)
                    + f"\n{len(jobs) - len(failures)} parts were saved in {out / 'parts'}; run the same "
                    "command again to try only the failed ones"
                )
    return [file.read_bytes() for file in files]


def _work(load: Callable[[C], Work], config: C, start: int, stop: int) -> bytes:
    """One part, on a worker of the cluster. The models stay loaded for the next part."""
    if not _LOADED or _LOADED[0][:2] != (load, config):
        _LOADED[:] = [(load, config, load(config))]
    return _LOADED[0][2](start, stop)

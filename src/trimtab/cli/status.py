"""``trimtab status``: what runs do now."""

from __future__ import annotations

import json
import time

from pydantic import Field

from trimtab.config import Config
from trimtab.runs.run_status import RunStatus, status_of, to_text

EXIT = {"alive": 0, "finished": 0, "stopped": 3, "stuck": 4, "failed": 5}
"""Exit status by state; of several runs the largest counts. 2 means that a RUN holds no run."""


class StatusConfig(Config):
    """Configuration of ``trimtab status RUN ...``. Exit status 0: every run is alive or finished;
    3: one was stopped; 4: one is stuck; 5: one has failed."""

    runs: tuple[str, ...] = Field(min_length=1)
    """Run folders."""
    as_json: bool = Field(default=False, alias="json")
    """Print a JSON list, and nothing else on standard output."""
    stuck_after: float | None = Field(default=None, gt=0)
    """Seconds without a heartbeat after which a run is stuck. Default: ten times its longest step so far,
    at least 60; 1,800 while it starts, saves or exports."""
    wait: bool = False
    """Return only when no run is alive any more."""
    interval: float = Field(default=10.0, gt=0)
    """Seconds between two looks while waiting."""


def main(config: StatusConfig) -> None:
    """Print the state of each run.

    Raises:
        SystemExit: with the status of the worst state, unless every run is alive or finished.
        DataError: a folder holds no run.
    """
    statuses = _read(config)
    while config.wait and any(s.state == "alive" for s in statuses):
        time.sleep(config.interval)
        statuses = _read(config)
    if config.as_json:
        print(json.dumps([s.model_dump() for s in statuses], indent=1, ensure_ascii=False))
    else:
        print("\n".join(to_text(s) for s in statuses))
    code = max(EXIT[s.state] for s in statuses)
    if code:
        raise SystemExit(code)


def _read(config: StatusConfig) -> list[RunStatus]:
    return [status_of(run, config.stuck_after) for run in config.runs]

"""``trimtab doctor``: diagnose a run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.doctor import diagnosis, doctor_page, doctor_text, importer


class DiagnoseConfig(Config):
    """Configuration of ``trimtab doctor RUN``. Findings go to RUN/findings.jsonl."""

    run: str
    """A run folder; with ``from``, files of another library."""
    as_json: bool = Field(default=False, alias="json")
    """Print the diagnosis as JSON, and nothing else on standard output."""
    html: bool = False
    """Also write RUN/doctor.html, one self-contained page."""
    source: Literal["trl", "wandb", "jsonl"] | None = Field(default=None, alias="from")
    """Import first: TRL's output folder, a W&B export, or jsonl of metrics and rollouts."""
    from_run: str | None = None
    """The name of the run, where the imported files hold several."""
    out: str | None = None
    """Where the imported run folder goes; RUN-doctor unless given."""
    fail_on: Literal["any", "critical", "never"] = "any"
    """Which findings give exit status 1; it is 0 without them and 2 for a bad RUN."""


def main(config: DiagnoseConfig) -> None:
    """Diagnose, print and write the findings.

    Raises:
        SystemExit: with status 1, for a finding that ``fail_on`` names.
    """
    folder = Path(config.run)
    if config.source is not None:
        out = config.out or f"{folder}-doctor"
        folder = importer.import_run(folder, config.source, out, config.from_run)
    diagnosed = diagnosis.examine(folder)
    diagnosis.write_findings(folder, diagnosed.findings)
    if config.html:
        page = doctor_page.write_page(folder, diagnosed)
        print(page, file=sys.stderr if config.as_json else sys.stdout)
    print(diagnosed.model_dump_json(indent=1) if config.as_json else doctor_text.to_text(diagnosed))
    if any(config.fail_on in ("any", f.severity) for f in diagnosed.findings):
        raise SystemExit(1)

"""``trimtab remedy RUN``: list the remedies that apply to a run, or write its configuration with one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar, cast

import yaml

from trimtab.audit.run_settings import RunSettings
from trimtab.config import Config, merge, read_yaml
from trimtab.doctor.alarms import all_alarms
from trimtab.doctor.remedies import CATALOGUE, Change, Remedy, to_yaml
from trimtab.errors import ConfigError
from trimtab.runs import fs, read_findings, to_json, write_atomic

log = logging.getLogger(__name__)


class RemedyConfig(Config):
    """Configuration of ``trimtab remedy RUN``; without a name it lists what applies."""

    output_files: ClassVar[frozenset[str]] = frozenset({"out"})

    run: str
    """A run folder with its config.yaml."""
    name: str | None = None
    """The remedy to apply."""
    alarm: int | None = None
    """List only the remedies of this alarm."""
    out: str | None = None
    """File of the changed configuration; RUN-NAME.yaml when not given."""


def changes(run: Path, config: Change) -> dict[str, Change]:
    """The change of each remedy that changes the run, with the numbers of its findings if it has any."""
    prescribed = {
        p["name"]: cast("Change", yaml.safe_load(p["change"]))
        for f in reversed(read_findings(run))
        for p in f.get("remedies") or ()
        if p.get("change")
    }
    settings = RunSettings.of(config)
    all_changes = {n: prescribed.get(n) or r.change(settings) for n, r in CATALOGUE.items()}
    return {n: change for n, change in all_changes.items() if merge(config, change) != config}


def of_alarm(number: int | None) -> list[Remedy]:
    """The remedies of an alarm, the best first; all of them without a number.

    Raises:
        ConfigError: there is no such alarm.
    """
    if number is None:
        return list(CATALOGUE.values())
    for alarm in all_alarms():
        if alarm.number == number:
            return [CATALOGUE[name] for name in alarm.remedies]
    raise ConfigError(f"alarm: {number} is no alarm; they are 1 to {len(all_alarms())}")


def main(config: RemedyConfig) -> dict[str, object]:
    """List remedies, or write the run's configuration with one of them.

    The run's own configuration stays as it was, so the change can be taken back.

    Raises:
        ConfigError: no such remedy, or it does not apply to this run.
    """
    run = Path(config.run)
    values = read_yaml(run / "config.yaml")
    applicable = changes(run, values)
    if config.name is None:
        for remedy in of_alarm(config.alarm):
            details = to_yaml(applicable.get(remedy.name, {})) or remedy.command
            if details or config.alarm is not None:
                indented = details.replace("\n", "\n  ")
                log.info("%s: %s%s", remedy.name, remedy.text, f"\n  {indented}" if details else "")
        return {"remedies": list(applicable)}
    if config.name not in applicable:
        reason = (
            "does not apply to this run" if config.name in CATALOGUE else "is not in the catalogue"
        )
        raise ConfigError(f"name: {config.name!r} {reason}; these apply: {', '.join(applicable)}")
    change = applicable[config.name]
    changed = merge(values, change)
    if "kl" in change.get("method", {}):
        changed["method"]["kl"] = change["method"]["kl"]  # another controller has other keys
    changed["out"] = f"{run}-{config.name}"
    path = Path(config.out or f"{run}-{config.name}.yaml")
    write_atomic(path, yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).encode())
    with fs.open(run / "actions.jsonl", "ab") as handle:
        action = {"action": config.name, "change": change, "file": str(path)}
        fs.write(handle, (to_json(action) + "\n").encode())
    text = CATALOGUE[config.name].text
    log.info("%s: %s\n%s\n-> %s", config.name, text, to_yaml(change), path)
    return {"file": str(path), "change": change}

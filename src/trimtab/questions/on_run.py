"""Puts a question to a run of one's own: the doctor's alarms that belong to it, and what else to run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from trimtab.audit.run_settings import RunSettings
from trimtab.doctor.alarms import all_alarms
from trimtab.doctor.diagnosis import examine
from trimtab.errors import ConfigError
from trimtab.runs import to_json

ALARMS: Mapping[int, tuple[int, ...]] = {
    1: (9, 10),
    2: (3, 20),
    4: (1, 14),
    5: (2, 12),
    6: (2, 3),
    7: (1, 4, 22, 24),
    8: (1, 17),
    9: (1, 5, 8),
    10: (13,),
    11: (13,),
    12: (11,),
    13: (15,),
}
"""Numbers of the alarms that answer a question. 1: completions that do not end, prompts in a form that the
model does not know. 2: a policy that does not move, or leaves what its start would say. 4: a reward that rises
while the truth falls, or is missing. 5: a KL that runs away, samples too old for the clip. 6: a KL that runs
away, a policy that does not move. 7: a reward that rises while gold falls, growing length, an exploited rule,
copying. 8: the first of 4, chosen completions that become unlikely. 9: the first of 7, agreement with the user,
one template. 10 and 11: groups without a gradient. 12: a critic that has collapsed. 13: a biased judge."""


def ask(number: int, run: Path) -> str:
    """What the alarms of a question say of a run, with the change that each proposes.

    Question 9 also gets the commands that probe the run's rewards and compare its policy with its start.

    Raises:
        ConfigError: the question has no alarm.
        DataError: the folder holds no run.
    """
    if number not in ALARMS:
        raise ConfigError(
            f"--on: question {number} has no check of a run; use one of {', '.join(map(str, ALARMS))}, or "
            "trimtab doctor RUN for all alarms"
        )
    diagnosis = examine(run)
    findings = {f.alarm: f for f in diagnosis.findings}
    lines: list[str] = []
    for alarm in all_alarms():
        if alarm.number not in ALARMS[number]:
            continue
        finding = findings.get(alarm.number)
        if finding is not None:
            lines += [f"alarm {alarm.number}, {finding.title}: {finding.message}"]
            lines += [f"  most likely cause: {finding.cause}", f"  {finding.remedy}"]
            lines += [f"    {line}" for line in finding.change.splitlines()]
        elif alarm.name in diagnosis.unchecked:
            why = diagnosis.unchecked[alarm.name]
            lines.append(f"alarm {alarm.number}, {alarm.title}: not checked, {why}")
        else:
            lines.append(f"alarm {alarm.number}, {alarm.title}: no")
    if number == 9:
        lines += ["then:", *(f"  {command}" for command in probing(run))]
    return "\n".join(lines)


def probing(run: Path) -> list[str]:
    """Commands that probe the rewards of a run, and lay its completions beside those of its start."""
    settings = RunSettings.read(run)
    policy = run / "model"
    commands = [
        ["trimtab", "probe", *targets, "--policy.path", str(policy), "--out", str(run / "probe")]
        for reward in settings.rewards
        if (targets := _targets(reward.source, reward.models, reward.keys))
    ]
    rewards = to_json([dict(r.keys) for r in settings.rewards])
    compare = ["trimtab", "compare", str(run), "--data", "HELD_OUT.jsonl", "--rewards", rewards]
    return [shlex.join(words) for words in (*commands, compare)]


def _targets(source: str, models: tuple[str, ...], keys: Mapping[str, object]) -> list[str]:
    """The arguments by which ``trimtab probe`` gets a reward; none for rules and endpoints."""
    if source == "judge":
        return ["--judge", str(keys["judge"])]
    return [str(keys["function"])] if source == "function" else list(models)

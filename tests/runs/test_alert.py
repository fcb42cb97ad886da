"""The command of ``on_finding``: it gets the finding, and training neither waits nor fails."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from trimtab.runs.alert import RUNNING, Alerts

FINDING = {
    "name": "frozen",
    "severity": "critical",
    "title": "It; rm -rf $HOME",
    "step": 7,
    "message": "a\x00b",
}


def command(tmp_path: Path, code: str) -> str:
    script = tmp_path / "hook.py"
    script.write_text(code)
    return f"{sys.executable} {script}"


def test_the_finding_is_on_standard_input_and_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGER_API_KEY", "canary-12345678")
    for name in [n for n in os.environ if n.startswith("TRIMTAB_")]:
        monkeypatch.delenv(name)
    code = (
        "import json, os, sys\n"
        "values = {k: v for k, v in os.environ.items() if k.startswith('TRIMTAB_')}\n"
        f"json.dump([json.load(sys.stdin), values], open({str(tmp_path / 'got')!r}, 'w'))\n"
    )
    alerts = Alerts(command(tmp_path, code), tmp_path, 20.0)
    alerts.send({**FINDING, "cause": "key canary-12345678"})
    alerts.close()
    finding, variables = json.loads((tmp_path / "got").read_text())
    assert finding["title"] == FINDING["title"] and finding["step"] == 7
    assert finding["run"] == str(tmp_path) and "canary" not in finding["cause"]
    assert variables == {
        "TRIMTAB_FINDING": "frozen", "TRIMTAB_SEVERITY": "critical", "TRIMTAB_STEP": "7",
        "TRIMTAB_TITLE": "It; rm -rf $HOME", "TRIMTAB_MESSAGE": "a b", "TRIMTAB_RUN": str(tmp_path),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import sys; print('no pager'); sys.exit(3)", "exit status 3: no pager"),
        ("import time; time.sleep(60)", "did not end within 1 s and was killed"),
        ("import os; os.close(0); raise SystemExit(1)", "exit status 1"),
        (
            "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)",
            "was killed",
        ),
    ],
)
def test_a_failure_is_logged_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: str, says: str
) -> None:
    alerts = Alerts(command(tmp_path, code), tmp_path, 1.0)
    since = time.monotonic()
    alerts.send({**FINDING, "message": "x" * 200_000})
    assert time.monotonic() - since < 0.5
    alerts.close()
    assert says in caplog.text


def test_a_command_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alerts = Alerts("no-such-program --x", tmp_path, 5.0)
    alerts.send(FINDING)
    alerts.close()
    assert "on_finding: the command failed for frozen: FileNotFoundError" in caplog.text
    Alerts("", tmp_path, 5.0).send(FINDING)


def test_a_flood_of_findings_starts_few_commands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = f"import time, uuid; open({str(tmp_path)!r} + '/' + uuid.uuid4().hex + '.got', 'w'); time.sleep(60)"
    alerts = Alerts(command(tmp_path, code), tmp_path, 3.0)
    for _ in range(3 * RUNNING):
        alerts.send(FINDING)
    alerts.close()
    assert len(list(tmp_path.glob("*.got"))) <= RUNNING
    assert caplog.text.count("got none") == 2 * RUNNING

"""Canary secrets in the environment, the configuration and URLs are in nothing that is written or printed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.support import folders
from trimtab.cli.main import main
from trimtab.runs import redact
from trimtab.terminal_text import safe_traceback

REDACT = sys.modules["trimtab.redact"]
"""The module."""
ENVIRONMENT = {
    "OPENAI_API_KEY": "canary-01-openai",
    "HF_TOKEN": "canary-02-hub",
    "SERVICE_PASSWORD": "canary-03-password",
    "AWS_SECRET_ACCESS_KEY": "canary-04-cloud",
}
OPTIONS: dict[str, Any] = {
    "api_key": "canary-05-option",
    "login": {"password": "canary-06-nested"},
    "url": "https://me:canary-07-user@host.test/v1?api_key=canary-08-query&x=1",
    "headers": ["Authorization: Bearer canary-09-header"],
    "text": "sk-canary-10-by-its-shape",
}
CANARIES = [
    *ENVIRONMENT.values(),
    *("canary-05-option", "canary-06-nested", "canary-07-user", "canary-08-query"),
    *("canary-09-header", "canary-10-by-its-shape"),
]

REWARD = '''
import os, warnings, logging

def leak(completions, api_key, login, url, headers, text, **_):
    secrets = f"{api_key} {login['password']} {url} {headers[0]} {text} " + " ".join(
        os.environ[name] for name in NAMES)
    logging.getLogger("trimtab.own").info("info %s", secrets)
    warnings.warn("warning " + secrets)
    if len(completions) % 3 == 0 or FAILS:
        raise RuntimeError("error " + secrets)
    return [float(len(c)) for c in completions]
'''  # fmt: skip


def files_of(folder: Path) -> dict[str, str]:
    """Every file of a folder as text; of parquet the values."""
    texts: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            texts[name] = path.read_bytes().decode("utf-8", "replace")
            if path.suffix == ".parquet":
                texts[name] += json.dumps(pq.read_table(path).to_pylist(), default=str)
    return texts


def hits(texts: dict[str, str]) -> dict[str, list[str]]:
    """Canaries by the name of the text that holds them."""
    found = {name: [c for c in CANARIES if c in text] for name, text in texts.items()}
    return {name: canaries for name, canaries in found.items() if canaries}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(REDACT, "_known", set(), raising=False)
    folders.model_folder(tmp_path / "model")
    folders.prompts(tmp_path / "prompts.jsonl", 8)
    for fails in (False, True):
        code = REWARD.replace("NAMES", repr(list(ENVIRONMENT))).replace("FAILS", str(fails))
        (tmp_path / f"reward_{fails}.py").write_text(code)
    return tmp_path


def settings(base: Path, fails: bool, timeout: float | None = None) -> dict[str, Any]:
    reward = {
        "name": "leak",
        "function": f"{base}/reward_{fails}.py:leak",
        "options": OPTIONS,
        "timeout": timeout,
    }
    values = folders.rl_settings(base, base / "out")
    return {**values, "rewards": [reward, folders.WORDY], "steps": 2, "loop": {"save_steps": 1}}


def run_everything(base: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Train, resume, diagnose and report; what was printed, and every file."""
    printed = ""
    for number, (fails, timeout) in enumerate(((False, None), (True, None), (True, 60.0))):
        values = {**settings(base, fails, timeout), "out": str(base / f"out-{number}")}
        file = base / f"rl-{number}.yaml"
        file.write_text(yaml.safe_dump(values))
        for words in (["--dry-run"], [], ["--steps", "3"], ["--optim.lr", "0.1"]):
            with contextlib.suppress(SystemExit):
                main(["rl", str(file), *words])
        for words in (
            ["doctor", values["out"], "--html"],
            ["report", values["out"]],
            ["remedy", values["out"]],
        ):
            with contextlib.suppress(SystemExit):
                main(words)
        printed += "".join(capsys.readouterr())
    texts: dict[str, str] = {"printed": printed}
    for folder in sorted(base.glob("out-*")):
        texts.update({f"{folder.name}/{k}": v for k, v in files_of(folder).items()})
    return texts


@pytest.mark.slow
def test_ten_canaries_are_in_no_file_and_no_output(
    base: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    texts = run_everything(base, capsys)
    assert len(CANARIES) == 10
    for name in ("config.yaml", "metrics.jsonl", "fingerprint.json", "report.html", "doctor.html"):
        assert any(text.endswith(name) for text in texts), (name, list(texts))
    assert any("checkpoints" in n for n in texts) and any(n.endswith(".parquet") for n in texts)
    assert any("RuntimeError: error" in text for text in texts.values())
    assert not hits(texts)


@pytest.mark.slow
def test_the_canaries_are_everywhere_without_redaction(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""

    def unchanged(value: Any, key: str = "") -> Any:
        return value

    for module in [m for n, m in list(sys.modules.items()) if n.startswith("trimtab")]:
        if getattr(module, "redact", None) is redact:
            monkeypatch.setattr(module, "redact", unchanged)
    texts = run_everything(base, capsys)
    leaks = hits(texts)
    assert {c for canaries in leaks.values() for c in canaries} == set(CANARIES)
    kinds = {Path(name).name for name in leaks}
    assert {"config.yaml", "fingerprint.json", "printed"} <= kinds


@pytest.mark.slow
def test_a_sweep_keeps_no_secret(base: Path) -> None:
    values = settings(base, True)
    for key in ("out", "loop"):
        del values[key]
    sweep = {
        "rl": {**values, "steps": 1},
        "grid": {"optim.lr": [1e-3]},
        "seeds": [0],
        "out": str(base / "sweep"),
    }
    (base / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    ended = subprocess.run(
        [sys.executable, "-m", "trimtab", "sweep", str(base / "sweep.yaml")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    texts = files_of(base / "sweep")
    assert any(n.endswith("sweep.yaml") for n in texts), ended.stderr
    assert any(n.endswith("log") and "info" in t for n, t in texts.items()), texts.keys()
    assert not hits({**texts, "printed": ended.stdout + ended.stderr})


def test_tracebacks_and_messages(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    redact(OPTIONS)  # as reading the configuration does
    secrets = " ".join([*ENVIRONMENT.values(), json.dumps(OPTIONS)])
    with pytest.raises(RuntimeError) as raised:
        raise RuntimeError(secrets)
    text = safe_traceback(raised.type, raised.value, raised.tb)
    assert hits({"control": str(raised.value)})
    assert "Traceback" in text and not hits({"traceback": text})
    # A wrong type is reported with the value that was given.
    wrong = {**settings(base, False), "batch_size": "canary-05-option", "steps": [OPTIONS]}
    (base / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(SystemExit):
        main(["rl", str(base / "wrong.yaml")])
    err = capsys.readouterr().err
    assert "batch_size" in err and not hits({"message": err})


def test_ordinary_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REDACT, "_known", set(), raising=False)
    values = {
        "password": "short",
        "pad_token": "<|endoftext|>",
        "text": "a short basic idea bearer of",
    }
    assert redact(values) == {**values, "password": REDACT.HIDDEN}

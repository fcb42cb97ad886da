"""``run.log`` stays small, holds no secret, and says why a run failed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from trimtab.runs import run_log
from trimtab.runs.run_log import logged_to


def test_it_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "MAX_BYTES", 2000)
    with logged_to(tmp_path):
        for i in range(500):
            logging.getLogger("trimtab.x").warning("message %d", i)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["run.log", "run.log.1", "run.log.2", "run.log.3"]
    assert all(p.stat().st_size <= 2000 for p in tmp_path.iterdir())
    assert (tmp_path / "run.log").read_text().endswith("message 499\n")
    logging.getLogger("trimtab.x").warning("after it was closed")
    assert "after" not in (tmp_path / "run.log").read_text()


def test_secrets_and_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary-12345678")

    @logged_to(tmp_path)
    def fail() -> None:
        logging.getLogger("trimtab").warning("key canary-12345678")
        logging.getLogger("other").info("not ours")
        logging.getLogger("other").warning("a warning")
        raise RuntimeError("broken with canary-12345678")

    with pytest.raises(RuntimeError):
        fail()
    text = (tmp_path / "run.log").read_text()
    assert "canary" not in text and "not ours" not in text and "a warning" in text
    assert "Traceback" in text and "RuntimeError: broken with [redacted]" in text


def test_a_folder_that_refuses_it_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run.log").mkdir()
    with logged_to(tmp_path):
        logging.getLogger("trimtab").warning("goes on")
    assert "is not written" in caplog.text

"""A run folder accepts one run, from one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trimtab.config import Config
from trimtab.errors import ConfigError
from trimtab.runs import Run, check_writable, open_run, set_aside


class Settings(Config):
    lr: float = 0.1


HOLD = """
    import sys
    from trimtab.runs import Run
    run = Run(sys.argv[1])
    print("open", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    return process


def test_other_settings_are_refused_once_there_are_results(tmp_path: Path) -> None:
    open_run(Settings(), tmp_path).close()
    open_run(Settings(lr=0.2), tmp_path).close()  # nothing was computed yet
    with open_run(Settings(lr=0.3), tmp_path) as run:
        run.log(1, {"loss": 1.0})
    config = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(
        ConfigError, match=r"lr: 0\.3 -> 0\.4\nChoose another --out, or add --fresh"
    ):
        open_run(Settings(lr=0.4), tmp_path)
    assert (tmp_path / "config.yaml").read_bytes() == config
    open_run(Settings(lr=0.3), tmp_path).close()


def test_another_process_is_named_and_a_dead_one_does_not_block(tmp_path: Path) -> None:
    process = hold(tmp_path / "run")
    with pytest.raises(ConfigError, match=rf"process {process.pid} on .*, since 20"):
        Run(tmp_path / "run")
    with pytest.raises(ConfigError, match="another process is writing"):
        set_aside(tmp_path / "run")
    process.kill()
    process.wait()
    Run(tmp_path / "run").close()
    process = hold(tmp_path / "run")  # closed here, so free for others
    process.communicate("")
    assert process.returncode == 0


def test_old_folders_resume_with_a_warning_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    open_run(Settings(), tmp_path).close()
    assert "an earlier release made them" in caplog.text
    caplog.clear()
    open_run(Settings(), tmp_path).close()
    assert not caplog.text


def test_the_current_folder_is_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    for folder in (".", "..", str(tmp_path)):
        with pytest.raises(ConfigError, match="current folder or above it"):
            set_aside(Path(folder))


def test_set_aside_keeps_every_earlier_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / name).touch()
        set_aside(tmp_path / "run")
    set_aside(tmp_path / "run")  # nothing is there
    assert {p.name for p in tmp_path.iterdir()} == {"run.old-1", "run.old-2"}
    assert (tmp_path / "run.old-2" / "b").exists()


def test_an_output_that_cannot_be_created_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"out: .*file/a/b cannot be created, because .*file is a"
    ):
        check_writable(tmp_path / "file" / "a" / "b", "out")
    check_writable(tmp_path / "file", "out", is_file=True)  # it is replaced
    with pytest.raises(ConfigError, match="is a folder; give the path of a file"):
        check_writable(tmp_path, "to", is_file=True)
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.geteuid() != 0:  # everything is permitted to root
        with pytest.raises(ConfigError, match="no permission to write"):
            check_writable(tmp_path / "locked" / "a", "out")

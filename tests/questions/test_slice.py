"""Questions 3 and 6 at a tenth of the size, from the command line, on one thread."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trimtab.questions import claim as registry


def question(out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trimtab", "question", *words, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_questions_3_and_6_at_a_tenth_of_the_size(tmp_path: Path) -> None:
    process = question(tmp_path, "3", "6", "--size", "0.1", "--workers", "1", "--lang", "zh")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    claims = registry.load_claims()
    for number in (3, 6):
        result = json.loads((tmp_path / str(number) / "result.json").read_text())
        assert result["claims"].keys() == {c.key for c in claims[number]}
        assert all(v["provisional"] for v in result["claims"].values())
        assert result["family"] == len(claims[3]) + len(claims[6])
        assert "缩小版运行" in (tmp_path / str(number) / "answer.md").read_text()
    verdicts = json.loads((tmp_path / "3" / "result.json").read_text())["claims"]
    # What no seed can change: sorting nine completions asks for about half of their pairs, and a zero that
    # differs cancels in a comparison.
    assert verdicts["3.9a[k=9]"]["outcome"] == "fails"
    arms = json.loads((tmp_path / "3" / "result.json").read_text())["arms"]
    assert arms["pairs[trouble=gaps]"] == arms["pairs[trouble=none]"]
    arms = json.loads((tmp_path / "6" / "result.json").read_text())["arms"]
    assert arms["beta=5"]["kl"][0] < arms["beta=0"]["kl"][0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_question_killed_twice_gives_the_same_result(tmp_path: Path) -> None:
    words = ("3", "--size", "0.1", "--workers", "1")
    assert question(tmp_path / "whole", *words).wait() == 0
    for minimum in (1, 9):  # jobs that are done when it is killed
        process = question(tmp_path / "killed", *words)
        while len(list((tmp_path / "killed").glob("3/arm-*/result.json"))) < minimum:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert question(tmp_path / "killed", *words).wait() == 0
    first, second = (tmp_path / n / "3" / "result.json" for n in ("whole", "killed"))
    assert first.read_bytes() == second.read_bytes()

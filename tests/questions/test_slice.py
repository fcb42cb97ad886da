"""Questions 3 and 6 at a tenth of the size, from the command line, on one thread."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.support.processes import Forked
from trimtab.questions import claim as registry
from trimtab.runs import read_object


def question(out: Path, *words: str) -> Forked:
    return Forked("question", *words, "--out", str(out), env={"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("questions")
    process = question(out, "3", "6", "--size", "0.1", "--workers", "1", "--lang", "zh")
    assert process.wait() == 0, process.output()
    return out


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_questions_3_and_6_at_a_tenth_of_the_size(both: Path) -> None:
    claims = registry.load_claims()
    for number in (3, 6):
        result = json.loads((both / str(number) / "result.json").read_text())
        assert result["claims"].keys() == {c.key for c in claims[number]}
        assert all(v["provisional"] for v in result["claims"].values())
        assert result["family"] == len(claims[3]) + len(claims[6])
        assert "缩小版运行" in (both / str(number) / "answer.md").read_text()
    verdicts = json.loads((both / "3" / "result.json").read_text())["claims"]
    # What no seed can change: sorting nine completions asks for about half of their pairs, and a zero that
    # differs cancels in a comparison.
    assert verdicts["3.9a[k=9]"]["outcome"] == "fails"
    arms = json.loads((both / "3" / "result.json").read_text())["arms"]
    assert arms["pairs[trouble=gaps]"] == arms["pairs[trouble=none]"]
    # All arms draw the same completions from the start, and a penalty has no gradient there: the second batch is the
    # same at equal learning rates, and no longer the third.
    curves = json.loads((both / "6" / "result.json").read_text())["curves"]
    assert all(curves[arm]["gold"][0] == curves["beta=0"]["gold"][0] for arm in curves)
    assert curves["beta=5"]["kl"][:2] == curves["beta=1"]["kl"][:2]
    assert curves["beta=5"]["kl"][2] != curves["beta=1"]["kl"][2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_question_killed_twice_gives_the_same_result(both: Path, tmp_path: Path) -> None:
    words = ("3", "--size", "0.1", "--workers", "1")
    for minimum in (1, 9):  # jobs that are done when it is killed
        process = question(tmp_path, *words)
        while len(list(tmp_path.glob("3/arm-*/result.json"))) < minimum:
            assert process.poll() is None, process.output()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert question(tmp_path, *words).wait() == 0
    first, second = (read_object(out / "3" / "result.json") for out in (both, tmp_path))
    # Verdicts are judged together with question 6 in the one, alone in the other.
    for name in ("hash", "seeds", "effects", "arms", "curves"):
        assert first[name] == second[name], name

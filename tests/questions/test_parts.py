"""Parts of a start, which the first arm that needs one makes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from trimtab.questions import chain
from trimtab.runs import read_object

PART = chain.Part(
    "slow", {"once": {"type": "function", "function": "tests.questions.test_parts:once"}}
)


def once(out: Path) -> dict[str, int]:
    """Takes a while, and notes that it ran."""
    with (out.parent.parent / "runs").open("a") as runs:
        runs.write("x")
    time.sleep(1.0)
    return {"ran": 1}


def test_two_arms_at_once_make_a_part_once(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.questions.test_parts import PART; "
        f"print(PART.make(Path({str(tmp_path)!r}), 0))"
    )
    arms = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [arm.communicate(timeout=100)[0] for arm in arms]
    assert [arm.returncode for arm in arms] == [0, 0]
    assert {Path(o.strip()) for o in outputs} == {PART.folder(tmp_path)}
    assert (tmp_path / "runs").read_text() == "x"
    assert read_object(PART.folder(tmp_path) / "once" / "summary.json") == {"ran": 1}

"""Runs the tests of a check in a process of its own and reads the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.scorecard.table import ROOT, Check
from trimtab.runs import write_atomic


@dataclass
class Result:
    """What the tests of a check gave."""

    passed: int = 0
    failed: list[str] = field(default_factory=list[str])
    """Tests that failed with their reasons, or why none ran."""
    skipped: list[str] = field(default_factory=list[str])
    """Reasons."""
    figures: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Recorded by ``record_property``, by name."""
    seconds: float = 0.0
    commit: str = ""

    @property
    def is_measured(self) -> bool:
        """Whether a test ran to its end."""
        return bool(self.passed or self.failed)

    @property
    def is_good(self) -> bool:
        """Whether tests passed and none failed."""
        return self.passed > 0 and not self.failed


def commit() -> str:
    """The current commit, with a plus where files have changed since."""
    words = ["git", "describe", "--always", "--dirty=+", "--abbrev=9", "--exclude=*"]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip()


def measure(checks: Sequence[Check], timeout: float = 3600.0) -> list[Result]:
    """Run the tests of some checks in one process: importing torch takes longer than most of them.

    Returns:
        A result for each check.
    """
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, **dict(v.split("=", 1) for c in checks for v in c.env)}
    env |= {
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "OMP_NUM_THREADS": "1",
        "TRIMTAB_SCORECARD": "1",
    }
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no"]
    tests = list(dict.fromkeys(test for check in checks for test in check.tests))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        try:
            run = subprocess.run(
                [*words, f"--junitxml={report}", *tests],
                cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return [
                Result(failed=[f"no end within {timeout:g} s"], commit=commit()) for _ in checks
            ]
        cases = (
            list(ElementTree.parse(report).getroot().iter("testcase")) if report.exists() else []
        )
        results = [result_of(check, cases) for check in checks]
        for result in results:
            result.commit = commit()
            if (
                not result.is_measured and not result.skipped
            ):  # a test that is not there, or a crash
                result.failed = [(run.stdout + run.stderr).strip()[-300:]]
    return results


def result_of(check: Check, cases: Sequence[ElementTree.Element]) -> Result:
    """The result of a check among the cases of a report of pytest."""
    result = Result()
    for case in cases:
        if not any(is_case_of(test, case) for test in check.tests):
            continue
        name = f"{case.get('classname')}::{case.get('name')}"
        faults = [*case.iter("failure"), *case.iter("error")]
        if faults:
            reason = str(faults[0].get("message")).strip().partition("\n")[0][:150]
            result.failed.append(f"{name} ({reason})")
        elif (skip := case.find("skipped")) is not None:
            result.skipped.append(str(skip.get("message")))
        else:
            result.passed += 1
        result.seconds += float(case.get("time") or 0)
        for entry in case.iter("property"):
            figures = result.figures.setdefault(str(entry.get("name")), [])
            figures.append(float(str(entry.get("value"))))
    return result


def is_case_of(test: str, case: ElementTree.Element) -> bool:
    """Whether a case of a report belongs to a node id: of a file, a test, or one of its parameters."""
    file, _, name = test.partition("::")
    place = Path(file)
    module = ".".join(place.with_suffix("").parts)
    # A file outside this repository is named from the folder that pytest takes as its root.
    is_file = case.get("classname") in (module, place.stem) or (
        place.is_absolute() and str(case.get("classname")).endswith(place.stem)
    )
    case_name = str(case.get("name"))
    return is_file and (not name or case_name == name or case_name.startswith(f"{name}["))


class Results:
    """Results by check, in a file that is written after each: a stopped scorecard goes on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        stored = json.loads(file.read_bytes()) if file.exists() else {}
        self.by_key = {key: Result(**values) for key, values in stored.items()}

    def get(self, check: Check) -> Result | None:
        """The result of a check, if it was measured."""
        return self.by_key.get(check.key)

    def put(self, check: Check, result: Result) -> None:
        """Store a result."""
        self.by_key[check.key] = result
        content = {key: asdict(r) for key, r in self.by_key.items()}
        write_atomic(self.file, json.dumps(content, indent=1).encode())

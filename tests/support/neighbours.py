"""Programs of others, each in the environment that ``make neighbours-env`` makes."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = Path(os.environ.get("TRIMTAB_NEIGHBOURS") or ROOT / ".neighbours").absolute()
CLIENTS = ROOT / "tests" / "neighbours" / "clients"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of docs/neighbours.md."""

    file: str
    """The test file."""
    program: str
    version: str
    checked: str
    result: str


ROWS: list[Row] = []
"""Results of the tests that have run."""


def _test_file() -> str:
    return Path(os.environ["PYTEST_CURRENT_TEST"].partition("::")[0]).stem


@dataclass(frozen=True, slots=True)
class Program:
    """A program in an environment of its own."""

    name: str
    """As people write it."""
    folder: Path
    package: str
    """Its distribution, for the version."""

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def environment(self) -> dict[str, str]:
        """Without our own packages and without network."""
        own = ("PYTHONPATH", "VIRTUAL_ENV")
        base = {k: v for k, v in os.environ.items() if k not in own}
        return {
            **base,
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }

    def version(self) -> str:
        """Version of the package."""
        code = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        return self.output("-c", code).strip()

    def output(self, *arguments: str, timeout: int = 1200, cwd: Path | None = None) -> str:
        """What its Python prints; fails the test with the end of its log if it fails."""
        done = subprocess.run(
            [str(self.python), *arguments], capture_output=True, text=True, timeout=timeout,
            env=self.environment, cwd=cwd,
        )  # fmt: skip
        if done.returncode:
            pytest.fail(
                f"{self.name}: {' '.join(arguments)[:200]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            )
        return done.stdout

    def client(self, name: str, *arguments: str | Path, timeout: int = 1200) -> Any:
        """The last line that ``clients/NAME.py`` prints, as JSON."""
        lines = self.output(str(CLIENTS / f"{name}.py"), *map(str, arguments), timeout=timeout)
        return json.loads(lines.strip().splitlines()[-1])

    def report(self, checked: str, result: str) -> None:
        """Add a row to docs/neighbours.md."""
        ROWS.append(Row(_test_file(), self.name, self.version(), checked, result))


def program(name: str, environment: str, package: str) -> Program:
    """A program; the test is skipped if it is not installed.

    Args:
        name: As people write it.
        environment: Folder below ``ENVIRONMENTS``, or a path.
        package: Its distribution.
    """
    folder = ENVIRONMENTS / environment
    if not (folder / "installed").is_file():
        ROWS.append(Row(_test_file(), name, "", "", "skipped: it is not installed"))
        pytest.skip(f"no {name} in {folder}: make neighbours-env")
    return Program(name, folder, package)


def write_page(path: Path) -> None:
    """Write docs/neighbours.md: new results of the test files that have run, stored ones of the others."""
    folder = ENVIRONMENTS / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for file in {row.file for row in ROWS}:
        rows = [asdict(row) for row in ROWS if row.file == file]
        (folder / f"{file}.json").write_text(json.dumps(rows, indent=1))
    rows = [
        Row(**row) for file in sorted(folder.glob("*.json")) for row in json.loads(file.read_text())
    ]
    lines = [
        "# Programs that read our files, and whose files we read",
        "",
        "`make neighbours` installs each program in an environment of its own, runs it on files that "
        "trimtab",
        "wrote, or trimtab on its files, and writes this page.",
        "",
        "| program | version | checked | result |",
        "|---|---|---|---|",
        *(f"| {r.program} | {r.version} | {r.checked} | {r.result} |" for r in rows),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")

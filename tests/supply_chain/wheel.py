"""``python -m tests.supply_chain.wheel``: two builds of the wheel are equal, byte by byte.

Each is built from a copy of its own, with other file times, another order of creation, time zone and hash seed;
the modes of the files are those of a usual checkout. The times in the wheel are those of SOURCE_DATE_EPOCH: by default of the last commit.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.supply_chain.lock import ROOT

FILES = ("pyproject.toml", "README.md", "LICENSE", "src/trimtab")


def source_epoch() -> str:
    """The time of the last commit in seconds, or SOURCE_DATE_EPOCH where it is set."""
    if stated := os.environ.get("SOURCE_DATE_EPOCH"):
        return stated
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.stdout.strip() or "1577836800"


def build(folder: Path, epoch: str | None, number: int) -> Path:
    """Build the wheel from a copy of the sources in ``folder``.

    Args:
        epoch: SOURCE_DATE_EPOCH; None for none.
        number: Of the build: it decides on the circumstances that must not matter.
    """
    source = folder / f"copy{number}"
    for name in sorted(FILES, reverse=bool(number)):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, target, ignore=ignored)
        else:
            shutil.copy(ROOT / name, target)
    for path in source.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (1.6e9 + 1e6 * number, 1.6e9 + 1e6 * number))
    env = {k: v for k, v in os.environ.items() if k not in ("SOURCE_DATE_EPOCH", "PYTHONPATH")}
    env.update(PYTHONHASHSEED=str(number + 1), TZ=("UTC", "Asia/Tokyo")[number])
    if epoch is not None:
        env["SOURCE_DATE_EPOCH"] = epoch
    out = folder / f"wheel{number}"
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--no-cache-dir",
        "--quiet",
        "--disable-pip-version-check",
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(out), str(source)],
        check=True,
        env=env,
        cwd=folder,
        umask=0o022,
    )
    return next(out.glob("*.whl"))


def digest(wheel: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def main() -> int:
    """Build twice and compare; 1 if the wheels differ."""
    epoch = source_epoch()
    with tempfile.TemporaryDirectory(prefix="trimtab-wheel-") as folder:
        sums = [digest(build(Path(folder), epoch, number)) for number in (0, 1)]
    print(f"SOURCE_DATE_EPOCH={epoch}", *sums, sep="\n")
    print("equal" if sums[0] == sums[1] else "DIFFERENT")
    return int(sums[0] != sums[1])


if __name__ == "__main__":
    sys.exit(main())

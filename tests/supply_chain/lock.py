"""The locked packages: exact versions, and the SHA-256 of every file that may be installed.

``python -m tests.supply_chain.lock REPORT`` adds the files of a report of ``pip install --report`` to
requirements.lock: those for the interpreter and platform that pip ran on. ``make lock`` does both.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSIONS = ROOT / "constraints.txt"
"""Exact versions, which make setup uses."""
HASHES = ROOT / "requirements.lock"
"""The same versions with hashes, which make lock writes."""


def canonical(name: str) -> str:
    """The name of a package as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(file: Path | None = None) -> dict[str, str]:
    """Version by package of ``file``, or of constraints.txt; comments, options and hashes are left out."""
    pins = re.findall(
        r"(?m)^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", (file or VERSIONS).read_text()
    )
    return {canonical(name): version for name, version in pins}


def hashes(file: Path | None = None) -> dict[str, list[str]]:
    """SHA-256 sums by package of ``file``, or of requirements.lock."""
    sums: dict[str, list[str]] = {}
    package = ""
    for line in (file or HASHES).read_text().splitlines():
        if match := re.match(r"([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==", line):
            package = canonical(match[1])
            sums[package] = []
        sums.setdefault(package, []).extend(re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line))
    sums.pop("", None)
    return sums


HEAD = """# SHA-256 of the locked packages; made by make lock (one interpreter and platform at a time), used by
# make locked-env. torch is the CPU build of https://download.pytorch.org/whl/cpu.
"""


def reported(report: Path) -> dict[str, str]:
    """SHA-256 by package of what pip would install.

    Raises:
        ValueError: pip chose another version than the locked one, or a file without a hash.
    """
    pins, sums = versions(), dict[str, str]()
    for item in json.loads(report.read_text(encoding="utf-8"))["install"]:
        name, version = canonical(item["metadata"]["name"]), item["metadata"]["version"]
        if version.partition("+")[0] != pins.get(name):
            raise ValueError(f"{name}: pip chose {version}, {VERSIONS.name} has {pins.get(name)}")
        info = item["download_info"].get("archive_info", {})
        digest = info.get("hashes", {}).get("sha256")
        if digest is None:
            raise ValueError(f"{name}: pip reports no sha256 of {item['download_info']['url']}")
        sums[name] = digest
    return sums


def merged(old: dict[str, list[str]], new: dict[str, str], pins: dict[str, str]) -> str:
    """The lock's text: ``pins`` with the hashes of both; those of other versions are the caller's to drop."""
    lines: list[str] = []
    for name, version in sorted(pins.items()):
        sums = sorted({*old.get(name, []), *([new[name]] if name in new else [])})
        lines.append(
            " \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{s}" for s in sums)])
        )
    return HEAD + "\n".join(lines) + "\n"


def main(report: Path) -> None:
    """Add a report to the lock; hashes of versions that are no longer locked are dropped."""
    old = hashes() if HASHES.exists() else {}
    known = versions(HASHES) if HASHES.exists() else {}
    pins = versions()
    kept = {name: sums for name, sums in old.items() if known.get(name) == pins.get(name)}
    HASHES.write_text(merged(kept, reported(report), pins), encoding="utf-8")
    print(f"{HASHES.name}: {len(pins)} packages")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

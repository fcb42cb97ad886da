"""``python -m tests.supply_chain.licences``: the licence of every locked package, against a list of allowed ones.

It reads the metadata of the installed packages and needs no network. An unknown licence, or one that is not on
the list, is an error; a package that is not installed here is reported as not checked.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from tests.supply_chain.lock import canonical, versions

POLICY = Path(__file__).with_name("licences.toml")
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
}
_TEXTS = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "2-clause bsd": "BSD-2-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "isc license": "ISC",
    "mit license": "MIT",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One package."""

    name: str
    version: str
    licence: str
    """An SPDX expression; empty where none is known."""
    status: Literal["allowed", "refused", "not checked"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """The allowed licences, and those of packages whose metadata names none."""

    allowed: frozenset[str]
    packages: dict[str, str]


def read_policy(file: Path = POLICY) -> Policy:
    """The policy of ``licences.toml``."""
    values = tomllib.loads(file.read_text(encoding="utf-8"))
    packages = {
        canonical(name): str(entry["licence"]) for name, entry in values["packages"].items()
    }
    return Policy(frozenset(values["allowed"]), packages)


def expression(fields: metadata.PackageMetadata) -> str:
    """The licence that a package's metadata names, as an SPDX expression; empty for none."""
    if stated := fields.get("License-Expression"):
        return str(stated)
    text = (fields.get("License") or "").strip()
    if text.lower() in _TEXTS:
        return _TEXTS[text.lower()]
    if text and len(text) < 60 and "\n" not in text:
        return text
    lines = [c for c in fields.get_all("Classifier") or [] if c.startswith("License ::")]
    names = [line.rpartition("::")[2].strip() for line in lines]
    known = [_CLASSIFIERS.get(name, name) for name in names if name != "OSI Approved"]
    return " AND ".join(known)


def is_allowed(licence: str, allowed: Iterable[str]) -> bool:
    """Whether an SPDX expression grants the use under an allowed licence.

    >>> is_allowed("MIT OR GPL-3.0-only", {"MIT"}), is_allowed("MIT AND GPL-3.0-only", {"MIT"})
    (True, False)
    """
    text = re.sub(r"[()]", " ", licence)
    if not text.strip() or ("(" in licence and " OR " in text and " AND " in text):
        return False  # nothing, or nested: for a person to read
    return any(
        all(part.strip() in allowed for part in way.split(" AND ")) for way in text.split(" OR ")
    )


def check(policy: Policy, pins: dict[str, str]) -> list[Row]:
    """The licence of every package of ``pins`` (version by name)."""
    rows: list[Row] = []
    for name, version in sorted(pins.items()):
        try:
            fields = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            rows.append(Row(name, version, "", "not checked", "not installed here"))
            continue
        licence = policy.packages.get(name) or expression(fields)
        if is_allowed(licence, policy.allowed):
            rows.append(Row(name, version, licence, "allowed"))
        else:
            why = "not on the list of allowed licences" if licence else "no licence in its metadata"
            rows.append(Row(name, version, licence, "refused", why))
    return rows


def main() -> int:
    """Print the list; 1 if a licence is refused."""
    rows = check(read_policy(), versions())
    for row in rows:
        note = f"  {row.status.upper()}: {row.reason}" if row.status != "allowed" else ""
        print(f"{row.name:<28}{row.version:<18}{row.licence or '?'}{note}")
    counts = {s: sum(r.status == s for r in rows) for s in ("allowed", "refused", "not checked")}
    print("\n" + ", ".join(f"{count} {status}" for status, count in counts.items()))
    if counts["refused"]:
        print(f"add a licence to {POLICY.name} only after reading it, or remove the package")
    return int(bool(counts["refused"]))


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.supply_chain.audit PIP_AUDIT``: known vulnerabilities of the locked packages.

It asks the package index by pip-audit. Without the program or the network it says "not checked" with the
reason, and succeeds; with a vulnerability it fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.supply_chain.lock import VERSIONS


def audit(program: str, requirements: Path = VERSIONS, timeout: float = 600.0) -> tuple[int, str]:
    """Ask for the vulnerabilities of the pinned versions.

    Args:
        program: The executable of pip-audit.
        requirements: Lines "name==version".
        timeout: Seconds.

    Returns:
        The exit status, and what was checked or why not.
    """
    options = ["--requirement", str(requirements), "--no-deps", "--disable-pip", "--format", "json"]
    try:
        ended = subprocess.run(
            [program, *options, "--progress-spinner", "off"],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 0, f"vulnerabilities: not checked: {error}"
    try:
        packages = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"pip-audit ended with status {ended.returncode}"
        return 0, f"vulnerabilities: not checked: {reason[:300]}"
    lines: list[str] = []
    checked = [p for p in packages if "vulns" in p]
    for package in checked:
        for known in package["vulns"]:
            fixed = ", ".join(known.get("fix_versions") or []) or "no release"
            lines.append(f"{package['name']} {package['version']}: {known['id']}, fixed in {fixed}")
    skipped = [p for p in packages if "skip_reason" in p]
    if skipped:
        why = skipped[0]["skip_reason"][:200]
        lines.append(f"{len(skipped)} packages not checked; {skipped[0]['name']}: {why}")
    vulnerable = sum(bool(p["vulns"]) for p in checked)
    if checked:
        lines.append(f"vulnerabilities: {len(checked)} packages checked, {vulnerable} vulnerable")
    else:
        lines.append("vulnerabilities: not checked: the index has no data on any package")
    return int(bool(vulnerable)), "\n".join(lines)


if __name__ == "__main__":
    STATUS, TEXT = audit(sys.argv[1])
    print(TEXT)
    sys.exit(STATUS)

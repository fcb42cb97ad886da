"""The lock, the licences, the audit and the wheel; each check fails on what it is meant to find."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.supply_chain import audit, licences, lock, wheel

POLICY = licences.read_policy()


def test_every_locked_version_has_hashes() -> None:
    pins, sums = lock.versions(), lock.hashes()
    assert len(pins) > 90 and lock.versions(lock.HASHES) == pins
    assert [name for name in pins if not sums.get(name)] == []


def test_what_is_installed_is_what_is_locked() -> None:
    """The packages that trimtab requires, and those that they require, are in the lock at this version."""
    pins = lock.versions()
    wrong: list[str] = []
    for name, version in pins.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if installed.partition("+")[0] != version:
            wrong.append(f"{name}: {installed} installed, {version} locked")
    assert not wrong


def small_wheel(folder: Path, text: str) -> Path:
    """A package of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lockedpackage-1.0-py3-none-any.whl"
    info = "lockedpackage-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lockedpackage.py", text)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: lockedpackage\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def pip(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *words, "--disable-pip-version-check", "--no-index"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_changed_file_is_not_installed(tmp_path: Path) -> None:
    """``make lock``'s text in pip's hash-checking mode: the same file is taken, a changed one refused."""
    good = wheel.digest(small_wheel(tmp_path / "index", "x = 1\n"))
    text = lock.merged({}, {"lockedpackage": good}, {"lockedpackage": "1.0"})
    (tmp_path / "requirements.lock").write_text(text)
    words = ("install", "--require-hashes", "--no-deps", "-r", str(tmp_path / "requirements.lock"))
    words += ("--find-links", str(tmp_path / "index"), "--target", str(tmp_path / "target"))
    assert pip(*words).returncode == 0
    assert (tmp_path / "target" / "lockedpackage.py").is_file()
    small_wheel(tmp_path / "index", "x = 2\n")
    refused = pip(*words, "--upgrade")
    assert refused.returncode != 0 and "DO NOT MATCH THE HASHES" in refused.stderr


def test_the_lock_keeps_hashes_of_other_platforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "VERSIONS", tmp_path / "constraints.txt")
    monkeypatch.setattr(lock, "HASHES", tmp_path / "requirements.lock")

    def report(version: str, digest: str) -> Path:
        entry = {"metadata": {"name": "A.b", "version": version}}
        info = {"url": "https://x/a.whl", "archive_info": {"hashes": {"sha256": digest}}}
        file = tmp_path / "report.json"
        file.write_text(json.dumps({"install": [{**entry, "download_info": info}]}))
        return file

    lock.VERSIONS.write_text("a-b==1.0\n")
    lock.main(report("1.0", "1" * 64))
    lock.main(report("1.0+cpu", "2" * 64))
    assert lock.hashes() == {"a-b": ["1" * 64, "2" * 64]}
    lock.VERSIONS.write_text("a-b==1.1\n")
    with pytest.raises(ValueError, match=r"pip chose 1\.0"):
        lock.main(report("1.0", "1" * 64))
    lock.main(report("1.1", "3" * 64))
    assert lock.hashes() == {"a-b": ["3" * 64]}


def test_every_locked_package_has_an_allowed_licence() -> None:
    rows = licences.check(POLICY, lock.versions())
    assert [r for r in rows if r.status == "refused"] == []
    assert sum(r.status == "allowed" for r in rows) > 90


def test_an_unknown_licence_is_refused() -> None:
    """The control: without its licence on the list, or without a known one, a package is refused."""
    strict = licences.Policy(POLICY.allowed - {"MPL-2.0"}, {})
    rows = {r.name: r for r in licences.check(strict, lock.versions())}
    assert rows["certifi"].status == "refused" and "not on the list" in rows["certifi"].reason
    assert rows["axe-playwright-python"].reason == "no licence in its metadata"
    absent = licences.check(POLICY, {"no-such-package": "1.0"})
    assert (absent[0].status, absent[0].reason) == ("not checked", "not installed here")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("Apache-2.0 AND BSD-3-Clause", True),
        ("(MIT OR GPL-3.0-only) AND AGPL-3.0-only", False),
        ("", False),
        ("Proprietary", False),
        ("UNKNOWN", False),
    ],
)
def test_expressions(text: str, expected: bool) -> None:
    assert licences.is_allowed(text, POLICY.allowed) is expected


def program(folder: Path, text: str) -> str:
    """An executable that prints ``text``, as pip-audit prints its result."""
    file = folder / "pip-audit"
    file.write_text(f"#!{sys.executable}\nimport sys\n{text}\n")
    file.chmod(0o755)
    return str(file)


def test_the_audit_says_why_it_did_not_check(tmp_path: Path) -> None:
    status, text = audit.audit(str(tmp_path / "nothing"))
    assert status == 0 and "not checked" in text and "No such file" in text
    broken = program(tmp_path, "sys.exit('ERROR: Max retries exceeded: Name or service not known')")
    status, text = audit.audit(broken)
    assert status == 0 and "not checked: ERROR: Max retries" in text
    slow = program(tmp_path, "import time; time.sleep(60)")
    status, text = audit.audit(slow, timeout=0.5)
    assert status == 0 and "timed out" in text


def test_the_audit_fails_on_a_vulnerability(tmp_path: Path) -> None:
    vulns = [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]
    packages = [
        {"name": "a", "version": "1.0", "vulns": vulns},
        {"name": "b", "version": "1", "vulns": []},
    ]
    result = program(tmp_path, f"print({json.dumps({'dependencies': packages})!r}); sys.exit(1)")
    status, text = audit.audit(result)
    assert status == 1 and "a 1.0: PYSEC-1, fixed in 1.1" in text and "1 vulnerable" in text


@pytest.mark.slow
def test_two_builds_are_equal(tmp_path: Path) -> None:
    sums = {wheel.digest(wheel.build(tmp_path, "1700000000", number)) for number in (0, 1)}
    assert len(sums) == 1


@pytest.mark.slow
def test_two_builds_differ_without_a_fixed_time(tmp_path: Path) -> None:
    """The control."""
    sums = {wheel.digest(wheel.build(tmp_path, None, number)) for number in (0, 1)}
    assert len(sums) == 2

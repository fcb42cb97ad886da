"""What the command line prints of the package's log."""

from __future__ import annotations

import logging

import pytest

from trimtab.cli.terminal import print_logs


def test_info_of_the_package_and_warnings_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = logging.getLogger("trimtab.train.loop"), logging.getLogger("datasets")
    with print_logs():
        ours.info("step %d: loss %.1f", 3, 0.5)
        ours.debug("not shown")
        theirs.setLevel(logging.INFO)
        theirs.info("not shown")
        theirs.warning("slow disk")
    ours.info("not shown")
    out, err = capsys.readouterr()
    assert out == "step 3: loss 0.5\n"
    assert err == "warning: slow disk\n"
    theirs.setLevel(logging.NOTSET)


def test_the_log_level_is_put_back() -> None:
    package = logging.getLogger("trimtab")
    package.setLevel(logging.ERROR)
    with print_logs():
        assert package.getEffectiveLevel() == logging.INFO
    assert package.level == logging.ERROR

"""One thread a worker: the workers already use every core."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from trimtab.cli.terminal import print_logs

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """``caplog`` holds the package's INFO records too."""
    package = logging.getLogger("trimtab")
    package.setLevel(logging.INFO)
    yield
    package.setLevel(logging.NOTSET)


@pytest.fixture
def printed_logs() -> Iterator[None]:
    """The package's log is printed as by the command line: for tests that read it with ``capsys``."""
    with print_logs():
        yield

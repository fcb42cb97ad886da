"""One thread per worker and per process it starts: the workers already use every core."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from trimtab.cli.terminal import print_logs

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first, so that no worker waits for the last of them."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


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

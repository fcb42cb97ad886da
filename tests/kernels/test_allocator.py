"""Freed memory is kept during training and returned between the stages of a recipe."""

import subprocess
import sys

import pytest

PROGRAM = """
import psutil
from trimtab.kernels.allocator import keep_freed_memory, return_freed_memory

assert keep_freed_memory()
blocks = [bytearray(100_000) for _ in range(2000)]  # 200 MB on the heap
del blocks
process = psutil.Process()
kept = process.memory_info().rss
return_freed_memory()
print((kept - process.memory_info().rss) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150

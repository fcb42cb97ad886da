"""Processes that save in a loop, killed at random instants; and what makes the checks fail."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trimtab.models import checkpoint

pytestmark = pytest.mark.slow

INSTANTS = 100
Save = Callable[[Path, int], object]


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {"w": torch.full((20_000,), float(step))} for name in ("params", "optimizer")}


def save(folder: Path, step: int) -> None:
    checkpoint.save(folder, step, tensors(step), {"step": step})


def save_in_place(folder: Path, step: int) -> None:
    """As many training scripts do: the same files are written anew."""
    folder.mkdir(exist_ok=True)
    for name, values in tensors(step).items():
        checkpoint._write_tensors(folder / f"{name}.safetensors", values)


def load(folder: Path) -> int | None:
    """The step of the latest checkpoint whose tensors are those that were saved; None without one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        latest = checkpoint.latest(folder)
    if latest is None:
        return None
    for name, values in tensors(latest.step).items():
        assert torch.equal(latest.tensors(name)["w"], values["w"])
    return latest.step


def load_in_place(folder: Path) -> int | None:
    steps: set[float] = set()
    for name in ("params", "optimizer"):
        try:
            steps |= set(checkpoint.load_file(folder / f"{name}.safetensors")["w"].tolist())
        except Exception:  # noqa: BLE001 - whatever a torn file raises
            return None
    return int(steps.pop()) if len(steps) == 1 else None


def kills(folder: Path, count: int, save: Save, load: Callable[[Path], int | None]) -> int:
    """Kill a saving process ``count`` times; how often the latest could not be loaded or was too old."""
    rng = random.Random(0)
    step = faults = 0
    for _ in range(count):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            for number in range(step + 1, step + 100_000):
                save(folder, number)
                os.write(writer, b"%d\n" % number)
            os._exit(1)
        os.close(writer)
        done = os.read(reader, 64)  # one save is complete
        time.sleep(rng.uniform(0.0, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(reader, 1 << 16):
            done += more
        os.close(reader)
        acknowledged = int(done.split()[-1])
        latest = load(folder)
        # A save that had ended must be there; one more may have been complete but for its message.
        faults += latest is None or latest < acknowledged
        step = max(acknowledged, latest or 0)
    return faults


def test_a_process_killed_at_100_instants(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    faults = kills(tmp_path / "c", INSTANTS, save, load)
    record_property("unloadable", faults)
    assert faults == 0


def test_files_replaced_in_place_are_noticed(tmp_path: Path) -> None:
    assert kills(tmp_path / "c", INSTANTS, save_in_place, load_in_place) > 0


def test_hashes_that_are_not_compared_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit in the tensors is seen by its hash alone."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    file = tmp_path / "step-00000002" / "params.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 64
    file.write_bytes(damaged)
    assert load(tmp_path) == 1
    stored = checkpoint._read_manifest(tmp_path / "step-00000002")["files"]
    monkeypatch.setattr(checkpoint, "_sha256", lambda path: stored[path.name]["sha256"])
    with pytest.raises(AssertionError):
        load(tmp_path)

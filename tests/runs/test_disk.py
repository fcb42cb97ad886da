"""A disk that is too small is noticed before anything is written, and the error says what is missing."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from trimtab.errors import CheckpointError
from trimtab.models import checkpoint
from trimtab.runs import Run, disk, read_samples
from trimtab.runs.disk import free_bytes


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A real file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of 8 MiB cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_checkpoint_that_does_not_fit_is_not_begun(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    small = {"params": {"w": torch.arange(2**18, dtype=torch.float32)}}  # 1 MiB
    checkpoint.save(folder, 1, small, {"a": 1})
    before = sorted(p.name for p in folder.rglob("*"))
    large = {"params": {"w": torch.zeros(2**21)}}  # 8 MiB
    with pytest.raises(
        CheckpointError,
        match=r"step 2 needs 8\.0 MiB and [67]\.\d MiB are free: 2\.\d MiB are missing",
    ):
        checkpoint.save(folder, 2, large, {"a": 2})
    assert sorted(p.name for p in folder.rglob("*")) == before
    saved = checkpoint.latest(folder)
    assert saved is not None and saved.step == 1
    assert torch.equal(saved.tensors("params")["w"], small["params"]["w"])
    checkpoint.save(folder, 3, small, {"a": 3})


def test_a_folder_full_of_remains_is_cleaned_before_it_is_judged(small_disk: Path) -> None:
    (small_disk / ".tmp-00000001").mkdir(parents=True)
    (small_disk / ".tmp-00000001" / "params.safetensors").write_bytes(b"\0" * (7 << 20))
    tensors = {"params": {"w": torch.zeros(2**20)}}  # 4 MiB
    assert free_bytes(small_disk) < 4 << 20
    checkpoint.save(small_disk, 2, tensors, {})
    assert [p.name for p in small_disk.iterdir()] == ["step-00000002"]


def test_samples_that_do_not_fit_are_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run(tmp_path) as run:
        run.samples(1, [{"prompt": "p", "completion": "c"}])
        monkeypatch.setattr(disk, "MARGIN", 1 << 60)  # no disk has so much
        with pytest.raises(CheckpointError, match=r"the samples of step 2 needs .* are missing"):
            run.samples(2, [{"prompt": "p", "completion": "c"}])
    assert [r["step"] for r in read_samples(tmp_path)] == [1]


def test_the_room_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.01)

"""Checkpoints of sharded tensors: written by every rank, read by any number, damage and death noticed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.scale.equality import result, run_rows
from trimtab import ranks
from trimtab.errors import CheckpointError
from trimtab.models import checkpoint, checkpoint_parts
from trimtab.models.shard import full, is_shard

pytestmark = pytest.mark.slow

WEIGHT = torch.arange(35.0).reshape(7, 5)  # rows that 2 and 4 ranks cannot split evenly
STEP = torch.tensor(3.0)


def sharded(tensor: Tensor) -> Tensor:
    """The tensor sharded over the current ranks; itself in one process."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard, distribute_tensor

    here = ranks.current()
    if here.world == 1:
        return tensor
    return distribute_tensor(tensor, DeviceMesh.from_group(here.group, "cpu"), [Shard(0)])


def write(row: str, base: Path) -> None:
    """Save two steps: WEIGHT, and twice WEIGHT."""
    for step in (1, 2):
        values = {"policy": {"w": sharded(step * WEIGHT), "step": STEP}}
        checkpoint.save(base / "checkpoints", step, values, {"step": step})


def read(row: str, base: Path) -> dict[str, Any] | None:
    """The newest checkpoint, its weight sharded as here and in full."""
    saved = checkpoint.latest_of_main(base / "checkpoints")
    assert saved is not None
    like = sharded(torch.zeros_like(WEIGHT))
    tensors = saved.tensors("policy", {"w": like}.get)
    assert is_shard(tensors["w"]) == is_shard(like)
    out = {"step": saved.step, "w": full(tensors["w"]), "full": saved.tensors("policy")["w"]}
    return out if ranks.current().is_main else None


def assert_saved(base: Path, world: int, step: int) -> None:
    found = result(base, "read", world)
    assert found["step"] == step
    assert torch.equal(found["w"], step * WEIGHT) and torch.equal(found["full"], step * WEIGHT)


def test_every_rank_writes_its_part(tmp_path: Path) -> None:
    assert run_rows(tmp_path, ["write"], (2,), write) == [0, 0]
    folder = tmp_path / "checkpoints" / "step-00000002"
    files = sorted((folder / checkpoint_parts.FOLDER).iterdir())
    assert len(files) == 2 and all(f.suffix == ".safetensors" for f in files)
    # What is not sharded is written once, by rank 0.
    assert (folder / "policy.safetensors").stat().st_size < WEIGHT.nbytes
    assert run_rows(tmp_path, ["read"], (1, 2, 4), read) == [0] * 4
    for world in (1, 2, 4):
        assert_saved(tmp_path, world, 2)


@pytest.mark.parametrize("world", [1, 2])
def test_a_damaged_part_is_noticed(world: int, tmp_path: Path) -> None:
    assert run_rows(tmp_path, ["write"], (2,), write) == [0, 0]
    parts = tmp_path / "checkpoints" / "step-00000002" / checkpoint_parts.FOLDER
    part = sorted(parts.iterdir())[1]
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(parts.parent)
    assert run_rows(tmp_path, ["read"], (world,), read) == [0] * world
    assert_saved(tmp_path, world, 1)


def die_writing(row: str, base: Path) -> None:
    """Rank 1 is killed with its part half written, in the second checkpoint."""
    write_parts = checkpoint_parts.write

    def half(folder: Path, tensors: Any) -> None:
        if "00000002" in folder.name and ranks.current().rank == 1:
            (folder / checkpoint_parts.FOLDER).mkdir(exist_ok=True)
            (folder / checkpoint_parts.FOLDER / "half").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write_parts(folder, tensors)

    checkpoint_parts.write = half
    write(row, base)


def fail_writing(row: str, base: Path) -> str:
    """The error of rank 0 when rank 1 cannot write its part."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    def refuse(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    if ranks.current().rank == 1:
        HuggingFaceStorageWriter.write_data = refuse
    with pytest.raises(CheckpointError) as error:
        write(row, base)
    return str(error.value)


def test_a_rank_killed_in_a_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    codes = run_rows(tmp_path, ["die"], (2,), die_writing, timeout=20)
    assert codes[1] == -signal.SIGKILL and codes[0] != 0
    assert run_rows(tmp_path, ["read"], (1, 2), read) == [0, 0]
    for world in (1, 2):
        assert_saved(tmp_path, world, 1)
    # The next save clears the half written one away.
    assert run_rows(tmp_path, ["write"], (2,), write) == [0, 0]
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


def test_a_full_disk_of_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    assert run_rows(tmp_path, ["fail"], (2,), fail_writing) == [0, 0]
    message = result(tmp_path, "fail", 2)
    assert "rank 1" in message and "No space left" in message
    assert not list((tmp_path / "checkpoints").iterdir())

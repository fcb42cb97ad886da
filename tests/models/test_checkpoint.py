"""Checkpoints against every I/O failure, crashes that lose unsynced writes, and damage."""

from __future__ import annotations

import errno
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.errors import CheckpointError
from trimtab.models import checkpoint
from trimtab.runs import fs

CALLS = ("open", "write", "fsync", "rename", "mkdir", "remove")


class Crash(BaseException):
    """The machine stopped."""


class Disk:
    """Counts file operations, fails the k-th, and knows what a crash would lose.

    A crash keeps synced bytes. Of unsynced ones it keeps ``half`` or nothing, and it undoes, newest
    first, the names of folders that were not synced (or keeps them: ``names="kept"``, the
    reordering that shows a renamed file before its bytes).
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, *, sync: bool = True) -> None:
        self.k, self.count, self.error = 0, 0, Crash()
        self.sizes: dict[Path, int] = {}  # files with unsynced bytes -> synced length
        self.names: list[tuple[Path, str, Path, Path]] = []  # folder, kind, path, other
        self.grave, self.buried, self.sync = root / "grave", 0, sync
        self.grave.mkdir()
        for name in CALLS:
            monkeypatch.setattr(fs, name, self._wrap(name, getattr(fs, name)))

    def arm(self, k: int, error: BaseException) -> None:
        self.k, self.count, self.error = k, 0, error

    def _wrap(self, name, real):
        def call(*args):
            self.count += 1
            if self.count == self.k:
                if name == "write":  # half of it got through
                    real(args[0], bytes(args[1])[: len(bytes(args[1])) // 2])
                    self.sizes.setdefault(Path(args[0].name), 0)
                raise self.error
            return getattr(self, f"_{name}")(real, *args)

        return call

    def _open(self, real, path, mode):
        self.names.append((path.parent, "make", path, path))
        self.sizes[path] = 0
        return real(path, mode)

    def _write(self, real, handle, data):
        self.sizes.setdefault(Path(handle.name), 0)
        real(handle, data)

    def _fsync(self, real, path):
        if self.sync:
            real(path)
            self.sizes.pop(path, None)
            self.names = [n for n in self.names if n[0] != path]

    def _rename(self, real, old, new):
        real(old, new)
        self.names.append((new.parent, "rename", old, new))
        moved = {p: p for p in self.sizes}
        for p in moved:
            if p.is_relative_to(old):
                self.sizes[new / p.relative_to(old)] = self.sizes.pop(p)
        self.names = [
            (self._moved(f, old, new), kind, a, b)
            if kind == "rename"
            else (self._moved(f, old, new), kind, self._moved(a, old, new), b)
            for f, kind, a, b in self.names
        ]

    @staticmethod
    def _moved(path, old, new):
        return new / path.relative_to(old) if path.is_relative_to(old) else path

    def _mkdir(self, real, path):
        real(path)
        self.names.append((path.parent, "make", path, path))

    def _remove(self, real, path):  # a crash may keep the removal: then nothing comes back
        self.buried += 1
        grave = self.grave / str(self.buried)
        path.rename(grave)
        self.names.append((path.parent, "remove", path, grave))

    def crash(self, data: str, names: str) -> None:
        for path, synced in self.sizes.items():
            if path.is_file():
                size = path.stat().st_size
                keep = synced if data == "nothing" else (synced + size) // 2
                path.write_bytes(path.read_bytes()[:keep])
        if names == "lost":
            for _, kind, path, other in reversed(self.names):
                if (kind == "rename" and other.exists() and not path.exists()) or (
                    kind == "remove" and other.exists() and not path.exists()
                ):
                    other.rename(path)
                elif kind == "make" and path.is_file():
                    path.unlink()
        self.sizes, self.names = {}, []


def payload(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {
            "w": torch.randn(4, 3, generator=generator),
            "half": torch.randn(2, 5, generator=generator).bfloat16().T,
            "empty": torch.zeros(0, 2),
            "flag": torch.tensor([True, False]),
        },
        "rng": checkpoint.rng_tensors(),
    }


def write(folder: Path, step: int, keep: int = 1) -> Path:
    def extra(path: Path) -> None:
        fs.mkdir(path / "hf")
        with fs.open(path / "hf" / "config.json", "wb") as handle:
            fs.write(handle, b'{"a": 1}' * 40)

    return checkpoint.save(folder, step, payload(step), {"step": step}, extra, keep=keep)


def loads(folder: Path) -> int | None:
    """The step of the latest, its bytes compared with what was saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = checkpoint.latest(folder)
    if loaded is None:
        return None
    tensors = loaded.tensors("model")
    for name, value in payload(loaded.step)["model"].items():
        assert tensors[name].dtype == value.dtype
        assert tensors[name].shape == value.shape
        assert torch.equal(tensors[name], value), name
    assert loaded.state == {"step": loaded.step}
    assert (loaded.path / "hf" / "config.json").stat().st_size == 320
    return loaded.step


def calls_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    (tmp_path / "count").mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path / "count")
        write(tmp_path / "count" / "c", 1)
        disk.arm(0, Crash())
        write(tmp_path / "count" / "c", 2)
        return disk.count


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_every_call_may_fail(tmp_path, monkeypatch, number):
    total = calls_of_a_save(tmp_path, monkeypatch)
    assert total > 20
    for k in range(1, total + 1):
        root = tmp_path / str(k)
        root.mkdir()
        with monkeypatch.context() as patch:
            disk = Disk(patch, root)
            write(root / "c", 1)
            disk.arm(k, OSError(number, "refused"))
            calls = False
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    write(root / "c", 2)
                except CheckpointError as error:
                    calls = "MiB are free" in str(error)
            assert calls or caught, k
        assert loads(root / "c") in (1, 2), k
        write(root / "c", 3)  # and the next save goes through
        assert loads(root / "c") == 3


def crashed_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, sync: bool) -> list[str]:
    """Faults over a crash at every call, and after a save that returned."""
    faults: list[str] = []
    total = calls_of_a_save(tmp_path, monkeypatch)
    for data in ("nothing", "half"):
        for names in ("kept", "lost"):
            for k in range(1, total + 2):
                root = tmp_path / f"{data}-{names}-{k}"
                root.mkdir()
                write(root / "c", 1)
                with monkeypatch.context() as patch:
                    disk = Disk(patch, root, sync=sync)
                    disk.arm(k, Crash())
                    try:
                        write(root / "c", 2)
                        returned = True
                    except Crash:
                        returned = False
                    disk.crash(data, names)
                loaded = loads(root / "c")
                if loaded not in ((2,) if returned else (1, 2)):
                    faults.append(f"{data} {names} call {k}: found {loaded}")
                write(root / "c", 3)
                assert loads(root / "c") == 3
    return faults


@pytest.mark.slow
def test_a_crash_at_every_call_loses_nothing(tmp_path, monkeypatch):
    assert crashed_saves(tmp_path, monkeypatch, sync=True) == []


@pytest.mark.slow
def test_the_crash_check_can_fail(tmp_path, monkeypatch):
    assert len(crashed_saves(tmp_path, monkeypatch, sync=False)) > 0


def test_damage_in_each_file_is_seen_and_the_previous_taken(tmp_path):
    write(tmp_path, 1, keep=2)
    path = write(tmp_path, 2, keep=2)
    rng = random.Random(0)
    files = [f for f in path.rglob("*") if f.is_file()]
    assert len(files) == 5
    for file in files:
        intact = file.read_bytes()
        for _ in range(20):
            place = rng.randrange(len(intact))
            damaged = bytearray(intact)
            damaged[place] ^= 1 << rng.randrange(8)
            for data in (bytes(damaged), intact[:place]):
                file.write_bytes(data)
                with pytest.warns(UserWarning, match="falling back"):
                    loaded = checkpoint.latest(tmp_path)
                assert loaded is not None
                assert loaded.step == 1, (file, place)
        file.unlink()
        assert loads(tmp_path) == 1
        file.write_bytes(intact)
        assert loads(tmp_path) == 2


def test_keeps_the_newest_and_replaces_the_same_step(tmp_path):
    for step in (1, 2, 3, 3):
        write(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003.0001"]
    assert loads(tmp_path) == 3
    assert checkpoint.latest(tmp_path / "absent") is None
    with pytest.raises(CheckpointError, match="no tensors 'x'"):
        checkpoint.read(tmp_path / "step-00000002").tensors("x")


def test_optimizer_goes_round_exactly(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optim = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    for _ in range(3):
        model(torch.randn(4, 3)).square().sum().backward()
        optim.step()
    tensors, frame = checkpoint.flatten_optimizer(optim.state_dict())
    checkpoint.save(tmp_path, 3, {"optim": tensors}, {"optim": frame})
    loaded = checkpoint.latest(tmp_path)
    assert loaded is not None
    restored = checkpoint.unflatten_optimizer(loaded.tensors("optim"), loaded.state["optim"])
    assert restored["param_groups"] == optim.state_dict()["param_groups"]
    assert isinstance(restored["param_groups"][0]["betas"], tuple)
    for index, values in optim.state_dict()["state"].items():
        assert list(restored["state"][index]) == list(values)
        for name, value in values.items():
            other = restored["state"][index][name]
            assert other.dtype == value.dtype
            assert other.shape == value.shape
            assert other.numpy().tobytes() == value.numpy().tobytes()


def test_random_states_go_round(tmp_path):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    random.gauss(0, 1)
    np.random.randn()
    checkpoint.save(tmp_path, 1, {"rng": checkpoint.rng_tensors()}, {})

    def draw():
        return (
            [random.gauss(0, 1) for _ in range(3)],
            np.random.randn(3).tolist(),
            torch.randn(3).tolist(),
        )

    expected = draw()
    loaded = checkpoint.latest(tmp_path)
    assert loaded is not None
    checkpoint.restore_rng(loaded.tensors("rng"))
    assert draw() == expected

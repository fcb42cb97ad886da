"""Atomic checkpoints: complete or absent.

A checkpoint is written to a temporary folder, every file is synced and listed with its size and
SHA-256 in ``manifest.json``, then the folder is renamed and its parent synced. The latest one is
the newest with a valid manifest; there is no pointer file. Tensors are safetensors, all other state
is JSON. Rank 0 writes, but for sharded tensors, of which every rank writes its part.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import random
import shutil
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trimtab import ranks
from trimtab.errors import CheckpointError
from trimtab.models import checkpoint_parts
from trimtab.models.shard import is_shard, shard_like
from trimtab.runs import fs
from trimtab.runs.disk import require_space

MANIFEST = "manifest.json"
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files were verified against the manifest."""

    path: Path
    """Its folder."""
    step: int
    """Optimiser steps done."""
    state: dict[str, Any]
    """The JSON state passed to ``save``."""

    def tensors(self, name: str, like: checkpoint_parts.Like = lambda _: None) -> dict[str, Tensor]:
        """The tensors saved under ``name``; every rank calls it.

        Args:
            name: A key of ``save``'s tensors.
            like: A tensor for which it returns a sharded one of the same shape is sharded as that is; the
                rest are in full, on the CPU.

        Raises:
            CheckpointError: nothing was saved under that name.
        """
        file = self.path / f"{name}.safetensors"
        if not file.exists():
            names = sorted(f.stem for f in self.path.glob("*.safetensors"))
            raise CheckpointError(f"{self.path}: no tensors {name!r}; there are {', '.join(names)}")
        tensors = checkpoint_parts.read(self.path, name, like)
        for key, value in load_file(file).items():
            model = like(key)
            tensors[key] = value if model is None else shard_like(model, value)
        return tensors


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    write_extra: Callable[[Path], None] | None = None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint durably, then remove older ones beyond ``keep``; every rank calls it.

    Args:
        tensors: one safetensors file per name, and every rank's part of those that are sharded.
        state: anything JSON can hold exactly.
        write_extra: writes more files (such as a Hugging Face export) into the folder passed to it.
        keep: complete checkpoints to keep, including this one.

    Raises:
        DiskSpaceError: the disk has no room for it; nothing was written.
        CheckpointError: writing failed (disk full, no permission); earlier checkpoints are untouched.
    """
    assert keep >= 1
    here = ranks.current()
    temporary = folder / f".tmp-{step:08d}"
    parts = {
        f"{f}/{n}": t for f, values in tensors.items() for n, t in values.items() if is_shard(t)
    }

    def begin() -> None:
        with _explained(folder, step):
            folder.mkdir(parents=True, exist_ok=True)
            for stale in (*folder.glob(".tmp-*"), *folder.glob(".old-*")):
                fs.remove(stale)
        require_space(folder, size_of(tensors), f"the checkpoint of step {step}")
        with _explained(folder, step):
            fs.mkdir(temporary)

    def complete() -> str:
        with _explained(folder, step):
            for name, values in tensors.items():
                plain = {n: t for n, t in values.items() if not is_shard(t)}
                _write_tensors(temporary / f"{name}.safetensors", plain)
            _write(temporary / "state.json", json.dumps(dict(state), indent=1).encode())
            if write_extra is not None:
                write_extra(temporary)
            _write_manifest(temporary, step)
            final = _free_name(folder, step)
            fs.rename(temporary, final)
            fs.fsync(folder)
        try:
            _prune(folder, final, step, keep)
        except OSError as error:  # the new checkpoint is safe, so go on
            warnings.warn(
                f"{folder}: an old checkpoint could not be removed ({error})", stacklevel=4
            )
        return str(final)

    here.on_main(begin)
    if parts:
        with _explained(folder, step):
            checkpoint_parts.write(temporary, parts)
    return Path(here.on_main(complete))


def size_of(tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes of a checkpoint's tensors, of all ranks together."""
    return sum(t.numel() * t.element_size() for values in tensors.values() for t in values.values())


@contextlib.contextmanager
def _explained(folder: Path, step: int) -> Generator[None]:
    """Remove an unfinished checkpoint if writing it fails, and say what to do."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointError) as error:
        shutil.rmtree(folder / f".tmp-{step:08d}", ignore_errors=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        free = shutil.disk_usage(folder).free / 2**20 if folder.exists() else 0.0
        raise CheckpointError(
            f"{folder}: the checkpoint of step {step} was not written ({error}); {free:,.0f} MiB "
            f"are free. Earlier checkpoints are intact: "
            f"{'free some space' if full else 'fix the disk or its permissions'} and resume."
        ) from error


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, verified; None if there is none.

    A damaged one is skipped with a warning that names the fault.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return read(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; falling back to the checkpoint before it", stacklevel=2)
    return None


def latest_of_main(folder: Path) -> Checkpoint | None:
    """As ``latest``, which only rank 0 calls: every rank gets the checkpoint that rank 0 verified."""
    verified: list[Checkpoint | None] = []

    def verify() -> str | None:
        verified.append(latest(folder))
        return verified[0] and str(verified[0].path)

    here = ranks.current()
    path = here.on_main(verify)
    if here.is_main or path is None:
        return verified[0] if here.is_main else None
    state = json.loads((Path(path) / "state.json").read_bytes())
    return Checkpoint(Path(path), _read_manifest(Path(path))["step"], state)


def read(path: Path) -> Checkpoint:
    """The checkpoint in the folder ``path``.

    Raises:
        CheckpointError: a file is missing, differs from the manifest or is not in the folder.
    """
    manifest = _read_manifest(path)
    for name, entry in manifest["files"].items():
        file = path / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise CheckpointError(
                f"{path / MANIFEST}: names a file outside of the checkpoint: {name}"
            )
        if not file.is_file():
            raise CheckpointError(f"{file}: missing from the checkpoint")
        if file.stat().st_size != entry["size"] or _sha256(file) != entry["sha256"]:
            raise CheckpointError(f"{file}: damaged (size or SHA-256 differs from {MANIFEST})")
    return Checkpoint(path, manifest["step"], json.loads((path / "state.json").read_bytes()))


def _write(path: Path, data: bytes) -> None:
    with fs.open(path, "wb") as handle:
        fs.write(handle, data)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Stream a safetensors file: u64 header length, JSON header, then the tensor bytes."""
    header: dict[str, Any] = {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with fs.open(path, "wb") as handle:
        fs.write(handle, len(head).to_bytes(8, "little") + head)
        for tensor in tensors.values():
            if tensor.numel():
                flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
                fs.write(handle, flat.numpy().data)


def _write_manifest(folder: Path, step: int) -> None:
    """Sync every file and folder, and write the manifest last."""
    files: dict[str, Any] = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        fs.fsync(file)
        name = file.relative_to(folder).as_posix()
        files[name] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    _write(folder / MANIFEST, _encode_manifest({"step": step, "files": files}))
    fs.fsync(folder / MANIFEST)
    for inner in sorted(p for p in folder.rglob("*") if p.is_dir()):
        fs.fsync(inner)
    fs.fsync(folder)


def _encode_manifest(manifest: dict[str, Any]) -> bytes:
    body = {"step": manifest["step"], "files": manifest["files"]}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, indent=1, sort_keys=True).encode()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        raw = (path / MANIFEST).read_bytes()
        manifest = json.loads(raw)
        intact = _encode_manifest(manifest) == raw
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no {MANIFEST}, so it is not a complete checkpoint"
        ) from error
    except (ValueError, KeyError, TypeError):
        intact, manifest = False, {}
    if not intact:
        raise CheckpointError(f"{path / MANIFEST}: damaged")
    return cast(dict[str, Any], manifest)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _free_name(folder: Path, step: int) -> Path:
    """``step-00000010``, or ``step-00000010.0001`` if a checkpoint of that step exists.

    Names sort by age, and the older one stays until the newer one is complete.
    """
    existing = sorted(folder.glob(f"step-{step:08d}*"))
    if not existing:
        return folder / f"step-{step:08d}"
    tail = existing[-1].suffix.removeprefix(".")
    return folder / f"step-{step:08d}.{int(tail or 0) + 1:04d}"


def _prune(folder: Path, newest: Path, step: int, keep: int) -> None:
    kept_steps: dict[int, Path] = {}
    to_remove: list[Path] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        if path.name >= newest.name:
            continue
        try:
            step_of_path = int(_read_manifest(path)["step"])
        except CheckpointError:
            continue  # damaged: left for inspection
        if step_of_path == step or step_of_path in kept_steps or len(kept_steps) >= keep - 1:
            to_remove.append(path)
        else:
            kept_steps[step_of_path] = path
    for path in to_remove:  # renamed first, so that none is ever partial under its name
        old = folder / f".old-{path.name}"
        fs.rename(path, old)
        fs.remove(old)


def flatten_optimizer(state: Mapping[Any, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A nested state dict as flat named tensors and a JSON structure that refers to them.

    >>> tensors, frame = flatten_optimizer({"state": {0: {"step": torch.tensor(3.0)}}})
    >>> list(tensors), unflatten_optimizer(tensors, frame)
    (['state.0.step'], {'state': {0: {'step': tensor(3.)}}})
    """
    tensors: dict[str, Tensor] = {}

    def down(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            assert path not in tensors, path
            tensors[path] = value
            return {"$tensor": path}
        if isinstance(value, Mapping):
            items = [(k, down(v, f"{path}.{k}" if path else str(k))) for k, v in value.items()]
            if all(isinstance(k, str) and not k.startswith("$") for k, _ in items):
                return dict(items)
            return {"$items": [[k, v] for k, v in items]}
        if isinstance(value, (list, tuple)):
            parts = [down(v, f"{path}.{i}") for i, v in enumerate(cast(list[Any], value))]
            return {"$tuple": parts} if isinstance(value, tuple) else parts
        assert value is None or isinstance(value, (bool, int, float, str)), (path, type(value))
        return value

    return tensors, down(state, "")


def unflatten_optimizer(tensors: Mapping[str, Tensor], frame: Mapping[str, Any]) -> dict[Any, Any]:
    """Inverse of ``flatten_optimizer``; preserves values, types and key order."""

    def up(value: Any) -> Any:
        if isinstance(value, Mapping):
            if "$tensor" in value:
                return tensors[value["$tensor"]]
            if "$items" in value:
                return {k: up(v) for k, v in value["$items"]}
            if "$tuple" in value:
                return tuple(up(v) for v in value["$tuple"])
            return {k: up(v) for k, v in value.items()}
        if isinstance(value, list):
            return [up(v) for v in cast(list[Any], value)]
        return value

    return up(frame)


def rng_tensors() -> dict[str, Tensor]:
    """States of the random generators of Python, numpy (global) and torch (CPU and every GPU)."""
    _, words, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    assert name == "MT19937"
    out = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_place": torch.tensor([int(place), int(has_gauss)], dtype=torch.int64),
        "numpy_gauss": torch.tensor([float(cached)], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    for index in range(torch.cuda.device_count()):
        out[f"cuda{index}"] = torch.cuda.get_rng_state(index)
    return out


def restore_rng(tensors: Mapping[str, Tensor]) -> None:
    """Restore the generators from ``rng_tensors``."""
    gauss = tensors["python_gauss"].tolist()
    random.setstate((3, tuple(tensors["python"].tolist()), gauss[0] if gauss else None))
    place, has_gauss = tensors["numpy_place"].tolist()
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, place, has_gauss, tensors["numpy_gauss"].item()))
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda{index}"], index)

"""The sharded tensors of a checkpoint: every rank writes its part, and reads the parts that it needs.

By torch's distributed checkpoint, in safetensors files. The ranks of a run trust each other: torch sends
its plans between them as pickles, but none is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trimtab import ranks
from trimtab.errors import CheckpointError

FOLDER = "shards"
"""Folder of the parts, in that of the checkpoint."""
Like = Callable[[str], Tensor | None]
"""The tensor, if there is one, as which a saved tensor of a name is to be sharded."""


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write sharded tensors into the checkpoint ``folder``; every rank calls it.

    Args:
        tensors: By FILE/NAME, the same names on all ranks.

    Raises:
        CheckpointError: a rank could not write its part.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder / FOLDER), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=ranks.current().group)
    except CheckpointException as error:
        causes = "; ".join(f"rank {rank}: {e[0]}" for rank, e in sorted(error.failures.items()))
        raise CheckpointError(f"{folder}: a part was not written ({causes})") from error


def read(folder: Path, file: str, like: Like) -> dict[str, Tensor]:
    """The tensors of ``file`` that were written by ``write``; every rank calls it.

    Args:
        folder: The checkpoint's folder.
        file: The first part of the tensors' names.
        like: A tensor for which it returns a sharded one of the same shape is read as sharded; the rest
            in full, on the CPU.

    Returns:
        By NAME; nothing if no tensor of ``file`` was sharded.
    """
    if not (folder / FOLDER).is_dir():
        return {}
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    here = ranks.current()
    reader = HuggingFaceStorageReader(str(folder / FOLDER))
    targets: dict[str, Tensor] = {}
    for key, saved in reader.read_metadata().state_dict_metadata.items():
        prefix, _, name = key.partition("/")
        if prefix != file:
            continue
        assert isinstance(saved, TensorStorageMetadata)
        model = like(name)
        if model is not None and model.shape == saved.size:
            targets[key] = torch.empty_like(model.detach(), dtype=saved.properties.dtype)
        else:
            targets[key] = torch.empty(saved.size, dtype=saved.properties.dtype)
    if targets:
        alone = here.world == 1
        load(targets, storage_reader=reader, process_group=here.group, no_dist=alone)
    return {key.partition("/")[2]: tensor for key, tensor in targets.items()}

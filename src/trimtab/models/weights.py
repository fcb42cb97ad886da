"""Weights from a folder, a hub id or a configuration; every weight is accounted for.

transformers initialises weights that a folder lacks at random and only logs it. Here a missing weight
is an error, except for the new head of a classifier that is about to be trained.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError

from trimtab.data.load_tokenizer import quiet_transformers
from trimtab.errors import ModelError
from trimtab.models.adapters import HEADS, absolute, attach, find_adapter, merge
from trimtab.models.lora import Task
from trimtab.models.model_spec import ModelSpec

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Weights:
    """A loaded model."""

    model: PreTrainedModel | PeftModel
    """A peft model only where its adapter is trained further."""
    new_head: bool
    """Whether the head of a classifier is newly initialised."""
    base: str | None
    """Where these weights are, for a new adapter on them; None where they are on no disk."""


def load_weights(
    auto: Any,
    spec: ModelSpec,
    task: Task = "CAUSAL_LM",
    labels: int | None = None,
    *,
    train: bool = False,
) -> Weights:
    """Load ``spec.path`` with the transformers class ``auto``, or start from its JSON config.

    Args:
        auto: Such as ``AutoModelForCausalLM``.
        spec: The model, which may be an adapter.
        task: What the model is used for.
        labels: Number of labels, where ``auto`` is a classifier.
        train: Whether it is trained: a classifier may then start from a language model, with a new
            head, and an adapter may be continued.

    Raises:
        ModelError: the model cannot be loaded, a weight is missing or has another shape, or a
            classifier is of another kind or has no trained head.
    """
    quiet_transformers()
    scratch = Path(spec.path).suffix == ".json"
    adapter = find_adapter(spec.path)
    keep = train and spec.adapter == "continue"
    if keep and adapter is None:
        raise ModelError(f"{spec.path}: holds no adapter to continue; remove adapter: continue")
    path = adapter.base if adapter else spec.path
    try:
        config: Any = _scratch_config(Path(path)) if scratch else _saved_config(path)
        classifier = "Classification" in _architecture(config)
        if labels is not None:
            if classifier:
                _check_kind(spec.path, config, auto, labels)
            config.num_labels = labels
            for name in ("reward_mean", "reward_std", "pad_token_id"):
                if adapter and name in adapter.classifier:
                    setattr(config, name, adapter.classifier[name])
        dtype = getattr(torch, spec.dtype)
        # New weights are initialised here, so seed them.
        with torch.random.fork_rng():
            torch.manual_seed(spec.seed)
            if scratch:
                model = auto.from_config(config, dtype=dtype)
                missing = {f"{HEADS[0]}.weight"} if labels is not None else set[str]()
            else:
                model, info = auto.from_pretrained(
                    path,
                    config=config,
                    dtype=dtype,
                    use_safetensors=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
                missing = _missing(path, model, info)
    except json.JSONDecodeError as error:
        raise ModelError(f"{spec.path}: not valid JSON: {error}") from None
    except SafetensorError as error:
        raise ModelError(
            f"model {path!r}: a *.safetensors file is damaged or of another format ({error}); "
            "download it again, or convert it (pickles can execute code and are not read)"
        ) from None
    except (OSError, ValueError, ImportError) as error:  # a quantised model needs its library
        if isinstance(error, ModelError):
            raise
        role = f" (the base of the adapter in {spec.path})" if adapter else ""
        raise ModelError(
            f"model {path!r}{role} could not be loaded: {str(error).splitlines()[0]} "
            "(give a local folder with config.json and *.safetensors, a hub id that is reachable, "
            "or a .json config to start from scratch)"
        ) from None
    if adapter:
        model, brought = attach(model, adapter, spec.path, task, train=keep)
        missing -= brought
        if not keep:
            model = merge(model)
    fresh = {name for name in missing if name.split(".")[0] in HEADS}
    if fresh and (classifier or not train):
        raise ModelError(
            f"{spec.path}: has no trained head ({', '.join(sorted(fresh))} is not among its weights), "
            "so its scores would be random; give a folder that trimtab reward or trimtab process "
            f"exported, or another {auto.__name__.removeprefix('Auto')} with its head"
        )
    if missing - fresh:
        raise ModelError(
            f"{spec.path}: {_names(missing - fresh)} not among its weights, so a "
            f"{type(model).__name__} would start from random values there; give a folder with all "
            f"weights of this class (its config names {_architecture(config) or 'no architecture'})"
        )
    return Weights(model, bool(fresh), None if scratch or adapter else absolute(path))


def model_end_ids(path: str) -> set[int]:
    """The end-of-sequence ids that a model's config and generation config name.

    Defaults of a config class are not among them: they belong to another model's vocabulary.

    Args:
        path: Folder, hub id or JSON config.

    Raises:
        ModelError: a file is not JSON.
    """
    ids: set[int] = set()
    names = (path,) if path.endswith(".json") else ("generation_config.json", "config.json")
    adapter = find_adapter(path)
    if adapter:
        ids = model_end_ids(adapter.base)
    for name in names:
        for part in _config_parts(path, name):
            eos = part.get("eos_token_id")
            ids.update([eos] if isinstance(eos, int) else eos or [])
    return ids


def vocabulary_size(path: str) -> int | None:
    """Number of token ids in a model's config; None if it names none.

    Args:
        path: Folder, hub id or JSON config.

    Raises:
        ModelError: the file is not JSON.
    """
    parts = _config_parts(path, path if path.endswith(".json") else "config.json")
    sizes = [p["vocab_size"] for p in parts if isinstance(p.get("vocab_size"), int)]
    return sizes[-1] if sizes else None


def _config_parts(path: str, name: str) -> list[dict[str, Any]]:
    """A config file and its part for text; none if there is no such file."""
    file = name if name == path else _resolve(path, name)
    if file is None or not Path(file).is_file():
        return []
    try:
        values: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{file}: not valid JSON: {error}") from None
    return [values, values.get("text_config") or {}]


def _resolve(path: str, name: str) -> str | None:
    """A file of a folder or hub id on this machine; None if there is none."""
    from transformers.utils.hub import cached_file

    try:
        return cached_file(
            path,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except OSError:  # neither a folder nor a hub id: loading it reports that
        return None


def _scratch_config(path: Path) -> PretrainedConfig:
    if not path.is_file():
        raise ModelError(f"{path}: no such model configuration file")
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kind = fields.pop("model_type", None)
    if kind is None:
        raise ModelError(f"{path}: has no 'model_type' (for example \"llama\")")
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **fields)


def _saved_config(path: str) -> PretrainedConfig:
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        # transformers would download such a kernel, which is code, and run it.
        for key in ("_attn_implementation", "_experts_implementation"):
            if "/" in str(getattr(part, key, None)):
                raise ModelError(
                    f"{path}: config.json asks for code from the hub ({key.removeprefix('_')}: "
                    f"{getattr(part, key)!r}), which is not run; remove this key"
                )
    return cast("PretrainedConfig", config)


def _architecture(config: Any) -> str:
    return " ".join(getattr(config, "architectures", None) or [])


def _check_kind(path: str, config: Any, auto: Any, labels: int) -> None:
    """Refuse a classifier of another kind, or with another number of labels."""
    kind = str(auto.__name__).removeprefix("AutoModelFor")
    architecture, num_labels = _architecture(config), int(config.num_labels)
    if kind not in architecture or num_labels != labels:
        raise ModelError(
            f"{path}: is a {architecture} with {num_labels} labels, but {kind} with {labels} is "
            "needed; start from a language model, or from a folder saved by this stage"
        )


def _missing(path: str, model: PreTrainedModel, info: dict[str, Any]) -> set[str]:
    """Names of the weights that the folder lacks; reports those that the model does not use.

    Raises:
        ModelError: a weight has another shape, or could not be read.
    """
    for name, saved, needed in sorted(info["mismatched_keys"]):
        raise ModelError(
            f"{path}: {name} has shape {list(saved)}, but its config.json asks for {list(needed)}; "
            "the weights and the config are of two models"
        )
    if info["error_msgs"]:
        raise ModelError(f"{path}: weights could not be read: {info['error_msgs'][0]}")
    # Another class has another head: only what the shared part cannot place is worth a warning.
    head = model.get_output_embeddings() is None
    prefix = f"{model.base_model_prefix}."
    unused = {n for n in info["unexpected_keys"] if not head or n.startswith(prefix)}
    if unused:
        log.warning(
            "%s: %s in the folder but not used by %s: is the architecture in config.json right?",
            path,
            _names(unused),
            type(model).__name__,
        )
    return set(info["missing_keys"])


def _names(names: set[str], limit: int = 4) -> str:
    """The first names, and a verb in the right number."""
    first = sorted(names)[:limit]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(first)}{more} {'is' if len(names) == 1 else 'are'}"

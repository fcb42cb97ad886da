"""Loading models: any transformers decoder, from a folder, a hub id, or a configuration."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import time
import warnings
from collections.abc import Callable, Generator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging as hf_logging

from trimtab.config import Config
from trimtab.data.dataset import DataSpec
from trimtab.data.pack import Pack, build
from trimtab.data.render import Renderer, load_tokenizer
from trimtab.errors import ModelError
from trimtab.kernels.logprobs import LogitHead
from trimtab.kernels.matmul import keep_programs, product
from trimtab.models.forward import hidden, set_attention, token_logps
from trimtab.types import Completion, Group

log = logging.getLogger(__name__)

# Loading says what it must through errors; bars and reports of new heads are noise.
hf_logging.disable_progress_bar()
hf_logging.set_verbosity_error()

DType = Literal["float32", "bfloat16"]


class LoraSpec(Config):
    """Low-rank adapters through peft; the reference is then the same model with them off."""

    r: int = 16
    """Rank; 0 turns adapters off."""
    alpha: int = 32
    """Scale is alpha / r."""
    dropout: float = 0.0
    """On the adapters' input."""
    targets: tuple[str, ...] = ()
    """Module names; empty means every linear layer but the output head."""


class ModelSpec(Config):
    """Which model, and how it is held."""

    path: str = Field(description="Local folder, hub id, or a JSON file with a transformers config")
    """A folder or hub id is loaded with its weights; a JSON file starts from scratch."""
    tokenizer: str | None = None
    """Where the tokenizer is, when not beside the model."""
    chat_template: str | None = None
    """A template file, or the built-in name "plain", when the tokenizer has none."""
    dtype: DType = "float32"
    """Type the weights are held in."""
    precision: Literal["full", "mixed", "auto"] = "full"
    """"mixed" multiplies in bfloat16 with the weights in float32; "auto" does so where a short
    measurement at the start says that it pays."""
    device: str = "auto"
    """ "auto" takes CUDA when there is one."""
    lora: LoraSpec | None = None
    """Train adapters instead of the whole model."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    seed: int = 0
    """Initialises what is not loaded (a model from scratch, a new head)."""


def pick_device(name: str) -> torch.device:
    """The device ``name`` stands for; "auto" is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def load_pretrained(auto: Any, spec: ModelSpec, **kwargs: Any) -> PreTrainedModel:
    """Load ``spec.path`` with the transformers class ``auto``, or start from its JSON config.

    Raises:
        ModelError: nothing can be loaded from there; the message says what was tried.
    """
    path = Path(spec.path)
    dtype = getattr(torch, spec.dtype)
    try:
        if path.suffix == ".json":
            if not path.is_file():
                raise ModelError(f"{path}: no such model configuration file")
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            fields.update(kwargs)
            kind = fields.pop("model_type", None)
            if kind is None:
                raise ModelError(f"{path}: has no 'model_type' (for example \"llama\")")
            config = AutoConfig.for_model(kind, **fields)
            with torch.random.fork_rng():
                torch.manual_seed(spec.seed)
                return cast(PreTrainedModel, auto.from_config(config, dtype=dtype))
        # A new scalar head is initialised here, so its seed must be ours.
        with torch.random.fork_rng():
            torch.manual_seed(spec.seed)
            return cast(
                PreTrainedModel,
                auto.from_pretrained(
                    spec.path, dtype=dtype, use_safetensors=True, trust_remote_code=False, **kwargs
                ),
            )
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"model {spec.path!r} could not be loaded: {str(error).splitlines()[0]} "
            "(give a local folder with config.json and *.safetensors, a hub id that is reachable, "
            "or a .json config to start from scratch)"
        ) from None


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside, whether or not peft wraps it."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def backbone_of(model: nn.Module) -> nn.Module:
    """The decoder without its head."""
    return base_of(model).base_model


def logit_head(model: nn.Module, half: bool = False) -> LogitHead:
    """Hidden states to logits, with the scalings some architectures apply after the head."""
    inner = base_of(model)
    config = cast(Any, inner.config.get_text_config())
    times = float(getattr(config, "logit_scale", None) or 1.0)
    over = float(getattr(config, "logits_scaling", None) or 1.0)
    cap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
    return LogitHead(cast(nn.Module, inner.get_output_embeddings()), times / over, cap, half)


def use_mixed(spec: ModelSpec, device: torch.device, width: int) -> bool:
    """Whether products are to be made in bfloat16: as told, or as measured here."""
    if spec.precision != "full" and device.type == "cpu":
        # oneDNN keeps a program and its buffers for each of the last 1,024 shapes, and no two packs
        # have the same: 2.8 GB after 24 steps of a 5M model, 1.2 GB with these (LOG.md).
        keep_programs(64)
    if spec.precision != "auto" or spec.dtype != "float32":
        return spec.precision == "mixed" and spec.dtype == "float32"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bfloat16_gain(width) >= 1.3


@lru_cache
def bfloat16_gain(width: int, rows: int = 512) -> float:
    """How many times faster than fp32 a bfloat16 product [rows, width] x [width, 4 width] is on
    this processor, the casts of its input and output included."""
    x, w = torch.randn(rows, width), torch.randn(4 * width, width)
    half = w.bfloat16()

    def best(product: Callable[[], Tensor]) -> float:
        product()
        spent: list[float] = []
        for _ in range(5):
            before = time.thread_time()
            product()
            spent.append(time.thread_time() - before)
        return max(min(spent), 1e-9)

    full = best(lambda: product(x, w))
    return full / best(lambda: linear(x.bfloat16(), half).float())


def _probe(vocabulary: int) -> list[Group]:
    rng = np.random.default_rng(0)

    def run(n: int) -> np.ndarray:
        return rng.integers(0, vocabulary, n, dtype=np.int64)

    def answer(n: int) -> Completion:
        return Completion(run(n), np.ones(n, dtype=bool))

    return [
        Group("a", run(7), [answer(5), answer(9), answer(1)]),
        Group("b", run(3), [answer(4), answer(12)]),
    ]


@torch.no_grad()
def sharing_error(model: nn.Module, plain: str) -> float:
    """Largest difference in log-prob between a shared pack and separate transformers forwards.

    Returns infinity when the architecture refuses the shared pack. ``model`` must be in eval mode.
    """
    inner = base_of(model)
    groups = _probe(int(cast(Any, inner.config.get_text_config()).vocab_size))
    device = inner.device
    pack = build(groups).to(device)
    try:
        states = hidden(backbone_of(model), pack, pack.source_C, exact=True)
        shared, _ = token_logps(states, pack.target_C, logit_head(model))
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AssertionError,
        AttributeError,
        IndexError,
    ) as error:
        # An architecture may refuse in any of these ways; each means "not this path".
        log.info("sharing probe refused: %s", error)
        return float("inf")
    set_attention(inner, plain)
    alone: list[Tensor] = []
    for group in groups:
        for c in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt, c.ids]))[None].to(device)
            logits = inner(input_ids=ids, use_cache=False).logits[0].float()
            alone.append(
                logits[len(group.prompt) - 1 : -1]
                .log_softmax(-1)
                .gather(1, ids[0, len(group.prompt) :, None])[:, 0]
            )
    return float((shared - torch.cat(alone)).abs().max())


def check_sharing(model: nn.Module, plain: str, *, exact_below: float | None = None) -> bool:
    """Whether packs may share prompts on this model; warns when they may not."""
    training = model.training
    model.eval()
    error = sharing_error(model, plain)
    model.train(training)
    limit = exact_below or (1e-4 if base_of(model).dtype == torch.float32 else 0.25)
    if error <= limit:
        return True
    warnings.warn(
        f"{type(base_of(model)).__name__}: shared-prompt packing differs from separate forwards by "
        f"{error:.2g} (limit {limit:g}); using padded rows without sharing, which is slower",
        stacklevel=2,
    )
    return False


class LM:
    """A causal language model prepared for packed forwards.

    Attributes:
        model: The transformers model, or the peft model around it.
        exact: Whether packs share prompts (decided by a numerical self-check).
        spec: What it was loaded from.
        mixed: Whether it multiplies in bfloat16.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        self.model = model
        self.spec = spec
        inner = base_of(model)
        config = cast(Any, inner.config.get_text_config())
        soft = getattr(config, "attn_logit_softcapping", None)
        can = getattr(inner, "_supports_sdpa", True)
        self.plain = "eager" if soft or not can else "sdpa"
        self.exact = check_sharing(model, self.plain)
        self.mixed = use_mixed(spec, inner.device, int(config.hidden_size))

    @classmethod
    def load(cls, spec: ModelSpec, *, train: bool = True) -> LM:
        """Load as ``spec`` says; ``train`` False freezes it and leaves adapters off."""
        model = cast(nn.Module, load_pretrained(AutoModelForCausalLM, spec))
        model = model.to(pick_device(spec.device))
        if train and spec.lora is not None and spec.lora.r > 0:
            model = add_lora(model, spec.lora, TaskType.CAUSAL_LM, spec.seed)
        if train and spec.gradient_checkpointing:
            checkpoint_layers(model)
        model.train(train)
        model.requires_grad_(train) if not (train and spec.lora) else None
        return cls(model, spec)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return base_of(self.model).device

    @property
    def limit(self) -> int:
        """Longest sequence the architecture has positions for."""
        return int(
            getattr(
                base_of(self.model).config.get_text_config(), "max_position_embeddings", 1 << 30
            )
        )

    @property
    def logit_width(self) -> int:
        """Width of the hidden states."""
        return int(base_of(self.model).config.get_text_config().hidden_size)

    def states(self, pack: Pack) -> Tensor:
        """Hidden states [C, D] before each trained token."""
        return self.states_at(pack, pack.source_C)

    def states_at(self, pack: Pack, read_K: Tensor) -> Tensor:
        """Hidden states [K, D] at some of the pack's tokens."""
        return hidden(
            backbone_of(self.model),
            pack,
            read_K,
            exact=self.exact,
            plain=self.plain,
            mixed=self.mixed,
        )

    def logps(
        self, states_CD: Tensor, pack: Pack, temperature: float = 1.0, *, entropy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [C] of the trained tokens, from the states before them.

        Without ``entropy`` zeros stand in its place, and its cost is spared.
        """
        # On CPU the head stays in fp32: rounded logits would part policy and sampler.
        head = logit_head(self.model, self.mixed and states_CD.is_cuda)
        return token_logps(states_CD, pack.target_C, head, temperature=temperature, entropy=entropy)

    def frozen_copy(self) -> LM:
        """A frozen copy of the weights as they are now: the reference of full training."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model).eval().requires_grad_(False)
        return other

    @contextlib.contextmanager
    def adapters_off(self) -> Generator[None]:
        """Within, the model is its own reference (adapters only)."""
        assert isinstance(self.model, PeftModel), "only a model with adapters is its own reference"
        with self.model.disable_adapter():
            yield

    def plain_attention(self) -> nn.Module:
        """The model under its ordinary attention, for use outside packs (saving, generate)."""
        set_attention(base_of(self.model), self.plain)
        return self.model


def add_lora(model: nn.Module, spec: LoraSpec, task: TaskType, seed: int) -> PeftModel:
    """Wrap ``model`` with adapters, initialised from ``seed``."""
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets) or "all-linear",
        # peft trains a new head whole, but keeps adapters off it only for sequence classifiers.
        exclude_modules=["score", "classifier"] if task == TaskType.TOKEN_CLS else None,
        task_type=task,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cast(PeftModel, get_peft_model(cast(PreTrainedModel, model), config))


def checkpoint_layers(model: nn.Module) -> None:
    """Turn on activation checkpointing."""
    inner = base_of(model)
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inner.enable_input_require_grads()


def dropout_off(model: nn.Module) -> None:
    """Set every dropout rate to 0: of modules, and those kept as attributes."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def save_model(model: nn.Module, folder: Path, tokenizer: Any, plain: str = "sdpa") -> None:
    """An HF folder that plain transformers loads; adapters are merged into the weights."""
    inner = base_of(model)
    set_attention(inner, plain)
    if isinstance(model, PeftModel):
        inner = cast(PreTrainedModel, copy.deepcopy(model).merge_and_unload())
    inner.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def renderer_for(model: ModelSpec, data: DataSpec) -> Renderer:
    """Tokenizer and template of ``model`` with the limits of ``data``."""
    tokenizer = load_tokenizer(model.tokenizer or model.path, model.chat_template)
    return Renderer(tokenizer, max_prompt=data.max_prompt, max_tokens=data.max_completion)

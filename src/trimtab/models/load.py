"""Loading models: any transformers decoder, from a folder, a hub id, or a configuration."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
import warnings
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trimtab.data.dataset import DataSpec
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.pack import Pack, build
from trimtab.data.render import NO_LIMIT, Renderer
from trimtab.kernels.logprobs import LogitHead
from trimtab.kernels.matmul import fast_linear, limit_primitive_cache
from trimtab.models.forward import (
    hidden_states,
    logps_and_norms,
    set_attention,
    token_logps,
)
from trimtab.models.lora import Task, add_lora, has_adapter
from trimtab.models.model_spec import ModelSpec
from trimtab.models.weights import Weights, load_weights, model_end_ids, vocabulary_size
from trimtab.types import Completion, Group

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is CUDA if it is available."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model, unwrapped from peft if needed."""
    return cast("PreTrainedModel", model.get_base_model() if has_adapter(model) else model)


def backbone_of(model: nn.Module) -> nn.Module:
    """The decoder without its head."""
    return base_of(model).base_model


def logit_head(model: nn.Module, bfloat16: bool = False) -> LogitHead:
    """The output head with the scaling and soft cap that some architectures apply after it."""
    inner = base_of(model)
    config = cast(Any, inner.config.get_text_config())
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    divisor = float(getattr(config, "logits_scaling", None) or 1.0)
    cap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
    return LogitHead(cast(nn.Module, inner.get_output_embeddings()), scale / divisor, cap, bfloat16)


def uses_mixed_precision(spec: ModelSpec, device: torch.device, width: int) -> bool:
    """Whether to compute matmuls in bfloat16: as configured, or as measured for "auto"."""
    if spec.precision != "full" and device.type == "cpu":
        # oneDNN caches a primitive and its buffers for each of the last 1,024 shapes, and no two packs
        # share shapes: 2.8 GB after 24 steps of a 5M model, 1.2 GB with 64 (LOG.md).
        limit_primitive_cache(64)
    if spec.precision != "auto" or spec.dtype != "float32":
        return spec.precision == "mixed" and spec.dtype == "float32"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bfloat16_speedup(width) >= 1.3


@lru_cache
def bfloat16_speedup(width: int, rows: int = 512) -> float:
    """Speed-up of a bfloat16 matmul [rows, width] @ [width, 4 width] over fp32 on this processor,
    including the casts of its input and output."""
    x, w = torch.randn(rows, width), torch.randn(4 * width, width)
    weight_bf16 = w.bfloat16()

    def seconds_of(matmul: Callable[[], Tensor], limit: float = math.inf) -> float:
        """Of the fastest of five calls; of the first one if it takes longer than ``limit``."""
        matmul()
        seconds: list[float] = []
        while len(seconds) < 5 and (not seconds or seconds[0] < limit):
            before = time.thread_time()
            matmul()
            seconds.append(time.thread_time() - before)
        return max(min(seconds), 1e-9)

    seconds_fp32 = seconds_of(lambda: fast_linear(x, w))
    # Without instructions for bfloat16 one call takes seven times as long; noise does not.
    seconds_bf16 = seconds_of(lambda: linear(x.bfloat16(), weight_bf16).float(), 3 * seconds_fp32)
    return seconds_fp32 / seconds_bf16


def _probe_groups(vocabulary: int) -> list[Group]:
    rng = np.random.default_rng(0)

    def random_ids(length: int) -> np.ndarray:
        return rng.integers(0, vocabulary, length, dtype=np.int64)

    def completion(n: int) -> Completion:
        return Completion(random_ids(n), np.ones(n, dtype=bool))

    return [
        Group("a", random_ids(7), [completion(5), completion(9), completion(1)]),
        Group("b", random_ids(3), [completion(4), completion(12)]),
    ]


@torch.no_grad()
def sharing_error(model: nn.Module, plain: str) -> float:
    """Largest difference in log-prob between a shared pack and separate transformers forwards.

    A classifier's hidden states are read through the input embeddings, as in a tied language model.
    Returns infinity when the architecture refuses the shared pack. ``model`` must be in eval mode.
    """
    inner = base_of(model)
    classifier = inner.get_output_embeddings() is None
    head = _tied_head(inner) if classifier else logit_head(model)
    groups = _probe_groups(int(cast(Any, inner.config.get_text_config()).vocab_size))
    device = inner.device
    pack = build(groups).to(device)
    try:
        states = hidden_states(backbone_of(model), pack, pack.source_C, exact=True)
        shared, _ = token_logps(states, pack.target_C, head)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AssertionError,
        AttributeError,
        IndexError,
    ) as error:
        # Unsupported architectures fail in any of these ways.
        log.info("sharing probe refused: %s", error)
        return float("inf")
    set_attention(inner, plain)
    separate: list[Tensor] = []
    for group in groups:
        for c in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt, c.ids]))[None].to(device)
            if classifier:
                states = backbone_of(model)(input_ids=ids, use_cache=False).last_hidden_state
                logits = head(states)[0].float()
            else:
                logits = inner(input_ids=ids, use_cache=False).logits[0].float()
            separate.append(
                logits[len(group.prompt) - 1 : -1]
                .log_softmax(-1)
                .gather(1, ids[0, len(group.prompt) :, None])[:, 0]
            )
    return float((shared - torch.cat(separate)).abs().max())


def _tied_head(inner: PreTrainedModel) -> LogitHead:
    """A head with the weights of the input embeddings."""
    weight = cast(Tensor, inner.get_input_embeddings().weight)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return LogitHead(layer)


def plain_attention_of(model: nn.Module) -> str:
    """The attention implementation outside packs."""
    inner = base_of(model)
    soft = getattr(inner.config.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if soft or not getattr(inner, "_supports_sdpa", True) else "sdpa"


def check_sharing(model: nn.Module, plain: str, *, exact_below: float | None = None) -> bool:
    """Whether packs may share prompts on this model; warns if not."""
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


def prepare(weights: Weights, spec: ModelSpec, task: Task, *, train: bool) -> nn.Module:
    """Loaded weights on their device, with new adapters where they are trained with any."""
    model = cast(nn.Module, weights.model).to(pick_device(spec.device))
    if train and spec.lora is not None and spec.lora.r > 0:
        model = add_lora(model, spec.lora, task, spec.seed, weights.base)
    elif not has_adapter(model):
        model.requires_grad_(train)
    if train and spec.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return model.train(train)


class LM:
    """A causal language model with packed forwards.

    Attributes:
        model: The transformers model, or the peft model around it.
        exact: Whether packs share prompts (decided by a numerical self-check).
        spec: The spec it was loaded from.
        mixed: Whether matmuls are computed in bfloat16.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        self.model = model
        self.spec = spec
        inner = base_of(model)
        config = cast(Any, inner.config.get_text_config())
        self.plain = plain_attention_of(model)
        self.exact = check_sharing(model, self.plain)
        self.mixed = uses_mixed_precision(spec, inner.device, int(config.hidden_size))

    @classmethod
    def load(cls, spec: ModelSpec, *, train: bool = True) -> LM:
        """Load the model of ``spec``; ``train=False`` freezes it and adds no adapters."""
        from transformers import AutoModelForCausalLM

        weights = load_weights(AutoModelForCausalLM, spec, train=train)
        return cls(prepare(weights, spec, "CAUSAL_LM", train=train), spec)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return base_of(self.model).device

    @property
    def limit(self) -> int:
        """Longest sequence in tokens that the architecture supports."""
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
        """Hidden states [K, D] at the pack indices ``read_K``."""
        return hidden_states(
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

        ``entropy=False`` returns zeros in place of entropies and saves their cost.
        """
        head = self._head(states_CD)
        return token_logps(states_CD, pack.target_C, head, temperature=temperature, entropy=entropy)

    def logps_and_norms(
        self, states_CD: Tensor, pack: Pack, temperature: float = 1.0, *, entropy: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``logps``, and the log-sum-exps [C] of the logits over the temperature."""
        return logps_and_norms(
            states_CD,
            pack.target_C,
            self._head(states_CD),
            temperature=temperature,
            entropy=entropy,
        )

    def _head(self, states_CD: Tensor) -> LogitHead:
        # On CPU the head stays in fp32: rounding would make policy and sampler logprobs differ.
        return logit_head(self.model, self.mixed and states_CD.is_cuda)

    def frozen_copy(self) -> LM:
        """A frozen copy with the current weights: the reference of full training."""
        reference = copy.copy(self)
        reference.model = copy.deepcopy(self.model).eval().requires_grad_(False)
        return reference

    @property
    def starts_without_adapters(self) -> bool:
        """Whether the model with its adapters disabled is the one that training started from."""
        return has_adapter(self.model) and self.spec.adapter != "continue"

    @contextlib.contextmanager
    def adapters_off(self) -> Generator[None]:
        """Context in which the adapters are disabled, so the model is its own reference."""
        model = self.model
        assert has_adapter(model), "only a model with adapters can be its own reference"
        with model.disable_adapter():
            yield

    def plain_attention(self) -> nn.Module:
        """The model with its normal attention, for use outside packs (saving, generate)."""
        set_attention(base_of(self.model), self.plain)
        return self.model


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Turn on activation checkpointing."""
    inner = base_of(model)
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inner.enable_input_require_grads()


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0, both of modules and of float attributes."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def has_dropout(model: nn.Module) -> bool:
    """Whether any dropout rate of a model is above 0."""
    return any(
        (isinstance(module, nn.Dropout) and module.p > 0.0)
        or any("dropout" in k and isinstance(v, float) and v > 0.0 for k, v in vars(module).items())
        for module in model.modules()
    )


def renderer_for(model: ModelSpec, data: DataSpec | None = None) -> Renderer:
    """A renderer with the tokenizer, template and end tokens of ``model`` and the limits of ``data``."""
    vocab_size = vocabulary_size(model.path)
    tokenizer = load_tokenizer(model.tokenizer or model.path, model.chat_template, vocab_size)
    return Renderer(
        tokenizer,
        max_prompt_length=data.max_prompt_length if data else NO_LIMIT,
        max_completion_length=data.max_completion_length if data else NO_LIMIT,
        end_ids=model_end_ids(model.path),
        vocab_size=vocab_size,
    )

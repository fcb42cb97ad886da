"""Continuous batching on the live weights of any transformers decoder, without copying them."""

import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trimtab.errors import ConfigError, ModelError
from trimtab.kernels.allocator import keep_freed_memory
from trimtab.kernels.matmul import use_fast_linears
from trimtab.sample.decode import FastDecoder
from trimtab.sample.draw import SamplingConfig
from trimtab.sample.kv_cache import (
    KV,
    NAME,
    KVCache,
    common_beginning,
    eval_mode,
    use_attention,
)
from trimtab.sample.sampling_state import Request, Sampled, SamplingState
from trimtab.sample.shared_prompt import SharedPromptCache
from trimtab.types import Ints

SHORTEST_BEGINNING = 16
"""Fewest tokens that prompts have in common and that are prefilled once: below, the mask costs more."""
PREFILL_TOKENS = 1024
"""Tokens per prefill forward on a CPU, so that activations stay in the CPU's cache."""
Progress = Callable[[int, int], None]
"""Called with (completions finished, completions requested)."""


@dataclass(slots=True)
class _Waiting:
    item: int
    source: dict[int, KV]
    row: int
    length: int
    logits: torch.Tensor


class Sampler:
    """Samples from a causal LM with its current weights at each call.

    Args:
        model: a transformers causal LM, possibly wrapped by peft, in any mode; left unchanged.
        tokenizer: needed for stop strings; provides the end-of-sequence id.
        stop_ids: ids that end a completion; by default the end-of-sequence ids of the tokenizer
            and of the generation config.
        mixed: compute matmuls in bfloat16, as training with mixed precision does.

    Warns once if the model's attention does not work with the static cache; it is then sampled
    through transformers' own cache, prompts of equal length together.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        stop_ids: Sequence[int] | None = None,
        mixed: bool = False,
    ) -> None:
        keep_freed_memory()
        use_fast_linears(model)
        self.model, self.tokenizer, self.mixed = model, tokenizer, mixed
        if stop_ids is None:
            eos_ids: set[int] = set()
            for holder in (tokenizer, getattr(model, "generation_config", None)):
                eos = getattr(holder, "eos_token_id", None)
                if eos is not None:
                    eos_ids.update([eos] if isinstance(eos, int) else eos)
            stop_ids = sorted(eos_ids)
        self.stop_ids = tuple(stop_ids)
        text = model.config.get_text_config()
        self.positions: int | None = getattr(text, "max_position_embeddings", None)
        self.vocab: int = text.vocab_size
        self.own: str = model.config._attn_implementation
        window = getattr(text, "sliding_window", None)
        self.fast: FastDecoder | None = None
        probe = self._probe()
        self.supports_fast = self._exact(KVCache(2, 12), probe, fast=True)
        self.exact = self.supports_fast or self._exact(KVCache(2, 12), probe, fast=False)
        # A sliding window can hide a whole prompt, so each completion then has its own copy.
        self.shares_prompts = (
            self.exact
            and window is None
            and self._exact(SharedPromptCache(2, 4), probe, fast=self.supports_fast)
        )
        if not self.exact:
            warnings.warn(
                f"{type(model).__name__} is sampled through transformers' own cache, which is "
                "slower: its attention does not agree with the static cache",
                stacklevel=2,
            )

    @property
    def device(self) -> torch.device:
        """Device of the embeddings, and so of the ids."""
        return self.model.get_input_embeddings().weight.device

    def _probe(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [2, 12] that share their first three, and their logits by the plain forward."""
        ids = torch.from_numpy(np.random.default_rng(0).integers(0, self.vocab, (2, 12)))
        ids[1, :3] = ids[0, :3]
        ids = ids.to(self.device)
        with eval_mode(self.model), use_attention(self.model, self.own):
            return ids, self.model(input_ids=ids, use_cache=False).logits.float()

    def _exact(self, slots: KVCache, probe: tuple[torch.Tensor, torch.Tensor], fast: bool) -> bool:
        """Whether two prompts of different length and three decode steps agree with the plain forward."""
        ids, plain = probe
        lengths = [9, 6]
        with eval_mode(self.model):
            try:
                with use_attention(self.model):
                    self.fast = FastDecoder(self.model, mixed=False) if fast else None
                    prompts = [ids[r, :n].cpu().numpy() for r, n in enumerate(lengths)]
                    self._begin(slots, prompts, shortest=1)
                    source, first_logits = self._prefill(slots, prompts)
                    slots.enter(source, np.arange(2), np.array(lengths), 0)
                    expected = [plain[[0, 1], [8, 5]]]
                    logits = [first_logits]
                    for t in range(3):
                        at = np.array(lengths) + t
                        token = ids.gather(1, torch.from_numpy(at[:, None]).to(self.device))
                        logits.append(self._decode(slots, token, at))
                        expected.append(plain[[0, 1], at.tolist()])
            except (TypeError, AttributeError, KeyError, ValueError, RuntimeError):
                return False
            finally:
                self.fast = None
        a, b = torch.stack(logits).float(), torch.stack(expected)
        tolerance = 1e-4 if self.model.dtype in (torch.float32, torch.float64) else 5e-2
        return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1.0))

    def _prefill(self, slots: KVCache, prompts: list[Ints]) -> tuple[dict[int, KV], torch.Tensor]:
        """Keys and values of the prompts, and the logits [R, V] after each prompt."""
        longest = max(len(p) for p in prompts)
        at_once = max(1, PREFILL_TOKENS // (longest - slots.begun))
        if self.device.type != "cpu" or at_once >= len(prompts):
            return self._prefill_part(slots, prompts)
        joined: dict[int, KV] = {}
        logits: list[torch.Tensor] = []
        for start in range(0, len(prompts), at_once):
            source, after = self._prefill_part(slots, prompts[start : start + at_once])
            logits.append(after)
            for layer, pair in source.items():
                if layer not in joined:
                    k, v = (
                        x.new_zeros(len(prompts), x.shape[1], longest, x.shape[3]) for x in pair
                    )
                    joined[layer] = k, v
                for buffer, new in zip(joined[layer], pair, strict=True):
                    buffer[start : start + len(new), :, : new.shape[2]] = new
        return joined, torch.cat(logits)

    def _prefill_part(
        self, slots: KVCache, prompts: list[Ints]
    ) -> tuple[dict[int, KV], torch.Tensor]:
        lengths = np.array([len(p) for p in prompts])
        begun = slots.begun
        ids = np.zeros((len(prompts), lengths.max() - begun), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt) - begun] = prompt[begun:]
        source = slots.prefill()
        if self.fast is not None:
            inputs = (torch.from_numpy(x).to(self.device) for x in (ids, lengths - 1))
            return source, self.fast.prefill(slots, *inputs)
        keep, which = np.unique(lengths - 1 - begun, return_inverse=True)
        at = begun + torch.arange(ids.shape[1], device=self.device).expand(len(prompts), -1)
        logits = self.model(
            input_ids=torch.from_numpy(ids).to(self.device),
            position_ids=at,
            use_cache=False,
            logits_to_keep=torch.from_numpy(keep).to(self.device),
            decode=slots,
        ).logits
        rows = torch.arange(len(prompts), device=self.device)
        return source, logits[rows, torch.from_numpy(which).to(self.device)]

    def _begin(self, slots: KVCache, prompts: Sequence[Ints], shortest: int) -> None:
        """Prefill once what all prompts begin with, such as a system prompt, from ``shortest`` tokens on."""
        tokens = common_beginning(prompts) if len(prompts) > 1 else 0
        if tokens >= shortest:
            source, _ = self._prefill_part(slots, [prompts[0][:tokens]])
            slots.begin(source, tokens)

    def _decode(self, slots: KVCache, token: torch.Tensor, length: Ints) -> torch.Tensor:
        at = slots.decode(length, self.device)
        if self.fast is not None:
            return self.fast(slots, token[:, 0], at)
        out = self.model(input_ids=token, position_ids=at[:, None], use_cache=False, decode=slots)
        return out.logits[:, -1]

    def __call__(
        self,
        requests: Sequence[Request],
        config: SamplingConfig,
        on_progress: Progress | None = None,
    ) -> list[list[Sampled]]:
        """Sample ``n`` completions per request, in order of the requests.

        Raises:
            ModelError: a prompt is empty, has ids outside the vocabulary, or exceeds the model's
                positions.
            ConfigError: stop strings are set without a tokenizer.
        """
        if config.stop and self.tokenizer is None:
            raise ConfigError("stop: stop strings need a tokenizer; give one or use stop_ids")
        for number, request in enumerate(requests, 1):
            size = len(request.prompt)
            if size == 0:
                raise ModelError(f"prompt {number} is empty; give it at least one token")
            if self.positions is not None and size > self.positions:
                raise ModelError(
                    f"prompt {number} has {size} tokens, but the model has {self.positions} "
                    "positions; shorten the prompt"
                )
            if request.prompt.min() < 0 or request.prompt.max() >= self.vocab:
                raise ModelError(
                    f"prompt {number} has ids outside 0..{self.vocab - 1}; was it tokenised by "
                    "this model's tokenizer?"
                )
        stop_ids = (*self.stop_ids, *config.stop_ids)
        book = SamplingState(requests, config, stop_ids, self.tokenizer, self.positions)
        if not book.owner:
            return book.results()
        with (
            eval_mode(self.model),
            use_attention(self.model, NAME if self.exact else self.own),
            torch.autocast(self.device.type, torch.bfloat16) if self.mixed else nullcontext(),
        ):
            self.fast = FastDecoder(self.model, self.mixed) if self.supports_fast else None
            run = self._run if self.exact else self._run_plain
            try:
                run(requests, book, on_progress)
            finally:
                self.fast = None
        return book.results()

    def _waiting(
        self, slots: KVCache, requests: Sequence[Request], batch: list[int], book: SamplingState
    ) -> list[_Waiting]:
        """Prefill some requests and return their completions, ready to enter."""
        source, logits = self._prefill(slots, [requests[r].prompt for r in batch])
        return [
            _Waiting(int(book.first[r]) + i, source, row, len(requests[r].prompt), logits[row])
            for row, r in enumerate(batch)
            for i in range(requests[r].n)
        ]

    def _run(
        self, requests: Sequence[Request], book: SamplingState, progress: Progress | None
    ) -> None:
        total = len(book.owner)
        size = min(book.config.slots, total)
        longest_prompt, new = max(len(r.prompt) for r in requests), int(book.limit.max())
        if self.shares_prompts and any(r.n > 1 for r in requests):
            slots: KVCache = SharedPromptCache(size, new)
        else:
            slots = KVCache(size, longest_prompt + new)
        self._begin(slots, [r.prompt for r in requests if r.n > 0], SHORTEST_BEGINNING)
        # Prompts of similar length share a prefill with little padding.
        order = sorted(range(len(requests)), key=lambda r: -len(requests[r].prompt))
        pending = deque(r for r in order if requests[r].n > 0)
        waiting: deque[_Waiting] = deque()
        items = np.zeros(0, np.int64)
        length = np.zeros(0, np.int64)
        token = torch.zeros(0, dtype=torch.int64, device=self.device)
        while pending or waiting or len(items):
            free = size - len(items)
            # Several rows enter together: one prefill per free slot would be slow.
            if (pending or waiting) and free >= max(1, size // 8):
                if not waiting:
                    batch: list[int] = []
                    while pending and sum(requests[r].n for r in batch) < free:
                        batch.append(pending.popleft())
                    waiting.extend(self._waiting(slots, requests, batch, book))
                new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                widths = np.array([w.length for w in new])
                slots.enter(new[0].source, np.array([w.row for w in new]), widths, len(items))
                fresh = np.array([w.item for w in new])
                drawn, ended = book.step(fresh, torch.stack([w.logits for w in new]))
                # Free the prompts' keys and values once all of them have entered.
                del new
                ended = np.concatenate([np.zeros(len(items), np.bool_), ended])
                items = np.concatenate([items, fresh])
                length = np.concatenate([length, widths])
                token = torch.cat([token, drawn])
            else:
                logits = self._decode(slots, token[:, None], length)
                length = length + 1
                token, ended = book.step(items, logits)
            if ended.any():
                # The last live rows move into the holes, so that live rows stay at the front.
                live = int((~ended).sum())
                holes = np.flatnonzero(ended[:live])
                last = live + np.flatnonzero(~ended[live:])
                where = np.arange(live)
                where[holes] = last
                slots.leave(live, holes, last, int(length.max()))
                items, length = items[where], length[where]
                token = token[torch.from_numpy(where).to(self.device)]
                if progress is not None:
                    progress(book.done, total)

    def _run_plain(
        self, requests: Sequence[Request], book: SamplingState, progress: Progress | None
    ) -> None:
        by_length: dict[int, list[int]] = defaultdict(list)
        for item, (r, _) in enumerate(book.owner):
            by_length[len(requests[r].prompt)].append(item)
        for same in by_length.values():
            for start in range(0, len(same), book.config.slots):
                items = np.array(same[start : start + book.config.slots])
                prompts = np.stack([requests[book.owner[i][0]].prompt for i in items])
                step = torch.from_numpy(prompts).to(self.device)
                ended = np.zeros(len(items), np.bool_)
                past: Any = None
                while not ended.all():
                    out = self.model(input_ids=step, past_key_values=past, use_cache=True)
                    past = out.past_key_values
                    live = np.flatnonzero(~ended)
                    index = torch.from_numpy(live).to(self.device)
                    drawn, over = book.step(items[live], out.logits[index, -1])
                    step = torch.zeros(len(items), 1, dtype=torch.int64, device=self.device)
                    step[index, 0] = drawn
                    ended[live] = over
                    if progress is not None and over.any():
                        progress(book.done, len(book.owner))

"""Decoding with shared prompts: the keys and values of a prompt are stored and read once.

The attention scores of all completions of a prompt against it are one matmul, and their scores
against their own tokens another. One softmax covers both, followed by two matmuls with the values.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from trimtab.sample.kv_cache import KV, KVCache, attention_scores, select_rows, weighted_values
from trimtab.types import Ints


class SharedPromptCache(KVCache):
    """A cache of the completions' own tokens, and one copy of each live prompt."""

    def __init__(self, slots: int, length: int) -> None:
        """``length`` is the largest completion length in tokens; prompts are stored separately."""
        super().__init__(slots, length)
        self.prompts: dict[int, KV] = {}
        self.of_R = np.zeros(0, np.int64)
        self.width_P = np.zeros(0, np.int64)

    def enter(self, source: dict[int, KV], rows: Ints, widths: Ints, start: int) -> None:
        """Add completions of prefilled prompts ``rows`` [n] of ``widths`` tokens, from slot ``start``."""
        new_prompts, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
        live_prompts = np.unique(self.of_R)
        self.of_R = np.concatenate(
            [np.searchsorted(live_prompts, self.of_R), len(live_prompts) + inverse]
        )
        self.width_P = np.concatenate([self.width_P[live_prompts], widths[first]])
        longest = int(self.width_P.max())
        for layer, new in source.items():
            parts = [_select_prompts(new, new_prompts, longest)]
            if len(live_prompts):
                parts.insert(0, _select_prompts(self.prompts[layer], live_prompts, longest))
            self.prompts[layer] = _concat_prompts(parts)
            if layer not in self.cache:
                self._grow(1, start)
                self.cache[layer] = self._empty(*new)
            for buffer in self.cache[layer]:
                buffer[start : start + len(rows)] = 0.0
        self._arrange(device_of(source))

    def leave(self, live: int, holes: Ints, last: Ints, longest: int) -> None:
        """See ``Slots``; prompts without a live row are freed once they are half of all."""
        device = device_of(self.prompts)
        super().leave(live, holes, last, longest)
        prompt_of_row = self.of_R[:live].copy()
        prompt_of_row[holes] = self.of_R[last]
        self.of_R = prompt_of_row
        live_prompts = np.unique(prompt_of_row)
        if 0 < 2 * len(live_prompts) <= len(self.width_P):
            self.of_R = np.searchsorted(live_prompts, prompt_of_row)
            self.width_P = self.width_P[live_prompts]
            max_width = int(self.width_P.max())
            for layer, pair in self.prompts.items():
                self.prompts[layer] = _concat_prompts(
                    [_select_prompts(pair, live_prompts, max_width)]
                )
        self._arrange(device)

    def _arrange(self, device: torch.device) -> None:
        """Build the table of rows by prompt [P, G], and the position of each row in it."""
        prompt_of_row, count = self.of_R, len(self.width_P)
        sizes = np.bincount(prompt_of_row, minlength=count)
        most = int(sizes.max()) if len(prompt_of_row) else 0
        order = np.argsort(prompt_of_row, kind="stable")
        place = np.arange(len(prompt_of_row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        table = np.zeros((count, most), np.int64)
        table[prompt_of_row[order], place] = order
        self.table_PG = torch.from_numpy(table).to(device)
        within = np.zeros(len(prompt_of_row), np.int64)
        within[order] = place
        self.place_R = (
            torch.from_numpy(prompt_of_row).to(device),
            torch.from_numpy(within).to(device),
        )
        self.ordered = np.array_equal(table.ravel(), np.arange(len(prompt_of_row)))
        """Whether the rows are in table order, without gaps."""
        longest = int(self.width_P.max()) if count else 0
        beyond = torch.from_numpy(np.arange(longest)[None] >= self.width_P[:, None]).to(device)
        # Prompts of equal length need no mask.
        self.beyond: Tensor | None = beyond[:, None, None] if bool(beyond.any()) else None
        self.base = self.width_P[prompt_of_row]

    def attention(
        self, layer: int, query: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Attention [R, kv, group, dim] of one query per row to its prompt and its own tokens."""
        assert window is None, "prompts are not shared with a sliding window"
        rows = len(query)
        prompt = self.prompts[layer]
        own = [x[:rows, :, : self.reach] for x in self.cache[layer]]
        far = attention_scores(self._by_prompt(query), prompt[0], self.beyond, scale, softcap)
        near = attention_scores(query, own[0], self.hidden(None), scale, softcap)
        # In prompt order, so that the larger tensor is not moved.
        weights = torch.cat([far, self._by_prompt(near)], -1).softmax(-1)
        far, near = weights.split([far.shape[-1], near.shape[-1]], -1)
        return weighted_values(self._by_row(near), own[1]).add_(
            self._by_row(weighted_values(far, prompt[1]))
        )

    def _by_prompt(self, x: Tensor) -> Tensor:
        """[P, kv, G * group, ...] from rows [R, kv, group, ...]; entries without a row hold any value."""
        _, kv, group, last = x.shape
        count, most = self.table_PG.shape
        x = x.view(count, most, kv, group, last) if self.ordered else x[self.table_PG]
        return x.transpose(1, 2).reshape(count, kv, most * group, last)

    def _by_row(self, x: Tensor) -> Tensor:
        """Rows [R, kv, group, ...] from [P, kv, G * group, ...]."""
        count, kv, wide, last = x.shape
        most = self.table_PG.shape[1]
        x = x.view(count, kv, most, wide // most, last)
        if self.ordered:
            return x.transpose(1, 2).flatten(0, 1)
        prompt_R, within_R = self.place_R
        return x[prompt_R, :, within_R]


def device_of(pairs: dict[int, KV]) -> torch.device:
    """Device of the keys and values."""
    return next(iter(pairs.values()))[0].device


def _concat_prompts(parts: list[KV]) -> KV:
    """Concatenate prompts' keys and values; keys are stored as [P, kv_heads, head_dim, L].

    With few queries the matmul then reads along the tokens, in half to two thirds of the time.
    """
    keys = torch.cat([k.transpose(2, 3) for k, _ in parts])
    return keys.transpose(2, 3), torch.cat([v for _, v in parts])


def _select_prompts(pair: KV, rows: Ints, length: int) -> KV:
    """Keys and values of the prompts ``rows``, truncated or zero-padded to ``length`` tokens."""
    k, v = (select_rows(x[:, :, :length], rows) for x in pair)
    short = length - k.shape[2]
    return (pad(k, (0, 0, 0, short)), pad(v, (0, 0, 0, short))) if short > 0 else (k, v)

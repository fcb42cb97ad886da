"""Decoding several completions of a prompt: its keys and values are held, and read, once.

Scores against the prompt are one product for all of its completions, those against a completion's own
tokens another; one softmax goes over both, and what it gives is summed in two products again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from trimtab.sample.kv_cache import KV, Slots, mean, picked, scores
from trimtab.types import Ints


class Shared(Slots):
    """Slots for completions' own tokens, beside the prompts of the rows that live."""

    def __init__(self, slots: int, length: int) -> None:
        """``length`` is that of a completion: prompts are kept apart."""
        super().__init__(slots, length)
        self.prompts: dict[int, KV] = {}
        self.of_R = np.zeros(0, np.int64)
        self.width_P = np.zeros(0, np.int64)

    def enter(self, source: dict[int, KV], rows: Ints, widths: Ints, start: int) -> None:
        """Completions of prefilled ``rows`` [n] of ``widths`` tokens take the slots from ``start``."""
        fresh, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
        kept = np.unique(self.of_R)
        self.of_R = np.concatenate([np.searchsorted(kept, self.of_R), len(kept) + inverse])
        self.width_P = np.concatenate([self.width_P[kept], widths[first]])
        deep = int(self.width_P.max())
        for layer, new in source.items():
            parts = [_rows(new, fresh, deep)]
            if len(kept):
                parts.insert(0, _rows(self.prompts[layer], kept, deep))
            self.prompts[layer] = _laid(parts)
            if layer not in self.cache:
                self._grow(1, start)
                self.cache[layer] = self._empty(*new)
            for held in self.cache[layer]:
                held[start : start + len(rows)] = 0.0
        self._arrange(device_of(source))

    def leave(self, live: int, holes: Ints, last: Ints, longest: int) -> None:
        """See ``Slots``; prompts without a live row are let go once they are half of all."""
        device = device_of(self.prompts)
        super().leave(live, holes, last, longest)
        of = self.of_R[:live].copy()
        of[holes] = self.of_R[last]
        self.of_R = of
        kept = np.unique(of)
        if 0 < 2 * len(kept) <= len(self.width_P):
            self.of_R = np.searchsorted(kept, of)
            self.width_P = self.width_P[kept]
            deep = int(self.width_P.max())
            for layer, held in self.prompts.items():
                self.prompts[layer] = _laid([_rows(held, kept, deep)])
        self._arrange(device)

    def _arrange(self, device: torch.device) -> None:
        """Rows by prompt [P, G], and where each row stands in that."""
        of, count = self.of_R, len(self.width_P)
        sizes = np.bincount(of, minlength=count)
        most = int(sizes.max()) if len(of) else 0
        order = np.argsort(of, kind="stable")
        place = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        table = np.zeros((count, most), np.int64)
        table[of[order], place] = order
        self.table_PG = torch.from_numpy(table).to(device)
        within = np.zeros(len(of), np.int64)
        within[order] = place
        self.place_R = torch.from_numpy(of).to(device), torch.from_numpy(within).to(device)
        self.ordered = np.array_equal(table.ravel(), np.arange(len(of)))
        """Whether the rows stand as the table has them, none missing."""
        deep = int(self.width_P.max()) if count else 0
        beyond = torch.from_numpy(np.arange(deep)[None] >= self.width_P[:, None]).to(device)
        # Without a ragged edge there is nothing to hide.
        self.beyond: Tensor | None = beyond[:, None, None] if bool(beyond.any()) else None
        self.base = self.width_P[of]

    def attention(
        self, layer: int, query: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Attention [R, kv, group, dim] of one query a row to its prompt and its own tokens."""
        assert window is None, "prompts are not shared under a sliding window"
        rows = len(query)
        prompt = self.prompts[layer]
        own = [x[:rows, :, : self.reach] for x in self.cache[layer]]
        far = scores(self._by_prompt(query), prompt[0], self.beyond, scale, softcap)
        near = scores(query, own[0], self.hidden(None), scale, softcap)
        # In the prompts' order, so that the longer of the two stays where it is.
        weights = torch.cat([far, self._by_prompt(near)], -1).softmax(-1)
        far, near = weights.split([far.shape[-1], near.shape[-1]], -1)
        return mean(self._by_row(near), own[1]).add_(self._by_row(mean(far, prompt[1])))

    def _by_prompt(self, x: Tensor) -> Tensor:
        """[P, kv, G * group, ...] of rows [R, kv, group, ...]; what stands where none is left is any."""
        _, kv, group, last = x.shape
        count, most = self.table_PG.shape
        x = x.view(count, most, kv, group, last) if self.ordered else x[self.table_PG]
        return x.transpose(1, 2).reshape(count, kv, most * group, last)

    def _by_row(self, x: Tensor) -> Tensor:
        """[R, kv, group, ...] of what is by prompt [P, kv, G * group, ...]."""
        count, kv, wide, last = x.shape
        most = self.table_PG.shape[1]
        x = x.view(count, kv, most, wide // most, last)
        if self.ordered:
            return x.transpose(1, 2).flatten(0, 1)
        prompt_R, within_R = self.place_R
        return x[prompt_R, :, within_R]


def device_of(held: dict[int, KV]) -> torch.device:
    """Where keys and values are."""
    return next(iter(held.values()))[0].device


def _laid(parts: list[KV]) -> KV:
    """Prompts' keys and values in one, keys in memory as [P, kv_heads, head_dim, L].

    So the product of a few queries reads along the tokens, in half to two thirds of the time.
    """
    keys = torch.cat([k.transpose(2, 3) for k, _ in parts])
    return keys.transpose(2, 3), torch.cat([v for _, v in parts])


def _rows(held: KV, rows: Ints, deep: int) -> KV:
    """Some prompts' keys and values, cut or zero-filled to ``deep`` tokens."""
    k, v = (picked(x[:, :, :deep], rows) for x in held)
    short = deep - k.shape[2]
    return (pad(k, (0, 0, 0, short)), pad(v, (0, 0, 0, short))) if short > 0 else (k, v)

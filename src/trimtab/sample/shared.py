"""Decoding several completions of a prompt: its keys and values are held, and read, once.

Attention to the prompt is one product for all of its completions, attention to a completion's own
tokens another; the two are put together by their normalisers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from trimtab.sample.attention import KV, Slots, picked, weighed
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
            self.prompts[layer] = (
                torch.cat([k for k, _ in parts]),
                torch.cat([v for _, v in parts]),
            )
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
                self.prompts[layer] = _rows(held, kept, deep)
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
        back = np.zeros(len(of), np.int64)
        back[order] = of[order] * most + place
        self.table_PG = torch.from_numpy(table).to(device)
        self.back_R = torch.from_numpy(back).to(device)
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
        rows, kv, group, dim = query.shape
        count, most = self.table_PG.shape
        k, v = self.prompts[layer]
        q = query[self.table_PG].transpose(1, 2).reshape(count, kv, most * group, dim)
        far, far_norm = weighed(q, k, v, self.beyond, scale, softcap)
        far = far.view(count, kv, most, group, dim).transpose(1, 2).flatten(0, 1)[self.back_R]
        far_norm = far_norm.view(count, kv, most, group, 1).transpose(1, 2).flatten(0, 1)
        k, v = (x[:rows, :, : self.reach] for x in self.cache[layer])
        near, near_norm = weighed(query, k, v, self.hidden(None), scale, softcap)
        # exp(a) / (exp(a) + exp(b)) is the share of the prompt.
        share = torch.sigmoid(far_norm[self.back_R] - near_norm)
        return torch.lerp(near, far, share)


def device_of(held: dict[int, KV]) -> torch.device:
    """Where keys and values are."""
    return next(iter(held.values()))[0].device


def _rows(held: KV, rows: Ints, deep: int) -> KV:
    """Some prompts' keys and values, cut or zero-filled to ``deep`` tokens."""
    k, v = (picked(x[:, :, :deep], rows) for x in held)
    short = deep - k.shape[2]
    return (pad(k, (0, 0, 0, short)), pad(v, (0, 0, 0, short))) if short > 0 else (k, v)

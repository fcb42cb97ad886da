"""The sampler of a run on several ranks: each samples some of the requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from trimtab import ranks
from trimtab.models.shard import gathered
from trimtab.sample.sampler import Progress, Request, Sampled, Sampler, SamplingConfig


class DealtSampler(Sampler):
    """Deals requests to the ranks by index, and returns all completions on every rank.

    A random stream belongs to its request, so completions do not depend on the number of ranks.

    Attributes:
        root: The module whose weights are gathered while a batch is sampled, where they are sharded.
        deals: False where rank 0 alone samples, from weights that are gathered already.
    """

    root: nn.Module | None = None
    deals: bool = True

    def __call__(
        self,
        requests: Sequence[Request],
        config: SamplingConfig,
        on_progress: Progress | None = None,
    ) -> list[list[Sampled]]:
        """As ``Sampler``, called on every rank with the same requests."""
        here = ranks.current()
        if here.world == 1 or not self.deals:
            return super().__call__(requests, config, on_progress)
        with gathered(self.root or self.model):
            own = super().__call__(requests[here.rank :: here.world], config, on_progress)
        rows = here.gather_arrays(
            [
                {"ids": s.ids, "logp": s.logp, "stop": np.array([s.finish == "stop"])}
                for samples in own
                for s in samples
            ]
        )
        results: list[list[Sampled]] = [[] for _ in requests]
        for rank, rank_rows in enumerate(rows):
            remaining = iter(rank_rows)
            for i in range(rank, len(requests), here.world):
                results[i] = [_sampled(next(remaining)) for _ in range(requests[i].n)]
        return results


def _sampled(row: dict[str, Any]) -> Sampled:
    return Sampled(row["ids"], row["logp"], "stop" if row["stop"][0] else "length")

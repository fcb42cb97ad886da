"""Packs: a flat run of tokens, each prompt once, then its completions.

A pack is a forest. Every completion attends to its prompt and to itself, and its positions continue
from the prompt's end, so the model sees exactly what it would see if the prompt and the completion
stood alone; the prompt is computed once however many completions it has. What several prompts begin
with, such as a system prompt, is computed once as well (``data.prefix_tree``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from trimtab.data.prefix_tree import find_stems
from trimtab.types import Floats, Group


@dataclass(slots=True, frozen=True)
class Segment:
    """A run of consecutive tokens of a pack."""

    start: int
    """Index of its first token in the pack."""
    length: int
    """Number of tokens."""
    parent: int
    """Index of the segment it continues, -1 for none."""


def path_to(segments: Sequence[Segment], leaf: int) -> list[Segment]:
    """The segments from the root of the tree to one of its segments, which is the last."""
    path = [segments[leaf]]
    while path[-1].parent >= 0:
        path.append(segments[path[-1].parent])
    return path[::-1]


def ancestors(segments: Sequence[Segment]) -> list[list[int]]:
    """For each level of the tree that has children, the ancestor there of each segment, -1 for none."""
    paths: list[list[int]] = []
    for s in segments:
        paths.append([] if s.parent < 0 else [*paths[s.parent], s.parent])
    depth = max(map(len, paths), default=0)
    return [[path[d] if d < len(path) else -1 for path in paths] for d in range(depth)]


_TENSORS = (
    "ids_N",
    "positions_N",
    "source_C",
    "target_C",
    "owner_C",
    "last_B",
    "group_B",
    "trained_B",
)


@dataclass(slots=True, eq=False)
class Pack:
    """The input of one forward. N tokens, B completions, C trained completion tokens.

    Packs compare by identity, so that plans can be cached by pack.
    """

    groups: list[Group]
    """Where the tokens come from, in order."""
    ids_N: Tensor
    """Token ids."""
    positions_N: Tensor
    """Positions; a completion starts at its prompt's length."""
    segments: list[Segment]
    """The tree, parents before children."""
    leaf_B: list[int]
    """Index into ``segments`` of the one that ends with each completion's last token."""
    source_C: Tensor
    """Index into N of the token whose output predicts the trained token."""
    target_C: Tensor
    """Token id of the trained token."""
    owner_C: Tensor
    """Index into B of the completion it belongs to; non-decreasing."""
    last_B: Tensor
    """Index into N of each completion's last token."""
    group_B: Tensor
    """Index into ``groups``."""
    trained_B: Tensor
    """Trained tokens of each completion (float)."""
    tokens: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Per-token data [C], by name, gathered from ``Completion.tokens``."""

    @property
    def size(self) -> int:
        """Tokens the forward computes."""
        return int(self.ids_N.shape[0])

    def to(self, device: torch.device | str) -> Pack:
        """The same pack with its tensors on ``device``."""
        if torch.device(device) == self.ids_N.device:
            return self
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return replace(self, **moved, tokens={k: v.to(device) for k, v in self.tokens.items()})


@dataclass(slots=True)
class Output:
    """The output of a forward; parts that were not computed are None."""

    logp_C: Tensor | None = None
    """Log-probs of the trained tokens, nats."""
    entropy_C: Tensor | None = None
    """Entropy of the distribution each trained token was drawn from, nats."""
    norm_C: Tensor | None = None
    """Log-sum-exp of the logits (over the temperature) that each trained token was drawn from, nats."""
    value_C: Tensor | None = None
    """Critic's value of the state before each trained token."""
    score_B: Tensor | None = None
    """Scalar score at each completion's last token."""
    step_C: Tensor | None = None
    """Log-odds that the step ending at each trained token is correct."""


def build(groups: Sequence[Group], *, share: bool = True) -> Pack:
    """One pack of all ``groups``.

    A lone completion and its prompt are one segment. With ``share`` False the prompt is repeated
    before each completion, and nothing that prompts begin with is shared, so that every sequence stands
    alone: the layout for architectures on which sharing is not exact.
    """
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    segments: list[Segment] = []
    leaf: list[int] = []
    source: list[np.ndarray] = []
    target: list[np.ndarray] = []
    owner: list[np.ndarray] = []
    last: list[int] = []
    group_of: list[int] = []
    trained: list[float] = []
    columns: dict[str, list[np.ndarray]] = {}
    cursor = 0

    def put(run: np.ndarray, first_position: int, parent: int) -> int:
        nonlocal cursor
        ids.append(run)
        positions.append(np.arange(first_position, first_position + len(run)))
        segments.append(Segment(cursor, len(run), parent))
        cursor += len(run)
        return cursor - len(run)

    sharing = groups if share else []
    stems, stem_of = find_stems([g.prompt for g in sharing], [g.cost for g in sharing])
    for stem in stems:  # the first segments, in this order
        put(groups[stem.first].prompt[stem.start : stem.stop], stem.start, stem.parent)

    names = {name for g in groups for c in g.completions for name in c.tokens}
    for g, group in enumerate(groups):
        width = len(group.prompt)
        assert width > 0, f"group {group.id} has an empty prompt"
        parent = stem_of[g] if share else -1
        begin = stems[parent].stop if parent >= 0 else 0
        own = group.prompt[begin:]
        source_of_first = -1
        shared = share and len(group.completions) > 1
        if shared or not group.completions:
            source_of_first = put(own, begin, parent) + len(own) - 1
            parent = len(segments) - 1
        for completion in group.completions:
            assert len(completion) > 0, f"group {group.id} has an empty completion"
            if shared:
                start = put(completion.ids, width, parent)
            else:
                start = put(np.concatenate([own, completion.ids]), begin, parent) + len(own)
                source_of_first = start - 1
            leaf.append(len(segments) - 1)
            before = np.arange(start - 1, start + len(completion) - 1)
            before[0] = source_of_first
            mask = completion.mask
            source.append(before[mask])
            target.append(completion.ids[mask])
            owner.append(np.full(int(mask.sum()), len(last)))
            last.append(start + len(completion) - 1)
            group_of.append(g)
            trained.append(float(mask.sum()))
            for name in names:
                columns.setdefault(name, []).append(completion.tokens[name][mask])

    def index(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts or [np.zeros(0)]).astype(np.int64))

    return Pack(
        groups=list(groups),
        ids_N=index(ids),
        positions_N=index(positions),
        segments=segments,
        leaf_B=leaf,
        source_C=index(source),
        target_C=index(target),
        owner_C=index(owner),
        last_B=torch.tensor(last, dtype=torch.int64),
        group_B=torch.tensor(group_of, dtype=torch.int64),
        trained_B=torch.tensor(trained, dtype=torch.float32),
        tokens={
            k: torch.from_numpy(np.concatenate(v).astype(np.float32)) for k, v in columns.items()
        },
    )


def plan(groups: Sequence[Group], budget: int, *, share: bool = True) -> list[list[Group]]:
    """Divide ``groups`` into lists that fit ``budget`` tokens each, none cut in two.

    First-fit on groups sorted by cost, largest first, gives the number of packs; then each group goes
    to the emptiest pack, since even packs are faster than a small last one. A group larger than the
    budget stands alone. The division never changes a result (invariant 3).
    """

    def cost(g: Group) -> int:
        return g.cost if share else g.cost + len(g.prompt) * max(0, len(g.completions) - 1)

    order = sorted(range(len(groups)), key=lambda i: (-cost(groups[i]), i))
    bins: list[list[Group]] = []
    room: list[int] = []
    for i in order:
        need = cost(groups[i])
        for b, left in enumerate(room):
            if need <= left:
                bins[b].append(groups[i])
                room[b] -= need
                break
        else:
            bins.append([groups[i]])
            room.append(budget - need)
    even: list[list[Group]] = [[] for _ in bins]
    load = [0] * len(bins)
    for i in order:
        b = load.index(min(load))
        even[b].append(groups[i])
        load[b] += cost(groups[i])
    return even if max(load, default=0) <= budget else bins


def packs(groups: Sequence[Group], budget: int, *, share: bool = True) -> list[Pack]:
    """``groups`` as packs of at most ``budget`` tokens (a larger group stands alone)."""
    return [build(part, share=share) for part in plan(groups, budget, share=share)]


def scatter(pack: Pack, columns: dict[str, Floats]) -> None:
    """Write per-token data [C] back onto the completions of ``pack`` (0 where not trained)."""
    counts = [int(n) for n in pack.trained_B.tolist()]
    starts = np.concatenate([[0], np.cumsum(counts)])
    done = [x for g in pack.groups for x in g.completions]
    for name, data in columns.items():
        for i, x in enumerate(done):
            row = np.zeros(len(x), dtype=np.float32)
            row[x.mask] = data[starts[i] : starts[i + 1]]
            x.tokens[name] = row

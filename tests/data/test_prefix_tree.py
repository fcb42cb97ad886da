"""Packs store what several prompts begin with once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.data.pack import build, path_to
from trimtab.data.prefix_tree import SHORTEST, SMALLEST_SAVING, Stem, find_stems
from trimtab.types import Completion, Group, Ints


def _group(number: int, prompt: Ints, *lengths: int) -> Group:
    ids = [np.arange(1000 * number + i, 1000 * number + i + n) for i, n in enumerate(lengths)]
    return Group(str(number), prompt, [Completion(x, np.ones(len(x), np.bool_)) for x in ids])


@st.composite
def _families(draw: st.DrawFn) -> list[Group]:
    """Groups whose prompts continue others, to any depth."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    prompts = [rng.integers(0, 3, draw(st.integers(1, 40)))]
    for _ in range(draw(st.integers(0, 12))):
        start = prompts[draw(st.integers(0, len(prompts) - 1))]
        kept = start[: draw(st.integers(0, len(start)))]
        prompts.append(np.concatenate([kept, rng.integers(0, 3, draw(st.integers(1, 40)))]))
    order = rng.permutation(len(prompts)).tolist()
    return [_group(i, prompts[i], *draw(st.lists(st.integers(1, 9), max_size=3))) for i in order]


@settings(max_examples=150, deadline=None)
@given(_families())
def test_every_completion_sees_its_own_prompt_and_no_other(groups: list[Group]) -> None:
    pack = build(groups)
    ids, positions = pack.ids_N.numpy(), pack.positions_N.numpy()
    pairs = [(g, c) for g in groups for c in g.completions]
    for b, (group, completion) in enumerate(pairs):
        path = path_to(pack.segments, pack.leaf_B[b])
        at = np.concatenate([np.arange(s.start, s.start + s.length) for s in path])
        want = np.concatenate([group.prompt, completion.ids])
        assert ids[at].tolist() == want.tolist()
        assert positions[at].tolist() == list(range(len(want)))
        sources = pack.source_C.numpy()[pack.owner_C.numpy() == b]
        assert sources.tolist() == at[len(group.prompt) - 1 : -1].tolist()
        assert int(pack.last_B[b]) == at[-1]
    assert all(s.parent < i for i, s in enumerate(pack.segments))
    assert pack.size == sum(s.length for s in pack.segments) <= sum(g.cost for g in groups)


@settings(max_examples=150, deadline=None)
@given(_families())
def test_stems_are_worth_their_call(groups: list[Group]) -> None:
    costs = [g.cost for g in groups]
    stems, of_prompt = find_stems([g.prompt for g in groups], costs)
    for i, stem in enumerate(stems):
        assert stem.parent < i and stem.stop - stem.start >= SHORTEST
        assert stem.start == (stems[stem.parent].stop if stem.parent >= 0 else 0)
    for i, stem in enumerate(stems):
        members = [
            k for k, g in enumerate(groups)
            if np.array_equal(g.prompt[: stem.stop], groups[stem.first].prompt[: stem.stop])
            and len(g.prompt) > stem.stop
        ]  # fmt: skip
        below = [k for k in members if _continues(stems, of_prompt[k], i)]
        saved = (len(below) - 1) * (stem.stop - stem.start)
        assert saved >= SMALLEST_SAVING * sum(costs[k] for k in below)
    assert all(
        s < 0 or stems[s].stop < len(g.prompt) for s, g in zip(of_prompt, groups, strict=True)
    )


def _continues(stems: list[Stem], stem: int, above: int) -> bool:
    while stem >= 0 and stem != above:
        stem = stems[stem].parent
    return stem == above


def test_a_system_prompt_is_stored_once_and_tools_below_it() -> None:
    system, tools = np.arange(50), np.arange(100, 140)
    groups = [
        _group(0, np.concatenate([system, [901]]), 4),
        _group(1, np.concatenate([system, tools, [902]]), 5, 6),
        _group(2, np.concatenate([system, tools, [903]]), 7),
        _group(3, np.array([904, 905]), 8),
    ]
    pack = build(groups)
    assert pack.size == 50 + 40 + (1 + 4) + (1 + 5 + 6) + (1 + 7) + (2 + 8)
    assert len(path_to(pack.segments, pack.leaf_B[1])) == 4
    assert build(groups, share=False).size == sum(
        len(g.prompt) + len(c) for g in groups for c in g.completions
    )


@pytest.mark.parametrize(("turns", "left"), [(3, 0.7), (400, 0.1)])
def test_turns_of_a_conversation_continue_each_other(turns: int, left: float) -> None:
    """Each turn's prompt contains the turn before; many turns do not make a tree of many levels."""
    talk = np.arange(20 * turns)
    groups = [_group(100 + i, talk[: 20 * (i + 1)], 3) for i in range(turns)]
    stems, of_prompt = find_stems([g.prompt for g in groups], [g.cost for g in groups])
    assert len(stems) >= 2 and stems[of_prompt[-1]].stop > 0.9 * 20 * (turns - 1)
    pack = build(groups)
    assert pack.size < left * sum(g.cost for g in groups)
    path = path_to(pack.segments, pack.leaf_B[-1])
    assert sum(s.length for s in path) == 20 * turns + 3 and len(path) < 30

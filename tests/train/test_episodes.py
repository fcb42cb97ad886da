"""An episode counts once, however many completions it was split into; tokens between turns never do."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.objectives.kl import FixedKL
from trimtab.objectives.methods import METHODS
from trimtab.rewards.shape import Length, Overlong, Shaper, ShapeSpec, Truncated
from trimtab.train.advantages import assign_advantages
from trimtab.train.scored import episode_kls, rollout_metrics, sample_rows
from trimtab.types import Completion, Group, Turn


def completion(mask: str, reward: float, episode: int | None = None, start: int = 5) -> Completion:
    """A completion with a token per sign of ``mask``, "x" where it is the policy's."""
    n = len(mask)
    on = np.array([m == "x" for m in mask])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], on.astype(int), [0]])))
    turns = [Turn(int(a), int(b), "stop") for a, b in edges.reshape(-1, 2)]
    tokens = {
        "sampler_logp": np.where(on, -1.0, 7.0).astype(np.float32),
        "old_logp": np.where(on, -1.0, 7.0).astype(np.float32),
        "ref_logp": np.where(on, -1.5, 0.0).astype(np.float32),
    }
    return Completion(
        np.arange(start, start + n), on, turns=turns, episode=episode, reward=reward, tokens=tokens
    )


def group(*completions: Completion) -> Group:
    return Group("g", np.array([1, 2, 3]), list(completions))


WHOLE = [("xx..xxx..x", 1.0), ("xxxx", 0.0), ("x.xx", 0.25)]


@pytest.mark.parametrize("name", ["grpo", "rloo", "dr_grpo", "reinforce_pp"])
@pytest.mark.parametrize("place", ["none", "sequence"])
def test_a_split_episode_gives_every_episode_the_advantage_of_the_whole(
    name: str, place: str
) -> None:
    method = METHODS[name](kl=FixedKL(place=place, beta=0.1), advantage={"whiten": False})  # pyright: ignore[reportArgumentType]
    whole = group(*(completion(m, r, i) for i, (m, r) in enumerate(WHOLE)))
    first, *others = WHOLE
    parts = [completion("xx..xxx", first[1], 0), completion("...x", first[1], 0)]
    split = group(*parts, *(completion(m, r, i + 1) for i, (m, r) in enumerate(others)))
    metrics = [assign_advantages([g], method, 0.1) for g in (whole, split)]

    def advantages(g: Group) -> list[list[float]]:
        return [
            np.concatenate([c.tokens["advantage"][c.mask] for c in e]).tolist() for e in g.episodes
        ]

    for one, other in zip(advantages(whole), advantages(split), strict=True):
        assert np.allclose(one, other, atol=1e-6)
    assert metrics[0]["reward/final"] == metrics[1]["reward/final"]
    if place == "sequence":
        assert metrics[0]["objective/kl"] == pytest.approx(metrics[1]["objective/kl"])
    # Without the episode's number it would count twice.
    for c in split.completions:
        c.episode = None
    assign_advantages([split], method, 0.1)
    if name in ("grpo", "rloo", "dr_grpo"):
        assert not np.allclose(advantages(whole)[1], advantages(split)[2], atol=1e-3)


def test_lengths_and_kl_count_tokens_of_turns_only() -> None:
    g = group(completion("xx....xx", 1.0), completion("xxxx", 1.0))
    spec = ShapeSpec(length=Length(target=2), overlong=Overlong(max_length=5, cache=2))
    metrics = Shaper(spec)([g])
    assert [c.penalties for c in g.completions] == [{"length": -1.0, "overlong": -0.5}] * 2
    assert metrics["reward/final"] == pytest.approx(-0.5)
    assert episode_kls([g]) == pytest.approx([2.0, 2.0])
    assert rollout_metrics(g.completions, ())["completion/length"] == 4.0
    rows = sample_rows([g])
    assert [r["tokens"] for r in rows] == [4, 4] and [r["turns"] for r in rows] == [2, 1]
    assert [r["nll_reference"] for r in rows] == [1.5, 1.5]


def test_penalties_are_of_the_whole_episode() -> None:
    parts = [completion("xxx", 1.0, 0), completion("..xx", 1.0, 0), completion("xx", 0.0, 1)]
    parts[1].status = "truncated"
    g = group(*parts)
    metrics = Shaper(ShapeSpec(length=Length(target=2), truncated=Truncated(weight=2.0)))([g])
    expected = {"length": -1.5, "truncated": -2.0}
    assert parts[0].penalties == parts[1].penalties == expected
    assert [c.reward for c in parts] == [-2.5, -2.5, 0.0]
    assert metrics["reward/raw"] == 0.5
    metrics = rollout_metrics(parts, (), [e[-1] for e in g.episodes])
    assert metrics["reward/mean"] == -1.25 and metrics["completion/length"] == 7 / 3


def test_completions_that_go_on_after_their_end_are_counted() -> None:
    ids = [[4, 5, 2], [4, 2, 5], [4, 5, 6]]
    made = [Completion(np.array(x), np.ones(3, np.bool_)) for x in ids]
    assert rollout_metrics(made, (2,))["completion/after_end"] == pytest.approx(1 / 3)
    assert "completion/after_end" not in rollout_metrics(made[:1], (2,))

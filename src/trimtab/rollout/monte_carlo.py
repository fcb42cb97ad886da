"""Monte-Carlo values: what a policy reaches from a state, by going on from it K times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trimtab.data.render import Renderer
from trimtab.sample.sampler import Progress, Request, Sampler, SamplingConfig
from trimtab.types import Completion, Floats, Group, Ints


@dataclass(slots=True)
class StateValues:
    """Rewards reached from each state of a completion of S steps.

    >>> StateValues(np.array([2, 5]), [[0.0, 1.0], [1.0, 1.0], [1.0]]).values.tolist()
    [0.5, 1.0, 1.0]
    """

    ends: Ints
    """Index of each step's last token [S]."""
    returns: list[list[float]]
    """For each of the S + 1 states, the rewards of the continuations that could be scored; a
    state that ends the completion has its own reward alone."""

    @property
    def values(self) -> Floats:
        """Mean reward [S + 1]; NaN where no continuation could be scored."""
        return np.array([np.mean(r) if r else np.nan for r in self.returns], dtype=np.float32)


def monte_carlo_values(
    sampler: Sampler,
    renderer: Renderer,
    groups: Sequence[Group],
    rewards: Callable[[Sequence[Group]], None],
    sampling: SamplingConfig,
    ends: Callable[[Ints], Ints],
    k: int,
    key: tuple[int, ...],
    on_progress: Progress | None = None,
) -> list[list[StateValues]]:
    """V(s) = mean reward of ``k`` continuations from s, at every step end (2410.01679).

    The state after a step is the prompt's ids followed by the completion's up to there, exactly
    as sampled. A continuation may use only the tokens that the completion has left of
    ``max_new_tokens``, and is judged whole, with what it continues. The value of the prompt is
    shared by the completions of a group.

    Args:
        sampler: Over the policy whose values these are.
        renderer: Turns ids back into completions.
        groups: Prompts with sampled completions; not changed.
        rewards: Fills ``Completion.reward`` of groups, None where one could not be scored.
        sampling: As for the completions themselves; ``max_new_tokens`` bounds the whole answer.
        ends: The last token of each step of a completion's ids, as ``Steps.ends``.
        k: Continuations a state.
        key: Starts every stream's key; the group, completion and state follow.
        on_progress: Told how many of how many continuations are done.

    Returns:
        For each group, the values of each completion.
    """
    values: list[list[StateValues]] = []
    requests: list[Request] = []
    pending: list[tuple[Group, Ints, list[float]]] = []
    judged: list[tuple[Group, list[Completion], list[float]]] = []

    def ask(group: Group, prefix: Ints, key: tuple[int, ...], into: list[float]) -> None:
        prompt = np.concatenate([group.prompt, prefix])
        requests.append(Request(prompt, key, k, sampling.max_new_tokens - len(prefix)))
        pending.append((group, prefix, into))

    for i, group in enumerate(groups):
        start: list[float] = []
        if group.completions:
            ask(group, np.zeros(0, np.int64), (*key, i, 0, 0), start)
        group_values: list[StateValues] = []
        for j, c in enumerate(group.completions):
            at = ends(c.ids)
            returns = [start, *([] for _ in at)]
            for s, end in enumerate(at.tolist(), 1):
                prefix = c.ids[: end + 1]
                over = len(prefix) >= sampling.max_new_tokens
                if (
                    over
                    or int(prefix[-1]) in sampler.stop_ids
                    or (end + 1 == len(c) and c.finish == "stop")
                ):
                    judged.append((group, [replace(c, scores={}, reward=None)], returns[s]))
                else:
                    ask(group, prefix, (*key, i, j, s), returns[s])
            group_values.append(StateValues(at, returns))
        values.append(group_values)
    for (group, prefix, into), answers in zip(
        pending, sampler(requests, sampling, on_progress), strict=True
    ):
        completions = [
            renderer.completion(np.concatenate([prefix, a.ids]), a.finish) for a in answers
        ]
        judged.append((group, completions, into))
    scored = [replace(group, completions=completions) for group, completions, _ in judged]
    rewards(scored)
    for group, (_, _, into) in zip(scored, judged, strict=True):
        into += [c.reward for c in group.completions if c.reward is not None]
    return values

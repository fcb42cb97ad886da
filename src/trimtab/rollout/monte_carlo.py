"""Monte-Carlo state values: the mean reward of K continuations sampled from a state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trimtab.data.render import Renderer
from trimtab.rollout.engine import Engine, generate
from trimtab.sample.sampler import Progress, Request, SamplingConfig
from trimtab.types import Completion, Floats, Group, Ints


@dataclass(slots=True)
class StateValues:
    """Rewards reached from each state of a completion of S reasoning steps.

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
    engine: Engine,
    renderer: Renderer,
    groups: Sequence[Group],
    rewards: Callable[[Sequence[Group]], None],
    sampling: SamplingConfig,
    ends: Callable[[Ints], Ints],
    k: int,
    key: tuple[int, ...],
    on_progress: Progress | None = None,
) -> list[list[StateValues]]:
    """V(s) = mean reward of ``k`` continuations from s, at the end of every reasoning step (2410.01679).

    The state after a reasoning step is the prompt's ids followed by the completion's ids up to the
    end of the step, exactly as sampled. A continuation may use only the tokens that the completion
    has left of ``max_new_tokens``. It is scored together with the part that it continues. The value
    of the prompt is shared by the completions of a group.

    Args:
        engine: Samples from the policy whose values are estimated.
        groups: Prompts with sampled completions; not changed.
        rewards: Fills ``Completion.reward`` of groups, None where one could not be scored.
        sampling: As for the completions; ``max_new_tokens`` includes the part that is continued.
        ends: Index of the last token of each reasoning step of a completion, as ``Steps.ends``.
        key: Start of each random stream's key; the group, completion and state are appended.
        on_progress: Called with the number of finished continuations and their total.

    Returns:
        For each group, the values of each completion.
    """
    values: list[list[StateValues]] = []
    requests: list[Request] = []
    pending: list[tuple[Group, Ints, list[float]]] = []
    to_score: list[tuple[Group, list[Completion], list[float]]] = []

    def request(group: Group, prefix: Ints, key: tuple[int, ...], into: list[float]) -> None:
        prompt = np.concatenate([group.prompt, prefix])
        requests.append(Request(prompt, key, k, sampling.max_new_tokens - len(prefix)))
        pending.append((group, prefix, into))

    for i, group in enumerate(groups):
        start: list[float] = []
        if group.completions:
            request(group, np.zeros(0, np.int64), (*key, i, 0, 0), start)
        group_values: list[StateValues] = []
        for j, c in enumerate(group.completions):
            at = ends(c.ids)
            returns = [start, *([] for _ in at)]
            for s, end in enumerate(at.tolist(), 1):
                prefix = c.ids[: end + 1]
                over = len(prefix) >= sampling.max_new_tokens
                if (
                    over
                    or int(prefix[-1]) in engine.stop_ids
                    or (end + 1 == len(c) and c.finish == "stop")
                ):
                    to_score.append((group, [replace(c, scores={}, reward=None)], returns[s]))
                else:
                    request(group, prefix, (*key, i, j, s), returns[s])
            group_values.append(StateValues(at, returns))
        values.append(group_values)
    for (group, prefix, into), samples in zip(
        pending, generate(engine, requests, sampling, on_progress), strict=True
    ):
        completions = [
            renderer.completion(np.concatenate([prefix, a.ids]), a.finish) for a in samples
        ]
        to_score.append((group, completions, into))
    scored = [replace(group, completions=completions) for group, completions, _ in to_score]
    rewards(scored)
    for group, (_, _, into) in zip(scored, to_score, strict=True):
        into += [c.reward for c in group.completions if c.reward is not None]
    return values

"""A conversation with the model as messages and as tokens, of which none is tokenised twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trimtab.data.conversation import Message
from trimtab.data.piece_tokens import shared_length
from trimtab.data.render import readable
from trimtab.errors import DataError
from trimtab.sample.sampler import Sampled
from trimtab.types import Bools, Completion, Floats, Group, Row, Score, Spans, Status, Turn


@dataclass(slots=True)
class Thread:
    """One context that grows: the first prompt, then turns of the model and tokens between them."""

    prompt: list[int]
    """Ids of the first context [P]."""
    messages: list[Message]
    """The conversation, the model's turns included."""
    opening: int = 0
    """Messages of the first context."""
    ids: list[int] = field(default_factory=list[int])
    """Ids after the first context: turns, and what is between them."""
    logp: list[float] = field(default_factory=list[float])
    """The sampler's log-prob of each of ``ids``; 0 between turns."""
    turns: list[Turn] = field(default_factory=list[Turn])
    versions: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    """Weight versions of turns, as spans of ``ids``."""

    @property
    def context(self) -> list[int]:
        """All ids so far: what the next turn is sampled from."""
        return self.prompt + self.ids

    def extend(self, ids: Sequence[int], messages: Sequence[Message]) -> None:
        """Add what is between two turns."""
        self.ids += ids
        self.logp += [0.0] * len(ids)
        self.messages += messages

    def add_turn(self, sampled: Sampled, message: Message) -> None:
        """Add a turn of the model."""
        start = len(self.ids)
        self.ids += sampled.ids.tolist()
        self.logp += sampled.logp.tolist()
        self.messages.append(message)
        self.turns.append(Turn(start, len(self.ids), sampled.finish))
        self.versions += [(start + a, start + b, v) for a, b, v in sampled.versions]

    def completion(self, shared: int, episode: int | None, status: Status) -> Completion:
        """The thread as a completion after the first ``shared`` tokens of its context."""
        own = len(self.prompt) - shared
        ids = np.array([*self.prompt[shared:], *self.ids], dtype=np.int64)
        mask: Bools = np.zeros(len(ids), dtype=np.bool_)
        logp: Floats = np.array([*([0.0] * own), *self.logp], dtype=np.float32)
        turns = [Turn(t.start + own, t.stop + own, t.finish) for t in self.turns]
        for turn in turns:
            mask[turn.start : turn.stop] = True
        messages = [
            {k: v for k, v in m.items() if k != "raw"} for m in self.messages[self.opening :]
        ]
        return Completion(
            ids,
            mask,
            readable(messages) if messages else "",
            messages=messages,
            finish=self.turns[-1].finish if self.turns else "stop",
            version=self.versions[0][2] if self.versions else -1,
            versions=_covering(self.versions, own),
            tokens={"sampler_logp": logp},
            turns=turns,
            status=status,
            episode=episode,
        )


def _covering(versions: Sequence[tuple[int, int, int]], own: int) -> Spans:
    """Spans of turns, ``own`` tokens later, in which the tokens before a turn belong to its span."""
    starts = [0, *(b + own for _, b, _ in versions)]
    return tuple((start, b + own, v) for start, (_, b, v) in zip(starts, versions, strict=False))


@dataclass(slots=True)
class Episode:
    """What one rollout of a prompt gave: its threads, how it ended, and its rewards."""

    threads: list[Thread]
    """One, and another one for each time that an agent edited its context."""
    status: Status = "ok"
    detail: str = ""
    """Why it ended otherwise than "ok"."""
    scores: dict[str, Score] = field(default_factory=dict[str, Score])
    """Rewards of the environment, by name."""
    extra: Row = field(default_factory=dict[str, object])
    """Values for reward functions, by name."""


def episode_group(prompt: Group, episodes: Sequence[Episode]) -> Group:
    """The group of a prompt's episodes: what all contexts begin with is its prompt.

    Turns of an episode with several threads are completions with the same episode number. An episode
    without a turn has one empty completion.

    Raises:
        DataError: the contexts begin with different tokens.
    """
    contexts = [t.prompt for e in episodes for t in e.threads if t.turns]
    shared = shared_length(contexts) if contexts else 0
    if contexts and not shared:
        raise DataError(
            f"prompt {prompt.id}: the contexts of its episodes have no first token in common; use a chat "
            "template that begins every conversation alike (model.chat_template)"
        )
    group = Group(
        prompt.id,
        np.array(contexts[0][:shared], dtype=np.int64) if shared else prompt.prompt,
        [],
        prompt.text,
        prompt.extra,
        prompt.prefill,
    )
    for number, episode in enumerate(episodes):
        threads = [t for t in episode.threads if t.turns]
        parts = [t.completion(shared, number, episode.status) for t in threads]
        if not parts:
            none = np.zeros(0, dtype=np.int64)
            parts = [Completion(none, none.astype(np.bool_), episode=number, status=episode.status)]
        for part in parts:
            part.extra, part.scores = episode.extra, dict(episode.scores)
        group.completions += parts
    return group

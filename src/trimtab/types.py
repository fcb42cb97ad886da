"""The one data shape: a prompt with its completions.

A demonstration is a prompt with one completion, a comparison a prompt with two or K ranked ones,
a rollout a prompt with G scored ones. Token ids are the truth: text is tokenised once, when a
``Group`` is made, and what the sampler emitted is what is trained on.

Shape letters used in names and comments throughout the package:
``P`` prompt tokens, ``T`` tokens of one completion, ``K`` or ``G`` completions of a group,
``N`` tokens of a pack, ``C`` trained completion tokens of a pack, ``B`` completions of a pack.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Row = dict[str, Any]
"""One row of a dataset, or one line of a JSON lines file: values by column."""

Spans = tuple[tuple[int, int, int], ...]
"""(start, stop, weight version) of consecutive tokens; together they cover all of them."""

Finish = Literal["stop", "length", "given"]
"""Why a completion ended: a stop id or string, the token limit, or it came with the data."""

Status = Literal["ok", "failed", "timeout", "truncated"]
"""How an episode ended: as it should; an error of the environment, an engine or a tool call that took
too long, both without a reward; or a limit on turns, tokens or observations."""


@dataclass(slots=True)
class Score:
    """One part of a completion's reward.

    >>> Score(value=0.5).ok
    True
    >>> Score(value=None, status="timeout").ok
    False
    """

    value: float | None
    """The raw number; None unless ``status`` is "ok". Failure is a status, never a number."""
    status: str = "ok"
    """"ok", "error", "timeout", "invalid" or "truncated"; "masked" where the part has nothing to say
    about this completion, so that the other parts are its reward."""
    detail: str = ""
    """What went wrong, in a sentence; empty when nothing did."""

    @property
    def ok(self) -> bool:
        """Whether the value may be used."""
        return self.status == "ok" and self.value is not None


@dataclass(slots=True)
class Turn:
    """A run of tokens of a completion that the policy emitted without interruption."""

    start: int
    """Index of its first token in the completion."""
    stop: int
    """Index after its last token."""
    finish: Finish
    """Why it ended."""


@dataclass(slots=True)
class Completion:
    """One completion of a prompt, with its history. An episode of several turns is a completion whose
    mask is False on the tokens between turns: results of tools, messages of users, headers.

    >>> c = Completion(ids=np.array([5, 6, 2]), mask=np.array([True, True, True]), text="a b")
    >>> len(c)
    3
    """

    ids: Ints
    """Token ids [T], the terminating end-of-sequence token included when there was one."""
    mask: Bools
    """[T], True on tokens that are trained on (assistant turns and their end tokens)."""
    text: str = ""
    """The completion as a person reads it, without special tokens."""
    messages: list[dict[str, Any]] | None = None
    """Its turns with all their fields, where it came with conversational data."""
    rank: int | None = None
    """Place among the group's completions: 0 is best, equal ranks tie; None when not compared."""
    margin: float = 0.0
    """How much better than the next rank it was judged (Llama-2 margin), 0 when unknown."""
    finish: Finish = "given"
    """Why it ended; "length" for data that was truncated to ``max_completion_length``."""
    version: int = -1
    """Weight version (optimiser steps done) of the policy that sampled its first token; -1 for data."""
    versions: Spans = ()
    """Weight version of every token, where the rollout engine says it."""
    scores: dict[str, Score] = field(default_factory=dict[str, Score])
    """Reward parts by name, raw."""
    reward: float | None = None
    """The final sequence reward after weighting and shaping; None when it could not be scored."""
    raw_reward: float | None = None
    """The weighted sum before shaping: what filters look at. None until shaped."""
    shaped_reward: float | None = None
    """Whitened and clipped, before penalties."""
    penalties: dict[str, float] = field(default_factory=dict[str, float])
    """What shaping added, by name; negative lowers ``reward``."""
    tokens: dict[str, Floats] = field(default_factory=dict[str, Floats])
    """Per-token data, each [T] and aligned with ``ids``: "sampler_logp", "old_logp", "ref_logp",
    "value", "advantage", "return". Entries where ``mask`` is False are ignored."""
    experts: npt.NDArray[np.int16] | None = None
    """[P + T, layers, experts per token]: the experts that the tokens of its prompt and its own took when it was
    scored, where they are recorded (``models.routing``); not stored."""
    turns: list[Turn] = field(default_factory=list[Turn])
    """The turns that the policy emitted, in order; empty where it emitted every token in one."""
    status: Status = "ok"
    """How the episode ended."""
    episode: int | None = None
    """Number of its episode in the group: where an agent edits its context, an episode has several
    completions, with one reward and one advantage. None: the completion is an episode by itself."""
    extra: Row = field(default_factory=dict[str, Any])
    """Values passed to reward functions by name, as columns are; not stored."""

    def __post_init__(self) -> None:
        assert self.ids.ndim == 1 and self.ids.shape == self.mask.shape, (
            self.ids.shape,
            self.mask.shape,
        )

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def trained(self) -> int:
        """Number of tokens trained on."""
        return int(self.mask.sum())

    @property
    def emitted(self) -> Bools:
        """[T], True on tokens of turns, whether they are trained on or not."""
        if not self.turns:
            return np.ones(len(self), dtype=np.bool_)
        emitted = np.zeros(len(self), dtype=np.bool_)
        for turn in self.turns:
            emitted[turn.start : turn.stop] = True
        return emitted

    @property
    def truncated(self) -> bool:
        """Whether a limit ended it."""
        return self.finish == "length" or self.status == "truncated"


@dataclass(slots=True)
class Group:
    """A prompt and its completions.

    >>> g = Group(id="0", prompt=np.array([1, 7]), completions=[])
    >>> g.cost
    2
    """

    id: str
    """Stable id of the prompt within its dataset."""
    prompt: Ints
    """Prompt token ids [P], P >= 1 (the beginning-of-sequence token or the template's header)."""
    completions: list[Completion]
    """Their order has no meaning, ``Completion.rank`` does."""
    text: str = ""
    """The prompt as a person reads it."""
    extra: Row = field(default_factory=dict[str, Any])
    """Other columns of the row, passed to reward functions by name."""
    prefill: str = ""
    """What the chat template wrote of every completion at the end of the prompt: "<think>"."""

    @property
    def cost(self) -> int:
        """Tokens a forward computes for the group: the prompt once, then every completion."""
        return int(self.prompt.shape[0]) + sum(len(c) for c in self.completions)

    @property
    def episodes(self) -> list[list[Completion]]:
        """The completions by episode, in order of their first ones."""
        episodes: dict[tuple[bool, int], list[Completion]] = {}
        for i, c in enumerate(self.completions):
            key = (False, i) if c.episode is None else (True, c.episode)
            episodes.setdefault(key, []).append(c)
        return list(episodes.values())

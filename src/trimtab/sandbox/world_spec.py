"""Which prompts a world has, and which of them are held out by name, kind or length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from trimtab.config import Config
from trimtab.errors import DataError
from trimtab.sandbox.scene import KINDS, NAMES, Kind, Scene
from trimtab.sandbox.world import make_scene

Split = Literal["names", "kinds", "people"]
SPLITS: tuple[Split, ...] = ("names", "kinds", "people")
HELD_OUT = 10_000_000
"""Index of the first held-out scene of a seed."""
_TRIES = 200
"""Draws per scene of the split by name."""


class HeldOutSpec(Config):
    """What no prompt of training has. Each part that is not empty is a test set of its own."""

    names: tuple[str, ...] = ()
    """People. The test prompts ask about one of them."""
    kinds: tuple[Kind, ...] = ()
    people: tuple[int, ...] = ()
    """Lengths of the passage: numbers of people."""


class WorldSpec(Config):
    """The distribution of prompts. The default is the world of the packaged recipes."""

    kinds: tuple[Kind, ...] = Field(default=KINDS, min_length=1)
    """Kinds of prompts, equally likely. A kind that is named twice is twice as likely."""
    people: tuple[int, int] = (3, 3)
    """The fewest and most people of a passage, all numbers between them equally likely."""
    held_out: HeldOutSpec = HeldOutSpec()
    """Prompts that are held out of training, as test sets of another distribution."""

    @model_validator(mode="after")
    def _check(self) -> WorldSpec:
        low, high = self.people
        if not 2 <= low <= high <= len(NAMES) - 1:
            raise ValueError(f"people: {low} to {high} is no range between 2 and {len(NAMES) - 1}")
        if unknown := set(self.held_out.names) - set(NAMES):
            raise ValueError(
                f"held_out.names: {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}"
            )
        if len(self._names) <= high:
            raise ValueError(
                f"held_out.names leaves {len(self._names)} people, but a passage about {high} needs "
                f"{high + 1}; hold out fewer names or lower people"
            )
        for key, values, trained in (
            ("kinds", self.held_out.kinds, self._kinds),
            ("people", self.held_out.people, self._sizes),
        ):
            offered = self.kinds if key == "kinds" else range(low, high + 1)
            if absent := [v for v in values if v not in offered]:
                raise ValueError(f"held_out.{key}: {absent[0]} is not in {key}; add it there")
            if not trained:
                raise ValueError(f"held_out.{key} leaves nothing to train on")
        return self

    @property
    def splits(self) -> tuple[Split, ...]:
        """The test sets of another distribution."""
        return tuple(name for name in SPLITS if getattr(self.held_out, name))

    def scene(self, seed: int, index: int) -> Scene:
        """Scene ``index`` of ``seed``, with nothing that is held out."""
        rng = np.random.default_rng((seed, 7, index))
        return self._draw(rng, self._kinds, self._sizes, self._names)

    def scenes(
        self, n: int, seed: int, start: int = 0, used: Sequence[Scene] = ()
    ) -> Iterator[Scene]:
        """``n`` scenes from index ``start`` on, without those whose prompt is in ``used``.

        Raises:
            DataError: fewer than ``n`` new prompts in 100 * ``n`` draws.
        """
        prompts = {s.prompt for s in used}
        count = 0
        for index in range(start, start + 100 * n):
            scene = self.scene(seed, index)
            if scene.prompt in prompts:
                continue
            yield scene
            count += 1
            if count == n:
                return
        raise DataError(
            f"only {count} of {n} prompts differ from those of the other files; allow more kinds, "
            "people or names, or ask for fewer"
        )

    def held_out_scenes(self, split: Split, n: int, seed: int) -> list[Scene]:
        """``n`` scenes that differ from those of training in what ``split`` names, and in nothing
        else: kinds and lengths have the frequencies that they have in training."""
        kinds = self.held_out.kinds if split == "kinds" else self._kinds
        sizes = self.held_out.people if split == "people" else self._sizes
        names = NAMES if split == "names" else self._names
        streams = [
            np.random.default_rng((seed, 17, SPLITS.index(split), HELD_OUT + i)) for i in range(n)
        ]
        if split != "names":
            return [self._draw(rng, kinds, sizes, names) for rng in streams]
        return [self._about_held_out(rng, kinds, sizes) for rng in streams]

    def _about_held_out(
        self, rng: np.random.Generator, kinds: Sequence[Kind], sizes: Sequence[int]
    ) -> Scene:
        # Kind and length are drawn once, so that rejection does not change their frequencies.
        kind, size = kinds[int(rng.integers(len(kinds)))], sizes[int(rng.integers(len(sizes)))]
        for _ in range(_TRIES):
            scene = make_scene(rng, kind, size)
            about = [scene.query.who] if scene.query is not None else [f.who for f in scene.facts]
            if set(about) & set(self.held_out.names):
                return scene
        raise DataError(
            f"held_out.names: no passage about them in {_TRIES} draws; name more people"
        )

    @staticmethod
    def _draw(
        rng: np.random.Generator, kinds: Sequence[Kind], sizes: Sequence[int], names: Sequence[str]
    ) -> Scene:
        kind = kinds[int(rng.integers(len(kinds)))]
        # One length needs no draw: the world without the option stays as it was.
        size = sizes[0] if len(sizes) == 1 else sizes[int(rng.integers(len(sizes)))]
        return make_scene(rng, kind, size, names)

    @property
    def _kinds(self) -> tuple[Kind, ...]:
        return tuple(k for k in self.kinds if k not in self.held_out.kinds)

    @property
    def _sizes(self) -> tuple[int, ...]:
        low, high = self.people
        return tuple(n for n in range(low, high + 1) if n not in self.held_out.people)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(n for n in NAMES if n not in self.held_out.names)

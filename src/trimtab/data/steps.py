"""Reasoning steps: where they end in token ids, and solutions of labelled steps as groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.data.formats import Example
from trimtab.data.piece_tokens import continuation
from trimtab.data.render import Renderer
from trimtab.errors import ConfigError, DataError
from trimtab.types import Completion, Finish, Group, Ints


class Steps:
    """Cuts completions into steps by the tokens of a separator.

    A step ends with a token whose text ends with the separator ("\\n", but also ".\\n"), or with
    the separator's own run of tokens. An empty run between two separators is not a step.

    Args:
        renderer: Whose tokens the completions are in.
        separator: Text between steps; rendered steps are each followed by it.

    Raises:
        ConfigError: the tokenizer has no token for the separator.
    """

    def __init__(self, renderer: Renderer, separator: str = "\n") -> None:
        self.renderer = renderer
        self.separator = separator
        self.ids = self._raw(separator)
        if not separator or len(self.ids) == 0:
            raise ConfigError(
                f"separator: the tokenizer has no token for {separator!r}, so steps would have no end; "
                "choose a text that is in its vocabulary"
            )
        tokenizer: Any = renderer.tokenizer
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        # A model may have more ids than its tokenizer has texts; those end no step.
        self._closing = np.flatnonzero([t.endswith(separator) for t in texts])

    def _raw(self, text: str) -> Ints:
        """The ids of a text that follows another."""
        return np.array(continuation(self.renderer.tokenizer, text)[0], dtype=np.int64)

    def text(self, ids: Ints) -> str:
        """A step as a person reads it, without its separator."""
        text: str = self.renderer.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return text.strip().removesuffix(self.separator.strip()).strip()

    def cuts(self, ids: Ints) -> Ints:
        """Index of the last token of each step that a separator closes; what follows belongs to none."""
        width = len(self.ids)
        closed = np.isin(ids, self._closing)
        for end in range(width - 1, len(ids)):
            if np.array_equal(ids[end - width + 1 : end + 1], self.ids):
                closed[end] = True
        cuts: list[int] = []
        start = 0
        for end in np.flatnonzero(closed).tolist():
            if self.text(ids[start : end + 1]):
                cuts.append(end)
                start = end + 1
        return np.array(cuts, dtype=np.int64)

    def ends(self, ids: Ints) -> Ints:
        """Index of each step's last token [S], S >= 1: the last step ends at the last token.

        So the end-of-sequence token belongs to the last step and shares its advantage.
        """
        cuts = self.cuts(ids)
        last = len(ids) - 1
        if len(cuts) and not self.text(ids[cuts[-1] + 1 :]):
            cuts[-1] = last
            return cuts
        return np.append(cuts, last)

    def texts(self, ids: Ints) -> list[str]:
        """The text of each step [S]."""
        return [self.text(part) for part in np.split(ids, self.ends(ids)[:-1] + 1)]

    def closed(self, ids: Ints) -> tuple[Ints, Ints]:
        """The ids as a process reward model was trained to read them, and where to read [S].

        In training a separator also followed the last step, where a sampled completion has its end token.
        """
        cuts = self.cuts(ids)
        tail = ids[cuts[-1] + 1 :] if len(cuts) else ids
        if len(cuts) and not self.text(tail):
            return ids[: cuts[-1] + 1], cuts
        body = ids[:-1] if int(ids[-1]) in self.renderer.stop_ids else ids
        closed_ids = np.concatenate([body, self.ids])
        return closed_ids, np.append(cuts, len(closed_ids) - 1)

    def group(self, example: Example) -> Group | None:
        """A prompt with one completion: its steps, each followed by the separator.

        ``mask`` is True on the last token of each step, where ``tokens["step_label"]`` has its
        label (0 without labels). Steps that end past the renderer's ``max_completion_length`` are
        dropped, and so is the row (None) when no step fits or the prompt is too long.

        Raises:
            DataError: something is too long and the renderer's ``on_long`` is "error".
        """
        group = self.renderer.prompt(example)
        if group is None:
            return None
        parts = [np.concatenate([self._raw(str(s)), self.ids]) for s in example.completions]
        ends = np.cumsum([len(p) for p in parts]) - 1
        fitting = int((ends < self.renderer.max_completion_length).sum())
        if fitting < len(parts):
            limit = self.renderer.max_completion_length
            why = f"row {example.row}: steps have {ends[-1] + 1} tokens, over {limit}"
            if self.renderer.on_long == "error":
                raise DataError(f"{example.source or 'data'}: {why}; raise max_completion_length")
            (self.renderer.cut if fitting else self.renderer.dropped).append(why)
            if not fitting:
                return None
        ids = np.concatenate(parts[:fitting])
        self.renderer.check_ids(ids)
        mask = np.zeros(len(ids), dtype=bool)
        mask[ends[:fitting]] = True
        label = np.zeros(len(ids), dtype=np.float32)
        if example.labels is not None:
            label[ends[:fitting]] = example.labels[:fitting]
        text = self.separator.join(str(s) for s in example.completions[:fitting])
        finish: Finish = "given" if fitting == len(parts) else "length"
        group.completions.append(
            Completion(ids, mask, text, finish=finish, tokens={"step_label": label})
        )
        return group


class EachToken(Steps):
    """Cuts completions into their tokens, in place of reasoning steps."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.separator = ""

    def cuts(self, ids: Ints) -> Ints:
        """Every index."""
        return np.arange(len(ids))

    def ends(self, ids: Ints) -> Ints:
        """Every index."""
        return np.arange(len(ids))

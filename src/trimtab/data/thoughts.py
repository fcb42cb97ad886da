"""Thoughts of reasoning models: where they stand in a text, and the answer that follows them."""

from __future__ import annotations

import re

MARKERS = (
    ("<think>", "</think>"),  # DeepSeek-R1, QwQ, Qwen3, GLM, Nemotron, …
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>", "<|channel|>final<|message|>"),  # gpt-oss: analysis and commentary, then final
    ("<|channel>", "<channel|>"),
)
"""What opens thoughts, and what ends them."""

TOKENS = {*(m for pair in MARKERS for m in pair), "<|message|>"}
"""Tokens of the markers: some vocabularies have them as special tokens."""

_PREFILL = re.compile(
    "(?:"
    + "|".join(
        rf"{re.escape(start)}\s*(?:{re.escape(end)}\s*)?|{re.escape(end)}\s*"
        for start, end in MARKERS
    )
    + r")\Z"
)


def answer_text(text: str) -> str:
    """The text after the thoughts, stripped; the whole text if there are none.

    The end alone counts too, because many chat templates write the start into the prompt. Of several
    ends the last counts, as in the templates of Qwen3 and DeepSeek-R1. Thoughts that do not end are
    followed by no answer.

    >>> answer_text("<think>4?</think>5"), answer_text("4?</think>5"), answer_text("<think>4?")
    ('5', '5', '')
    """
    for start, end in MARKERS:
        text = text.rpartition(end)[2].partition(start)[0]
    return text.strip()


def names_marker(pattern: str) -> bool:
    """Whether a regular expression is about thoughts: it contains a marker, escaped or not."""
    plain = pattern.replace("\\", "")
    return any(m in plain for pair in MARKERS for m in pair)


def template_prefill(prompt: str) -> str:
    """The part of a completion that the chat template has written at the end of the prompt.

    >>> template_prefill("<|im_start|>assistant\\n<think>\\n"), template_prefill("<|im_start|>assistant\\n")
    ('<think>\\n', '')
    """
    match = _PREFILL.search(prompt)
    return match[0] if match else ""

"""Regular expressions: a user's pattern is stopped in time, and ours are fast on any text."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import pkgutil
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import trimtab
from trimtab.errors import DataError
from trimtab.evaluate.bias import PATTERNS, features
from trimtab.feedback.features import vote_features
from trimtab.rewards import rules
from trimtab.rewards.shape import Format
from trimtab.types import Completion, Group

CATASTROPHIC = {
    r"(a+)+$": "a" * 60 + "!",
    r"(a*)*$": "a" * 60 + "!",
    r"(a|a)*$": "a" * 60 + "!",
    r"(a|aa)+$": "a" * 90 + "!",
    r"^(\w+\s?)*$": "word " * 30 + "!",
    r"(.*a){25}$": "a" * 40 + "!",
    r"^(([a-z])+.)+[A-Z]([a-z])+$": "a" * 60,
    r"(x+x+)+y": "x" * 60,
    r"^(\d+)*\.$": "1" * 60 + "!",
    r"([^\"]*\"?)*;": "abcdefgh" * 10 + "!",
    r"(?:(?:a?){30}){30}b": "a" * 60,
    r"^((ab)*)+$": "ab" * 60 + "!",
}
"""Patterns, each with a text on which its search takes exponential time."""
SLACK_S = 2.0
"""Seconds that a search may take beyond its limit on a busy machine."""


@pytest.mark.slow
def test_python_hangs_on_most_of_them() -> None:
    """The control: the standard library's search has no end within five seconds."""
    hangs = 0
    for pattern, text in CATASTROPHIC.items():
        code = "import re, sys; re.search(sys.argv[1], sys.argv[2])"
        try:
            subprocess.run([sys.executable, "-c", code, pattern, text], timeout=5, check=False)
        except subprocess.TimeoutExpired:
            hangs += 1
        if hangs >= 3:
            break
    assert hangs >= 3


@pytest.mark.parametrize("pattern", CATASTROPHIC)
def test_a_verifier_is_stopped(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "PATTERN_S", 0.2)
    monkeypatch.setattr("trimtab.rewards.shape.PATTERN_S", 0.2)
    monkeypatch.setattr("trimtab.feedback.features.PATTERN_S", 0.2)
    text = CATASTROPHIC[pattern]
    for search in searches(pattern, text):
        started = time.monotonic()
        with contextlib.suppress(TimeoutError, DataError):
            search()
        assert time.monotonic() - started < 0.2 + SLACK_S


def searches(pattern: str, text: str) -> Iterator[Callable[[], Any]]:
    """Every place where a pattern of the configuration or of a data row is searched."""
    import numpy as np

    from trimtab.feedback.judgement import Item, Judgement
    from trimtab.feedback.votes import votes

    completion = Completion(ids=np.zeros(1, np.int64), mask=np.ones(1, bool), text=text)
    group = Group(id="g", prompt=np.zeros(1, np.int64), completions=[completion])
    yield lambda: rules.search(pattern, text)
    yield lambda: rules.Pattern(column="pattern").right(text, pattern)
    yield lambda: rules.Pattern(column="pattern", full=True).right(text, pattern)
    yield lambda: rules.Exact(extract=pattern).extract_answer(text)
    yield lambda: Format(pattern=pattern)(completion, group)
    item = Item.of([{"role": "user", "content": "q"}], [text, "b"])
    said = Judgement(item=item.id, annotator="ann", ranks=(0, 1))
    cast = votes([said])
    yield lambda: features(item, {"p": [pattern]})
    yield lambda: vote_features(cast, {item.id: item}, (), {"p": pattern})


def own_patterns() -> dict[str, re.Pattern[str]]:
    """Every compiled pattern of the package, by its name."""
    patterns: dict[str, re.Pattern[str]] = {}
    for module in pkgutil.walk_packages(trimtab.__path__, "trimtab."):
        if module.name.endswith(("__main__", "vllm_plugin", "verifiers_runner", "worker")):
            continue
        try:
            loaded = importlib.import_module(module.name)
        except ImportError:  # an extra that is not installed
            continue
        for name, value in vars(loaded).items():
            for part in value if isinstance(value, tuple | list) else [value]:
                part = part[0] if isinstance(part, tuple) and part else part
                if isinstance(part, re.Pattern) and isinstance(part.pattern, str):
                    patterns[f"{module.name}.{name}"] = part
    for name, texts in PATTERNS.items():
        for i, text in enumerate(texts):
            patterns[f"bias.{name}.{i}"] = re.compile(text, re.I | re.M)
    return patterns


UNITS = (" ", "\n", "\t", "a", "a ", " a", "1", "1,", "1.", "-1", "(", "/", "`", "```", "```json\n", "\\", "'",
         '"', "{", "<", "<<", ">>", "<tool_call>", "<tool_call> ", "<think>", "[NAME ", "[", "]", ":", "#", "####",
         "://", "?key=", "@", "sorry ", "i'm ", "good ", "1/", "1e", "$", "=", ";", ".", "_", "hf_", "sk-a", "é", "x:",
         "\n\n", "\nHuman:", "token")  # fmt: skip
STEPS = ((1_000, 0.05), (6_000, 0.3), (30_000, 1.0))
"""Lengths of completions in characters, and the processor time in seconds within which three matches of a
pattern are found, or none. A search cannot be interrupted, so it is stopped before it takes too long."""


MATCHED = ("sycophancy.SAYS_YES", "perturb.REFUSES", "code_content._PATH")
"""Patterns that are only compared with the beginning of a text, or with all of it."""


def slowest(pattern: re.Pattern[str], matched: bool = False) -> tuple[float, str]:
    """The longest processor time of a search as a share of its limit, and the text."""
    literal = re.split(r"[\\^$.|?*+()\[\]{}]", pattern.pattern)
    heads = {"", *(part for part in literal if len(part) > 1)}
    times: list[tuple[float, str]] = []
    for head in sorted(heads):
        for unit in UNITS:
            for length, limit in STEPS:
                # A text that goes on for long and then does not fit.
                text = head + unit * (length // len(unit)) + "\x01"
                started = time.process_time()
                if matched:
                    pattern.match(text)
                else:
                    list(itertools.islice(pattern.finditer(text), 3))
                seconds = time.process_time() - started
                times.append((seconds / limit, f"{head!r} + {unit!r} * {length // len(unit)}"))
                if seconds > limit:
                    return times[-1]
    return max(times)


def test_replies_without_end_are_read_in_time() -> None:
    """A code block of a judge that goes on for ever took cubic time once."""
    from trimtab.judges.reply import _value
    from trimtab.sandbox.word_problems import final

    for text in (
        "```" + "\n" * 100_000,
        "```json" + " \n" * 50_000 + "x```",
        " " * 100_000 + "```\n```",
    ):
        started = time.process_time()
        with pytest.raises(ValueError, match="Expecting value"):
            _value(text)
        assert time.process_time() - started < 0.5
    for text in ("####" + " " * 100_000 + "x", "####" * 50_000, "#### " + "1," * 50_000 + "."):
        started = time.process_time()
        assert final(text) is None
        assert time.process_time() - started < 0.5
    blocks = [
        '```json\n{"a": 1}\n```',
        '\n ``` \n{"a": 1}```\n',
        '```\n\n{"a": 1}\n\n```',
        '{"a": 1}',
    ]
    assert [_value(t) for t in blocks] == [{"a": 1}] * 4
    texts = ("x #### 42", "####$ 1,200.5 \n", "#### -3", "####### 7")
    assert [final(t) for t in texts] == [42, 1200.5, -3, 7]


@pytest.mark.slow
def test_our_own_patterns_are_fast_on_any_text() -> None:
    patterns = own_patterns()
    assert len(patterns) >= 25
    slow = {}
    for name, pattern in patterns.items():
        share, text = slowest(pattern, name.endswith(MATCHED))
        if share > 1:
            slow[name] = f"{share:.1f} times too slow on {text}: {pattern.pattern}"
    assert not slow, slow


def test_the_search_for_slow_patterns_can_fail() -> None:
    """The control."""
    assert slowest(re.compile(r"\s+$"))[0] > 1

"""Attacks that a model writes into its completions: nothing of ours runs them, and each ends in time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy

from trimtab.config import build
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.rules import VerifierPart
from trimtab.rollout import tools
from trimtab.rollout.tool_format import read_calls
from trimtab.sandbox.instructions import share_satisfied
from trimtab.types import Completion, Group

TIMEOUT_S = 3.0
START_S = 60.0
"""Seconds for the start of a process that replaces a killed one, on a busy machine."""

CODE = [
    "__import__('os').mkdir('MARK')",
    "$__import__('os').mkdir('MARK')$",
    "\\boxed{__import__('os').mkdir('MARK')}",
    "\\boxed{\\text{__import__('os').mkdir('MARK')}}",
    "$\\operatorname{__import__('os').mkdir('MARK')}$",
    "#### __import__('os').mkdir('MARK')",
    "#### 5 if __import__('os').mkdir('MARK') else 5",
    "eval(\"__import__('os').mkdir('MARK')\")",
    "exec(\"import os; os.mkdir('MARK')\")",
    "$S(\"__import__('os').mkdir('MARK')\")$",
    "lambda: __import__('os').mkdir('MARK')",
    "[x for x in ().__class__.__base__.__subclasses__()][0]('MARK')",
    "$\\input{/etc/passwd}$",
    "$\\immediate\\write18{mkdir MARK}$",
    "$\\directlua{os.execute('mkdir MARK')}$",
    "`mkdir MARK`",
    "$(mkdir MARK)",
    "; mkdir MARK #",
    "| mkdir MARK",
    "\nmkdir MARK\n",
    "{{ lipsum.__globals__.os.mkdir('MARK') }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{0.__class__.__init__.__globals__}",
    "%(MARK)s%n%n%n",
    "!!python/object/apply:os.mkdir ['MARK']",
    "cos\nmkdir\n(S'MARK'\ntR.",
    "<script>fetch('http://127.0.0.1:9/MARK')</script>",
    "'; ATTACH DATABASE 'MARK' AS x; --",
]
"""Code for every reader of text that may stand behind a completion."""
TOOLS = [
    {"name": "__class__", "arguments": {}},
    {"name": "__init__", "arguments": {"mark": "MARK"}},
    {"name": "_private", "arguments": {}},
    {"name": "reset", "arguments": {"task": "MARK"}},
    {"name": "get_reward", "arguments": {}},
    {"name": "os.mkdir", "arguments": {"path": "MARK"}},
    {"name": "mkdir", "arguments": {"path": "MARK"}},
    {"name": "add", "arguments": {"a": 1, "b": 2, "self": None}},
    {"name": "add.__globals__", "arguments": {}},
    {"name": "add", "arguments": {"a": "__import__('os').mkdir('MARK')", "b": 1}},
]
"""Calls of what is no tool, or of a tool with arguments that it does not have."""
BOMBS = [
    "$9^{9^{9^{9}}}$",
    "$10^{10^{10}}$",
    "$100000000!$",
    "$((((9!)!)!)!)$",
    "#### 1e999999999",
    "#### " + "9" * 1_000_000,
    "#### 1/" + "9" * 200_000,
    "$" + "{" * 20_000 + "1" + "}" * 20_000 + "$",
    "$" + "\\frac{1}{" * 2_000 + "2" + "}" * 2_000 + "$",
    "$\\sum_{n=1}^{10^{12}} \\frac{1}{n^{1.5}}$",
    "$\\int_0^1 \\frac{\\sin(x^x)}{\\Gamma(x+e^x)} dx = \\zeta(\\frac{1}{2} + 10^9 i)$",
    "$\\binom{10^9}{5 \\cdot 10^8}$",
]
"""Formulas whose value takes for ever, or all memory."""


class Desk:
    """An environment with one tool."""

    def __init__(self, mark: str = "") -> None:
        self.mark = mark

    def reset(self, task: str = "") -> None:
        """Begin an episode."""

    def add(self, a: int, b: int) -> int:
        """
        Adds two numbers.

        Args:
            a: The first number.
            b: The second number.

        Returns:
            The sum.
        """
        return a + b

    def _private(self) -> str:
        return "private"

    def get_reward(self) -> float:
        return 1.0


def group_of(text: str) -> Group:
    completion = Completion(ids=np.zeros(1, np.int64), mask=np.ones(1, bool), text=text)
    extra = {"answer": "4", "pattern": r"^4$"}
    return Group(id="g", prompt=np.zeros(1, np.int64), completions=[completion], extra=extra)


def verifiers() -> dict[str, VerifierPart]:
    return {
        "exact": VerifierPart("exact", "exact", {}, None),
        "regex": VerifierPart("regex", "regex", {"column": "pattern"}, None),
        "numeric": VerifierPart("numeric", "numeric", {}, None),
        "math": VerifierPart("math", "math", {}, TIMEOUT_S),
    }


def test_there_are_at_least_forty_attacks() -> None:
    assert len(CODE) + len(TOOLS) + len(BOMBS) >= 50


def test_a_careless_reader_runs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: SymPy's own reader of formulas is Python's ``eval``."""
    monkeypatch.chdir(tmp_path)
    sympy.sympify(CODE[0])
    assert (tmp_path / "MARK").is_dir()


@pytest.mark.slow
def test_no_verifier_runs_a_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = verifiers()
    for text in CODE:
        for name, part in parts.items():
            started = time.monotonic()
            [score] = part([group_of(text)])[name]
            assert time.monotonic() - started < TIMEOUT_S + 1 + START_S
            assert score.value in (0.0, None), (name, text)
            assert not any(tmp_path.iterdir()), (name, text)


@pytest.mark.slow
def test_bombs_end_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed one second after its deadline at most; its next start is not counted."""
    monkeypatch.chdir(tmp_path)
    parts = verifiers()
    for text in BOMBS:
        for name, part in parts.items():
            if name == "math":
                part([group_of("$4$")])  # starts the process that was killed before
            started = time.monotonic()
            [score] = part([group_of(text)])[name]
            seconds = time.monotonic() - started
            assert seconds < TIMEOUT_S + 1, (name, text[:40], seconds)
            assert score.value in (0.0, None), (name, text[:40])


def test_no_call_reaches_what_is_no_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    desk = Desk()
    known = tools.by_name(tools.methods(desk))
    assert set(known) == {"add"}
    for attack in TOOLS:
        text = f"<tool_call>{json.dumps(attack)}</tool_call>"
        for call in read_calls(text):
            function = known.get(call["function"]["name"])
            if function is not None:
                with pytest.raises(TypeError):
                    function(**call["function"]["arguments"])
    assert not any(tmp_path.iterdir())
    for deep in ("[" * 100_000, '{"name": "add", "arguments": ' + "[" * 100_000):
        assert read_calls(f"<tool_call>{deep}</tool_call>") == []
    [good] = read_calls('<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>')
    assert known["add"](**good["function"]["arguments"]) == 3  # the control


def test_checks_of_instructions_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimtab.sandbox.instructions import CONSTRAINTS

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    constraints: list[dict[str, Any]] = [
        {"type": name, **kind.draw(rng)} for name, kind in CONSTRAINTS.items()
    ]
    for text in (
        *CODE,
        "{" * 100_000,
        "[" * 100_000,
        '{"a":' * 50_000,
        " " * 100_000,
        "a " * 50_000,
    ):
        started = time.monotonic()
        [share] = share_satisfied([text], [constraints])
        assert 0.0 <= share <= 1.0 and time.monotonic() - started < TIMEOUT_S + 1
    assert not any(tmp_path.iterdir())


def test_the_verifier_is_configured_as_in_a_run() -> None:
    spec = build(RewardSpec, {"name": "math", "verifier": "math", "timeout": TIMEOUT_S})
    assert spec.timeout == TIMEOUT_S

"""Steps in data and in token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support import templates
from tests.support.processing import ROWS, ids, renderer, rows
from trimtab.data import formats
from trimtab.data.render import Renderer
from trimtab.data.sources import Rows
from trimtab.data.steps import Steps
from trimtab.errors import ConfigError, DataError

# Data ------------------------------------------------------------------------------------------


def test_rows_become_marked_completions() -> None:
    read = formats.steps(rows(*ROWS))
    assert [e.labels for e in read] == [[1, 0], [1, 1, 0], [0.25]]
    group = Steps(renderer(), ".").group(read[0])
    assert group is not None
    (c,) = group.completions
    assert c.ids.tolist() == ids("the sun . red cat .").tolist()
    assert np.flatnonzero(c.mask).tolist() == [2, 5]
    assert c.tokens["step_label"][c.mask].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"labels": [True]}, "must list 2 labels"),
        ({"labels": [True, 1.5]}, r"labels\[1\].*1.5"),
        ({"labels": [-1, 1]}, r"labels\[0\].*neutral"),
        ({"labels": [float("nan"), 1]}, r"labels\[0\]"),
        ({"completions": "the sun"}, "list the steps"),
        ({"completions": ["the sun", ""]}, r"completions\[1\].*empty"),
        ({"completions": ["the sun", 3]}, r"completions\[1\].*int"),
        ({"prompt": ""}, "'prompt' is empty"),
    ],
)
def test_a_bad_row_is_named(bad: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=rf"steps.jsonl: row 2: .*{why}"):
        formats.steps(rows(ROWS[0], {**ROWS[0], **bad}))


def test_wrong_columns_are_told() -> None:
    with pytest.raises(DataError, match="completions\\+labels\\+prompt"):
        formats.steps(rows({"prompt": "a", "chosen": "b"}))


@pytest.mark.parametrize("kind", ["bytes", "first", "legacy"])
def test_steps_are_tokenised_as_they_follow_each_other(kind: str) -> None:
    steps = Steps(Renderer(templates.tokenizer(templates.ZEPHYR, kind)))
    row = {
        "prompt": [{"role": "user", "content": "four"}],
        "completions": ["two plus", "seven"],
        "labels": [1, 0],
    }
    group = steps.group(formats.steps(Rows("rows", [(1, row)]))[0])
    assert group is not None
    tokenizer = steps.renderer.tokenizer
    text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    whole = tokenizer(text + "two plus\nseven\n", add_special_tokens=False)["input_ids"]
    assert [*group.prompt, *group.completions[0].ids] == whole


def test_long_solutions_are_cut_at_a_step() -> None:
    example = formats.steps(rows(ROWS[1]))[0]
    short = renderer(5)
    group = Steps(short, ".").group(example)
    assert group is not None
    assert np.flatnonzero(group.completions[0].mask).tolist() == [1, 4]
    assert short.cut == ["row 1: steps have 7 tokens, over 5"]
    assert Steps(renderer(1), ".").group(example) is None
    with pytest.raises(DataError, match=r"row 1.*max_completion_length"):
        Steps(renderer(5, on_long="error"), ".").group(example)


def test_a_separator_without_a_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="separator"):
        Steps(renderer(), "\n")


@pytest.mark.parametrize(
    ("text", "ends", "closed", "reads"),
    [
        ("a . no <eos>", [1, 3], "a . no .", [1, 3]),
        ("a . no . <eos>", [1, 4], "a . no .", [1, 3]),
        ("a . . no", [1, 3], "a . . no .", [1, 4]),
        ("a", [0], "a .", [1]),
        ("<eos>", [0], ".", [0]),
        (". a .", [2], ". a .", [2]),
    ],
)
def test_steps_end_at_separators(text: str, ends: list[int], closed: str, reads: list[int]) -> None:
    cutter = Steps(renderer(), ".")
    assert cutter.ends(ids(text)).tolist() == ends
    got, at = cutter.closed(ids(text))
    assert (got.tolist(), at.tolist()) == (ids(closed).tolist(), reads)


def test_rendered_and_sampled_steps_agree() -> None:
    """What training reads is what scoring reads."""
    cutter = Steps(renderer(), ".")
    for example in formats.steps(rows(*ROWS)):
        group = cutter.group(example)
        assert group is not None
        (c,) = group.completions
        got, at = cutter.closed(np.append(c.ids[:-1], cutter.renderer.eos))
        assert got.tolist() == c.ids.tolist()
        assert at.tolist() == np.flatnonzero(c.mask).tolist()

"""Thoughts: the answer after them, and what a chat template writes of them into the prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support import templates
from tests.support.folders import TEMPLATE, tokenizer
from trimtab.data.formats import Example
from trimtab.data.render import Renderer
from trimtab.data.thoughts import MARKERS, answer_text, names_marker, template_prefill


@pytest.mark.parametrize(("start", "end"), MARKERS)
def test_every_pair_of_markers(start: str, end: str) -> None:
    assert answer_text(f"{start}a{end}\n\nb c ") == "b c"
    assert answer_text(f"a{end}b") == "b"
    assert answer_text(f"{start}a") == ""
    assert answer_text(f"{start}a{end}b{end}c") == "c"
    assert answer_text(f"{start}a{end}b {start}c") == "b"
    assert answer_text(" a b ") == "a b"
    assert template_prefill(f"<user> x <assistant>{start}\n") == f"{start}\n"
    assert template_prefill(f"x{start}\n\n{end}\n\n") == f"{start}\n\n{end}\n\n"
    assert template_prefill(f"x{end}") == end
    assert template_prefill(f"{start}a{end}b") == ""
    assert names_marker(f"^{start}") and not names_marker("think")


def test_channels_of_gpt_oss() -> None:
    analysis, final = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
    text = f"{analysis}4?<|start|>assistant<|channel|>commentary<|message|>x{final}5"
    assert answer_text(text) == "5"
    assert answer_text(f"{analysis}4?") == ""


def test_a_prompt_knows_what_its_template_wrote_of_the_completion() -> None:
    t = tokenizer()
    t.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    t.chat_template = TEMPLATE.replace("<assistant> {% endif %}", "<assistant> [THINK] {% endif %}")
    renderer = Renderer(t)
    example = Example("0", [{"role": "user", "content": "who ?"}], [])
    group = renderer.prompt(example)
    assert group is not None and group.prefill == "[THINK]"
    ids = t("red [/THINK] blue <eos>", add_special_tokens=False)["input_ids"]
    text = renderer.completion(np.array(ids), "stop").text
    assert text == "red [/THINK] blue", "markers stay though they are special tokens"
    assert answer_text(group.prefill + text) == "blue"
    plain = renderer.completion(np.array(ids[::2]), "stop").text
    assert plain == "red blue"


@pytest.mark.parametrize(
    ("template", "extra", "start"),
    [
        (templates.PREFILLS, {}, "<think>\n"),
        (
            templates.DROPS,
            {"chat_template_kwargs": {"enable_thinking": False}},
            "<think>\n\n</think>\n\n",
        ),
        (templates.DROPS, {}, ""),
    ],
)
def test_templates_of_reasoning_models(template: str, extra: dict[str, Any], start: str) -> None:
    renderer = Renderer(templates.tokenizer(template))
    group = renderer.prompt(Example("0", [{"role": "user", "content": "who ?"}], [], extra=extra))
    assert group is not None and group.prefill == start


def test_the_start_of_the_last_turn_in_the_row_belongs_to_the_completion() -> None:
    turns = [{"role": "user", "content": "who ?"}, {"role": "assistant", "content": "It is"}]
    group = Renderer(templates.tokenizer(templates.CHATML)).prompt(Example("0", turns, []))
    assert group is not None and group.prefill == "It is"

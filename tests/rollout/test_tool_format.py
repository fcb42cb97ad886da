"""Replies with tool calls are read by the tokenizer's response template, or as <tool_call> tags."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support.chatml import chatml_model
from trimtab.data.render import Renderer
from trimtab.errors import ModelError
from trimtab.rollout.tool_format import ToolFormat, function_call

CALL = function_call("add", {"a": 1, "b": 2})
TEMPLATE = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {"optional": True},
        "tool_calls": {
            "open": "[[call ", "close": " call]]", "content": "json", "repeats": True, "optional": True,
            "transform": {"type": "function", "function": "{content}"},
        },
    }
}  # fmt: skip
"""A format of a model's own."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("chatml")
    return AutoTokenizer.from_pretrained(chatml_model(folder)[1])


def reply(tokenizer: Any, text: str, template: Any = None) -> dict[str, Any]:
    tokenizer.response_template = template
    form = ToolFormat(Renderer(tokenizer))
    prompt = form.context([{"role": "user", "content": "add 1 and 2"}], {})
    return form.reply(prompt, tokenizer(text, add_special_tokens=False)["input_ids"], {})


def test_tags_are_read_without_a_response_template(tokenizer: Any) -> None:
    text = 'sure <tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
    message = reply(tokenizer, text)
    assert message["tool_calls"] == [CALL] and message["content"] == "sure"


def test_a_response_template_is_used(tokenizer: Any) -> None:
    text = 'sure [[call {"name": "add", "arguments": {"a": 1, "b": 2}} call]]'
    message = reply(tokenizer, text, TEMPLATE)
    assert message["tool_calls"] == [CALL]
    assert message["content"].strip() == "sure" and message["raw"] == text
    assert "tool_calls" not in reply(tokenizer, text)


def test_a_broken_response_template_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match=r"response_template.*start_anchor"):
        reply(tokenizer, "a", {"fields": TEMPLATE["fields"]})


@pytest.mark.parametrize("body", ["{not json", '{"arguments": {}}'])
def test_a_call_that_cannot_be_read_is_text(tokenizer: Any, body: str) -> None:
    text = f"[[call {body} call]]"
    message = reply(tokenizer, text, TEMPLATE)
    assert "tool_calls" not in message and message["raw"] == text

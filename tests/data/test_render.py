"""Rendered rows: the tokens of ``apply_chat_template``, trained on turn by turn, or refused by row."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.templates import FORMS, sweep, verdict
from tests.support import templates
from tests.support.folders import write
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.pack import packs
from trimtab.data.render import Renderer
from trimtab.data.sources import Rows
from trimtab.errors import DataError, RowError
from trimtab.types import Group

CHAT_TEMPLATES = Path("runs/peers")


def user(text: Any = "two plus two") -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any = "four", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def group_of(renderer: Renderer, row: dict[str, Any], make: Any = formats.demonstrations) -> Group:
    example = make(Rows("rows", [(1, row)]))[0]
    render = renderer.demonstration if make is formats.demonstrations else renderer.comparison
    group = render(example)
    assert group is not None
    return group


def trained(renderer: Renderer, group: Group) -> list[str]:
    return [renderer.tokenizer.decode(c.ids[c.mask]) for c in group.completions]


def contexts(renderer: Renderer, group: Group) -> list[str]:
    decode = renderer.tokenizer.decode
    return [decode([*group.prompt, *c.ids[~c.mask]]) for c in group.completions]


# The sweep: every mechanism, every kind of tokenizer, every form of conversation ------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "first", "legacy", "strips"])
@pytest.mark.parametrize("name", sorted(templates.ALL.keys() - {"space"}))
def test_tokens_are_those_of_the_template(name: str, kind: str) -> None:
    tokenizer = templates.tokenizer(templates.ALL[name], kind)
    for form, row in FORMS.items():
        result = verdict(tokenizer, row)
        assert result.right, (form, result.reason)
        if name in ("tools", "drops"):
            assert not result.reason, (form, result.reason)


@pytest.mark.slow
def test_templates_of_trl() -> None:
    folders = sorted(CHAT_TEMPLATES.glob("trl-*/trl/chat_templates"))[-1:]
    if not folders:
        pytest.skip("TRL's chat templates are not installed; run `make bench-env`")
    for name, by_form in sweep(folders).items():
        for form, result in by_form.items():
            assert result.right, (name, form, result.reason)


# Turns --------------------------------------------------------------------------------------------


def test_turns_that_are_rewritten_have_prompts_of_their_own() -> None:
    renderer = Renderer(templates.tokenizer(templates.DROPS))
    think = "<think>\n{}\n</think>\n\n{}"
    row = {"messages": [
        user(), assistant(think.format("add", "four")), user("and three"), assistant(think.format("add", "seven")),
    ]}  # fmt: skip
    group = group_of(renderer, row)
    assert trained(renderer, group) == [
        "<think>\nadd\n</think>\n\nfour<|im_end|>", "<think>\nadd\n</think>\n\nseven<|im_end|>"
    ]  # fmt: skip
    first = "<|im_start|>user\ntwo plus two<|im_end|>\n<|im_start|>assistant\n"
    second = (
        first + "four<|im_end|>\n<|im_start|>user\nand three<|im_end|>\n<|im_start|>assistant\n"
    )
    assert contexts(renderer, group) == [first, second]
    pack = packs([group], 10_000)[0]
    assert pack.size == len(group.prompt) + sum(len(c) for c in group.completions)
    assert [s.parent for s in pack.segments] == [-1, 0, 0]


def test_turns_that_stay_are_one_completion() -> None:
    renderer = Renderer(templates.tokenizer(templates.CHATML))
    row = {"messages": [user(), assistant(), user("and three"), assistant("seven")]}
    group = group_of(renderer, row)
    assert trained(renderer, group) == ["four<|im_end|>seven<|im_end|>"]


def test_a_pair_whose_turns_are_rewritten_is_refused() -> None:
    renderer = Renderer(templates.tokenizer(templates.LAST_END))
    pair = {
        "prompt": [user()],
        "chosen": [assistant(), user(), assistant("seven")],
        "rejected": [assistant("blue")],
    }
    with pytest.raises(RowError, match="row 1: the chat template rewrites earlier turns"):
        group_of(renderer, pair, formats.comparisons)
    pair = {
        "prompt": [user(), assistant(), user()],
        "chosen": [assistant()],
        "rejected": [assistant("blue")],
    }
    assert trained(renderer, group_of(renderer, pair, formats.comparisons)) == [
        "four<|return|>",
        "blue<|return|>",
    ]


def test_a_generation_prompt_that_is_not_continued_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    renderer = Renderer(templates.tokenizer(templates.PREFILLS))
    caplog.set_level(logging.WARNING)
    row = {"messages": [user(), assistant("<think>\nadd\n</think>\n\nfour")]}
    group_of(renderer, row)
    group = group_of(renderer, row)
    assert trained(renderer, group) == ["four<eos>"]
    assert contexts(renderer, group) == ["<bos><|user|>two plus two<|assistant|>"]
    assert [r.message.count("never sampled from") for r in caplog.records] == [1]
    pair = {"prompt": [user()], "chosen": [assistant()], "rejected": [assistant("blue")]}
    assert trained(renderer, group_of(renderer, pair, formats.comparisons)) == [
        "four<eos>",
        "blue<eos>",
    ]


def test_a_prompt_that_changes_is_refused() -> None:
    moves = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] "
        "{% if loop.last %}{{ messages[0].content }} {% endif %}{{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}<eos>{% endif %}{% endfor %}"
    )
    renderer = Renderer(templates.tokenizer(moves))
    row = {"messages": [{"role": "system", "content": "be brief"}, user(), assistant()]}
    with pytest.raises(RowError, match="renders the turns before turn 3 otherwise"):
        group_of(renderer, row)


def test_template_columns_are_passed_to_the_template() -> None:
    renderer = Renderer(templates.tokenizer(templates.DROPS))
    for options in ({"enable_thinking": False}, '{"enable_thinking": false}'):
        row = {"prompt": [user()], "chat_template_kwargs": options}
        group = renderer.prompt(formats.prompts(Rows("rows", [(1, row)]))[0])
        assert group is not None
        assert renderer.tokenizer.decode(group.prompt).endswith("<think>\n\n</think>\n\n")
    row["chat_template_kwargs"] = "no"
    with pytest.raises(RowError, match="'chat_template_kwargs' is text but not JSON"):
        renderer.prompt(formats.prompts(Rows("rows", [(1, row)]))[0])


# Fields of messages -------------------------------------------------------------------------------

TOOLS = FORMS["tools"]["tools"]
CALL = {
    "type": "function",
    "id": "c1",
    "function": {"name": "weather", "arguments": {"town": "Leeds"}},
}


@pytest.mark.parametrize("content", [None, "", "i look it up ."])
def test_tool_calls_and_tools_are_trained_on(content: str | None) -> None:
    renderer = Renderer(templates.tokenizer(templates.TOOLS))
    messages = [
        user("rain ?"),
        assistant(content, tool_calls=[CALL]),
        {"role": "tool", "name": "weather", "content": "wet"},
        assistant("yes"),
    ]
    for tools in (TOOLS, json.dumps(TOOLS)):
        group = group_of(renderer, {"messages": messages, "tools": tools})
        text = renderer.tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)
        ids = [*group.prompt, *group.completions[0].ids]
        assert renderer.tokenizer.decode(ids) == text.removesuffix("\n")
        call, answer = trained(renderer, group)[0].split("<|im_end|>")[:2]
        assert call.startswith(content or "<tool_call>") and '"name": "weather"' in call
        assert answer == "yes", "the tool's turn is trained on"
    with pytest.raises(RowError, match="'tools' must list"):
        group_of(renderer, {"messages": messages, "tools": ["hammer"]})


def test_thoughts_are_trained_on() -> None:
    renderer = Renderer(templates.tokenizer(templates.TOOLS))
    group = group_of(renderer, {"messages": [user(), assistant(reasoning_content="add")]})
    assert trained(renderer, group) == ["<think>add</think>four<|im_end|>"]


@pytest.mark.parametrize("template", ["chatml", "parts", "tools"])
def test_parts_are_rendered_as_the_template_reads_them(template: str) -> None:
    renderer = Renderer(templates.tokenizer(templates.ALL[template]))
    parts = [{"type": "text", "text": "two plus two", "image": None}]
    rows = [[user(parts), assistant([{"type": "text", "text": "four"}])], [user(), assistant()]]
    texts = [
        trained(renderer, g) + contexts(renderer, g)
        for g in (group_of(renderer, {"messages": m}) for m in rows)
    ]
    assert (
        texts[0]
        == texts[1]
        == ["four<|im_end|>", "<|im_start|>user\ntwo plus two<|im_end|>\n<|im_start|>assistant\n"]
    )


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([user([{"type": "image", "image": "a.png"}]), assistant()], "a part of type 'image'"),
        ([user(None), assistant()], "'content' of a turn of the user is null"),
        ([user(3), assistant()], "is int"),
        ([user(), assistant(None)], "ends with an empty message"),
        ([{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}], "its roles are human, gpt"),
        ([assistant("hello")], "no turn that the assistant replies to"),
        ("hello", "must be a list of messages"),
    ],
)  # fmt: skip
def test_messages_are_refused_with_the_reason(messages: Any, why: str) -> None:
    with pytest.raises(DataError, match="row 1: ") as error:
        formats.demonstrations(Rows("rows", [(1, {"messages": messages})]))
    assert why in str(error.value)


def test_null_keys_of_parquet_count_as_absent(tmp_path: Path) -> None:
    calls = [
        {**CALL, "function": {"name": "weather", "arguments": {"town": "Leeds", "street": None}}}
    ]
    rows = [
        {
            "messages": [
                user("rain ?"),
                assistant(None, tool_calls=calls),
                user("so ?"),
                assistant("yes"),
            ],
            "tools": TOOLS,
        },
        {"messages": [user(), assistant()], "tools": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    renderer = Renderer(templates.tokenizer(templates.TOOLS))
    groups = load_groups(
        DataSpec(path=str(tmp_path / "rows.parquet")),
        formats.demonstrations,
        renderer.demonstration,
    )
    texts = [renderer.tokenizer.decode([*g.prompt, *g.completions[0].ids]) for g in groups]
    assert '<tool_call>{"name": "weather", "arguments": {"town": "Leeds"}}</tool_call>' in texts[0]
    assert "null" not in "".join(texts) and "None" not in "".join(texts)
    assert (
        texts[1]
        == "<|im_start|>user\ntwo plus two<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>"
    )


# Odd conversations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "context", "completion"),
    [
        ([user(), user("please"), assistant(), assistant("yes")], "user\ntwo plus two", "four<|im_end|>yes<|im_end|>"),
        ([{"role": "system", "content": ""}, user(), assistant()], "system\n<|im_end|>", "four<|im_end|>"),
        ([assistant("hello"), user(), assistant()], "assistant\nhello<|im_end|>", "four<|im_end|>"),
        (json.dumps([user(), assistant()]), "user\ntwo plus two", "four<|im_end|>"),
    ],
)  # fmt: skip
def test_odd_conversations_are_rendered(messages: Any, context: str, completion: str) -> None:
    renderer = Renderer(templates.tokenizer(templates.CHATML))
    group = group_of(renderer, {"messages": messages})
    assert trained(renderer, group) == [completion]
    assert context in contexts(renderer, group)[0]


def test_a_turn_that_the_prompt_begins_is_continued() -> None:
    renderer = Renderer(templates.tokenizer(templates.CHATML))
    prompt = [user(), assistant("it is")]
    group = group_of(renderer, {"prompt": prompt, "completion": [assistant(" four")]})
    assert renderer.tokenizer.decode(group.prompt).endswith("assistant\nit is")
    assert trained(renderer, group) == [" four<|im_end|>"]
    pair = {"prompt": prompt, "chosen": [assistant(" four")], "rejected": [assistant(" blue")]}
    example = formats.comparisons(Rows("rows", [(1, pair)]))[0]
    scoring = renderer.scoring(example)
    assert scoring is not None
    whole = [user(), assistant("it is four")]
    ids = renderer.tokenizer.apply_chat_template(whole, return_dict=False)
    assert [*scoring.prompt, *scoring.completions[0].ids] == ids


@pytest.mark.parametrize("strict", [True, False])
def test_a_row_that_the_template_refuses_is_named_or_dropped(strict: bool, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"messages": [user(), assistant()]},
        {"messages": [{"role": "system", "content": "be brief"}, user(), assistant()]},
        {"messages": [user("sky ?"), assistant("blue")]},
    ]
    spec = DataSpec(path=str(write(tmp_path / "rows.jsonl", rows)), strict=strict)
    renderer = Renderer(templates.tokenizer(templates.STRICT))
    if strict:
        with pytest.raises(DataError, match=r"rows\.jsonl: row 2: .*System role not supported"):
            load_groups(spec, formats.demonstrations, renderer.demonstration)
    else:
        assert len(load_groups(spec, formats.demonstrations, renderer.demonstration)) == 2


def test_turns_that_do_not_alternate_are_refused_by_a_template_that_wants_it(
    tmp_path: Path,
) -> None:
    rows = [{"messages": [user(), assistant()]}, {"messages": [user(), user("sky ?"), assistant()]}]
    path = str(write(tmp_path / "rows.jsonl", rows))
    renderer = Renderer(templates.tokenizer(templates.STRICT))
    with pytest.raises(DataError, match=r"rows\.jsonl: row 2: .*roles must alternate"):
        load_groups(DataSpec(path=path), formats.demonstrations, renderer.demonstration)
    lenient = DataSpec(path=path, strict=False)
    assert len(load_groups(lenient, formats.demonstrations, renderer.demonstration)) == 1


def test_a_file_with_parts_in_some_rows_and_text_in_others(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "two plus two"}]
    rows = [{"messages": [user(content), assistant()]} for content in (parts, "two plus two")]
    spec = DataSpec(path=str(write(tmp_path / "rows.jsonl", rows)))
    renderer = Renderer(templates.tokenizer(templates.CHATML))
    first, second = load_groups(spec, formats.demonstrations, renderer.demonstration)
    assert contexts(renderer, first) == contexts(renderer, second)
    assert trained(renderer, first) == trained(renderer, second) == ["four<|im_end|>"]


# Tokens in context --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "first", "legacy"])
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("two plus two is", " four"), ("four :\n", "seven"), ("two(", "four")],
)
def test_plain_completions_are_tokenised_after_their_prompt(
    kind: str, prompt: str, completion: str
) -> None:
    renderer = Renderer(templates.tokenizer(templates.CHATML, kind))
    group = group_of(renderer, {"prompt": prompt, "completion": completion})
    whole = renderer.tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    assert [*group.prompt, *group.completions[0].ids] == [*whole, renderer.eos]


@pytest.mark.parametrize("kind", ["bytes", "first", "legacy"])
def test_a_token_across_the_end_of_the_prompt_is_left_to_the_prompt(kind: str) -> None:
    """The prompt keeps the tokens that every engine samples from; the text stays as it is."""
    renderer = Renderer(templates.tokenizer(templates.SPACE, kind))
    row = {"messages": [user(), assistant()]}
    group = group_of(renderer, row)
    prompt = renderer.prompt(formats.prompts(Rows("rows", [(1, row)]))[0])
    assert prompt is not None
    assert [*group.prompt] == [*prompt.prompt]
    text = renderer.tokenizer.apply_chat_template(row["messages"], tokenize=False)
    whole = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    decode = renderer.tokenizer.decode
    assert decode([*group.prompt, *group.completions[0].ids]) == decode(whole)
    assert trained(renderer, group) == ["four<eos>"]


def test_a_saved_tokenizer_is_read_in_the_same_way(tmp_path: Path) -> None:
    templates.tokenizer(templates.ZEPHYR, "legacy").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    for row in FORMS.values():
        assert verdict(tokenizer, row).right

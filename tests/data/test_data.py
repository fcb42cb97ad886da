"""Files, columns, templates and tokenizers, as people have them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.support import folders
from trimtab.data import formats
from trimtab.data.formats import Example
from trimtab.data.load_tokenizer import PLAIN, load_tokenizer
from trimtab.data.pack import build, packs
from trimtab.data.render import Renderer
from trimtab.data.sources import Rows, read
from trimtab.errors import DataError, ModelError, RowError
from trimtab.types import Completion, Group

DATA = Path(os.environ.get("TRIMTAB_DATA", Path(__file__).parents[3] / "shared" / "data"))

Q = [{"role": "user", "content": "why ?"}]
A = [{"role": "assistant", "content": "so ."}]
B = [{"role": "assistant", "content": "no ."}]


def encode(kind: str, rows: list[dict[str, Any]]) -> bytes:
    kind = kind.removesuffix(".gz")
    if kind == "jsonl":
        return "".join(json.dumps(r) + "\n" for r in rows).encode()
    if kind == "json":
        return json.dumps(rows).encode()
    if kind == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


@pytest.mark.parametrize(
    "kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "csv.gz", "parquet.gz"]
)
def test_kinds_of_file(kind: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a, b", "chosen": 'say "x"\n', "rejected": "é"},
        {"prompt": "c", "chosen": "d", "rejected": "e"},
    ]
    data = encode(kind, rows)
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    parsed = read(str(path))
    assert [r for _, r in parsed.rows] == rows
    assert [n for n, _ in parsed.rows] == [1, 2]
    assert len(read(str(path), limit=1).rows) == 1


def one(make: Any, row: dict[str, Any]) -> Example:
    return make(Rows("given", [(1, row)]))[0]


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"text": "all of it"}, "", "all of it"),
        ({"prompt": "why ?", "completion": " so ."}, "why ?", " so ."),
        ({"prompt": Q, "completion": A}, Q, A),
        ({"messages": [*Q, *A]}, Q, A),
        ({"messages": [{"role": "system", "content": "s"}, *Q, *A, *Q, *A]},
         [{"role": "system", "content": "s"}, *Q], [*A, *Q, *A]),
        ({"text": "\n\nHuman: why ?\n\nAssistant: so ."}, Q, A),
    ],
)  # fmt: skip
def test_demonstrations(row: dict[str, Any], prompt: Any, answer: Any) -> None:
    example = one(formats.demonstrations, row)
    assert example.prompt == prompt
    assert example.completions == [answer]


CALL = [
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    },
    {"role": "tool", "content": "wet"},
]
HH = "\n\nHuman: hi\n\nAssistant: yes ?\n\nHuman: why ?\n\nAssistant: "
HELLO = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes ?"}, *Q]


@pytest.mark.parametrize(
    ("row", "prompt", "answers", "ranks"),
    [
        ({"prompt": "why ?", "chosen": "so", "rejected": "no"}, "why ?", ["so", "no"], [0, 1]),
        ({"prompt": Q, "chosen": A, "rejected": B}, Q, [A, B], [0, 1]),
        ({"chosen": [*Q, *A], "rejected": [*Q, *B]}, Q, [A, B], [0, 1]),
        ({"prompt": "why ?", "chosen": [*Q, *A], "rejected": [*Q, *B]}, Q, [A, B], [0, 1]),
        ({"chosen": [*Q, *CALL, *A], "rejected": [*Q, *CALL, *B]}, [*Q, *CALL], [A, B], [0, 1]),
        ({"chosen": [*Q, *A, *A], "rejected": [*Q, *A, *B]}, Q, [[*A, *A], [*A, *B]], [0, 1]),
        ({"prompt": "why ?", "chosen": "so", "rejected": "no", "tie": True}, "why ?", ["so", "no"], [0, 0]),
        ({"chosen": HH + "so .", "rejected": HH + "no ."}, HELLO, [A, B], [0, 1]),
        ({"prompt": "why ?", "completions": ["a", "b", "c"], "ranks": [2, 0, 0]}, "why ?", ["a", "b", "c"], [2, 0, 0]),
    ],
)  # fmt: skip
def test_comparisons(row: dict[str, Any], prompt: Any, answers: Any, ranks: list[int]) -> None:
    example = one(formats.comparisons, {**row, "scene": "kept"})
    assert example.prompt == prompt
    assert example.completions == answers
    assert example.ranks == ranks
    assert example.extra == {"scene": "kept"}


def test_prompts() -> None:
    assert one(formats.prompts, {"prompt": "why ?"}).prompt == "why ?"
    assert one(formats.prompts, {"messages": [*Q, *A]}).prompt == Q
    assert one(formats.prompts, {"chosen": [*Q, *A], "rejected": [*Q, *B]}).prompt == Q


BAD_PAIRS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "p", "chosen": "a"}, "rejected"),
    ({"prompt": "p", "chosen": "", "rejected": "b"}, "'chosen' is empty"),
    ({"prompt": "p", "chosen": "a", "rejected": "a"}, "equal"),
    ({"prompt": "p", "chosen": "a\0", "rejected": "b"}, "NUL"),
    ({"prompt": "p", "chosen": "a\ud800", "rejected": "b"}, "surrogate"),
    ({"prompt": Q, "chosen": [{"role": "user", "content": "x"}], "rejected": B}, "assistant"),
    ({"chosen": "one", "rejected": "two"}, "prompt"),
    ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1}, "margin"),
    ({"prompt": "p", "chosen": "a", "rejected": "b", "tie": "perhaps"}, "tie"),
    ({"id": "7", "prompt": "p", "chosen": "a", "rejected": "b"}, "id '7'"),
    ({"prompt": ["x"], "chosen": "a", "rejected": "b"}, "messages"),
    ({"prompt": "p", "completions": ["a", "a"], "ranks": [0, 1]}, "equal but ranked"),
    ({"prompt": "p", "completions": ["a", "b"], "ranks": [0]}, "ranks"),
]
FINE = {"id": "7", "prompt": "p", "chosen": "good", "rejected": "bad"}


def test_two_demonstrations_with_one_id_are_refused() -> None:
    rows = [(n, {"id": "7", "messages": [*Q, *A]}) for n in (4, 9)]
    with pytest.raises(DataError, match=r"demos\.jsonl: row 9.*id '7'"):
        formats.demonstrations(Rows("demos.jsonl", rows))
    lenient = Rows("demos.jsonl", rows, strict=False)
    assert len(formats.demonstrations(lenient)) == 1 and len(lenient.dropped) == 1


@pytest.mark.parametrize(("row", "why"), BAD_PAIRS)
def test_a_bad_row_is_named(row: dict[str, Any], why: str) -> None:
    rows = [(4, FINE), (9, row)]
    with pytest.raises(DataError, match=r"pairs\.jsonl: row 9") as error:
        formats.comparisons(Rows("pairs.jsonl", rows))
    assert why in str(error.value)
    lenient = Rows("pairs.jsonl", rows, strict=False)
    assert [e.row for e in formats.comparisons(lenient)] == [4]
    assert len(lenient.dropped) == 1
    assert lenient.dropped[0].startswith("row 9")


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "row 2: not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n["y"]\n', "row 2: expected an object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "row 2: not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"te\0xt": 1}\n', "row 2: holds a NUL"),
        ("a.json", b'{"text": "x"}', "list of rows"),
        ("a.json", b'[{"text": \n]', "line 2: not valid JSON"),
        ("a.csv", b"text,b\nx,1\ny\n", "row 2: has a different number of fields"),
        ("a.csv", b"text\nx\n\xff\n", "row 2: not UTF-8"),
        ("a.parquet", b"PAR1 no", "incomplete or invalid parquet"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-9], "incomplete gzip"),
        ("a.jsonl", b"\n", "holds no rows"),
        ("a.xml", b"<a/>", "is not read"),
    ],
)
def test_a_damaged_file_is_named(name: str, data: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=why) as error:
        read(str(path))
    assert name in str(error.value)


def made(
    folder: Path, *, bos: bool = True, adds: bool = False, pad: str | None = "<pad>", template: str | None = PLAIN,
    eos: str | None = "<eos>",
) -> str:  # fmt: skip
    """A byte-fallback-free word tokenizer in a folder, with one habit at a time."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>", "<|reserved_0|>", "Human:", "Assistant:"]
    words = [*special, *["why", "?", "so", ".", "no", "hi", "yes", "system", "s"]]
    inner: Any = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds:
        inner.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    names = {"bos_token": "<bos>" if bos else None, "eos_token": eos, "pad_token": pad}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", additional_special_tokens=["<|reserved_0|>"],
        **{k: v for k, v in names.items() if v},
    )  # fmt: skip
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("pad", [None, "<eos>", "<pad>"])
def test_tokenizers(adds: bool, pad: str | None, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(made(tmp_path, adds=adds, pad=pad))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.pad_token_id is not None
    assert len(tokenizer) == 16
    renderer = Renderer(tokenizer, max_prompt_length=99, max_completion_length=99)
    group = renderer.demonstration(Example("", Q, [A]))
    assert group is not None
    done = group.completions[0]
    assert [*group.prompt].count(1) == 1
    assert group.prompt[0] == 1
    assert tokenizer.convert_ids_to_tokens(done.ids) == ["so", ".", "<eos>"]
    assert done.mask.all()
    plain = renderer.demonstration(Example("", "why ?", ["so ."]))
    assert plain is not None
    assert [*plain.prompt].count(1) == int(adds)
    assert plain.completions[0].ids[-1] == 2


def test_the_end_of_a_turn_is_no_padding(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }} <|reserved_0|> {% endfor %}"
    tokenizer = load_tokenizer(made(tmp_path, pad="<|reserved_0|>", template=template))
    assert tokenizer.pad_token not in ("<|reserved_0|>", "<eos>")
    assert Renderer(tokenizer).stop_ids == (2, 4)


def test_no_bos_invents_none(tmp_path: Path) -> None:
    renderer = Renderer(
        load_tokenizer(made(tmp_path, bos=False)), max_prompt_length=99, max_completion_length=99
    )
    group = renderer.demonstration(Example("", Q, [A]))
    assert group is not None
    assert renderer.tokenizer.convert_ids_to_tokens(group.prompt) == [
        "Human:",
        "why",
        "?",
        "Assistant:",
    ]


def test_no_eos_and_no_template(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="end-of-sequence"):
        load_tokenizer(made(tmp_path / "a", eos=None))
    renderer = Renderer(
        load_tokenizer(made(tmp_path / "b", template=None)),
        max_prompt_length=9,
        max_completion_length=9,
    )
    with pytest.raises(ModelError, match=r"model\.chat_template"):
        renderer.prompt(Example("", Q, []))
    plain = load_tokenizer(str(tmp_path / "b"), "plain")
    assert (
        Renderer(plain, max_prompt_length=9, max_completion_length=9).prompt(Example("", Q, []))
        is not None
    )


def test_a_template_that_does_not_continue_its_prompt_is_refused(tmp_path: Path) -> None:
    template = "{{ messages | length }}{% for m in messages %} {{ m['content'] }}{% endfor %}"
    renderer = Renderer(
        load_tokenizer(made(tmp_path, template=template)),
        max_prompt_length=9,
        max_completion_length=9,
    )
    with pytest.raises(RowError, match="row 1: the chat template renders the turns before turn 2"):
        renderer.demonstration(Example("", Q, [A]))


def test_only_the_assistant_is_trained_on() -> None:
    tokenizer = folders.tokenizer()
    renderer = Renderer(tokenizer, max_prompt_length=99, max_completion_length=99)
    turns = [
        {"role": "user", "content": "what ?"}, {"role": "assistant", "content": "red cat"},
        {"role": "user", "content": "where ?"}, {"role": "assistant", "content": "here"},
    ]  # fmt: skip
    group = renderer.demonstration(Example("", turns[:1], [turns[1:]]))
    assert group is not None
    done = group.completions[0]
    all_ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert [*group.prompt, *done.ids] == all_ids
    assert tokenizer.convert_ids_to_tokens(done.ids[done.mask]) == [
        "red",
        "cat",
        "<eos>",
        "here",
        "<eos>",
    ]


def test_long_rows_are_told() -> None:
    renderer = Renderer(folders.tokenizer(), max_prompt_length=4, max_completion_length=3)
    assert renderer.prompt(Example("", "cat " * 9, [], row=3)) is None
    assert renderer.dropped == ["row 3: prompt has 9 tokens, over 4"]
    cut = renderer.demonstration(Example("", "cat", ["dog " * 9], row=5))
    assert cut is not None
    assert len(cut.completions[0]) == 3
    assert 2 not in cut.completions[0].ids, "no false end"
    assert renderer.cut[0].startswith("row 5")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}; set TRIMTAB_DATA")
def test_every_real_pair_is_read_and_rendered() -> None:
    rows = read(str(DATA / "hh-harmless-pairs.jsonl.gz"), strict=False)
    assert len(rows.rows) == 2312
    examples = formats.comparisons(rows)
    assert len(examples) + len(rows.dropped) == 2312
    assert len(examples) > 2250
    for e in examples:
        assert e.prompt[-1]["role"] == "user"  # pyright: ignore[reportArgumentType]
        assert all(a[0]["role"] == "assistant" for a in e.completions)  # pyright: ignore[reportArgumentType]


@st.composite
def some_groups(draw: st.DrawFn) -> list[Group]:
    shapes = draw(
        st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(1, 20), min_size=1, max_size=5)),
                 min_size=1, max_size=8)
    )  # fmt: skip
    count = 0
    groups: list[Group] = []
    for size, answers in shapes:
        done: list[Completion] = []
        for n in answers:
            done.append(Completion(np.arange(count, count + n), np.ones(n, np.bool_)))
            count += n
        groups.append(Group(str(len(groups)), np.arange(-size, 0), done))
    return groups


@settings(max_examples=60, deadline=None)
@given(some_groups(), st.integers(10, 120), st.booleans())
def test_packs_hold_everything_once_in_its_place(
    groups: list[Group], budget: int, share: bool
) -> None:
    seen: list[int] = []
    for pack in packs(groups, budget, share=share):
        flat = [c for g in pack.groups for c in g.completions]
        seen += [int(i) for i in pack.target_C]
        assert len(pack.ids_N) <= budget or len(pack.groups) == 1
        for b, c in enumerate(flat):
            assert pack.target_C[pack.owner_C == b].tolist() == c.ids.tolist()
            last = int(pack.last_B[b])
            assert int(pack.ids_N[last]) == int(c.ids[-1])
            group = next(g for g in pack.groups if any(c is x for x in g.completions))
            assert int(pack.positions_N[last]) == len(group.prompt) + len(c) - 1
    assert sorted(seen) == list(range(sum(len(c) for g in groups for c in g.completions)))


def test_one_group_is_one_tree() -> None:
    g = Group("", np.arange(10), [Completion(np.arange(3), np.ones(3, np.bool_)) for _ in range(4)])
    assert len(build([g]).ids_N) <= 10 + 4 * 3
    assert len(build([g], share=False).ids_N) >= 4 * 12

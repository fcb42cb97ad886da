"""What recipes/agent-tools.yaml needs: questions that need a tool, an environment, and success rates.

A question asks for a fact about a person of the sandbox, or for a sum or a difference. The facts are in the
environment alone, other ones for each row, so a policy that does not call ``lookup`` can only guess.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from trimtab.data.piece_tokens import raw_ids
from trimtab.data.render import Renderer
from trimtab.datagen.scratch import write_model_config
from trimtab.recipes.episodes import play
from trimtab.rollout import tools
from trimtab.rollout.environment import EnvironmentSpec
from trimtab.runs import write_atomic
from trimtab.sample.sampler import SamplingConfig
from trimtab.sandbox.tokenizer import word_level
from trimtab.sandbox.world import NAMES, RELATIONS, VALUES
from trimtab.types import Completion, Group, Row

TEMPLATE = (
    "{{ bos_token }}{% for t in tools or [] %}{{ ' ' + t['function']['name'] }}{% endfor %}{{ ' ' }}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<assistant> ' + m['content'] + ' ' + eos_token + ' ' }}"
    "{% else %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
LOW, HIGH = 10, 60
"""Range of the numbers in questions."""
WORDS = (
    '<tool_call> </tool_call> <tool> <system> { } : , "name" "arguments" "lookup" "calculate" lookup '
    'calculate "who" "what" "a" "b" "op" what is the of ? plus minus "plus" "minus" unknown .'
)


class Desk:
    """An environment with a table of facts and a calculator."""

    def __init__(self) -> None:
        self.facts: dict[str, dict[str, str]] = {}

    def reset(self, facts: str, **row: Any) -> None:
        self.facts = json.loads(facts)

    def lookup(self, who: str, what: Literal["place", "thing", "job"]) -> str:
        """
        Looks a fact up.

        Args:
            who: The person's name.
            what: What to look up about the person.

        Returns:
            The fact, or "unknown".
        """
        return self.facts.get(who, {}).get(what, "unknown")

    def calculate(self, a: int, op: Literal["plus", "minus"], b: int) -> int:
        """
        Adds or subtracts two numbers.

        Args:
            a: The first number.
            op: What to do with them.
            b: The second number.

        Returns:
            The result.
        """
        return a + b if op == "plus" else a - b


def right(completions: list[list[dict[str, Any]]], answer: list[str]) -> list[float]:
    """1 where the last message is the answer alone, else 0."""
    return [
        float(bool(c) and c[-1]["role"] == "assistant" and c[-1]["content"] == a)
        for c, a in zip(completions, answer, strict=True)
    ]


def call_text(name: str, **arguments: str | int) -> str:
    """A call as the recipe's model writes it: one word per token."""
    pairs = " , ".join(f"{json.dumps(k)} : {json.dumps(v)}" for k, v in arguments.items())
    return f'<tool_call> {{ "name" : "{name}" , "arguments" : {{ {pairs} }} }} </tool_call>'


def _question(rng: np.random.Generator) -> tuple[Row, str, str]:
    """A row, the call that finds its answer, and a call that does not."""
    if rng.random() < 0.5:
        facts = {who: {what: str(rng.choice(VALUES[what])) for what in RELATIONS} for who in NAMES}
        who, what = str(rng.choice(NAMES)), str(rng.choice(RELATIONS))
        other = str(rng.choice([n for n in NAMES if facts[n][what] != facts[who][what]] or NAMES))
        row: Row = {"facts": json.dumps(facts), "answer": facts[who][what]}
        text = f"what is the {what} of {who} ?"
        calls = call_text("lookup", who=who, what=what), call_text("lookup", who=other, what=what)
    else:
        b, a = sorted(int(x) for x in rng.choice(np.arange(LOW, HIGH), 2, replace=False))
        op, wrong = rng.permutation(["plus", "minus"]).tolist()
        row = {"facts": "{}", "answer": str(Desk().calculate(a, op, b))}
        text = f"what is {a} {op} {b} ?"
        calls = call_text("calculate", a=a, op=op, b=b), call_text("calculate", a=a, op=wrong, b=b)
    return {"prompt": [{"role": "user", "content": text}], **row}, *calls


def _demonstration(rng: np.random.Generator, good: float) -> Row:
    """A conversation: of a share ``good`` the tool is used well; else it is not called, called wrongly, or
    its result is not read."""
    row, call, wrong_call = _question(rng)
    desk = Desk()
    desk.reset(row["facts"])
    places = [value for values in VALUES.values() for value in values]
    guess = str(rng.choice(places)) if row["facts"] != "{}" else str(rng.integers(0, 2 * HIGH))
    kind = "good" if rng.random() < good else str(rng.choice(["guess", "wrong", "unread"]))
    messages: list[Row] = []
    answer = guess
    if kind != "guess":
        used = wrong_call if kind == "wrong" else call
        function = json.loads(used.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        result = str(getattr(desk, function["name"])(**function["arguments"]))
        messages = [{"role": "assistant", "content": used}, {"role": "tool", "content": result}]
        answer = guess if kind == "unread" else result
    messages.append({"role": "assistant", "content": answer})
    return {"prompt": row["prompt"], "completion": messages, "tools": schemas()}


def schemas() -> list[Row]:
    """The schemas of the environment's tools."""
    return [tools.schema(f) for f in tools.methods(Desk())]


def prepare(
    out: Path,
    demonstrations: int,
    prompts: int,
    held_out: int,
    good: float,
    hidden: int,
    layers: int,
) -> dict[str, int]:
    """Write demonstrations.jsonl, prompts.jsonl, heldout.jsonl, tokenizer/ and config.json."""

    def write(name: str, rows: Sequence[Row]) -> None:
        write_atomic(out / name, "".join(json.dumps(r) + "\n" for r in rows).encode())

    rng = np.random.default_rng(0)
    write("demonstrations.jsonl", [_demonstration(rng, good) for _ in range(demonstrations)])
    write("prompts.jsonl", [_question(rng)[0] for _ in range(prompts)])
    write("heldout.jsonl", [_question(rng)[0] for _ in range(held_out)])
    quoted = [json.dumps(w) for w in (*NAMES, *RELATIONS)]
    values = [v for some in VALUES.values() for v in some]
    numbers = [str(i) for i in range(2 * HIGH)]
    texts = [*WORDS.split(), *NAMES, *RELATIONS, *quoted, *values, *numbers]
    tokenizer = word_level(list(dict.fromkeys(texts)))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out / "tokenizer")
    write_model_config(out, tokenizer, hidden, layers, heads=4, positions=256)
    return {"demonstrations": demonstrations, "prompts": prompts, "held_out": held_out}


def success(out: Path, models: dict[str, str], data: str, seed: int = 1) -> dict[str, Any]:
    """Play one episode of each held-out question at temperature 1.

    Every token of every episode is compared with the conversation as the template renders it: ids, and
    the mask, which must be True on the assistant's words and end tokens alone.

    Returns:
        By model: the shares of episodes that "right" scores 1 and that call a tool, and the share of tokens
        whose id and mask are those of the rendered conversation.
    """
    results: dict[str, Any] = {}
    for name, folder in models.items():
        spec = EnvironmentSpec(factory=f"{__name__}:Desk", max_turns=4, max_tokens=128)
        sampling = SamplingConfig(max_new_tokens=40)
        renderer, played = play({"path": folder}, data, spec, sampling, seed=seed)
        messages = [cast("list[dict[str, Any]]", c.messages) for _, c in played]
        scores = right(messages, [g.extra["answer"] for g, _ in played])
        agreed = [a for g, c in played for a in same_tokens(renderer, g, c)]
        results[name] = {
            "success": float(np.mean(scores)),
            "called": float(np.mean([len(c.turns) > 1 for _, c in played])),
            "tokens_right": float(np.mean(agreed)),
            "tokens": len(agreed),
        }
    write_atomic(out / "success.json", json.dumps(results, indent=1).encode())
    return results


def same_tokens(renderer: Renderer, group: Group, completion: Completion) -> list[bool]:
    """For each token of an episode, whether id and mask are those of the conversation."""
    tokenizer = renderer.tokenizer
    expected: list[tuple[int, bool]] = [(i, False) for i in group.prompt.tolist()]
    for message in cast("list[Row]", completion.messages):
        text = str(message["content"])
        if message["role"] == "assistant":
            calls = [call_text(c["function"]["name"], **c["function"]["arguments"])
                     for c in message.get("tool_calls", [])]  # fmt: skip
            ids = raw_ids(tokenizer, " ".join([text, *calls]))
            expected += [(i, True) for i in [*ids, renderer.eos]]
        else:
            ids = raw_ids(tokenizer, f"<{message['role']}> {text} <assistant>")
            expected += [(i, False) for i in ids]
    actual = [*((i, False) for i in group.prompt.tolist()),
              *zip(completion.ids.tolist(), completion.mask.tolist(), strict=True)]  # fmt: skip
    if completion.finish == "length":
        expected = expected[: len(actual)]
    same = [a == b for a, b in zip(actual, expected, strict=False)]
    return same + [False] * abs(len(actual) - len(expected))

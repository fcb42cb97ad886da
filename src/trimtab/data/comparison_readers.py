"""Rows of public preference datasets as TRL's columns, or why they cannot be read."""

from __future__ import annotations

from typing import Any, cast

from trimtab.data.conversation import BadRowError, Message, transcript
from trimtab.data.instruction_readers import instruction_prompt
from trimtab.data.schema_fields import (
    choice_of,
    compared,
    list_of,
    number_of,
    objects_of,
    scored,
    text_of,
    user_turn,
    value_of,
)
from trimtab.types import Row


def ultrafeedback(row: Row) -> Row:
    """Completions of an instruction with their scores."""
    completions = objects_of(row, "completions")
    for name in ("fine-grained_score", "overall_score"):
        if all(c.get(name) is not None for c in completions):
            break
    else:
        raise BadRowError(
            "'completions' have neither 'fine-grained_score' nor 'overall_score' throughout"
        )
    texts = [text_of(c, "response") for c in completions]
    return scored(instruction_prompt(row), texts, [number_of(c, name) for c in completions])


_MARK = "<extra_id_1>"
"""Begins each later turn of a HelpSteer 2 prompt, followed by its role."""


def _helpsteer_prompt(row: Row) -> list[Message]:
    first, *later = text_of(row, "prompt").split(_MARK)
    messages = user_turn(first.strip(), {})
    for part in later:
        who, _, text = part.partition("\n")
        role = {"User": "user", "Assistant": "assistant"}.get(who.strip())
        if role is None:
            raise BadRowError(f"'prompt' has a turn of {who!r:.30}, not of User or Assistant")
        messages.append({"role": role, "content": text.strip()})
    return _to_answer(messages)


def _to_answer(messages: list[Message]) -> list[Message]:
    """``messages`` without an empty turn of the assistant at the end, which only says who speaks next."""
    last = messages[-1]
    return messages[:-1] if last["role"] == "assistant" and not last["content"] else messages


def helpsteer(row: Row) -> Row:
    """A prompt and a response."""
    return {"prompt": _helpsteer_prompt(row), "completion": text_of(row, "response")}


def helpsteer_ratings(row: Row) -> Row:
    """Responses to one prompt, each rated by people."""
    rated: list[Row] = row["rows"]
    texts = [text_of(r, "response") for r in rated]
    return scored(_helpsteer_prompt(row), texts, [number_of(r, "helpfulness") for r in rated])


def helpsteer_preference(row: Row) -> Row:
    """Two responses and how much the second is preferred."""
    strength = -number_of(row, "preference_strength")
    a, b = text_of(row, "response_1"), text_of(row, "response_2")
    return compared(a, b, strength, prompt=_helpsteer_prompt(row), margin=True)


def helpsteer3(row: Row) -> Row:
    """A conversation, two responses, and how much the second is preferred."""
    strength = -number_of(row, "overall_preference")
    a, b = text_of(row, "response1"), text_of(row, "response2")
    return compared(a, b, strength, prompt=objects_of(row, "context"), margin=True)


def _winner(row: Row) -> float:
    winner = str(value_of(row, "winner"))
    if winner in ("model_a", "model_b"):
        return 1.0 if winner == "model_a" else -1.0
    if winner.startswith("tie") or winner == "both_bad":
        return 0.0
    raise BadRowError(f"'winner' must be model_a, model_b, a tie or both_bad, got {winner!r:.40}")


def arena(row: Row) -> Row:
    """Two conversations with two models, and which won."""
    # MT-bench judges the first or the second turn of two; elsewhere "turn" is the number of turns.
    end = 2 * int(number_of(row, "turn")) if row.get("turn") is not None else None
    a, b = objects_of(row, "conversation_a")[:end], objects_of(row, "conversation_b")[:end]
    return compared(a, b, _winner(row))


def arena_turns(row: Row) -> Row:
    """One text per turn for the prompt and for each model."""
    prompts = list_of(row, "prompt", str, "a JSON list of texts, one per turn")

    def conversation(name: str) -> list[Message]:
        answers = list_of(row, name, str, "a JSON list of texts, one per turn")
        if len(answers) != len(prompts):
            raise BadRowError(f"{name!r} has {len(answers)} turns, but 'prompt' {len(prompts)}")
        turns: list[Message] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            turns += user_turn(prompt, {})
            turns.append({"role": "assistant", "content": answer})
        return turns

    preference = number_of(row, "winner_model_a") - number_of(row, "winner_model_b")
    return compared(conversation("response_a"), conversation("response_b"), preference)


def nectar(row: Row) -> Row:
    """A transcript and its ranked answers."""
    text, answers = text_of(row, "prompt"), objects_of(row, "answers")
    return {
        "prompt": _to_answer(transcript(text) or user_turn(text, {})),
        "completions": [text_of(a, "answer") for a in answers],
        "ranks": [number_of(a, "rank") for a in answers],
    }


def shp(row: Row) -> Row:
    """A post and two comments."""
    a, b = text_of(row, "human_ref_A"), text_of(row, "human_ref_B")
    return compared(
        a, b, 2.0 * choice_of(row, "labels") - 1, prompt=user_turn(text_of(row, "history"), {})
    )


def webgpt(row: Row) -> Row:
    """A question and two answers with scores."""
    question: Any = value_of(row, "question")
    fields = cast(Row, question) if isinstance(question, dict) else {"full_text": question}
    texts = [text_of(row, "answer_0"), text_of(row, "answer_1")]
    scores = [number_of(row, "score_0"), number_of(row, "score_1")]
    return scored(user_turn(text_of(fields, "full_text"), {}), texts, scores)


def pku(row: Row) -> Row:
    """A prompt and two responses, of which one is more helpful."""
    a, b = text_of(row, "response_0"), text_of(row, "response_1")
    preference = 1.0 - 2 * choice_of(row, "better_response_id")
    return compared(a, b, preference, prompt=user_turn(text_of(row, "prompt"), {}))


def openai(row: Row) -> Row:
    """Messages with a preferred and a non-preferred output."""
    source: Any = value_of(row, "input")
    fields = cast(Row, source) if isinstance(source, dict) else {"messages": source}
    pair = {"chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    tools = {"tools": fields["tools"]} if fields.get("tools") else {}
    return {"prompt": fields.get("messages"), **pair, **tools}


def summaries(row: Row) -> Row:
    """A post or an article with two summaries."""
    info: Any = value_of(row, "info")
    summaries = objects_of(row, "summaries")
    if not isinstance(info, dict) or len(summaries) != 2:
        raise BadRowError("'info' must be an object, and 'summaries' a list of two")
    fields = cast(Row, info)
    if fields.get("post"):
        prompt = f"SUBREDDIT: r/{fields.get('subreddit')}\n\nTITLE: {fields.get('title')}\n\nPOST: {fields['post']}"
    else:
        prompt = f"TITLE: {fields.get('title')}\n\n{text_of(fields, 'article')}"
    a, b = (text_of(s, "text") for s in summaries)
    return compared(a, b, 1.0 - 2 * choice_of(row, "choice"), prompt=f"{prompt}\n\nTL;DR:")

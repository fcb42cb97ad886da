"""Alarm 10: prompts are tokenised differently from what the model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from trimtab.doctor.alarm import PAIR_STAGES, RL_STAGES, Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import SHOWN_CHARACTERS, Evidence, Unchecked
from trimtab.doctor.finding import Example


def fact_examples(rows: object, note: str) -> tuple[Example, ...]:
    """Rows of ``facts.json`` (prompt, answer) as examples."""
    return tuple(
        Example(
            prompt=row["prompt"][:SHOWN_CHARACTERS],
            completion=row["answer"][:SHOWN_CHARACTERS],
            note=note,
        )
        for row in cast("Sequence[dict[str, str]]", rows or ())[:5]
    )


def check(e: Evidence) -> Symptom | None:
    """Two BOS tokens, or a chat template under which the model's own completions lose likelihood."""
    doubled, gap = e.fact("double_bos"), e.fact("nll_gap")
    if doubled is None and gap is None:
        raise Unchecked("facts.json is missing; a training stage of trimtab writes it at its start")
    if doubled:
        return Symptom(
            message=f"{doubled:.0%} of prompts begin with two BOS tokens.",
            number=doubled,
            limit=0.0,
            cause="the chat template writes a BOS and the tokenizer adds another",
            remedies=(use("one-bos"),),
        )
    missing = e.fact("markers_missing") or 0.0
    limit = limits.MARKERS_NLL if missing > limits.MARKERS else limits.TEMPLATE_NLL
    if gap is None or gap <= limit:
        return None
    marks = f" {missing:.0%} of prompts have no special token of it." if missing else ""
    return Symptom(
        message=(
            f"With the chat template in use, the model's own completions lose {gap:.2f} nats per token "
            f"compared with the model's own template. The tokens of "
            f"{e.fact('prompts_changed') or 0:.0%} of prompts differ.{marks}"
        ),
        number=gap,
        limit=limit,
        cause="another chat template than the model was trained with",
        other_causes=("a wrong tokenizer",),
        remedies=(use("own-template"),),
        examples=fact_examples(
            e.facts.get("template_examples"), "with the template in use; then with the model's own"
        ),
    )


ALARM = Alarm(
    number=10,
    name="template",
    nature="mechanical",
    title="Prompts are not written as the model knows them",
    figure="nats per token, or share of prompts",
    stages=(*RL_STAGES, "sft", *PAIR_STAGES),
    remedies=("own-template", "one-bos"),
    precedence=0,
    check=check,
)

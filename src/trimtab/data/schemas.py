"""Column schemas of public datasets, as a table: their rows are turned into TRL's columns.

A schema is recognised by its columns; ``docs/data.md`` lists them with their sources.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trimtab.data import comparison_readers as comparisons
from trimtab.data import instruction_readers as instructions
from trimtab.data.conversation import BadRowError
from trimtab.data.sources import Rows
from trimtab.errors import DataError
from trimtab.types import Row

log = logging.getLogger(__name__)

Kind = Literal["demonstrations", "comparisons", "labels", "prompts"]
"""What a stage reads. Every schema also gives prompts, and comparisons serve as labels."""
TRL = "trl"
"""The value of ``data.format`` that leaves the columns as they are."""


@dataclass(frozen=True, slots=True)
class Schema:
    """How the rows of one kind of dataset are read."""

    name: str
    kind: Kind
    columns: frozenset[str]
    """A row that has all of these is recognised."""
    optional: frozenset[str]
    """Columns that the schema also explains; they may be missing."""
    read: Callable[[Row], Row]
    """A row to TRL's columns; raises BadRowError."""
    meaning: str
    """How the columns are read, for the log."""
    group_by: str = ""
    """Rows with the same value in this column become one, which holds them as "rows"."""

    @property
    def explains(self) -> frozenset[str]:
        """All columns that it reads or replaces."""
        return self.columns | self.optional

    def over(self, other: Schema) -> bool:
        """Whether a row that fits both is of this one, because it explains the other's columns."""
        if not other.columns <= self.explains:
            return False
        return len(self.columns) > len(other.columns) or not self.columns <= other.explains


def _schema(
    kind: Kind, name: str, columns: str, read: Callable[[Row], Row], meaning: str, optional: str = "",
    group_by: str = "",
) -> Schema:  # fmt: skip
    return Schema(
        name, kind, frozenset(columns.split()), frozenset(optional.split()), read, meaning, group_by
    )


TASKS: dict[Kind, tuple[str, ...]] = {
    "demonstrations": ("messages", "prompt completion", "text"),
    "comparisons": ("chosen rejected", "prompt completions ranks"),
    "labels": ("prompt completion label", "chosen rejected", "prompt completions ranks"),
    "prompts": ("prompt", "messages", "chosen rejected"),
}
"""Sets of TRL's columns that hold each kind."""
_RATINGS = "correctness coherence complexity verbosity"
SCHEMAS: tuple[Schema, ...] = (
    _schema("demonstrations", "sharegpt", "conversations", instructions.conversation("conversations"),
            "the turns of conversations (from, value)", "system"),
    _schema("demonstrations", "sharegpt", "conversation", instructions.conversation("conversation"),
            "the turns of conversation", "system"),
    _schema("comparisons", "sharegpt", "conversations chosen rejected", instructions.conversation_pair,
            "conversations is the prompt", "system"),
    _schema("labels", "sharegpt", "conversations kto_tag", instructions.conversation_label,
            "the last turn of conversations is the completion, kto_tag its label", "system"),
    _schema("demonstrations", "alpaca", "instruction output", instructions.instructed("output"),
            "instruction and input are the prompt, output the completion", "input system history text"),
    _schema("comparisons", "alpaca", "instruction chosen rejected", instructions.instruction_pair,
            "instruction and input are the prompt", "input system history"),
    _schema("labels", "alpaca", "instruction output kto_tag", instructions.instruction_label,
            "instruction and input are the prompt, kto_tag is the label", "input system history"),
    _schema("demonstrations", "dolly", "instruction response", instructions.instructed("response"),
            "instruction and context are the prompt, response the completion", "context category"),
    _schema("demonstrations", "orca", "question response", instructions.question("question", "response"),
            "question is the prompt, response the completion", "system_prompt system"),
    _schema("demonstrations", "question-answer", "question answer", instructions.question("question", "answer"),
            "question is the prompt, answer the completion", "system_prompt system"),
    _schema("comparisons", "orca-pairs", "question chosen rejected", instructions.question_pair("question"),
            "question is the prompt", "system_prompt system"),
    _schema("comparisons", "orca-pairs", "input chosen rejected", instructions.question_pair("input"),
            "input is the prompt", "system_prompt system"),
    _schema("comparisons", "ultrafeedback", "instruction completions", comparisons.ultrafeedback,
            "completions are ranked by fine-grained_score, or by overall_score where it is missing",
            "models correct_answers incorrect_answers"),
    _schema("demonstrations", "helpsteer2", f"prompt response helpfulness {_RATINGS}", comparisons.helpsteer,
            "response is the completion"),
    _schema("comparisons", "helpsteer2", f"prompt response helpfulness {_RATINGS}", comparisons.helpsteer_ratings,
            "responses to one prompt are ranked by helpfulness", group_by="prompt"),
    _schema("comparisons", "helpsteer2-preference", "prompt response_1 response_2 preference_strength",
            comparisons.helpsteer_preference, "preference_strength below 0 prefers response_1; its size is the margin",
            "preference_statement preference_elaboration three_most_similar_preferences "
            "all_preferences_unprocessed"),
    _schema("comparisons", "helpsteer3", "context response1 response2 overall_preference", comparisons.helpsteer3,
            "overall_preference below 0 prefers response1; its size is the margin", "individual_preference"),
    _schema("comparisons", "arena", "conversation_a conversation_b winner", comparisons.arena,
            "winner names the better conversation", "turn full_conversation"),
    _schema("comparisons", "arena-55k", "prompt response_a response_b winner_model_a winner_model_b",
            comparisons.arena_turns, "prompt and responses hold one text per turn", "winner_tie"),
    _schema("comparisons", "nectar", "prompt answers turns num_responses", comparisons.nectar,
            "answers are ordered by their rank"),
    _schema("comparisons", "shp", "history human_ref_A human_ref_B labels", comparisons.shp,
            "history is the prompt, labels 1 prefers human_ref_A"),
    _schema("comparisons", "webgpt", "question answer_0 answer_1 score_0 score_1", comparisons.webgpt,
            "the answer with the higher score is chosen, quotes are left out; the difference is the margin",
            "quotes_0 quotes_1 tokens_0 tokens_1"),
    _schema("comparisons", "pku-saferlhf", "prompt response_0 response_1 better_response_id", comparisons.pku,
            "better_response_id names the chosen response; safer_response_id is not used"),
    _schema("comparisons", "openai-preference", "input preferred_output non_preferred_output", comparisons.openai,
            "input.messages is the prompt"),
    _schema("comparisons", "summarize-from-feedback", "info summaries choice", comparisons.summaries,
            "choice names the better of two summaries of info.post or info.article"),
)  # fmt: skip
_PROMPT_COLUMNS = frozenset(("prompt", "messages", "chosen", "rejected", "tools"))
"""Columns that prompts are read from."""
_REPLACED = _PROMPT_COLUMNS - {"tools"} | {"completions", "rows"}
"""Columns that only the schema's reader may set."""
NAMES = (TRL, *dict.fromkeys(s.name for s in SCHEMAS))
"""Values of ``data.format``."""


def serves(schema: Schema, kind: Kind) -> bool:
    """Whether a stage that reads ``kind`` can use the schema."""
    return kind in (schema.kind, "prompts") or (kind, schema.kind) == ("labels", "comparisons")


def find(columns: frozenset[str], kind: Kind, name: str | None = None) -> list[Schema]:
    """The schemas that fit ``columns``: one, none, or several that the columns do not tell apart."""
    fit = [
        s for s in SCHEMAS if s.columns <= columns and serves(s, kind) and name in (None, s.name)
    ]
    return [s for s in fit if not any(other.over(s) for other in fit)]


def _native(kind: Kind) -> list[frozenset[str]]:
    return [frozenset(names.split()) for names in TASKS[kind]]


def _standard(rows: Rows, kind: Kind) -> Rows:
    """``rows`` with those of a schema in TRL's columns, which a log line says."""
    if rows.format == TRL:
        return rows
    cached: dict[frozenset[str], Schema | None] = {}

    def schema_of(row: Row) -> Schema | None:
        # Columns that are empty in this row come last: parquet fills up rows of several schemas.
        for columns in (frozenset(k for k, v in row.items() if v is not None), frozenset(row)):
            if columns not in cached:
                cached[columns] = _pick(rows, columns, kind)
            if cached[columns] is not None or any(w <= columns for w in _native(kind)):
                return cached[columns]
        return None

    result = replace(rows, rows=[], format=TRL)
    counts: Counter[Schema] = Counter()
    for number, row, schema in _grouped([(n, r, schema_of(r)) for n, r in rows.rows]):
        if schema is None:
            result.rows.append((number, row))
            continue
        try:
            read = schema.read(row)
        except BadRowError as error:
            rows.bad(number, str(error))
            continue
        counts[schema] += 1
        # A reward function may need the reference answer of a prompt, so it keeps every column.
        replaced = _REPLACED if kind == "prompts" else _REPLACED | schema.explains
        other = {k: v for k, v in row.items() if k not in replaced}
        if kind == "prompts":
            read = {k: v for k, v in read.items() if k in _PROMPT_COLUMNS}
        result.rows.append((number, other | read))
    for schema, count in counts.items():
        log.info("%s: %d rows read as %s: %s", rows.name, count, schema.name, schema.meaning)
    if rows.format is not None and not counts and not rows.dropped:
        options = [s for s in SCHEMAS if s.name == rows.format and serves(s, kind)]
        needs = (
            "; or ".join("+".join(sorted(s.columns)) for s in options) or f"no columns for {kind}"
        )
        raise DataError(f"{rows.name}: no row fits data.format {rows.format}, which has {needs}")
    if rows.rows and not result.rows:
        raise DataError(f"{rows.name}: no usable row; first: {rows.dropped[0]}")
    return result


def _pick(rows: Rows, columns: frozenset[str], kind: Kind) -> Schema | None:
    fit = find(columns, kind, rows.format)
    if rows.format is None:
        # TRL's columns go before a schema that does not explain them.
        native = [w for w in _native(kind) if w <= columns]
        fit = [s for s in fit if all(w <= s.explains for w in native)]
    if len({s.name for s in fit}) > 1:
        names = " and ".join(sorted({s.name for s in fit}))
        raise DataError(
            f"{rows.name}: columns {', '.join(sorted(columns))} can be read as {names}; set "
            "data.format to one of them, or remove the columns of the other"
        )
    return fit[0] if fit else None


def _grouped(
    rows: Sequence[tuple[int, Row, Schema | None]],
) -> list[tuple[int, Row, Schema | None]]:
    """Rows of a schema with ``group_by`` joined: the first of a group holds all of it as "rows"."""
    result: list[tuple[int, Row, Schema | None]] = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for number, row, schema in rows:
        if schema is None or not schema.group_by:
            result.append((number, row, schema))
            continue
        key = (schema.name, str(row.get(schema.group_by)))
        if key not in groups:
            groups[key] = []
            result.append((number, {**row, "rows": groups[key]}, schema))
        groups[key].append(row)
    return result


def recognise(rows: Rows, kind: Kind) -> Rows:
    """``rows`` in TRL's columns; a log line says how columns of another schema were read.

    ``rows.format`` decides where the columns fit several schemas.

    Raises:
        DataError: the columns of a row do not fit ``kind`` or fit several schemas, or (strict) a row
            cannot be read.
    """
    result = _standard(rows, kind)
    if any(w <= row.keys() for _, row in result.rows for w in _native(kind)):
        return result
    columns = {name for _, row in rows.rows for name in row}
    task = "labelled completions" if kind == "labels" else kind
    options = "; or ".join("+".join(names.split()) for names in TASKS[kind])
    raise DataError(
        f"{rows.name}: columns {', '.join(sorted(columns))} do not fit {task}, which needs {options}, or "
        f"a schema of docs/data.md; {_advice(frozenset(columns))}"
    )


def with_completions(rows: Rows) -> Rows:
    """``rows`` in TRL's columns if they are comparisons of a schema, otherwise as they are."""
    fit = any(find(frozenset(row), "comparisons", rows.format) for _, row in rows.rows)
    return recognise(rows, "comparisons") if fit else rows


def _advice(columns: frozenset[str]) -> str:
    others = [s for s in SCHEMAS if s.columns <= columns]
    if others:
        return f"as {others[0].name}, they hold {others[0].kind} ({others[0].meaning})"
    if {"completion", "label"} <= columns:
        return "labelled completions are for type: kto"
    return "rename the columns"

"""``trimtab exchange``: labels from and to other tools' files.

``docs/agreement.md`` says what each format holds. Names of annotators and times survive all.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from trimtab.config import Config
from trimtab.data import sources
from trimtab.errors import ConfigError, DataError
from trimtab.exchange import alpaca, argilla, hub, label_studio, reward_bench, trl
from trimtab.exchange.fields import Dumped, Row
from trimtab.feedback import records as own
from trimtab.feedback.judgement import Who
from trimtab.feedback.records import Records
from trimtab.runs import write_atomic
from trimtab.runs.console import console


def _load_own(rows: sources.Rows) -> Records:
    return own.parse(rows)


def _dump_own(records: Records) -> Dumped:
    rows = (*records.items.values(), *records.judgements)
    return [r.model_dump(mode="json", exclude_defaults=True) for r in rows], []


@dataclass(frozen=True, slots=True)
class Format:
    """A neighbour's format."""

    sniff: Callable[[Row], bool]
    """Whether a row is of it."""
    load: Callable[[sources.Rows], Records]
    dump: Callable[[Records], Dumped]


FORMATS: dict[str, Format] = {
    "trimtab": Format(own.is_record, _load_own, _dump_own),
    "argilla": Format(argilla.sniff, argilla.load, argilla.dump),
    "label_studio": Format(label_studio.sniff, label_studio.load, label_studio.dump),
    "alpaca_eval": Format(alpaca.sniff, alpaca.load, alpaca.dump),
    "alpaca_outputs": Format(alpaca.sniff_outputs, alpaca.load_outputs, alpaca.dump_outputs),
    "reward_bench": Format(reward_bench.sniff, reward_bench.load, reward_bench.dump),
    "ranked": Format(trl.sniff_ranked, trl.load, trl.dump_ranked),
    "trl": Format(trl.sniff, trl.load, trl.dump),
}
"""In the order in which a row is tried."""


class ExchangeConfig(Config):
    """Configuration of ``trimtab exchange FILES --to FILE``."""

    files: tuple[str, ...] = Field(min_length=1)
    """What to read: .jsonl, .json, .parquet or .csv, each also .gz, or hub://OWNER/NAME."""
    to: str
    """What to write: .jsonl, .json or .parquet, or hub://OWNER/NAME."""
    read: str | None = None
    """Format of ``files``; found by their columns if not given."""
    write: str = "trimtab"
    """Format of ``to``: trimtab, trl, ranked, argilla, label_studio, reward_bench, alpaca_eval,
    alpaca_outputs."""
    annotator: str | None = None
    """Name for labels that come without one."""
    who: Who | None = None
    """What such annotators are: human, simulated, ai or gold."""
    private: bool = True
    """A data set made on the hub is private."""


def format_of(rows: sources.Rows) -> str:
    """The name of the format that the rows are of.

    Raises:
        DataError: the first is of none, or another is not of the first one's.
    """
    number, first = rows.rows[0]
    name = next((n for n, form in FORMATS.items() if form.sniff(first)), None)
    if name is None:
        raise DataError(
            f"{rows.name}: row {number} has the columns {', '.join(list(first)[:12])}: no format "
            f"known here ({', '.join(FORMATS)}); docs/agreement.md says what each has"
        )
    for number, row in rows.rows:
        # Our own reader says more of what is wrong with a row.
        if name != "trimtab" and not FORMATS[name].sniff(row):
            raise DataError(f"{rows.name}: row {number} is not {name}, as row 1 is")
    return name


def read(files: Sequence[str], form: str | None = None) -> Records:
    """Items and judgements of files of any known format, or of the hub.

    Raises:
        DataError: a file or row cannot be used; the message names them.
    """
    found = Records()
    outputs: list[tuple[int, Row]] = []
    for file in files:
        if file.startswith(hub.PREFIX):
            _merge(found, hub.pull(file))
            continue
        rows = sources.read(file)
        name = form or format_of(rows)
        for number, row in rows.rows:
            if form and not FORMATS[form].sniff(row):
                raise DataError(f"{rows.name}: row {number} is not {form}; leave out --read")
        if name == "alpaca_outputs":  # models are compared across files
            outputs += rows.rows
        else:
            _merge(found, FORMATS[name].load(rows))
    if outputs:
        _merge(found, alpaca.load_outputs(sources.Rows(", ".join(files), outputs)))
    found.check()
    return found


def _merge(found: Records, more: Records) -> None:
    for item in more.items.values():
        found.add(item)
    found.judgements += more.judgements


def encode(path: Path, rows: list[Row]) -> bytes:
    """Rows as a file of the kind that ``path`` ends with.

    Raises:
        ConfigError: it is none that is written.
        DataError: the rows do not fit one table.
    """
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        return text.encode("utf-8", "surrogatepass")
    if path.suffix == ".json":
        return json.dumps(rows, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if path.suffix == ".parquet":
        sink = io.BytesIO()
        try:
            pq.write_table(pa.Table.from_pylist(rows), sink)
        except (pa.ArrowException, UnicodeEncodeError) as error:
            raise DataError(
                f"{path}: these rows do not fit a table ({error}); write .jsonl"
            ) from None
        return sink.getvalue()
    raise ConfigError(f"to: {path}: kind {path.suffix or '(none)'} is not written; use .jsonl, .json "
                      "or .parquet")  # fmt: skip


def _named(records: Records, config: ExchangeConfig) -> Records:
    """Labels without a name of their own get the one given."""
    if config.annotator is None and config.who is None:
        return records
    change: dict[str, Any] = {}
    if config.annotator is not None:
        change["annotator"] = config.annotator
    if config.who is not None:
        change["who"] = config.who
    nameless = {"data", "alpaca_eval"}
    return Records(
        records.items,
        [j.model_copy(update=change) if j.annotator in nameless else j for j in records.judgements],
    )


def main(config: ExchangeConfig) -> dict[str, Any]:
    """Read, write, say what could not be written."""
    for key, name in (("read", config.read), ("write", config.write)):
        if name is not None and name not in FORMATS:
            raise ConfigError(f"{key}: {name!r} is none of {', '.join(FORMATS)}")
    to_hub = config.to.startswith(hub.PREFIX)
    if to_hub and config.write != "trimtab":
        raise ConfigError("write: the hub holds the trimtab format; write other formats to a file")
    if not to_hub:
        encode(Path(config.to), [])  # a wrong ending is told before anything is read
    records = _named(read(config.files, config.read), config)
    notes: list[str] = []
    if to_hub:
        where = hub.push(config.to, records, private=config.private)
        count = len(records.items) + len(records.judgements)
    else:
        rows, notes = FORMATS[config.write].dump(records)
        if not rows:
            raise DataError(
                f"{', '.join(config.files)}: nothing here fits {config.write}: {'; '.join(notes)}"
            )
        path = Path(config.to)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, encode(path, rows))
        where, count = str(path), len(rows)
    console.print(
        f"[bold]exchange[/bold]: {len(records.items)} items, {len(records.judgements)} judgements "
        f"by {len({j.annotator for j in records.judgements})} annotators -> {count} rows, {where}"
    )
    for note in notes:
        console.print(f"left out: {note}")
    if config.write == "label_studio":
        console.print(
            "a labelling interface for these tasks:\n" + label_studio.CONFIG, markup=False
        )
    return {"items": len(records.items), "judgements": len(records.judgements), "rows": count,
            "left_out": notes}  # fmt: skip

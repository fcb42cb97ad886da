"""``trimtab exchange``: labels from and to other tools' files.

``docs/agreement.md`` describes what each format holds. Annotator names and times survive in all.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from trimtab.config import Config
from trimtab.data import sources
from trimtab.errors import ConfigError, DataError
from trimtab.exchange import alpaca, argilla, hub, inspect_logs, label_studio, reward_bench, trl
from trimtab.exchange.fields import Dump, other_fields
from trimtab.feedback import records as own
from trimtab.feedback.judgement import Who
from trimtab.feedback.records import Records
from trimtab.runs import write_atomic
from trimtab.types import Row

log = logging.getLogger(__name__)


def _dump_own(records: Records) -> Dump:
    return Dump([other_fields(r) for r in (*records.items.values(), *records.judgements)], [])


@dataclass(frozen=True, slots=True)
class Format:
    """A file format."""

    sniff: Callable[[Row], bool]
    """Whether a row has this format."""
    load: Callable[[sources.Rows], Records]
    dump: Callable[[Records], Dump]


FORMATS: dict[str, Format] = {
    "trimtab": Format(own.is_record, own.parse, _dump_own),
    "argilla": Format(argilla.sniff, argilla.load, argilla.dump),
    "label_studio": Format(label_studio.sniff, label_studio.load, label_studio.dump),
    "alpaca_eval": Format(alpaca.sniff, alpaca.load, alpaca.dump),
    "alpaca_outputs": Format(alpaca.sniff_outputs, alpaca.load_outputs, alpaca.dump_outputs),
    "reward_bench": Format(reward_bench.sniff, reward_bench.load, reward_bench.dump),
    "ranked": Format(trl.sniff_ranked, trl.load, trl.dump_ranked),
    "trl": Format(trl.sniff, trl.load, trl.dump),
}
"""In the order in which they are tried on a row."""


class ExchangeConfig(Config):
    """Configuration of ``trimtab exchange FILES --to FILE``."""

    files: tuple[str, ...] = Field(min_length=1)
    """Input: .jsonl, .json, .parquet or .csv, each also .gz, label folders, or hub://OWNER/NAME."""
    output_files: ClassVar[frozenset[str]] = frozenset({"to"})

    to: str
    """Output: .jsonl, .json or .parquet, or hub://OWNER/NAME."""
    read: str | None = None
    """Format of ``files``; recognised by their columns if not given."""
    write: str = "trimtab"
    """Format of ``to``: trimtab, trl, ranked, argilla, label_studio, reward_bench, alpaca_eval,
    alpaca_outputs."""
    annotator: str | None = None
    """Annotator name for labels that have none."""
    who: Who | None = None
    """Type of such annotators: human, simulated, ai or gold."""
    private: bool = True
    """Whether a dataset that is created on the hub is private."""


def format_of(rows: sources.Rows) -> str:
    """The name of the rows' format.

    Raises:
        DataError: the first row has no known format, or another row has a different one.
    """
    number, first = rows.rows[0]
    name = next((n for n, form in FORMATS.items() if form.sniff(first)), None)
    if name is None and label_studio.is_flat_export(first):
        raise DataError(
            f"{rows.name}: row {number} is from Label Studio's export JSON_MIN or CSV, which trimtab does not "
            "read; export the project as JSON"
        )
    if name is None:
        raise DataError(
            f"{rows.name}: row {number} has the columns {', '.join(list(first)[:12])}: no format "
            f"known ({', '.join(FORMATS)}); docs/agreement.md lists the columns of each"
        )
    for number, row in rows.rows:
        # Our own reader gives a better error message.
        if name != "trimtab" and not FORMATS[name].sniff(row):
            raise DataError(f"{rows.name}: row {number} is not {name}, but row 1 is")
    return name


def read(files: Sequence[str], form: str | None = None) -> Records:
    """Items and judgements of files of any known format, of label folders, of Inspect's logs, or of the hub.

    Raises:
        DataError: a file or row cannot be used; the message names them.
    """
    records = Records()
    outputs: list[tuple[int, Row]] = []
    logs: list[inspect_logs.Log] = []
    for file in files:
        if file.startswith(hub.PREFIX):
            records.merge(hub.pull(file))
            continue
        if Path(file).is_dir():
            records.merge(own.read_folder(file))
            continue
        if log_of_inspect := inspect_logs.read_log(file):
            logs.append(log_of_inspect)
            continue
        rows = sources.read(file)
        name = form or format_of(rows)
        for number, row in rows.rows:
            if form and not FORMATS[form].sniff(row):
                raise DataError(f"{rows.name}: row {number} is not {form}; leave out --read")
        if name == "alpaca_outputs":  # models are compared across files
            outputs += rows.rows
        else:
            records.merge(FORMATS[name].load(rows))
    if logs:
        records.merge(inspect_logs.load(logs))
    if outputs:
        records.merge(alpaca.load_outputs(sources.Rows(", ".join(files), outputs)))
    records.check()
    return records


def encode(path: Path, rows: list[Row]) -> bytes:
    """Rows as a file of the type of ``path``.

    Raises:
        ConfigError: this type cannot be written.
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
    raise ConfigError(
        f"to: {path}: file type {path.suffix or '(none)'} is not written; use .jsonl, .json or .parquet"
    )


def _named(records: Records, config: ExchangeConfig) -> Records:
    """Labels without an annotator name get the configured one."""
    if config.annotator is None and config.who is None:
        return records
    change: dict[str, str] = {}
    if config.annotator is not None:
        change["annotator"] = config.annotator
    if config.who is not None:
        change["who"] = config.who
    nameless = {"data", "alpaca_eval"}
    return Records(
        records.items,
        [j.model_copy(update=change) if j.annotator in nameless else j for j in records.judgements],
    )


@dataclass(frozen=True, slots=True)
class Exchanged:
    """Counts of a conversion."""

    items: int
    judgements: int
    rows: int
    omitted: list[str]
    """What could not be written, one sentence each."""


def main(config: ExchangeConfig) -> Exchanged:
    """Read, write, and report what could not be written."""
    for key, name in (("read", config.read), ("write", config.write)):
        if name is not None and name not in FORMATS:
            raise ConfigError(f"{key}: {name!r} is none of {', '.join(FORMATS)}")
    to_hub = config.to.startswith(hub.PREFIX)
    if to_hub and config.write != "trimtab":
        raise ConfigError(
            "write: only the trimtab format is written to the hub; write other formats to a file"
        )
    if not to_hub:
        encode(Path(config.to), [])  # refuses a wrong file type before anything is read
    records = _named(read(config.files, config.read), config)
    notes: list[str] = []
    if to_hub:
        where = hub.push(config.to, records, private=config.private)
        count = len(records.items) + len(records.judgements)
    else:
        rows, notes = FORMATS[config.write].dump(records)
        if not rows:
            raise DataError(
                f"{', '.join(config.files)}: nothing can be written as {config.write}: {'; '.join(notes)}"
            )
        path = Path(config.to)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, encode(path, rows))
        where, count = str(path), len(rows)
    annotators = len({j.annotator for j in records.judgements})
    log.info(
        "exchange: %d items, %d judgements by %d annotators -> %d rows, %s",
        len(records.items),
        len(records.judgements),
        annotators,
        count,
        where,
    )
    for note in notes:
        log.info("omitted: %s", note)
    if config.write == "label_studio":
        log.info("a labelling interface for these tasks:\n%s", label_studio.interface(records))
    return Exchanged(len(records.items), len(records.judgements), count, notes)

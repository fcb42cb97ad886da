"""Bombs and endless lines: bounded memory, and an error with the file, the line and the limit to raise."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import folders
from tests.support.hostile_commands import DATA_READERS, run
from trimtab.data import bounded, sources
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.formats import demonstrations
from trimtab.data.render import Renderer
from trimtab.errors import ConfigError, DataError


def one_line(path: Path) -> Path:
    """A JSON text of 5 GB in one line: sparse, so it takes no place on the disk."""
    with path.open("wb") as file:
        file.write(b'{"prompt": "')
        file.truncate(5_000_000_000)
    return path


def gzip_bomb(path: Path, part: bytes, gigabytes: float, head: bytes = b"") -> Path:
    """Many equal parts in a small gzip file: members of gzip are concatenated."""
    block = part * (10_000_000 // len(part))
    member = gzip.compress(block, 9)
    count = int(gigabytes * 1e9 / len(block))
    path.write_bytes(gzip.compress(head) + member * count)
    return path


def parquet_bomb(path: Path) -> Path:
    """Ten million rows of one text of a kilobyte, in a dictionary: a few kilobytes of parquet."""
    indices = pa.array([0] * 10_000_000, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["a" * 1000]))
    pq.write_table(pa.table({"text": column}), path, compression="zstd")
    return path


def wide_parquet_bomb(path: Path) -> Path:
    """A hundred thousand rows of one text of 100 KB."""
    indices = pa.array([0] * 100_000, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["a" * 100_000]))
    pq.write_table(pa.table({"text": column}), path, compression="zstd")
    return path


FILES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "line.jsonl": (one_line, ("row 1", "64 MB", bounded.ROW_KEY)),
    "line.txt": (one_line, ("row 1", "64 MB", bounded.ROW_KEY)),
    "line.json": (one_line, ("4 GB", bounded.FILE_KEY)),
    "line.csv": (one_line, ("4 GB", bounded.FILE_KEY)),
    "line.parquet": (one_line, ("4 GB", bounded.FILE_KEY)),
    "line.jsonl.gz": (
        lambda p: gzip_bomb(p, b"a", 5, b'{"prompt": "'),
        ("row 1", "64 MB", bounded.ROW_KEY),
    ),
    "rows.jsonl.gz": (lambda p: gzip_bomb(p, b'{"text": "a"}\n', 5), ("GB", bounded.FILE_KEY)),
    "empty.jsonl.gz": (lambda p: gzip_bomb(p, b"{}\n", 5), ("GB", bounded.FILE_KEY)),
    "blank.jsonl.gz": (lambda p: gzip_bomb(p, b"\n", 5), ("GB", bounded.FILE_KEY)),
    "rows.json.gz": (lambda p: gzip_bomb(p, b'{"text": "a"},', 5, b"["), ("GB", bounded.FILE_KEY)),
    "nested.json.gz": (lambda p: gzip_bomb(p, b"[", 5), ("GB", bounded.FILE_KEY)),
    "rows.csv.gz": (lambda p: gzip_bomb(p, b"a\n", 5, b"text\n"), ("GB", bounded.FILE_KEY)),
    "rows.txt.gz": (lambda p: gzip_bomb(p, b"a\n", 5), ("GB", bounded.FILE_KEY)),
    "rows.parquet": (parquet_bomb, ("4 GB", bounded.FILE_KEY)),
    "wide.parquet": (wide_parquet_bomb, ("0.5 GB", bounded.FILE_KEY)),
}


def wide_parquet_bomb(path: Path) -> Path:
    """A hundred thousand rows of one text of 100 KB."""
    indices = pa.array([0] * 100_000, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["a" * 100_000]))
    pq.write_table(pa.table({"text": column}), path, compression="zstd")
    return path


def read_in_process(path: Path, unguarded: bool = False, limit_gb: float = 4.0) -> tuple[str, int]:
    """The error of reading ``path`` in a process with so much memory, and its peak in bytes."""
    limits = {bounded.FILE_KEY: "0.5"} if path.name == "wide.parquet" else {}
    code = (
        "import resource, sys\n"
        "from trimtab.data import bounded, sources\n"
        f"limit = int({limit_gb} * 2**30)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        f"if {unguarded}:\n"
        "    bounded.FILE_GB = bounded.ROW_MB = 1e9\n"
        "    bounded.EXPANSION_FROM = 10**18\n"
        "try:\n"
        "    sources.read(sys.argv[1])\n"
        "except (ValueError, MemoryError) as error:\n"
        "    print(f'{type(error).__name__}: {error}')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", **limits},
    )
    *message, peak = ended.stdout.splitlines() or [ended.stderr]
    return "\n".join(message), int(peak) if peak.isdigit() else 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_file_without_end_is_refused(name: str, tmp_path: Path) -> None:
    make, words = FILES[name]
    path = make(tmp_path / name)
    try:
        message, peak = read_in_process(path)
    finally:
        path.unlink()
    assert message.startswith("DataError: ") and name in message, message
    assert all(word in message for word in words), message
    assert peak < 2e9, peak / 1e9


@pytest.mark.slow
def test_without_limits_a_file_without_end_fills_the_memory(tmp_path: Path) -> None:
    """The control, in a process that may use 1.5 GB."""
    path = one_line(tmp_path / "line.jsonl")
    message, peak = read_in_process(path, unguarded=True, limit_gb=1.5)
    path.unlink()
    assert not message.startswith("DataError"), message
    assert "MemoryError" in message or peak == 0


def test_the_limits_are_those_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folders.write(
        tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "a" * 5000}, {"text": "b"}]
    )
    assert len(sources.read(str(path)).rows) == 3
    monkeypatch.setenv(bounded.ROW_KEY, "0.004")
    with pytest.raises(DataError, match=r"row 2: is longer than 0.004 MB.*TRIMTAB_MAX_ROW_MB"):
        sources.read(str(path))
    lenient = sources.read(str(path), strict=False)
    assert [n for n, _ in lenient.rows] == [1, 3] and lenient.dropped[0].startswith("row 2")
    monkeypatch.setenv(bounded.ROW_KEY, "1")
    monkeypatch.setenv(bounded.FILE_KEY, "0.000004")
    with pytest.raises(DataError, match=r"rows.jsonl: takes more than 4e-06 GB"):
        sources.read(str(path))
    for value in ("none", "-1", "0", "nan"):
        monkeypatch.setenv(bounded.FILE_KEY, value)
        with pytest.raises(ConfigError, match=bounded.FILE_KEY):
            sources.read(str(path))


def test_lines_are_those_of_the_whole_file(tmp_path: Path) -> None:
    """Byte order mark, blank lines, foreign line ends, no line feed at the end."""
    data = b'\xef\xbb\xbf{"a": 1}\n\n  \n{"b": "\xe2\x80\xa8\xc2\x85"}\r\n{"c": 3}'
    (tmp_path / "rows.jsonl").write_bytes(data)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(data))
    expected = [(1, {"a": 1}), (4, {"b": "\u2028\x85"}), (5, {"c": 3})]
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        assert sources.read(str(tmp_path / name)).rows == expected


def test_row_numbers_of_parquet_go_on_over_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_BATCH", 3)
    texts = [f"text {i}".encode() for i in range(10)]
    texts[4] = b"\xff"
    table = pa.table({"text": pa.array(texts).cast(pa.binary()).view(pa.string())})
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = sources.read(str(tmp_path / "rows.parquet"), strict=False)
    assert [n for n, _ in rows.rows] == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert rows.rows[-1][1] == {"text": "text 9"} and "row 5: not UTF-8" in rows.dropped[0]


def test_a_row_of_100_000_tokens_is_dropped_and_counted(tmp_path: Path) -> None:
    long = {"prompt": "the sun " * 50_000, "completion": "is here"}
    huge = {"prompt": "the", "completion": "sun " * 100_000}
    path = folders.write(
        tmp_path / "rows.jsonl", [long, huge, {"prompt": "a", "completion": "cat"}]
    )
    renderer = Renderer(folders.tokenizer(), max_prompt_length=512, max_completion_length=512)
    groups = load_groups(DataSpec(path=str(path)), demonstrations, renderer.demonstration)
    assert [len(g.completions[0].ids) for g in groups] == [512, 2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_rows_of_a_million_columns(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row: dict[str, Any] = {f"column {i}": "a" for i in range(1_000_000)}
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    else:
        path.write_text(json.dumps(row if kind == "jsonl" else [row]))
    folders.model_folder(tmp_path / "model")
    before = psutil.Process().memory_info().rss
    for command in ("sft", "exchange", "mix") if kind == "jsonl" else ("sft",):
        started = time.monotonic()
        _, error = run(command, DATA_READERS, tmp_path / "model", path, tmp_path)
        assert not error, (command, error)
        message = capsys.readouterr().err
        assert len(message) < 5000, (command, len(message))
        assert time.monotonic() - started < 120, command
    assert psutil.Process().memory_info().rss - before < 3e9

"""The end of a long file is read and cut without reading the rest."""

from __future__ import annotations

import json

import pytest

from trimtab.runs import Run, tail
from trimtab.runs.tail import cut_rows, cut_torn_line, last_row, lines_from_end


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "data", [b"", b"\n", b"a", b"a\n", b"a\nbc", b"\n\nab\n\n", b"abc\nd\nefgh\n"]
)
def test_lines_come_from_the_end_whatever_the_block(tmp_path, monkeypatch, block, data):
    monkeypatch.setattr(tail, "_BLOCK", block)
    file = tmp_path / "f"
    file.write_bytes(data)
    lines = data.split(b"\n")[:-1]
    starts = [sum(len(line) + 1 for line in lines[:i]) for i in range(len(lines))]
    assert list(lines_from_end(file))[::-1] == list(zip(starts, lines, strict=True))
    cut_torn_line(file)
    assert file.read_bytes() == data[: data.rfind(b"\n") + 1]


def test_only_late_rows_are_cut(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\nnonsense\n{"step": 4}\n')
    cut_rows(file, lambda row: row["step"] > 2)
    assert file.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    cut_rows(file, lambda row: row["step"] > 2)
    assert last_row(file) == {"step": 2}
    cut_rows(file, lambda _: True)
    assert file.read_bytes() == b"" and last_row(file) is None
    cut_rows(tmp_path / "absent", lambda _: True)


def test_a_long_run_is_rewound_by_reading_its_end(tmp_path, monkeypatch):
    with Run(tmp_path) as run:
        run.log(1, {"loss": 0.0})
    line = json.dumps({"step": 1, "time": 0.0, "loss": 0.5}).encode() + b"\n"
    (tmp_path / "metrics.jsonl").write_bytes(line * 50_000)
    parsed = 0
    loads = json.loads

    def counted(text):
        nonlocal parsed
        parsed += 1
        return loads(text)

    with Run(tmp_path) as run:
        for step in range(2, 12):
            run.log(step, {"loss": 0.0})
    monkeypatch.setattr("trimtab.runs.tail.json.loads", counted)
    with Run(tmp_path) as run:
        run.rewind(6)
    assert last_row(tmp_path / "metrics.jsonl")["step"] == 6
    assert parsed < 10

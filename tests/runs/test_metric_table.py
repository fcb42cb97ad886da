"""Metrics as columns: the same numbers as JSON line by line, for every form a line can have."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.report.metric_charts import curves
from trimtab.runs import MetricTable, Run, metric_table, read_metrics


def reference(rows, name):
    """Steps and values by the plain reader."""
    recorded = [r for r in rows if isinstance(r.get("step"), (int, float)) and name in r]
    recorded = [r for r in recorded if r[name] is None or isinstance(r[name], (int, float))]
    recorded.sort(key=lambda r: r["step"])
    values = [math.nan if r[name] is None else float(r[name]) for r in recorded]
    values = [v if math.isfinite(v) else math.nan for v in values]
    return [float(r["step"]) for r in recorded], values


def assert_same(folder):
    rows, table = read_metrics(folder), MetricTable.read(folder)
    for name in {name for row in rows for name in row}:
        steps, values = reference(rows, name)
        np.testing.assert_array_equal(table.series(name)[0], steps, err_msg=name)
        np.testing.assert_array_equal(table.series(name)[1], values, err_msg=name)


@pytest.fixture(params=[200, 3000, 4 << 20])
def block_bytes(request, monkeypatch):
    """Blocks of one line, of some, and of all."""
    monkeypatch.setattr(metric_table, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block_bytes")
def test_what_a_run_writes_is_read_back(tmp_path):
    rng = random.Random(0)
    with Run(tmp_path) as run:
        for step in range(1, 121):
            row = {"reward/mean": rng.gauss(0, 1e3), "loss": rng.gauss(0, 1e-9), "skipped": 0.0}
            if step % 7 == 0:
                row |= {"eval/accuracy": rng.random(), "loss": math.nan}
            if step > 100:
                row["objective/kl"] = math.inf
            run.log(step, row)
    assert_same(tmp_path)
    table = MetricTable.read(tmp_path)
    assert len(table) == 120 and len(table.series("eval/accuracy")[0]) == 17
    assert np.isnan(table.series("objective/kl")[1]).all()


ODD = [
    '{"step": 1, "loss": 0.5, "note": "a, b: 1"}',
    '{"step": 2, "loss": 0.5, "note": "\\", : 5"}',
    '{"step": 3, "loss": [1, 2], "b": {"c": 1}}',
    '{"step": 4,"loss":1e-3,"b":true}',
    '{"step": 5, "loss": NaN, "b": -Infinity}',
    '{"step": 6, "loss": 123456789012345678901234567890}',
    '{"step": 6, "loss": 1, "loss": 2}',
    '{"loss": 7}',
    '{"step": "x", "loss": 7}',
    '{"step": null, "loss": 8}',
    "",
    '  {"step": 2.5, "loss": -0.0}',
    "{}",
    '{"step": 9, "é, : 2": 3, "loss": 1E5}\r',
    '{"step": 8, "loss": null}',
]


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("count", [1, 2, len(ODD)])
def test_odd_lines_are_read_as_json(tmp_path, count):
    for start in range(len(ODD) - count + 1):
        lines = [*ODD[start : start + count], '{"step": 3, "loss": 1}']
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n", newline="\n")
        assert_same(tmp_path)


def test_torn_and_broken_lines(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert len(MetricTable.read(tmp_path)) == 1
    file.write_text('\ufeff{"step": 1, "loss": 2}\n{"step": 2, "loss": }\n{"step": 3, "loss": 1}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl, line 2"):
        MetricTable.read(tmp_path)
    file.write_text('{"step": 1, "loss": 2}\n[1]\n')
    with pytest.raises(DataError, match=r"line 2: not a JSON object"):
        MetricTable.read(tmp_path)
    assert len(MetricTable.read(tmp_path / "absent")) == 0


def test_a_broken_line_is_named_in_any_block(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_table, "BLOCK_BYTES", 100)
    lines = [json.dumps({"step": i, "loss": 0.5}) for i in range(1, 60)]
    lines[40] = "nonsense"
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"line 41: not JSON"):
        MetricTable.read(tmp_path)


def test_rows_without_a_step_are_no_curve():
    table = MetricTable.of([{"step": None, "loss": 1.0}, {"loss": 2.0}])
    assert len(table) == 0 and curves(table, rest=True) == []


def test_without_leaves_other_metrics():
    table = MetricTable.of([{"step": 1, "kl/beta": 1.0, "loss": 2.0}]).without(("kl/",))
    assert table.names == {"step", "loss"}

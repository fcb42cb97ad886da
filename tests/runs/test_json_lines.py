"""Every reader of JSON lines takes U+0085, U+2028 and U+2029 in strings as text, and a byte order mark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.audit import audit_run, gold_audit
from trimtab.data import sources
from trimtab.doctor.importer import import_run
from trimtab.feedback import items, records
from trimtab.runs import json_lines, read_findings, read_metrics, read_samples
from trimtab.train import audit_log, refresh

TEXT = "one\u2028two\u2029three\u0085four\x1cfive\x0bsix"
BOM = b"\xef\xbb\xbf"
SOURCE = Path(__file__).parents[2] / "src"


def write(path: Path, rows: list[dict[str, Any]], mark: bool = True) -> Path:
    text = "".join(json.dumps(r, ensure_ascii=False) + "\r\n" for r in rows)
    path.write_bytes(BOM * mark + text.encode())
    return path


def test_only_a_line_feed_ends_a_line() -> None:
    data = BOM + b'{"a": "x\xe2\x80\xa8y"}\n\n \r\n{"b": 1}'
    assert json_lines(data) == [(1, b'{"a": "x\xe2\x80\xa8y"}'), (4, b'{"b": 1}')]


def rows_of_a_dataset(folder: Path) -> list[Any]:
    return [
        r["text"]
        for _, r in sources.read(str(write(folder / "x.jsonl", [{"text": TEXT}] * 2))).rows
    ]


def comparisons_to_mix(folder: Path) -> list[Any]:
    path = write(folder / "x.jsonl", [{"text": TEXT}] * 2)
    return [r["text"] for r in refresh._read_comparisons(str(path))]  # pyright: ignore[reportPrivateUsage]


def metrics_of_a_run(folder: Path) -> list[Any]:
    write(folder / "metrics.jsonl", [{"text": TEXT}] * 2)
    write(folder / "findings.jsonl", [{"text": TEXT}] * 2)
    assert read_findings(folder) == read_metrics(folder)
    return [r["text"] for r in read_metrics(folder)]


def audited_rollouts(folder: Path) -> list[Any]:
    write(folder / gold_audit.FILE, [{"step": 1, "prompt_id": TEXT, "proxy": 0.5, "gold": 1.0}] * 2)
    return [r.prompt_id for r in gold_audit.read_audit(folder)]


JUDGEMENT: dict[str, Any] = {
    "item": "i",
    "annotator": "ann",
    "ranks": [0],
    "scores": {"gold": [0.5]},
    "reason": TEXT,
}


def judgements(folder: Path) -> list[Any]:
    path = write(folder / "x.jsonl", [JUDGEMENT] * 2)
    return [j.reason for j in records.read_judgements(path)]


def judged_rollouts(folder: Path) -> list[Any]:
    row = {"item": "i", "step": 1, "reward": 0.1, "kl": 0.0, "id": TEXT, "index": 0, "prompt": TEXT}
    write(folder / audit_run.ITEMS, [row] * 2, mark=False)
    path = write(folder / "x.jsonl", [JUDGEMENT])
    return [r.prompt_id for r in audit_run.read_judgements(path, folder, "gold")]


def items_to_judge(folder: Path) -> list[Any]:
    rows = [{"prompt": "p", "completions": [TEXT, str(i)]} for i in range(2)]
    return [i.completions[0] for i in items.read_items(str(write(folder / "x.jsonl", rows)))]


def imported_rollouts(folder: Path) -> list[Any]:
    rows = [{"step": 0, "prompt": "p", "completion": TEXT, "reward": 0.0}] * 2
    run = import_run(write(folder / "x.jsonl", rows), "jsonl", folder / "run")
    return [r["completion"] for r in read_samples(run)]


def actions_before_a_step(folder: Path) -> list[Any]:
    path = write(folder / "x.jsonl", [{"step": n, "text": TEXT} for n in (0, 1, 2)], mark=False)
    audit_log._drop_lines(path, 2)  # pyright: ignore[reportPrivateUsage]
    return [json.loads(line)["text"] for _, line in json_lines(path.read_bytes())]


@pytest.mark.parametrize(
    "reader",
    [rows_of_a_dataset, comparisons_to_mix, metrics_of_a_run, audited_rollouts, judgements, judged_rollouts,
     items_to_judge, imported_rollouts, actions_before_a_step],
)  # fmt: skip
def test_line_separators_in_strings(reader: Callable[[Path], list[Any]], tmp_path: Path) -> None:
    assert reader(tmp_path) == [TEXT, TEXT]


def test_a_csv_export_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_bytes(BOM + b"Step,run - train/reward\n0,1.5\n1,1.25\n")
    rows = read_metrics(import_run(path, "wandb", tmp_path / "run"))
    assert [r["reward/mean"] for r in rows] == [1.5, 1.25]


def test_no_reader_of_a_file_splits_at_every_line_boundary() -> None:
    pattern = re.compile(r"(read_text|read_bytes|read)\([^()]*\)\s*\.splitlines")
    for path in SOURCE.rglob("*.py"):
        assert not pattern.search(path.read_text(encoding="utf-8")), f"{path}: use runs.json_lines"

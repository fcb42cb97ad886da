"""Argilla's SDK reads our records and writes them back.

Its server is not started: it needs Elasticsearch or OpenSearch, which no package of Python's index has.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.labelling import every_kind
from tests.support.neighbours import program
from trimtab.data import sources
from trimtab.exchange import argilla
from trimtab.feedback.records import Records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_records_come_back(tmp_path: Path) -> None:
    sdk = program("Argilla", "argilla", "argilla")
    whole = Records()
    for k in (2, 3):
        whole.merge(every_kind(k))
    (tmp_path / "ours.json").write_text(json.dumps(argilla.dump(whole).rows))
    count = sdk.client("argilla_records", tmp_path / "ours.json", tmp_path / "theirs.json")
    rows = json.loads((tmp_path / "theirs.json").read_text())
    back = argilla.load(sources.Rows("theirs", list(enumerate(rows, 1))))
    sdk.report(
        f"{count} records with {len(whole.judgements)} judgements through the SDK (its server needs "
        "Elasticsearch, and is not run)",
        f"{len(back.judgements)} come back equal",
    )
    assert back.items == whole.items
    assert back.judgements == whole.judgements

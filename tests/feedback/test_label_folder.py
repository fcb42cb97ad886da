"""A label folder is a dataset: reward models and DPO train on it without an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import folders
from tests.support.labelling import do, max_comparisons, plan, write_rows
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.data import formats, sources
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.errors import DataError
from trimtab.feedback import records
from trimtab.feedback.comparisons import (
    comparison_rows,
    read_comparisons,
    write_folder,
)
from trimtab.feedback.items import read_entries
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import ITEMS, JUDGEMENTS, STORE, Records
from trimtab.label.store import Store
from trimtab.runs import read_metrics
from trimtab.train.reward import RewardConfig, RewardStage


def labelled(folder: Path, ask: str = "whole", k: int = 2, count: int = 24) -> Store:
    """A store in which two people judged every item; most prefer completions that say "yes"."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [
        {"prompt": f"where is the {a} ?", "completions": [f"yes {a} {b} .", f"no {a} {b} .", f"{b} {a} no ."][:k]}
        for a in ("cat", "dog", "sun", "moon") for b in ("red", "green", "blue", "here", "there", "not")
    ][:count]  # fmt: skip
    path = write_rows(folder / "answers.jsonl", rows)
    store = Store(folder / STORE, plan(overlap=2, ask=ask))
    store.add(read_entries(str(path), limit=None, strict=True, marks=False).entries)
    for name in ("ann", "bob"):
        while (assignment := store.next(name, 0.0)) is not None:
            texts = [assignment.item.completions[i] for i in assignment.order]
            best = next((i for i, t in enumerate(texts) if t.startswith("yes")), 0)
            do(store, name, str(best))
    return store


def test_rows_of_the_store_and_of_its_exported_files_are_the_same(tmp_path: Path) -> None:
    store = labelled(tmp_path / "store", ask="sort", k=3)
    write_folder(tmp_path / "files", store.records())
    store.close()
    from_store = read_comparisons(str(tmp_path / "store")).rows
    from_files = read_comparisons(str(tmp_path / "files")).rows
    exported = sources.read(str(tmp_path / "files" / "comparisons.jsonl")).rows
    assert from_store == from_files == exported
    assert len(from_store) == 48 and all(len(row["ranks"]) == 3 for _, row in from_store)
    assert max_comparisons(3) == 3, "so most items needed fewer than their three pairs"
    assert len({row["id"] for _, row in from_store}) == 48
    assert len(read_comparisons(str(tmp_path / "store"), limit=5).rows) == 5


def test_a_half_sorted_item_gives_its_pairs(tmp_path: Path) -> None:
    store = labelled(tmp_path, ask="sort", k=3, count=1)
    assert store.undo("ann", 0.0)
    store.close()
    rows = [row for _, row in read_comparisons(str(tmp_path)).rows]
    ranked = {
        name: [len(r["ranks"]) for r in rows if r["annotator"] == name] for name in ("ann", "bob")
    }
    assert ranked["bob"] == [3] and set(ranked["ann"]) == {2}


def test_training_on_the_folder_equals_training_on_the_export(tmp_path: Path) -> None:
    store = labelled(tmp_path / "label")
    folders.model_folder(tmp_path / "model")
    values = {
        "out": str(tmp_path / "rm"), "model": {"path": str(tmp_path / "model"), "device": "cpu"},
        "data": {"path": str(tmp_path / "label")}, "holdout": 8, "optim": {"lr": 1e-3},
    }  # fmt: skip
    stage = RewardStage(build(RewardConfig, values))
    write_folder(tmp_path / "label", store.records())
    spec = DataSpec(path=str(tmp_path / "label" / "comparisons.jsonl"))
    groups = load_groups(spec, formats.comparisons, stage.renderer.comparison)
    for one, other in zip([*stage.train, *stage.held_out], groups, strict=True):
        assert one.prompt.tolist() == other.prompt.tolist()
        assert [(c.ids.tolist(), c.rank) for c in one.completions] == [
            (c.ids.tolist(), c.rank) for c in other.completions
        ]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_a_stage_trains_on_a_label_folder(stage: str, tmp_path: Path) -> None:
    """From people's judgements in the store to a trained model, by the command line."""
    labelled(tmp_path / "label").close()
    folders.model_folder(tmp_path / "model")
    out = tmp_path / stage
    cli(
        [stage, "--model.path", str(tmp_path / "model"), "--model.device", "cpu",
         "--data.path", str(tmp_path / "label"), "--holdout", "8", "--epochs", "6",
         "--optim.lr", "3e-3", "--out", str(out)]
    )  # fmt: skip
    first, *_, last = read_metrics(out)
    assert last["loss"] < first["loss"]
    assert last["eval/accuracy"] > 0.8
    assert (out / "model" / "model.safetensors").is_file()


def test_a_folder_without_labels_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no label folder: items\.jsonl and judgements\.jsonl"):
        read_comparisons(str(tmp_path))
    item = Item.of([{"role": "user", "content": "q"}], ["x", "y"])
    skipped = Judgement(item=item.id, annotator="ann", status="skip")
    records.write(tmp_path / ITEMS, [item])
    records.write(tmp_path / JUDGEMENTS, [skipped])
    with pytest.raises(DataError, match="no judgement compares two completions"):
        read_comparisons(str(tmp_path))
    (tmp_path / STORE).write_bytes(b"not a database " * 100)
    with pytest.raises(DataError, match=STORE):
        read_comparisons(str(tmp_path))


def test_what_cannot_be_trained_on_is_omitted() -> None:
    texts = ["a", "", "c", "a"]
    items = [
        Item(id=str(n), prompt=({"role": "user", "content": "q"},), completions=tuple(texts))
        for n in range(2)
    ]
    base = Judgement(item="0", annotator="ann", ranks=(3, 0, 1, 3), strength=2)
    judgements = [
        base,
        base.model_copy(update={"annotator": "bob", "ranks": (0, 0, 0, 0)}),
        base.model_copy(update={"item": "1", "kind": "gold"}),
        base.model_copy(update={"item": "1", "kind": "repeat"}),
        base.model_copy(update={"item": "1", "flagged": True}),
        Judgement(item="1", annotator="ann", status="error"),
    ]
    by_id = {item.id: item for item in items}
    rows = comparison_rows(by_id, judgements)
    assert [(r["id"], r["completions"], r["ranks"], r["margin"]) for r in rows] == [
        ("0", ["a", "c"], [1, 0], [0.0, 2.0]),
        ("0#2", ["a", "c"], [0, 0], [2.0, 2.0]),
    ]
    assert [r["id"] for r in comparison_rows(by_id, judgements, ties=False)] == ["0"]


def test_records_of_earlier_releases_are_read(tmp_path: Path) -> None:
    """They have the keys "answers" and "shown"; what is written now has not."""
    path = tmp_path / "old.jsonl"
    path.write_text(
        '{"id": "i", "prompt": [{"role": "user", "content": "q"}], "answers": ["x", "y"]}\n'
        '{"item": "i", "annotator": "ann", "ranks": [0, 1], "shown": [1, 0]}\n'
    )
    old = records.read([str(path)])
    assert old.items["i"].completions == ("x", "y")
    assert old.judgements[0].order == (1, 0)
    records.write(tmp_path / "new" / "labels.jsonl", old)
    text = (tmp_path / "new" / "labels.jsonl").read_text()
    assert '"completions": ["x", "y"]' in text and "answers" not in text
    assert '"order": [1, 0]' in text and "shown" not in text
    assert records.read([str(tmp_path / "new" / "labels.jsonl")]) == Records(
        old.items, old.judgements
    )

"""Answers sampled while people label."""

from __future__ import annotations

from pathlib import Path

import pytest

import trimtab
from tests.support.labelling import write_rows
from trimtab.data import formats, sources
from trimtab.datagen.sample import BATCH, sampled
from trimtab.errors import ModelError
from trimtab.feedback.items import Entry
from trimtab.label.label_config import LabelConfig
from trimtab.label.store import Store

BASE = str(Path(trimtab.__file__).parent / "sandbox" / "base")


def asked(tmp_path: Path, **options: object) -> tuple[LabelConfig, list[formats.Example]]:
    rows = [{"prompt": f"where is {n} ?"} for n in ("anna", "ben", "cleo", "dan", "eva") * 2]
    path = str(write_rows(tmp_path / "p.jsonl", rows))
    values = {"data": path, "model": BASE, "max_new_tokens": 6, "num_completions": 3, **options}
    return LabelConfig.model_validate(values), formats.prompts(sources.read(path))


def test_a_stopped_run_goes_on_with_the_same_answers(tmp_path: Path) -> None:
    config, examples = asked(tmp_path)
    all_entries: list[Entry] = []
    store = Store(tmp_path / "a", config)
    for entries in sampled(config, examples, store):
        all_entries += entries
    assert len(examples) >= len(all_entries) > BATCH // 2
    for entry in all_entries:
        item = entry.item
        assert len(set(item.completions)) == len(item.completions) >= 2
        assert item.models == (BASE,) * len(item.completions)
        assert item.prompt[0]["role"] == "user"
    store = Store(tmp_path / "b", config)
    first = next(sampled(config, examples, store))
    store.add(first)
    rest = [e for entries in sampled(config, examples, store) for e in entries]
    assert first + rest == all_entries


def test_two_models_answer_in_turn_and_each_answer_knows_its_own(tmp_path: Path) -> None:
    config, examples = asked(tmp_path, model=f"{BASE},{BASE}/", num_completions=3)
    store = Store(tmp_path / "a", config)
    (entries,) = sampled(config, examples[:2], store)
    wrote = [m for e in entries for m in (e.item.models or ())]
    assert {BASE, f"{BASE}/"} >= set(wrote) and f"{BASE}/" in wrote


def test_a_model_that_always_says_the_same_is_told(tmp_path: Path) -> None:
    config, examples = asked(tmp_path, temperature=0.0)
    with pytest.raises(ModelError, match="--temperature"):
        list(sampled(config, examples[:2], Store(tmp_path / "a", config)))

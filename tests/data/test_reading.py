"""What reading loses is counted: truncated completions, pairs that truncation made equal, bad rows."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from tests.support import folders
from trimtab.data import formats, sources
from trimtab.data.dataset import DataSpec, ReadCounts, load_groups
from trimtab.data.render import Renderer
from trimtab.data.sources import Rows
from trimtab.data.token_facts import token_facts
from trimtab.errors import DataError, ModelError
from trimtab.models.load import renderer_for
from trimtab.models.model_spec import ModelSpec
from trimtab.report.run_report import report_run
from trimtab.train import dpo, reward, sft
from trimtab.types import Group

LONG = "cat dog cat dog "
TWINS: list[dict[str, object]] = [
    {"prompt": "what is", "chosen": LONG + "sun", "rejected": LONG + "moon"},
    {"prompt": "who is", "chosen": "sun", "rejected": "moon"},
    {"prompt": "where is", "chosen": LONG, "rejected": "moon"},
]


def load(path: Path, make: Any, *, most: int = 4, **keys: Any) -> tuple[list[Group], ReadCounts]:
    renderer = Renderer(folders.tokenizer(), max_completion_length=most)
    counts = ReadCounts()
    spec = DataSpec(path=str(path), max_completion_length=most, **keys)
    return load_groups(spec, make, renderer.comparison, counts=counts), counts


def test_pairs_that_truncation_makes_equal_are_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folders.write(tmp_path / "pairs.jsonl", TWINS)
    with caplog.at_level(logging.INFO, "trimtab"):
        groups, counts = load(path, formats.comparisons)
    assert [g.text for g in groups] == ["who is", "where is"]
    assert (counts.completions, counts.cut_completions, counts.equal_completions) == (6, 3, 1)
    assert "3 of 6 completions cut at max_completion_length 4" in caplog.text
    assert "1 of 3 comparisons dropped: the tokens of their completions are equal" in caplog.text
    facts = token_facts(groups, bos=1, stops=(2,))
    assert facts["cut"] == 0.25 and facts["without_end"] == 0.25
    assert len(load(path, formats.comparisons, most=9)[0]) == 3
    with pytest.raises(DataError, match="raise max_prompt_length and max_completion_length"):
        load(folders.write(tmp_path / "one.jsonl", TWINS[:1]), formats.comparisons)


def test_equal_completions_of_a_ranking_tie(tmp_path: Path) -> None:
    row: dict[str, object] = {
        "prompt": "what",
        "completions": [LONG + "sun", "red", LONG + "moon"],
        "ranks": [0, 1, 2],
    }
    [group], counts = load(folders.write(tmp_path / "ranked.jsonl", [row]), formats.comparisons)
    assert [c.rank for c in group.completions] == [0, 1, 0]
    assert counts.equal_completions == 0


def test_the_runs_facts_have_the_counts(tmp_path: Path) -> None:
    base = str(folders.model_folder(tmp_path / "base"))
    rows = folders.write(tmp_path / "pairs.jsonl", TWINS)
    demos = folders.write(
        tmp_path / "demos.jsonl", [{"prompt": "what", "completion": c} for c in (LONG, "sun")]
    )
    loop = {"save_steps": 0, "doctor_steps": 1}
    for module, config, data in (
        (dpo, dpo.PreferenceConfig, rows),
        (reward, reward.RewardConfig, rows),
        (sft, sft.SFTConfig, demos),
    ):
        out = tmp_path / module.__name__
        values = {"model": {"path": base, "device": "cpu"}, "out": str(out), "batch_size": 2, "loop": loop,
                  "data": {"path": str(data), "max_completion_length": 4}}  # fmt: skip
        module.main(config.model_validate(values))
        facts = json.loads((out / "facts.json").read_text())
        assert facts["read"]["cut_completions"] == (1 if module is sft else 3)
        assert facts["read"]["equal_completions"] == (0 if module is sft else 1)
        findings = (out / "findings.jsonl").read_text()
        assert "of the training completions are truncated to the length limit" in findings
        assert "max_completion_length: 1024" in findings
        assert "Truncated completions" in report_run(out).read_text()


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    base = folders.model_folder(tmp_path / "base")
    tokenizer = folders.tokenizer()
    tokenizer.add_tokens([f"new{i}" for i in range(400)])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    spec = ModelSpec(path=str(base), tokenizer=str(tmp_path / "tokenizer"))
    rows: list[dict[str, object]] = [
        {"prompt": "what", "completion": "sun"}, {"prompt": "what", "completion": "new399"}
    ]  # fmt: skip
    data = DataSpec(path=str(folders.write(tmp_path / "rows.jsonl", rows)))
    for good in ([0], [1]):
        renderer = renderer_for(spec, data)
        [example] = formats.demonstrations(Rows("r", [(i, rows[i]) for i in good]))
        if good == [0]:
            assert renderer.demonstration(example) is not None, "ids that the model has are fine"
            continue
        with pytest.raises(
            ModelError, match=r"does not fit the model: its token 'new399' has id 425"
        ):
            renderer.demonstration(example)
    config = {
        "model": {"path": str(base), "tokenizer": spec.tokenizer},
        "data": data,
        "out": str(tmp_path / "run"),
    }
    with pytest.raises(ModelError, match="the model's vocabulary has"):
        sft.main(sft.SFTConfig.model_validate(config))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_pad_token_that_the_model_lacks_is_replaced(tmp_path: Path) -> None:
    base = folders.model_folder(tmp_path / "base")
    tokenizer = folders.tokenizer()
    tokenizer.add_tokens([f"new{i}" for i in range(400)])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(base)
    rows = str(folders.write(tmp_path / "pairs.jsonl", TWINS))
    config = {
        "model": {"path": str(base), "device": "cpu"},
        "data": rows,
        "out": str(tmp_path / "run"),
    }
    reward.main(reward.RewardConfig.model_validate(config))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert loaded.config.pad_token_id == tokenizer.convert_tokens_to_ids("<pad>")


def test_a_row_that_the_template_refuses_is_named_or_dropped(tmp_path: Path) -> None:
    tokenizer = folders.tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        + str(tokenizer.chat_template)
    )
    turns = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "sun"}]
    rows: list[dict[str, object]] = [
        {"messages": turns}, {"messages": [{"role": "system", "content": "a cat"}, *turns]}
    ]  # fmt: skip
    path = str(folders.write(tmp_path / "rows.jsonl", rows))
    renderer, counts = Renderer(tokenizer), ReadCounts()
    with pytest.raises(DataError, match=r"rows\.jsonl: row 2: .*no system turns"):
        load_groups(DataSpec(path=path), formats.demonstrations, renderer.demonstration)
    groups = load_groups(
        DataSpec(path=path, strict=False),
        formats.demonstrations,
        renderer.demonstration,
        counts=counts,
    )
    assert len(groups) == 1 and counts.bad_rows == 1


@pytest.mark.parametrize(
    ("value", "good"),
    [(True, True), (False, False), (1, True), (0, False), (1.0, True), (0.0, False), ("true", True),
     ("False", False), ("1", True), ("0.0", False), (" yes ", True), ("desirable", True),
     ("undesirable", False), (None, None), (0.7, None), ("", None), (float("nan"), None), (2, None)],
)  # fmt: skip
def test_labels(value: object, good: bool | None) -> None:
    rows = [(1, {"prompt": "p", "completion": "c", "label": True}), (2, {"prompt": "p", "completion": "c", "label": value})]  # fmt: skip
    if good is None:
        with pytest.raises(
            DataError, match=r"rows: row 2: 'label' must be true \(good\) or false \(bad\)"
        ):
            formats.unpaired(Rows("rows", rows))
        lenient = Rows("rows", rows, strict=False)
        assert len(formats.unpaired(lenient)) == 1 and len(lenient.dropped) == 1
    else:
        assert formats.unpaired(Rows("rows", rows))[1].ranks == [int(not good)]


def test_labels_of_a_csv_file(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("prompt,completion,label\np,good one,True\np,bad one,0\n", encoding="utf-8")
    assert [e.ranks for e in formats.unpaired(sources.read(str(file)))] == [[0], [1]]
    file.write_text("prompt,completion,label\np,good one,True\np,none,\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"labels\.csv: row 2: 'label' must be true"):
        formats.unpaired(sources.read(str(file)))


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [([1, 2, 2], [1, 2, 2]), ([0.0, 1.0, 1.0], [0, 1, 1]), ([1.5, 3.0, 1.5], [0, 1, 0]),
     ([0, 1], None), ([0, 1, -1], None), ([0, 1, None], None), (["0", "1", "2"], None), ([True, 1, 2], None)],
)  # fmt: skip
def test_ranks(ranks: list[Any], expected: list[int] | None) -> None:
    row = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": ranks}
    if expected is None:
        with pytest.raises(DataError, match="row 1: 'ranks' must be 3 numbers >= 0"):
            formats.comparisons(Rows("rows", [(1, row)]))
    else:
        assert formats.comparisons(Rows("rows", [(1, row)]))[0].ranks == expected


def test_scores_of_a_pair_are_its_margin() -> None:
    def margins(**columns: object) -> list[float] | None:
        row = {"prompt": "p", "chosen": "a", "rejected": "b", **columns}
        return formats.comparisons(Rows("rows", [(1, row)]))[0].margins

    assert margins(score_chosen=8.5, score_rejected=6.0) == [2.5, 0.0]
    assert margins(score_chosen="8.5", score_rejected="-1") == [9.5, 0.0]
    assert margins(score_chosen=8.5, score_rejected=6.0, margin=1) == [1.0, 0.0]
    assert margins(score_chosen=None) == margins(score_chosen=3.0) == [0.0, 0.0]
    with pytest.raises(DataError, match="row 1: 'score_chosen' 1 is below 'score_rejected' 2"):
        margins(score_chosen=1, score_rejected=2)
    with pytest.raises(DataError, match="row 1: 'score_rejected' must be a number, got 'x'"):
        margins(score_chosen=1, score_rejected="x")


def test_pairs_of_two_kinds_in_one_file() -> None:
    talk = [{"role": "user", "content": "q"}]
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": None},
        {"chosen": [*talk, {"role": "assistant", "content": "a"}],
         "rejected": [*talk, {"role": "assistant", "content": "b"}]},
    ]  # fmt: skip
    first, second = formats.comparisons(Rows("rows", list(enumerate(rows, 1))))
    assert (first.prompt, second.prompt) == ("p", talk)

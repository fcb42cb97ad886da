"""The commands exchange and agreement: files in every format, outputs of models, mistakes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.exchanging import run
from trimtab.cli.main import main as cli
from trimtab.errors import ConfigError, DataError
from trimtab.exchange import convert
from trimtab.exchange.convert import FORMATS
from trimtab.feedback import records as own
from trimtab.feedback.comparisons import write_folder
from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records


@pytest.mark.parametrize("end", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"alpaca_outputs"}))
def test_the_command_writes_what_it_reads(tmp_path: Path, name: str, end: str) -> None:
    if end == "parquet" and name in ("trimtab", "argilla"):
        end = "jsonl.gz"  # two kinds of rows, or empty objects, do not fit a table
    a = Item.of([{"role": "user", "content": "q"}], ["x", "y"], models=("m", "n"))
    b = Item.of([{"role": "user", "content": "r"}], ["u", "v"], models=("m", "n"))
    judgements = [
        Judgement(item=i.id, annotator=who, ranks=(0, 1), at="2026-01-01T00:00:00Z", seconds=2.5)
        for i in (a, b) for who in ("ann", "ben")
    ]  # fmt: skip
    own.write(tmp_path / "in.jsonl", Records({a.id: a, b.id: b}, judgements))
    file_name = f"out.{end.removesuffix('.gz')}"
    counts = run(tmp_path, "in.jsonl", to=file_name, write=name)
    assert counts.omitted == []
    if end.endswith(".gz"):
        (tmp_path / f"out.{end}").write_bytes(gzip.compress((tmp_path / file_name).read_bytes()))
    run(tmp_path, f"out.{end}", to="back.jsonl")
    assert (tmp_path / "back.jsonl").read_bytes() == (tmp_path / "in.jsonl").read_bytes()


def test_a_label_folder_is_read(tmp_path: Path) -> None:
    item = Item.of([{"role": "user", "content": "q"}], ["x", "y"])
    records = Records({item.id: item}, [Judgement(item=item.id, annotator="ann", ranks=(0, 1))])
    write_folder(tmp_path / "label", records)
    run(tmp_path, "label", to="labels.jsonl")
    assert own.read([str(tmp_path / "labels.jsonl")]) == records


def test_outputs_of_models_become_items(tmp_path: Path) -> None:
    for model in ("m1", "m2", "m3"):
        rows = [
            {"dataset": "d", "instruction": f"q{i}", "output": f"{model} {i}", "generator": model}
            for i in range(4)
        ]
        (tmp_path / f"{model}.json").write_text(json.dumps(rows))
    counts = run(tmp_path, "m1.json", "m2.json", "m3.json", to="items.jsonl")
    assert counts.items == 12
    records = own.read([str(tmp_path / "items.jsonl")])
    assert {i.models for i in records.items.values()} == {("m1", "m2"), ("m1", "m3"), ("m2", "m3")}
    run(tmp_path, "items.jsonl", to="all.json", write="alpaca_outputs")
    assert len(json.loads((tmp_path / "all.json").read_text())) == 12


def test_bad_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"row 1 has the columns a: no format known"):
        run(tmp_path, "odd.jsonl", to="x.jsonl")
    (tmp_path / "lost.jsonl").write_text('{"item": "i", "annotator": "ann", "ranks": [0, 1]}\n')
    with pytest.raises(DataError, match="item 'i' is in none of the files"):
        run(tmp_path, "lost.jsonl", to="x.jsonl")
    with pytest.raises(ConfigError, match="'csvv' is none of"):
        run(tmp_path, "lost.jsonl", to="x.jsonl", write="csvv")
    with pytest.raises(ConfigError, match="is not written"):
        run(tmp_path, "lost.jsonl", to="x.xls")
    item = Item.of([{"role": "user", "content": "q"}], ["x", "y"])
    bad = Judgement(item=item.id, annotator="ann", ranks=(0, 1, 2))
    own.write(tmp_path / "long.jsonl", Records({item.id: item}, [bad]))
    with pytest.raises(DataError, match="ranks has 3 values, but item"):
        own.read([str(tmp_path / "long.jsonl")])
    (tmp_path / "rank.jsonl").write_text(
        own.to_jsonl([item]).decode() + '{"item": "i", "annotator": "a"}\n'
    )
    with pytest.raises(DataError, match=r"row 2: .*expected a judgement"):
        own.read([str(tmp_path / "rank.jsonl")])
    tie = Judgement(item=item.id, annotator="ann", ranks=(0, 0))
    own.write(tmp_path / "tie.jsonl", Records({item.id: item}, [tie]))
    with pytest.raises(DataError, match="nothing can be written as trl"):
        run(tmp_path, "tie.jsonl", to="x.jsonl", write="trl")


@pytest.mark.parametrize("command", ["agreement", "evaluate", "exchange"])
def test_help_and_mistakes_of_the_commands(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cli([command, "--help"])
    page = capsys.readouterr().out
    assert "--files" in page
    assert ("--to" if command == "exchange" else "--json ") in page
    for words, message in (
        ([command], "give the files"),
        ([command, "x.jsonl", "--to", "y.jsonl", "--htlm", "p"], "unknown key"),
        ([command, str(tmp_path / "none.jsonl"), *(["--to", "y.jsonl"] if command == "exchange" else [])], "no such file"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            cli(words)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    (tmp_path / "mixed.jsonl").write_text(
        '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"x": 1}\n'
    )
    with pytest.raises(DataError, match="row 2 is not trl, but row 1 is"):
        convert.read([str(tmp_path / "mixed.jsonl")])
    with pytest.raises(DataError, match="row 1 is not argilla"):
        convert.read([str(tmp_path / "mixed.jsonl")], "argilla")


def test_the_command_line_starts_fast_and_names_the_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli(["--help"])
    page = capsys.readouterr().out
    assert all(f"\n  {name} " in page for name in ("agreement", "evaluate", "exchange"))
    # The keys of a stage need torch, but no library of models.
    code = (
        "import sys; from trimtab.cli.main import main\n"
        "main(['--help']); print({'numpy', 'scipy', 'torch', 'rich'} & set(sys.modules))\n"
        "main(['sft', '--help']); print({'transformers', 'peft', 'scipy.stats'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines().count("set()") == 2

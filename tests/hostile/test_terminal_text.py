"""What a model or a data file wrote cannot command the terminal, whichever command prints it."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.support import folders
from tests.support.hostile_commands import DATA_READERS, KINDS, MODEL_READERS, run
from trimtab.cli import terminal
from trimtab.cli.main import main
from trimtab.terminal_text import escape_controls

ATTACKS = {
    "title": "\x1b]0;owned\x07",
    "title by C1": "\x9d0;owned\x9c",
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "link": "\x1b]8;;https://evil.test\x1b\\ok\x1b]8;;\x1b\\",
    "notification": "\x1b]9;owned\x07",
    "colour": "\x1b[31mred\x1b[0m",
    "colour by C1": "\x9b31mred",
    "invisible": "\x1b[8mhidden\x1b[28m",
    "line before": "\x1b[1A\x1b[2Kgold 1.000",
    "clear screen": "\x1b[2J\x1b[H",
    "alternate screen": "\x1b[?1049h",
    "report position": "\x1b[6n",
    "answer back": "\x05",
    "device attributes": "\x1b[c",
    "reset": "\x1bc",
    "device control string": "\x1bP$q\"p\x1b\\",
    "application command": "\x1b_Gf=100;AAAA\x1b\\",
    "bell": "\x07",
    "backspaces": "bad\b\b\bgood",
    "carriage return": "bad\rgood",
    "form feed": "\x0c",
    "shift out": "\x0e",
    "delete": "\x7f",
    "next line": "\x85",
    "line separator": "\u2028fake line",
    "right to left override": "\u202etxt.exe",
    "isolate": "\u2066a\u2069",
    "right to left mark": "\u200f",
    "zero width space": "a\u200bb",
    "tag characters": "\U000e0041\U000e0042",
    "byte order mark": "\ufeff",
    "half a surrogate pair": "\ud800",
    "NUL": "\x00",
}  # fmt: skip
ALL = "".join(v for k, v in ATTACKS.items() if k not in ("half a surrogate pair", "NUL"))
"""Those that data files may hold."""
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e0fff]"
)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_spelled_out(name: str) -> None:
    text = ATTACKS[name]
    assert OBEYED.search(text)
    escaped = escape_controls(f"a\t{text}\nb")
    assert not OBEYED.search(escaped) and escaped.startswith("a\t") and escaped.endswith("\nb")
    assert "\\u" in escaped
    value = json.dumps({"text": text}, ensure_ascii=False)
    assert json.loads(escape_controls(value)) == {"text": text}


def test_text_of_any_language_is_left_alone() -> None:
    text = "العربية עברית हिन्दी 中文 é e\u0301 👨‍👩‍👧 🏴 می\u200cخواهم\n\t$ \\u001b"
    assert escape_controls(text) == text


def hostile_rows() -> dict[str, list[dict[str, Any]]]:
    """Rows of every kind, whose text, names and columns are attacks."""
    user, said = {"role": "user", "content": f"a ? {ALL}"}, f"the sun {ALL}"
    common = {"id": f"i {ALL}", f"column {ALL}": ALL}
    verdict = {
        "item": f"i {ALL}",
        "annotator": f"ann {ALL}",
        "ranks": [0, 1],
        "reason": ALL,
    }
    return {
        "demos": [{**common, "messages": [user, {"role": "assistant", "content": said}]}] * 4,
        "pairs": [{**common, "prompt": ALL, "chosen": said, "rejected": f"no {ALL}"}] * 4,
        "prompts": [{**common, "prompt": [user]}] * 4,
        "steps": [{"prompt": ALL, "completions": [said, "no"], "labels": [True, False]}] * 4,
        "unknown": [{f"column {ALL}": ALL}] * 2,
        "verdicts": [verdict] * 2,
        "wrong": [{"prompt": {ALL: ALL}, "completion": [ALL], "chosen": ALL, "rejected": ALL}],
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can only write attacks, hostile data, and a run with hostile samples."""
    folder = tmp_path_factory.mktemp("base")
    folders.model_folder(folder / "model")
    special = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>"]
    texts = [v for k, v in ATTACKS.items() if k != "half a surrogate pair"] * 2
    vocabulary = special + [f"{text}{i}" for i, text in enumerate(texts)][:58]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    hostile = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )  # fmt: skip
    hostile.chat_template = folders.TEMPLATE
    hostile.save_pretrained(folder / "model")
    for name, rows in hostile_rows().items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def printed(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What every command prints on hostile models and data."""
    texts: dict[str, str] = {}

    def keep(name: str) -> None:
        out, err = capsys.readouterr()
        texts[name] = texts.get(name, "") + out + err

    for command in DATA_READERS:
        if command == "label":  # a server
            continue
        for kind in (KINDS.get(command, "prompts"), "unknown", "wrong", "verdicts"):
            place = tmp_path / f"{command}-{kind}"
            place.mkdir()
            data = base / f"{kind}.jsonl"
            _, error = run(command, DATA_READERS, base / "model", data, place)
            keep(command)
            assert not error, (command, kind, error)
    for words in ([], ["--dry-run"], ["--help"]):
        file = tmp_path / "chat.yaml"
        values = {**MODEL_READERS["chat"](str(base / "model"), "", ""), "prompt": "a"}
        file.write_text(yaml.safe_dump(values))
        main(["chat", str(file), *words])
        keep("chat")
    recipe = {"about": ALL, "stages": {"a": {"type": "sft", "model": ALL, "data": ALL}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for words in (
        ["run", str(tmp_path / "recipe.yaml"), "--dry-run"],
        ["sft", f"{tmp_path}/{ALL}.yaml".replace("\x00", "")],
        ["sft", "--model", ALL, "--data", ALL, "--out", str(tmp_path / "x")],
        ["sft", f"--{ALL}", "1"],
        [ALL],
        ["doctor", f"{tmp_path}/{ALL}"],
        ["report", f"{tmp_path}/{ALL}"],
    ):
        with contextlib.suppress(SystemExit):
            main(words)
        keep(words[0] if words[0].isprintable() else "unknown command")
    for command in ("doctor", "remedy", "audit", "report"):
        for run_folder in (tmp_path / "sft-demos" / "out", tmp_path / "rl-prompts" / "out"):
            with contextlib.suppress(SystemExit):
                main([command, str(run_folder)])
            keep(command)
    return texts


@pytest.mark.slow
def test_no_command_prints_what_a_terminal_obeys(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = printed(base, tmp_path, capsys)
    assert len(texts) >= 25
    obeyed = {name: OBEYED.findall(text)[:5] for name, text in texts.items() if OBEYED.search(text)}
    assert not obeyed


@pytest.mark.slow
def test_the_same_commands_print_attacks_without_the_guard(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the attacks do arrive at the terminal."""
    monkeypatch.setattr("trimtab.cli.main.safe_terminal", contextlib.nullcontext)
    monkeypatch.setattr(terminal, "SafeFormatter", logging.Formatter)
    texts = printed(base, tmp_path, capsys)
    obeyed = [name for name, text in texts.items() if "\x1b]0;owned\x07" in text]
    assert OBEYED.search(texts["chat"]) and len(obeyed) >= 5, obeyed


def test_logs_and_warnings_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.print_logs():
        logging.getLogger("trimtab.x").info("model wrote %s", ALL)
        logging.getLogger("other").warning("model wrote %s", ALL)
    out, err = capsys.readouterr()
    assert "model wrote" in out and "model wrote" in err
    assert not OBEYED.search(out) and not OBEYED.search(err)


def test_a_traceback_is_spelled_out_and_holds_no_secret(tmp_path: Path) -> None:
    """An error that no command expects, from the real entry point."""
    (tmp_path / "own.py").write_text(
        "def write(out, **_):\n"
        f"    raise RuntimeError({ALL!r} + ' canary-in-env https://me:canary-in-url@host/')\n"
    )
    words = ["function", "--function", f"{tmp_path}/own.py:write", "--out", str(tmp_path / "out")]
    for module, obeys in (("trimtab", False), ("tests.hostile.unguarded", True)):
        ended = subprocess.run(
            [sys.executable, "-m", module, *words],
            capture_output=True,
            env={"PYTHONPATH": ":".join(sys.path), "MY_API_KEY": "canary-in-env", "PATH": ""},
        )
        text = ended.stderr.decode("utf-8", "surrogateescape")
        assert ended.returncode == 1 and "Traceback" in text and "RuntimeError" in text
        assert bool(OBEYED.search(text)) is obeys
        assert ("canary-in-env" in text) is obeys and ("canary-in-url" in text) is obeys

"""Commands as typed: their help, their plans, and one line for each mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trimtab
from tests.support import folders
from trimtab.cli.flags import keys_of
from trimtab.cli.main import main
from trimtab.config import read_yaml
from trimtab.errors import ConfigError
from trimtab.launch.commands import COMMANDS, METHOD_VERBS, find_stage_type
from trimtab.objectives.methods import METHODS
from trimtab.objectives.preference import DIRECT

BASE = str(Path(trimtab.__file__).parent / "sandbox" / "base")
ROOT = Path(__file__).parents[2]
Said = Callable[..., str]


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command that must succeed; what it printed."""

    def run(*args: str) -> str:
        main(args)
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command that must fail as a user's mistake; its message."""

    def run(*args: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(args)
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("trimtab: ")
        assert "Traceback" not in message
        return message

    return run


def rows(path: Path, *values: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in values))
    return str(path)


GOOD = {"prompt": "where is anna ?", "completion": "anna is in the garden ."}
PAIR = {"prompt": "where is anna ?", "chosen": "in the garden", "rejected": "no"}


def sft(data: str, *more: str) -> tuple[str, ...]:
    return ("sft", "--model.path", BASE, "--model.device", "cpu", "--data.path", data, *more)


@pytest.mark.parametrize("command", ["sft", "reward", "rl", "online-dpo", "grpo"])
def test_help_shows_the_values_that_would_be_used(run_cli: Said, command: str) -> None:
    page = run_cli(command, "--help", "--optim.lr", "0.125")
    assert "--optim.lr" in page
    assert "0.125" in page
    assert "--model.path" in page
    assert "--loop.token_budget" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_functions(run_cli: Said, command: str) -> None:
    page = run_cli(command, "--help")
    assert page.startswith(f"trimtab {command} ") or command == "recipes"
    row = COMMANDS[command]
    assert callable(row.load_function())
    if row.config:
        assert page.count("\n  --") == len(keys_of(row.load_config(), {}))
        assert not row.positional or f"--{row.positional} " in page
    if row.stage:
        assert f"runs/{command.replace('-', '_')}" in page
        assert callable(row.load_stage())


def test_usage_names_every_command(run_cli: Said) -> None:
    page = run_cli()
    for name in (*COMMANDS, *METHOD_VERBS):
        deprecated = name in COMMANDS and COMMANDS[name].deprecated
        assert bool(re.search(rf"(^| ){name}\b", page, re.M)) != bool(deprecated), name
    assert run_cli("--version").strip() == trimtab.__version__


def test_every_method_is_a_verb(run_cli: Said) -> None:
    objectives = set(DIRECT) - {"dpo"}
    assert {v.method for v in METHOD_VERBS.values()} == objectives | set(METHODS)
    page = run_cli("grpo", "--model.path", "m", "--data.path", "d", "--rewards",
                "[{name: a, function: 'm:f'}]", "--method.group_size", "4", "--dry-run")  # fmt: skip
    assert "type: grpo" in page and "group_size: 4" in page and "out: runs/grpo" in page
    page = run_cli("dr-grpo", "--help")
    assert "--method.type" in page and "dr_grpo" in page
    page = run_cli("online-dpo-norm", "--model.path", "m", "--data.path", "d", "--rewards",
                "[{name: a, function: 'm:f'}]", "--dry-run")  # fmt: skip
    assert "type: dpo_norm" in page and "out: runs/online_dpo_norm" in page


def test_a_verb_refuses_a_file_of_another_method(refused: Said, tmp_path: Path) -> None:
    file = tmp_path / "ppo.yaml"
    file.write_text("method: {type: ppo}\n")
    message = refused("grpo", str(file))
    assert "method.type: 'ppo' contradicts the command grpo" in message


def test_old_spellings_are_read_with_a_warning(
    run_cli: Said, caplog: pytest.LogCaptureFixture
) -> None:
    assert run_cli("best_of_n", "--help").startswith("trimtab best-of-n ")
    assert "the new name" not in caplog.text and "'best-of-n'" in caplog.text
    assert run_cli("side_by_side", "--help").startswith("trimtab side-by-side ")
    assert "'compare'" in caplog.text
    assert find_stage_type("world", "r.yaml: stages.w.type").name == "sandbox-data"
    assert find_stage_type("online_dpo", "r.yaml: stages.o.type").name == "online-dpo"
    with pytest.raises(ConfigError, match=r"stages.c.type: 'chat' is not the type of a stage"):
        find_stage_type("chat", "r.yaml: stages.c.type")


def test_a_boolean_needs_no_value(run_cli: Said) -> None:
    page = run_cli("sft", "--model.path", "m", "--data.path", "d", "--model.gradient_checkpointing",
                "--data.strict", "false", "--dry-run")  # fmt: skip
    assert "gradient_checkpointing: true" in page and "strict: false" in page


@pytest.mark.parametrize("name", ["openai", "fastapi"])
def test_a_missing_extra_is_named(
    refused: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """With the package blocked, as in an installation without it."""
    for module in [
        m
        for m in sys.modules
        if m.startswith(
            ("trimtab.judges", "trimtab.label", "trimtab.cli.label", "trimtab.datagen.judge")
        )
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    extra = {"openai": "judge", "fastapi": "label"}[name]
    data = rows(tmp_path / "d.jsonl", {"prompt": "a", "completions": ["b", "c"]})
    args = {
        "judge": ("judge", data, "--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--out", str(tmp_path / "o")),
        "label": ("label", data, "--out", str(tmp_path / "o"), "--port", "0"),
    }  # fmt: skip
    assert f"pip install 'trimtab[{extra}]'" in refused(*args[extra])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run_cli: Said, shell: str, tmp_path: Path) -> None:
    script = run_cli("completion", shell)
    assert "dr-grpo" in script and "optim.lr" in script and "sandbox-ppo" in script
    if shell == "bash":
        file = tmp_path / "c.bash"
        ask = (
            "COMP_WORDS=(trimtab {0}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _trimtab; "
            'echo "${{COMPREPLY[*]}}"'
        )
        for words, expected in (("best", "best-of-n"), ("grpo --method.gro", "--method.group_size"),
                                ("run sandbox-p", "sandbox-ppo")):  # fmt: skip
            file.write_text(f"{script}\n{ask.format(words)}\n")
            done = subprocess.run(["bash", file], capture_output=True, text=True, check=True)
            assert done.stdout.strip() == expected


def test_recipes_are_listed_by_name_with_what_they_do(run_cli: Said) -> None:
    page = run_cli("recipes")
    for path in (Path(trimtab.__file__).parent / "recipes").glob("*.yaml"):
        line = next(x for x in page.splitlines() if x.startswith(f"{path.stem} "))
        assert len(line.split(maxsplit=1)[1]) > 20


def test_a_packaged_recipe_from_any_folder(
    run_cli: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = run_cli("run", "sandbox-ppo", "--dry-run", "--ppo.steps", "3")
    assert "# ppo: rl -> runs/demo/ppo (to do)" in page and "steps: 3" in page
    old = run_cli(
        "run", "sandbox-ppo", "--dry-run", "--ppo.prompts", "7", "--ppo.method.epochs", "3"
    )
    assert "batch_size: 7" in old and "epochs: 3" in old
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "recipe", sorted(p.name for p in (Path(trimtab.__file__).parent / "recipes").glob("*.yaml"))
)
def test_every_recipe_has_a_whole_plan(run_cli: Said, recipe: str, tmp_path: Path) -> None:
    path = Path(trimtab.__file__).parent / "recipes" / recipe
    inputs = read_yaml(path).get("inputs", {})
    more = [word for name in inputs for word in (f"--inputs.{name}", str(tmp_path))]
    page = run_cli("run", str(path), "--out", str(tmp_path / "o"), "--dry-run", *more)
    assert "(to do)" in page
    assert not (tmp_path / "o").exists()


def test_dry_run_resolves_and_touches_nothing(run_cli: Said, tmp_path: Path) -> None:
    page = run_cli("sft", "--model.path", "nowhere", "--data.path", "none.jsonl", "--out",
                str(tmp_path / "o"), "--dry-run", "--optim.lr=3e-4")  # fmt: skip
    assert "lr: 0.0003" in page
    assert not (tmp_path / "o").exists()


def test_a_stage_from_a_file_with_a_flag_on_top(run_cli: Said, tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text("model: {path: m}\ndata: {path: d.jsonl}\nbatch_size: 7\noptim: {lr: 1e-3}\n")
    page = run_cli("sft", str(file), "--batch_size", "9", "--dry-run")
    assert "batch_size: 9" in page
    assert "lr: 0.001" in page
    old = run_cli("sft", str(file), "--batch", "9", "--optim.clip", "2", "--dry-run")
    assert "batch_size: 9" in old and "max_grad_norm: 2.0" in old


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("frobnicate",), ["frobnicate", "sft"]),
        (sft("x.jsonl", "--optimm.lr", "1"), ["optimm", "optim"]),
        (sft("x.jsonl", "--optim.lr", "fast"), ["optim.lr"]),
        (sft("x.jsonl", "--batch_size", "0"), ["batch_size"]),
        (sft("x.jsonl", "--batch_size"), ["--batch_size", "value"]),
        (("sft", "--data.path", "x.jsonl"), ["model"]),
        (sft("x.jsonl"), ["x.jsonl", "no such file"]),
        (("sft", "absent.yaml"), ["absent.yaml"]),
        (("run", "absent.yaml"), ["absent.yaml"]),
        (("report", "absent"), ["absent"]),
        (("chat", "absent/model", "--prompt", "hi"), ["absent/model"]),
        (("run", "sandbox-ppo", "--pppo.steps", "3"), ["pppo", "ppo"]),
        (("run", "sandbox-ppo", "--ppo.stepz", "3"), ["stepz", "steps"]),
    ],
)  # fmt: skip
def test_mistakes_in_a_command(refused: Said, args: tuple[str, ...], words: list[str]) -> None:
    message = refused(*args)
    for word in words:
        assert word in message


RL = ("rl", "--model.path", BASE, "--data.path", "p.jsonl", "--rewards",
      "[{name: a, function: 'trimtab.sandbox.faults:length_reward'}]")  # fmt: skip


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (("--sampling.top_p", "0.9"), "top_p"),
        (("--sampling.temperature", "0"), "temperature"),
        (("--method.type", "pppo"), "ppo"),
        (("--method.updates.minibatches", "1000"), "minibatches"),
        (("--rewards", "[{name: a, function: 'math:sqrt', weight: 0}]"), "weight 0"),
        (("--rewards", "[{name: a}]"), "function"),
    ],
)
def test_nonsense_is_refused_before_anything_is_loaded(
    refused: Said, more: tuple[str, ...], word: str
) -> None:
    assert word in refused(*RL, *more)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([GOOD, {"topic": "x", "note": "y"}], ["row 2"]),
        ([{"topic": "x", "note": "y"}], ["note, topic", "prompt"]),
        ([GOOD, {**GOOD, "completion": " "}], ["row 2", "completion", "empty"]),
        ([GOOD, {**GOOD, "completion": None}], ["row 2", "completion"]),
        ([GOOD, {**GOOD, "prompt": 7}], ["row 2", "prompt", "int"]),
        ([], ["no rows"]),
    ],
)
def test_bad_rows(refused: Said, tmp_path: Path, values: list[Any], words: list[str]) -> None:
    data = rows(tmp_path / "d.jsonl", *values)
    message = refused(*sft(data, "--out", str(tmp_path / "o")))
    assert "d.jsonl" in message
    for word in words:
        assert word in message


def test_equal_answers(refused: Said, tmp_path: Path) -> None:
    data = rows(tmp_path / "d.jsonl", PAIR, {**PAIR, "rejected": PAIR["chosen"]})
    args = ("reward", "--model.path", BASE, "--data.path", data, "--out", str(tmp_path / "o"))
    message = refused(*args)
    assert "row 2" in message
    assert "equal" in message


def test_not_utf8(refused: Said, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9", "completion": "x"}\n')
    message = refused(*sft(str(path), "--out", str(tmp_path / "o")))
    assert "row 2" in message
    assert "UTF-8" in message


def tokenizer(folder: Path, **drop: Any) -> str:
    """A model folder whose tokenizer lacks something."""
    folders.model_folder(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.update(drop)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    if drop.get("chat_template", 1) is None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    return str(folder)


def test_no_eos(refused: Said, tmp_path: Path) -> None:
    model = tokenizer(tmp_path / "m", eos_token=None)
    data = rows(tmp_path / "d.jsonl", GOOD)
    message = refused(
        "sft", "--model.path", model, "--data.path", data, "--out", str(tmp_path / "o")
    )
    assert "end-of-sequence" in message
    assert "eos_token" in message


def test_no_chat_template(refused: Said, tmp_path: Path) -> None:
    model = tokenizer(tmp_path / "m", chat_template=None)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    data = rows(tmp_path / "d.jsonl", {"messages": messages})
    message = refused(
        "sft", "--model.path", model, "--data.path", data, "--out", str(tmp_path / "o")
    )
    assert "model.chat_template" in message


def test_lenient_reading_drops_and_counts(run_cli: Said, tmp_path: Path) -> None:
    data = rows(tmp_path / "d.jsonl", *[GOOD] * 6, {**GOOD, "completion": ""})
    page = run_cli(
        *sft(data, "--data.strict", "false", "--out", str(tmp_path / "o"), "--batch_size", "3")
    )
    assert "1 bad rows dropped" in page
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["nll"] > 0


def test_chat_answers(run_cli: Said) -> None:
    prompt = "anna has the lamp . ben works as a baker . cleo is in the garden . where is cleo ?"
    page = run_cli("chat", BASE, "--prompt", prompt, "--sampling.temperature", "0")
    assert "cleo is in the garden" in page


def test_report_of_a_run(run_cli: Said, tmp_path: Path) -> None:
    data = rows(tmp_path / "d.jsonl", *[GOOD] * 8)
    run_cli(*sft(data, "--out", str(tmp_path / "o"), "--batch_size", "2"))
    path = Path(run_cli("report", str(tmp_path / "o")).strip())
    assert path == tmp_path / "o" / "report.html"
    assert "Curves" in path.read_text()

"""``trimtab question``: the list, the plan, guesses, and a run of one's own."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.cli import question_command
from trimtab.cli.main import main as cli
from trimtab.errors import ConfigError
from trimtab.questions import claim as registry
from trimtab.questions import page
from trimtab.runs import Run


def planted(folder: Path, *, runaway: bool) -> Path:
    """A run whose KL runs away and buys nothing, or stays small while the reward rises."""
    kl = {"place": "sequence", "beta": 0.001}
    run = Run(folder, {"stage": "rl", "steps": 100, "method": {"type": "rloo", "kl": kl}})
    for step in range(1, 101):
        distance = 0.9 * step if runaway else 0.03 * step
        reward = 0.5 if runaway else 0.01 * step
        run.log(step, {"objective/kl": distance, "reward/mean": reward, "reward/std": 1.0})
    run.close()
    return folder


def test_the_list_names_questions_in_both_languages(capsys: Any) -> None:
    question_command.main(["list"])
    assert "Question 6: what does the KL coefficient" in capsys.readouterr().out
    question_command.main(["list", "--lang", "zh"])
    assert "问题 6：KL 系数" in capsys.readouterr().out


def test_a_plan_runs_nothing(tmp_path: Path, capsys: Any) -> None:
    question_command.main(["all", "--full", "--dry-run", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "# question 3 -> " in printed and "seeds 0, 1, 2, 3, 4" in printed
    assert "6.2b" in printed and not list(tmp_path.iterdir())
    question_command.main(["6", "--full", "--second", "--dry-run"])
    assert "seeds 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["99"], "there is no question 99"),
        (["six"], "'six' is no question"),
        ([], "name a question"),
        (["6", "--lang", "fr"], "'fr' is none of en, zh"),
        (["6", "--seeds", "0,1", "--full"], "both name seeds"),
        (["6", "--second"], "--second goes with --full"),
        (["6", "--seed", "1"], "--seed: unknown flag"),
        (["6", "--size", "2"], "not above 0 and at most 1"),
        (["6", "--seeds", "0,100"], r"\[100\] chose the learning rates"),
        (["3", "--tune"], "nothing has a learning rate"),
        (["3", "--on", "runs/none"], "question 3 has no check of a run"),
    ],
)
def test_a_wrong_flag_is_named(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        question_command.main([*words, "--out", str(tmp_path)])


def test_question_6_of_a_run_of_ones_own(tmp_path: Path, capsys: Any) -> None:
    question_command.main(["6", "--on", str(planted(tmp_path / "away", runaway=True))])
    printed = capsys.readouterr().out
    assert printed.startswith("alarm 2, ") and "beta: 0.02" in printed
    assert "alarm 3, The policy does not move: no" in printed
    question_command.main(["6", "--on", str(planted(tmp_path / "sound", runaway=False))])
    printed = capsys.readouterr().out
    assert printed.count(": no\n") == 2 and "most likely cause" not in printed


def test_question_9_of_a_run_names_the_probes_that_fit_it(tmp_path: Path, capsys: Any) -> None:
    function = {"name": "polite", "function": "tests.support.folders:wordy"}
    model = {"name": "learned", "model": "runs/reward model/model", "weight": 0.5}
    run = Run(tmp_path / "run", {"stage": "rl", "rewards": [model, function]})
    run.log(1, {"reward/mean": 0.5})
    run.close()
    question_command.main(["9", "--on", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "alarm 5, " in printed
    commands = map(shlex.split, printed.split("then:\n")[1].splitlines())
    resolved: list[dict[str, Any]] = []
    for command in commands:
        cli([*command[1:], "--dry-run"])
        resolved.append(yaml.safe_load(capsys.readouterr().out))
    learned, polite, compare = resolved
    assert (learned["reward"], polite["reward"]) == ([model["model"]], [function["function"]])
    assert learned["policy"]["path"] == str(tmp_path / "run" / "model")
    assert compare["run"] == str(tmp_path / "run")
    assert [(r["name"], r["weight"]) for r in compare["rewards"]] == [
        ("learned", 0.5),
        ("polite", 1.0),
    ]


def test_guesses_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = question_command._Options.of(
        question_command.parse(["6", "--predict", "--out", str(tmp_path)], frozenset({"predict"}))
    )
    claims = {c.id: "" for c in registry.load_claims()[6]}
    typed = iter(["h", "what", "d", *[""] * len(claims)])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    question_command._predict(6, options)
    guesses = json.loads((tmp_path / "6" / page.PREDICTIONS).read_text())
    assert list(guesses) == list(claims)
    assert [v for v in guesses.values() if v] == ["holds", "fails"]
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked again"))
    question_command._predict(6, options)

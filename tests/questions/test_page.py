"""Texts in two languages, and pages that are generated from a result alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.questions.planted import planted
from trimtab.cli.main import main as cli
from trimtab.errors import ConfigError, DataError
from trimtab.launch.commands import COMMANDS, METHOD_VERBS
from trimtab.questions import claim as registry
from trimtab.questions import experiment, page, page_files
from trimtab.questions.measure import ArmResult, Measure, over_prompts

CITATION = re.compile(r"arXiv:\d{4}\.\d{5}")
QUESTIONS = sorted(registry.load_claims())


def leaves(text: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(text, Mapping):
        for key, value in text.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(text, list):
        for i, value in enumerate(text):
            yield from leaves(value, f"{path}.{i}")
    else:
        yield path, str(text)


TEXTS = {language: page.read_text(language) for language in registry.LANGUAGES}
LEAVES = {language: dict(leaves(text)) for language, text in TEXTS.items()}


@pytest.mark.parametrize("language", registry.LANGUAGES)
def test_a_text_holds_no_number_of_its_own(language: str) -> None:
    for path, text in LEAVES[language].items():
        if ".answer." in path and re.fullmatch(r"\d+\.\d+[a-z]?", text):
            continue  # ids of claims, not prose
        assert not re.search(r"[0-9]", CITATION.sub("", page.PLACEHOLDER.sub("", text))), path


def test_both_languages_have_the_same_keys_and_placeholders() -> None:
    english, chinese = LEAVES["en"], LEAVES["zh"]
    assert english.keys() == chinese.keys()
    for path, text in english.items():
        other = chinese[path]
        assert sorted(page.PLACEHOLDER.findall(text)) == sorted(page.PLACEHOLDER.findall(other)), (
            path
        )


def test_chinese_uses_the_words_of_its_glossary() -> None:
    glossary = TEXTS["zh"]["glossary"]
    for term in ("reward model", "learning rate", "KL coefficient"):
        for path, text in LEAVES["en"].items():
            if ".glossary." not in path and term in text and ".limits." not in path:
                assert glossary[term] in LEAVES["zh"][path], (path, glossary[term])


@pytest.mark.parametrize("number", QUESTIONS)
def test_every_claim_has_a_sentence_for_each_verdict(number: int) -> None:
    claims = registry.load_claims()[number]
    for text in TEXTS.values():
        sentences = text["questions"][str(number)]["claims"]
        assert sentences.keys() == {c.id for c in claims}
        for claim_id, of_claim in sentences.items():
            several = sum(c.id == claim_id for c in claims) > 1
            assert {"claim", "holds", "fails"} <= of_claim.keys(), claim_id
            assert ("depends" in of_claim) == several, claim_id


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("number", QUESTIONS)
def test_pages_are_generated_byte_equal(tmp_path: Path, number: int, seeds: int) -> None:
    experiment.write_result(tmp_path, planted(number, seeds))
    for language in registry.LANGUAGES:
        page_files.write(tmp_path, language)
        names = ("answer.md", "answer.html", "answer.svg")
        before = {name: (tmp_path / name).read_bytes() for name in names}
        page_files.write(tmp_path, language)
        assert before == {name: (tmp_path / name).read_bytes() for name in names}
        result = experiment.read_result(tmp_path)
        markdown, html = before["answer.md"].decode(), before["answer.html"].decode()
        for text in (markdown, html):
            assert result["hash"] in text and not page.PLACEHOLDER.search(re.sub("<style>.*?</style>", "", text, flags=re.S))  # fmt: skip
            assert all(f"{claim_id}" in text for claim_id in result["verdicts"])
        assert set(re.findall(r"https?://[\w.]+", html)) <= {"https://arxiv.org"}
        assert "<script" not in html and 'style="' not in html
        root = ElementTree.fromstring(before["answer.svg"])
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_a_page_says_what_the_verdict_is_and_not_what_was_expected(tmp_path: Path) -> None:
    result = planted(6, 5)
    for key, outcome in (("6.2b", "holds"), ("6.12", "fails")):
        result["verdicts"][key] = outcome
        result["claims"][key] |= {"outcome": outcome, "reason": ""}
    text = TEXTS["en"]["questions"]["6"]["claims"]
    answer = page.Writer(result, {}, {}, "en").page().answer
    assert text["6.2b"]["holds"] in answer and text["6.2b"]["fails"] not in answer
    assert text["6.12"]["fails"] in answer and text["6.12"]["holds"] not in answer


def test_a_page_shows_what_both_arms_measured_and_verdicts_by_condition(tmp_path: Path) -> None:
    result = planted(1, 5)
    result["arms"]["ppo[labels=3000]"]["helpful"] = [0.8, 0.6]
    result["arms"]["demonstrations[chosen=all]"]["helpful"] = [0.5]
    result["claims"]["1.4a[labels=300]"]["outcome"] = "undecided"
    result["claims"]["1.4a[labels=3000]"]["outcome"] = "holds"
    result["verdicts"]["1.4a"] = "undecided"
    experiment.write_result(tmp_path, result)
    one = page.make(tmp_path, "en")
    rows = {row.id: row for row in one.rows}
    assert rows["1.1a"].measured[0].endswith("(0.700 against 0.500)")
    assert "against" not in rows["1.7a"].measured[0]  # put against zero
    [sentence] = [s for s in one.answer if "first-ranked" in s]
    assert sentence.endswith(
        " (300 ranked prompts: undecided; 3000 ranked prompts: holds here)."
    ) and sentence.startswith("Undecided here: ")


def test_guesses_are_shown_beside_the_verdicts(tmp_path: Path) -> None:
    written = page.Writer(planted(6, 1), {}, {"6.2b": "fails"}, "zh").page()
    assert [r.guess for r in written.rows if r.guess] == ["在此不成立"]
    assert "你的猜测" in page_files.to_markdown(written, "answer.svg")
    assert "你的猜测" in page_files.to_html(written)


def test_text_is_escaped() -> None:
    written = page.Writer(planted(6, 1), {}, {}, "en").page()
    html = page_files.to_html(dataclasses.replace(written, follow_up="<img src=x>"))
    assert "<img" not in html and "&lt;img src=x&gt;" in html


def test_a_missing_value_names_the_text() -> None:
    with pytest.raises(DataError, match=r"here: there is no value for \{arm:x.gold\}"):
        page.fill("{arm:x.gold}", {}, "here")


def test_a_result_of_other_settings_is_refused(tmp_path: Path) -> None:
    experiment.write_result(tmp_path, {**planted(6, 1), "hash": "0" * 12})
    with pytest.raises(DataError, match="other claims or settings"):
        page_files.write(tmp_path, "en")


@pytest.mark.parametrize("number", QUESTIONS)
def test_every_command_of_a_page_is_accepted(number: int, capsys: Any) -> None:
    written = page.Writer(planted(number, 1), {}, {}, "en").page()
    commands = [command for command, _ in written.commands]
    assert len(commands) == 3
    for command in (*commands, *filter(None, [written.own_run[0]])):
        cli([*command.split()[1:], "--dry-run"])
        assert capsys.readouterr().out


@pytest.mark.parametrize("language", registry.LANGUAGES)
def test_texts_name_commands_that_exist(language: str) -> None:
    """In prose too, where nothing runs them."""
    for path, text in LEAVES[language].items():
        for name in re.findall(r"trimtab ([a-z_-]+)", text):
            command = {**COMMANDS, **METHOD_VERBS}.get(name)
            assert command is not None and not command.deprecated, f"{path}: trimtab {name}"


def test_effects_are_paired_by_prompt() -> None:
    """Prompts differ more than arms: paired draws are narrow where unpaired ones would not be."""
    rng = np.random.default_rng(0)
    prompts = rng.normal(0, 1, 200)
    claims = {c.key: c for c in registry.load_claims()[6]}
    arms = {
        "beta=0": ArmResult({"gold": over_prompts(prompts - 0.1)}),
        "beta=0.2": ArmResult({"gold": over_prompts(prompts)}),
    }
    effect = experiment.effect_of(claims["6.2b"], arms)
    assert effect.value == pytest.approx(0.1) and effect.draws is not None
    assert np.ptp(effect.draws) < 1e-9
    arms["beta=0"] = ArmResult({"gold": Measure(0.2)})
    assert experiment.effect_of(claims["6.2b"], arms).draws is None


def test_a_question_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="there is no question 99; use one of "):
        experiment.load(99)

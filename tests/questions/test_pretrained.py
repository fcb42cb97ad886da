"""Claims put to a pretrained model: verdicts from one comparison, and their part of the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.questions.planted import planted
from trimtab.cli import question_command
from trimtab.cli.recipes import find_recipe
from trimtab.config import read_yaml
from trimtab.errors import ConfigError, DataError
from trimtab.questions import claim as registry
from trimtab.questions import experiment, page, page_files, pretrained


def comparison(run: Path, **columns: list[float]) -> Path:
    file = run / pretrained.COMPARISON
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), file)
    return run


def run_of(folder: Path, shift: float) -> Path:
    """Completions without KL are ``shift`` nats less likely, and satisfy as much."""
    noise = np.random.default_rng(0).normal(0, 0.1, 96)
    return comparison(
        folder,
        nll_rl=list(1 + noise),
        nll_no_kl=list(1 + shift + noise[::-1]),
        satisfied_rl=list(noise),
        satisfied_no_kl=list(noise),
    )


def test_verdicts_follow_the_comparison(tmp_path: Path) -> None:
    for shift, outcome in ((0.4, "holds"), (-0.4, "fails")):
        judged = pretrained.judge(6, run_of(tmp_path / outcome, shift))
        assert judged["prompts"] == 96
        claim = judged["claims"]["6.4"]
        assert claim["outcome"] == outcome
        assert claim["low"] < shift < claim["high"]
        assert claim["effect"] == pytest.approx(shift, abs=1e-4)
        assert judged["claims"]["6.2b"]["outcome"] == "fails"
        assert judged["arms"]["rl"]["nll"] == pytest.approx(1.0, abs=0.05)


def test_the_recipe_compares_every_model_that_a_claim_names() -> None:
    stages = read_yaml(find_recipe(pretrained.RECIPE))["stages"]
    compare = stages["compare"]
    metrics = {r["name"] for r in compare["rewards"]} | {"nll"}
    claims = [c for of in registry.load_claims(key="pretrained").values() for c in of]
    assert {c.question for c in claims} == {6, 7, 8}
    for claim in claims:
        assert claim.metric in metrics
        assert set(claim.arms) <= compare["models"].keys()
        assert not claim.condition
        assert claim.id in {c.id for c in registry.load_claims()[claim.question]}


def test_the_page_shows_them_beside_the_small_model(tmp_path: Path) -> None:
    folder = tmp_path / "6"
    experiment.write_result(folder, planted(6, 5))
    assert page.make(folder, "en").pretrained == []
    question_command.main(
        ["6", "--pretrained", str(run_of(tmp_path / "run", 0.4)), "--out", str(tmp_path)]
    )
    for language in registry.LANGUAGES:
        shown = page.make(folder, language)
        texts = page.read_text(language)
        assert [r.id for r in shown.pretrained] == ["6.2b", "6.4"]
        assert shown.pretrained[1].verdict == texts["common"]["outcomes"]["holds"]
        assert "96" in shown.pretrained_note and pretrained.MODEL in shown.pretrained_note
        for text in (page_files.to_markdown(shown, "x.svg"), page_files.to_html(shown)):
            assert texts["questions"]["6"]["pretrained"]["6.4"] in text


def test_mistakes_name_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"question 3 has no claim for it; 6, 7, 8 have"):
        pretrained.judge(3, tmp_path)
    with pytest.raises(ConfigError, match="trimtab run smollm2-questions"):
        pretrained.judge(6, tmp_path)
    run = comparison(tmp_path / "part", nll_rl=[1.0, 2.0])
    with pytest.raises(DataError, match="no column nll_no_kl"):
        pretrained.judge(6, run)
    pretrained.write(tmp_path, [6], run_of(tmp_path / "run", 0.1))
    file = tmp_path / "6" / pretrained.FILE
    file.write_text(file.read_text().replace('"hash": "', '"hash": "0'))
    with pytest.raises(DataError, match="judged by other claims"):
        pretrained.read(tmp_path / "6", 6)

"""The registry of claims, its checks, and the freeze."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from trimtab.errors import ConfigError, DataError
from trimtab.questions import claim
from trimtab.questions.claim import Claim, Settings, Tuning, load_claims, load_settings

ENTRY: dict[str, Any] = {
    "id": "5.2", "metric": "gain", "arm": "ppo", "versus": "reinforce", "direction": 1,
    "smallest_effect": 0.05,
}  # fmt: skip
ARMS = {"minutes": 1.0, "sizes": {"steps": 40}, "arms": {"ppo": {}, "reinforce": {}}}


def written(folder: Path, entries: list[dict[str, Any]], number: str = "5") -> Path:
    file = folder / f"q{int(number):02}.yaml"
    file.write_text(yaml.safe_dump({"claims": entries}))
    return folder


def test_the_registered_claims_compare_arms_that_exist() -> None:
    claims, settings = load_claims(), load_settings()
    assert claims.keys() == settings.keys() and {3, 6} <= claims.keys()
    for number, of_question in claims.items():
        claim.check_arms(of_question, settings[number])
        assert len({c.id for c in of_question}) >= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smallest_efect": 0.1}, "claim 5.2: smallest_efect: unknown key; did you mean 'smallest_effect'"),
        ({"direction": 2}, "claim 5.2: direction: "),
        ({"smallest_effect": 0.0}, "claim 5.2: smallest_effect: "),
        ({"id": "6.2"}, "claim 6.2: id: this is question 5"),
        ({"id": "five"}, "claim five: id: "),
        ({"published": [{"arxiv": "24021", "says": {}, "agrees": True}]}, "claim 5.2: published.0.arxiv: "),
        ({"published": [{"arxiv": "2402.14740", "says": {"en": "x"}, "agrees": True}]},
         "claim 5.2: published.0.says: give the result in en and zh"),
        ({"conditions": [{"n": 1}, {"n": 1}]}, r"claim 5.2: id: 5.2\[n=1\] is registered twice"),
    ],
)  # fmt: skip
def test_an_error_names_the_claim_and_the_key(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_claims(written(tmp_path, [{**ENTRY, **change}]))


def test_conditions_are_claims_of_their_own(tmp_path: Path) -> None:
    entry = {**ENTRY, "conditions": [{"updates": 1}, {"updates": 4}], "versus": "a2c[updates=1]"}
    one, four = load_claims(written(tmp_path, [entry]))[5]
    assert (one.key, four.key) == ("5.2[updates=1]", "5.2[updates=4]")
    assert four.arms == ("ppo[updates=4]", "a2c[updates=1]")
    settings = Settings(minutes=1, sizes={}, arms={"ppo[updates=1]": {}, "a2c[updates=1]": {}})
    claim.check_arms((one,), settings)
    with pytest.raises(ConfigError, match=r"claim 5.2\[updates=4\]: arm: there is no arm 'ppo\[up"):
        claim.check_arms((one, four), settings)


def test_effects_are_in_the_claimed_direction() -> None:
    lower = Claim.model_validate({**ENTRY, "direction": -1})
    assert lower.effect(0.2, 0.5) == pytest.approx(0.3)
    assert Claim.model_validate({**ENTRY, "relative": True}).effect(1.2, 1.0) == pytest.approx(0.2)


def test_sizes_scale_down_to_their_floors() -> None:
    settings = Settings(minutes=1, sizes={"steps": 40, "rows": 9}, floors={"steps": 8}, arms={})
    assert settings.scaled(0.1).sizes == {"steps": 8, "rows": 1}
    assert settings.scaled(1.0) == settings


def test_tuning_seeds_are_never_reported() -> None:
    tuning = {"rates": [1e-4, 2e-4], "metric": "gold"}
    with pytest.raises(ValueError, match=r"\[100\] are tuning seeds"):
        Settings.model_validate({**ARMS, "seeds": [0, 100], "tuning": tuning})
    wrong = {"ppo": {"lr": 1.0}, "reinforce": {}}
    with pytest.raises(ValueError, match="no tuning over"):
        Settings.model_validate({**ARMS, "arms": wrong, "tuning": tuning})


def test_the_grid_of_rates_grows_while_its_edge_is_best() -> None:
    tuning = Tuning(rates=(1e-4, 2e-4, 4e-4), metric="gold")

    def chosen(peak: float) -> tuple[float, list[float]]:
        means = {rate: -abs(math.log2(rate / peak)) for rate in tuning.rates}
        while (rate := tuning.next_rate(means)) is not None:
            assert rate not in means and rate in tuning.possible
            means[rate] = -abs(math.log2(rate / peak))
        return tuning.best(means), sorted(set(means) - set(tuning.rates))

    assert chosen(2e-4) == (2e-4, [])
    assert chosen(4e-4) == (4e-4, [8e-4])
    assert chosen(8e-4) == (8e-4, [8e-4, 1.6e-3])
    assert chosen(1.0) == (1.6e-3, [8e-4, 1.6e-3])
    assert chosen(1e-4) == (1e-4, [5e-5])
    arms = {"ppo": {"lr": 8e-4}, "reinforce": {}}
    Settings.model_validate({**ARMS, "arms": arms, "tuning": tuning.model_dump()})


def test_arms_without_a_learning_rate_are_not_tuned() -> None:
    arms = {"ppo": {"lr": 1e-4}, "twice": {"rate_of": "ppo", "factor": 2}}
    tuning = {"rates": [1e-4, 2e-4], "metric": "gold"}
    assert Settings.model_validate({**ARMS, "arms": arms, "tuning": tuning}).tuned == ("ppo",)


def test_a_changed_claim_needs_new_seeds(tmp_path: Path) -> None:
    before = (Claim.model_validate(ENTRY),)
    after = (Claim.model_validate({**ENTRY, "smallest_effect": 0.04}),)
    settings = Settings.model_validate(ARMS)
    first = claim.freeze(tmp_path, before, settings, (0, 1))
    assert claim.freeze(tmp_path, before, settings, (0, 1, 2)) == first
    with pytest.raises(ConfigError, match=r"seeds \[2\] were run"):
        claim.freeze(tmp_path, after, settings, (2, 3))
    assert claim.freeze(tmp_path, after, settings, (3, 4)) != first
    quicker = settings.model_copy(update={"minutes": 9.0})
    assert claim.digest(before, quicker) == first
    slower = settings.model_copy(update={"sizes": {"steps": 41}})
    assert claim.digest(before, slower) != first


def test_a_result_of_other_claims_is_refused() -> None:
    claims, settings = (Claim.model_validate(ENTRY),), Settings.model_validate(ARMS)
    result = {"hash": claim.digest(claims, settings.scaled(0.5)), "size": 0.5}
    claim.check_frozen(result, claims, settings, "result.json")
    with pytest.raises(DataError, match=r"result\.json: made with other claims or settings"):
        claim.check_frozen({**result, "size": 1.0}, claims, settings, "result.json")


def test_a_share_of_nothing_is_an_error_that_names_the_claim() -> None:
    relative = Claim.model_validate({**ENTRY, "relative": True})
    assert relative.effect(3.0, 2.0) == pytest.approx(0.5)
    assert relative.effect(0.0, 0.0) == 0.0
    assert relative.effect(np.array([3.0, 0.0]), np.array([2.0, 0.0])).tolist() == [0.5, 0.0]
    with pytest.raises(DataError, match=r"claim 5\.2: gain of reinforce is 0"):
        relative.effect(0.1, 0.0)

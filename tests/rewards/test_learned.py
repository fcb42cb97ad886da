"""Reward models: ensembles, averages, references, the slope on length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.support.folders import model_folder, reward_folder, tokenizer, write
from tests.support.oracles import f64, near
from tests.support.rewarding import rewards
from trimtab.errors import ModelError
from trimtab.models.heads import Scorer
from trimtab.models.load import ModelSpec
from trimtab.objectives.bradley_terry import ensemble
from trimtab.types import Completion, Group


def test_O3c_ensembles() -> None:
    scores = f64([[1.0], [2.0], [4.0]])
    near(ensemble(scores, "mean"), [7 / 3])
    near(ensemble(scores, "worst"), [1.0])
    near(ensemble(scores, "uncertainty", 0.5), [1.555556])
    near(ensemble(scores, "uncertainty", 0.0), [7 / 3])
    near(ensemble(f64([[2.0], [2.0]]), "uncertainty", 0.5), [2.0])


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three reward models with statistics of their own."""
    base = model_folder(tmp_path_factory.mktemp("base"))
    folders_of_members: list[str] = []
    for i in range(3):
        scorer = Scorer.load(ModelSpec(path=str(base), seed=i, device="cpu"), pad_id=0)
        with torch.no_grad():
            for p in scorer.model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        scorer.set_normalisation(float(i), 1.0 + i)
        folder = tmp_path_factory.mktemp(f"rm{i}")
        scorer.model.save_pretrained(folder)  # type: ignore[operator]
        tokenizer().save_pretrained(folder)
        folders_of_members.append(str(folder))
    return folders_of_members


def talk(seed: int = 0) -> list[Group]:
    rng = np.random.default_rng(seed)

    def answer() -> Completion:
        ids = rng.integers(6, 26, int(rng.integers(2, 9)))
        return Completion(ids, np.ones(len(ids), dtype=bool), tokenizer().decode(ids))

    return [Group(str(i), rng.integers(6, 26, 4), [answer(), answer()], "q") for i in range(4)]


def got(groups: list[Group], name: str) -> list[float]:
    values = [c.scores[name].value for g in groups for c in g.completions]
    assert all(v is not None for v in values)
    return [v for v in values if v is not None]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mean", "worst", "uncertainty"])
def test_an_ensemble_combines_standardised_members(members: list[str], how: str) -> None:
    groups = talk()
    rewards({"name": "rm", "models": members, "combine": how, "uncertainty_weight": 0.5})(groups)
    raw = np.array([got(groups, f"rm/{i}") for i in range(3)])
    apart = talk()
    for i, path in enumerate(members):
        rewards({"name": f"m{i}", "model": path})(apart)
    alone = np.array([got(apart, f"m{i}") for i in range(3)])
    np.testing.assert_allclose((raw - [[0], [1], [2]]) / [[1], [2], [3]], alone, atol=1e-5)
    want = {
        "mean": alone.mean(0), "worst": alone.min(0),
        "uncertainty": alone.mean(0) - 0.5 * alone.var(0),
    }[how]  # fmt: skip
    np.testing.assert_allclose(got(groups, "rm"), want, atol=1e-5)
    np.testing.assert_allclose(got(groups, "rm/disagreement"), alone.std(0), atol=1e-5)
    np.testing.assert_allclose([c.reward for g in groups for c in g.completions], want, atol=1e-5)


def test_average_is_one_model_with_the_mean_of_the_weights(members: list[str]) -> None:
    scorer = rewards({"name": "rm", "models": members, "combine": "average"})
    part = scorer.parts["rm"]
    assert len(part.members) == 1  # type: ignore[attr-defined]
    averaged = part.members[0].scorer.model.state_dict()  # type: ignore[attr-defined]
    theirs = [
        AutoModelForSequenceClassification.from_pretrained(p, num_labels=1).state_dict()
        for p in members
    ]
    for name, weight in averaged.items():
        torch.testing.assert_close(weight, torch.stack([t[name] for t in theirs]).mean(0))
    groups = talk()
    scorer(groups)
    assert set(groups[0].completions[0].scores) == {"rm"}


def reference(path: Path) -> str:
    rows: list[dict[str, object]] = [
        {"prompt": "what is", "completion": " ".join(["red cat", "sun", "moon ?"][: 1 + i % 3])}
        for i in range(6)
    ]
    return str(write(path, rows))


def test_a_reference_takes_the_place_of_saved_statistics(
    members: list[str], tmp_path: Path
) -> None:
    path = reference(tmp_path / "ref.jsonl")
    part = rewards({"name": "rm", "models": members, "reference": path}).parts["rm"]
    from trimtab.data import formats, sources
    from trimtab.data.render import Renderer

    render = Renderer(tokenizer(), max_prompt_length=99, max_completion_length=99)
    groups = [
        g
        for e in formats.demonstrations(sources.read(path))
        if (g := render.comparison(e)) is not None
    ]
    for m in part.members:  # type: ignore[attr-defined]
        on = m.standardise(m.scores(groups))
        near(on.mean(), 0.0, 1e-5)
        near(on.std(correction=0), 1.0, 1e-5)


def test_members_without_a_common_scale_are_refused(tmp_path: Path, members: list[str]) -> None:
    bare = str(reward_folder(tmp_path / "bare", model_folder(tmp_path / "lm")))
    with pytest.raises(ModelError, match="no reward_mean and reward_std"):
        rewards({"name": "rm", "models": [members[0], bare]})


def test_average_refuses_another_shape(tmp_path: Path, members: list[str]) -> None:
    from tests.support.models import tiny

    wide = tmp_path / "wide"
    tiny("llama", intermediate_size=48).save_pretrained(wide)
    tokenizer().save_pretrained(wide)
    other = reward_folder(tmp_path / "rm", wide)
    with pytest.raises(ModelError, match="equal shapes"):
        rewards({"name": "rm", "models": [members[0], str(other)], "combine": "average"})


def test_the_slope_on_length_is_taken_out_and_kept(members: list[str]) -> None:
    spec = {"name": "rm", "model": members[0], "residual_length": True}
    uninterrupted = rewards(spec)
    first, second = talk(0), talk(1)
    uninterrupted(first)
    lengths = np.array([len(c) for g in first for c in g.completions], float)
    slope = np.polyfit(lengths, got(first, "rm"), 1)[0]
    near(slope, 0.0, 1e-6)
    assert abs(np.polyfit(lengths, got(first, "rm/with_length"), 1)[0]) > 1e-4
    near(np.mean(got(first, "rm")), np.mean(got(first, "rm/with_length")), 1e-6)
    resumed = rewards(spec)
    resumed.load(uninterrupted.state())
    uninterrupted(second)
    again = talk(1)
    resumed(again)
    assert got(again, "rm") == got(second, "rm")
    fresh = talk(1)
    rewards(spec)(fresh)
    assert got(fresh, "rm") != got(second, "rm")

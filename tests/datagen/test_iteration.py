"""Best-of-n, mixing, named held-out sets, accuracy: rows by hand, laws, end to end, refusals."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimtab
from tests.support import folders
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.data import formats, sources
from trimtab.datagen import best_of_n, mix, sandbox_data, sandbox_labels
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate import accuracy
from trimtab.runs import read_samples
from trimtab.sandbox.world import make_scenes
from trimtab.train import reward
from trimtab.types import Completion, Group

BASE = str(Path(trimtab.__file__).parent / "sandbox" / "base")
WORDY = {"name": "wordy", "function": "tests.support.folders:wordy"}
LENGTH = {"name": "length", "function": "tests.datagen.test_iteration:length", "weight": 0}


def length(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(c.split())) for c in completions]


def moody(prompts: list[str], completions: list[str]) -> list[float | None]:
    """No score for answers with a "the" in them."""
    return [None if "the" in c.split() else float(len(c)) for c in completions]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("iteration")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl", 24)
    folders.demonstrations(folder / "demos.jsonl")
    folders.comparisons(folder / "pairs.jsonl")
    return folder


def sampled(base: Path, out: Path, **more: Any) -> best_of_n.BestOfNSummary:
    settings = {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "prompts.jsonl")}, "rewards": [WORDY, LENGTH], "num_completions": 6,
        "sampling": {"max_new_tokens": 24, "temperature": 2.0}, **more,
    }  # fmt: skip
    return best_of_n.main(build(best_of_n.BestOfNConfig, settings))


# Best of n ------------------------------------------------------------------------------------


def test_rows_are_the_extremes_of_what_was_sampled(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    figures = sampled(base, out)
    best, pairs = rows(out / "best.jsonl"), rows(out / "pairs.jsonl")
    assert figures.pairs + figures.ties + figures.lone == figures.prompts == 24
    assert (len(best), len(pairs)) == (figures.best, figures.pairs)
    assert best and pairs
    drawn: dict[str, list[dict[str, Any]]] = {}
    for s in read_samples(out):
        drawn.setdefault(s["prompt"], []).append(s)
    for row in best:
        user, answer = row["messages"]
        finished = [s for s in drawn[user["content"]] if s["finish"] == "stop" and s["completion"]]
        assert row["reward"] == max(s["reward"] for s in finished)
        assert answer == {"role": "assistant", "content": answer["content"]}
        assert answer["content"] in [
            s["completion"] for s in finished if s["reward"] == row["reward"]
        ]
    assert all(r["reward_chosen"] > r["reward_rejected"] for r in pairs)
    read = sources.read(str(out / "best.jsonl"))
    assert len(formats.demonstrations(read)) == len(best)
    assert len(formats.comparisons(sources.read(str(out / "pairs.jsonl")))) == len(pairs)


@pytest.mark.slow
def test_the_curve_is_the_estimator_over_prompts(base: Path, tmp_path: Path) -> None:
    figures = sampled(base, tmp_path / "o")
    curve = figures.best_of
    assert list(curve) == ["1", "2", "4", "6"]
    drawn = read_samples(tmp_path / "o")
    assert curve["1"]["reward"] == pytest.approx(np.mean([s["reward"] for s in drawn]))
    assert curve["1"]["length"] == pytest.approx(np.mean([s["scores"]["length"] for s in drawn]))
    tops: dict[str, float] = {}
    for s in drawn:
        tops[s["prompt"]] = max(tops.get(s["prompt"], -1.0), s["reward"])
    assert curve["6"]["reward"] == pytest.approx(np.mean(list(tops.values())))
    means = [at["reward"] for at in curve.values()]
    assert means == sorted(means)
    assert curve["1"]["kl_bound"] == 0.0
    assert json.loads((tmp_path / "o" / "summary.json").read_text()) == asdict(figures)


def test_answers_without_a_score_are_counted_and_left_out(base: Path, tmp_path: Path) -> None:
    failing = [{"name": "moody", "function": "tests.datagen.test_iteration:moody"}]
    figures = sampled(base, tmp_path / "o", rewards=failing)
    drawn = read_samples(tmp_path / "o")
    missing = [s for s in drawn if s["reward"] is None]
    assert figures.unscored == len(missing) > 0
    texts = [r["messages"][1]["content"].split() for r in rows(tmp_path / "o" / "best.jsonl")]
    assert texts and not any("the" in words for words in texts)
    assert figures.best_of["6"]["prompts"] < figures.best_of["1"]["prompts"]


def test_what_was_cut_is_no_row(base: Path, tmp_path: Path) -> None:
    """Read again as text, it would have an end that it never had."""
    with pytest.raises(DataError, match=r"max_new_tokens"):
        sampled(base, tmp_path / "o", num_completions=2, sampling={"max_new_tokens": 1})


@pytest.mark.slow
def test_a_threshold_leaves_poor_answers_out(base: Path, tmp_path: Path) -> None:
    figures = sampled(base, tmp_path / "o", threshold=0.99)
    assert figures.below > 0
    assert all(r["reward"] >= 0.99 for r in rows(tmp_path / "o" / "best.jsonl"))
    with pytest.raises(DataError, match=r"below threshold 7"):
        sampled(base, tmp_path / "p", threshold=7.0)


def test_rows_of_other_prompts() -> None:
    plain = Group("1", np.array([1]), [], "a prompt")
    assert best_of_n.demonstration(plain, "x") == {"prompt": "a prompt", "completion": "x"}
    assert best_of_n.comparison(plain, "x", "y") == {
        "prompt": "a prompt", "chosen": "x", "rejected": "y",
    }  # fmt: skip
    turns = [{"role": r, "content": "c"} for r in ("user", "assistant", "user")]
    long = Group("1", np.array([1]), [], "", {"messages": turns})
    # With the whole conversation as messages, the earlier answer would be learnt too.
    assert best_of_n.demonstration(long, "x") == {
        "prompt": turns, "completion": [{"role": "assistant", "content": "x"}],
    }  # fmt: skip


def test_columns_with_a_meaning_stay_behind(base: Path, tmp_path: Path) -> None:
    """Prompts taken from ranked rows must not make ranked rows of the pairs."""
    ranked = {"prompt": "the cat", "completions": ["a", "b"], "ranks": [0, 1], "kind": "k"}
    folders.write(tmp_path / "d.jsonl", [{**ranked, "probs": [[0.5]]}] * 8)
    sampled(base, tmp_path / "o", data={"path": str(tmp_path / "d.jsonl")})
    for row in rows(tmp_path / "o" / "pairs.jsonl"):
        assert {"completions", "ranks", "probs"}.isdisjoint(row)
        assert row["kind"] == "k"


@pytest.mark.slow
def test_rejection_sampling_as_commands(base: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "best")
    cli(["best-of-n", "--model.path", str(base / "model"), "--data.path",
         str(base / "prompts.jsonl"), "--out", out, "--num-completions", "4", "--rewards",
         "[{name: wordy, function: 'tests.support.folders:wordy'}]"])  # fmt: skip
    cli(["sft", "--model.path", str(base / "model"), "--data.path", f"{out}/best.jsonl", "--out",
         str(tmp_path / "sft"), "--batch_size", "4"])  # fmt: skip
    cli(["dpo", "--model.path", str(base / "model"), "--data.path", f"{out}/pairs.jsonl", "--out",
         str(tmp_path / "dpo"), "--batch_size", "4"])  # fmt: skip
    for stage in ("sft", "dpo"):
        assert (tmp_path / stage / "model" / "model.safetensors").is_file()
    # The folder reads as a run: its answers are shown.
    cli(["report", out])
    assert "wordy" in (tmp_path / "best" / "report.html").read_text()


# Mixing ---------------------------------------------------------------------------------------

row_counts = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 200), min_size=1)


@pytest.mark.slow
@given(row_counts, st.data())
def test_parts_stand_as_the_weights_do(counts: dict[str, int], data: st.DataObject) -> None:
    weights = {k: data.draw(st.floats(0.05, 20)) for k in counts}
    weight_sum = sum(weights.values())
    parts = mix.parts(counts, weights, None)
    total = sum(parts.values())
    assert all(0 <= parts[k] <= n for k, n in counts.items())
    assert all(abs(parts[k] - total * w / weight_sum) < 1 + 1e-6 for k, w in weights.items())
    # One row more would not fit.
    assert any((total + 1) * w / weight_sum > counts[k] - 1e-6 for k, w in weights.items())
    most = data.draw(st.integers(0, total))
    assert sum(mix.parts(counts, weights, most).values()) == most


@given(row_counts)
def test_without_weights_every_row_is_taken(counts: dict[str, int]) -> None:
    assert mix.parts(counts, {k: float(n) for k, n in counts.items()}, None) == counts


def mixed(tmp_path: Path, **more: Any) -> list[dict[str, Any]]:
    for name, n in (("old", 30), ("new", 10)):
        folders.write(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(n)])
    inputs = {k: {"path": str(tmp_path / f"{k}.jsonl")} for k in ("old", "new")}
    for k, w in more.pop("weights", {}).items():
        inputs[k]["weight"] = w
    settings = {"out": str(tmp_path / "o"), "inputs": inputs, **more}
    mix.main(build(mix.MixConfig, settings))
    return rows(tmp_path / "o" / "rows.jsonl")


def test_a_mix_keeps_rows_and_names_where_they_come_from(tmp_path: Path) -> None:
    result = mixed(tmp_path)
    assert sorted(r["text"] for r in result) == sorted(
        [f"old {i}" for i in range(30)] + [f"new {i}" for i in range(10)]
    )
    for r in result:
        name, _, i = r["text"].partition(" ")
        assert r["id"] == f"{name}/{int(i) + 1}"
    assert [r["id"] for r in result] != sorted(r["id"] for r in result)
    assert mixed(tmp_path) == result
    assert mixed(tmp_path, seed=1) != result
    drawn = mixed(tmp_path, weights={"old": 1.0, "new": 1.0}, rows=12)
    assert sum(r["id"].startswith("old") for r in drawn) == 6
    assert len({r["id"] for r in drawn}) == 12


def test_a_mix_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"inputs\.new: has 10 rows.*lower rows to 20"):
        mixed(tmp_path, weights={"old": 1.0, "new": 1.0}, rows=22)
    with pytest.raises(ConfigError, match=r"inputs new have no weight"):
        mixed(tmp_path, weights={"old": 1.0})
    with pytest.raises(ConfigError, match=r"inputs"):
        build(mix.MixConfig, {"inputs": {"a/b": {"path": "x"}}})


# The refresh ----------------------------------------------------------------------------------


def refreshed(base: Path, out: Path, **evals: str) -> dict[str, float]:
    settings = {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "pairs.jsonl")}, "batch_size": 16,
        "evals": {k: {"path": v} for k, v in evals.items()},
    }  # fmt: skip
    return reward.main(build(reward.RewardConfig, settings))


@pytest.mark.slow
def test_held_out_sets_are_told_by_name(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = tmp_path / "half.jsonl"
    other = rows(base / "pairs.jsonl")[:20]
    folders.write(half, [{**r, "prompt": f"{r['prompt']} sun sun moon"} for r in other])
    figures = refreshed(base, tmp_path / "rm", old=str(base / "pairs.jsonl"), new=str(half))
    messages = " ".join(caplog.messages)
    assert "old: 48 of 48 held-out prompts are also in the training data" in messages
    assert "new:" not in messages
    assert (figures["eval/old/pairs"], figures["eval/new/pairs"]) == (48, 20)
    assert "eval/accuracy" not in figures
    assert json.loads((tmp_path / "rm" / "calibration.json").read_text())["evals"]["new"]["bins"]
    # The same model read back as a reward, beside two functions that are right or wrong by design.
    settings = {
        "out": str(tmp_path / "acc"), "tokenizer": str(base / "model"),
        "data": {"old": {"path": str(base / "pairs.jsonl")}, "new": {"path": str(half)}},
        "rewards": [{"name": "rm", "model": str(tmp_path / "rm" / "model")}, LENGTH],
    }  # fmt: skip
    results = accuracy.main(build(accuracy.AccuracyConfig, settings))
    for name in ("old", "new"):
        assert results["rm"][name]["accuracy"] == pytest.approx(figures[f"eval/{name}/accuracy"])
        length = results["length"][name]
        assert max(length["accuracy"], 1 - length["accuracy"]) == length["length_only"]
        assert length["unscored"] == 0


def test_the_name_of_a_figure_is_no_name_of_a_set(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ece is the name of a metric"):
        refreshed(base, tmp_path, ece="x.jsonl")
    with pytest.raises(ConfigError, match="evals"):
        refreshed(base, tmp_path, **{"a/b": "x.jsonl"})
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file"):
        refreshed(base, tmp_path, new="absent.jsonl")


def test_a_reward_that_scores_nothing_has_no_accuracy(base: Path, tmp_path: Path) -> None:
    settings = {
        "out": str(tmp_path / "o"), "tokenizer": str(base / "model"),
        "data": {"old": {"path": str(base / "pairs.jsonl")}},
        "rewards": [{"name": "r", "function": "tests.support.reward_functions:none"}],
    }  # fmt: skip
    with pytest.raises(DataError, match=r"pairs\.jsonl: reward 'r' scored no pair"):
        accuracy.main(build(accuracy.AccuracyConfig, settings))


def test_labels_of_a_later_round_are_of_other_prompts(base: Path, tmp_path: Path) -> None:
    scenes = make_scenes(24, 0)
    folders.write(tmp_path / "p.jsonl", sandbox_data.prompt_rows(scenes))

    def labelled(out: str, **more: Any) -> set[str]:
        settings = {
            "out": str(tmp_path / out), "model": {"path": BASE, "device": "cpu"},
            "data": str(tmp_path / "p.jsonl"), "sampling": {"max_new_tokens": 16}, **more,
        }  # fmt: skip
        sandbox_labels.main(build(sandbox_labels.SandboxLabelsConfig, settings))
        return {
            json.dumps(r["prompt"])
            for name in ("comparisons", "heldout")
            for r in rows(tmp_path / out / f"{name}.jsonl")
        }

    first, second = labelled("a", limit=12), labelled("b", skip=12, limit=12)
    assert first and second and first.isdisjoint(second)
    with pytest.raises(DataError, match="skip 24"):
        labelled("c", skip=24)


def test_usable_answers() -> None:
    def made(text: str, finish: Any, score: float | None) -> Completion:
        return Completion(np.array([3]), np.ones(1, bool), text, finish=finish, reward=score)

    assert best_of_n.usable(made("a", "stop", 0.0))
    assert not best_of_n.usable(made(" ", "stop", 0.0))
    assert not best_of_n.usable(made("a", "length", 0.0))
    assert not best_of_n.usable(made("a", "stop", None))


@pytest.mark.slow
def test_the_recipe_in_small(tmp_path: Path) -> None:
    """Every stage from the files of those before it, to the figures promised."""
    recipe = str(Path(trimtab.__file__).parent / "recipes" / "sandbox-iterate.yaml")
    small = {
        "world.demonstrations": 64, "world.prompts": 96, "world.heldout": 24, "sft.holdout": 8,
        "sft.epochs": 0.5, "sft.batch_size": 16, "label.limit": 40, "label.heldout": 8,
        "relabel.limit": 40, "relabel.skip": 40, "relabel.heldout": 8, "best.data.limit": 16,
        "best.num_completions": 8, "raft.holdout": 2, "raft.batch_size": 8, "raft.epochs": 0.5,
        **{f"{s}.epochs": 0.5 for s in ("reward", "reward2")},
        **{f"{s}.steps": 1 for s in ("online", "ppo", "ppo_on", "ppo2")},
        **{f"{s}.batch_size": 8 for s in ("online", "ppo", "ppo_on", "ppo2")},
    }  # fmt: skip
    flags = [word for k, v in small.items() for word in (f"--{k}", str(v))]
    cli(["run", recipe, "--out", str(tmp_path / "o"), *flags])
    figures = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert set(figures["gold"]) >= {"sft", "raft", "online", "ppo", "ppo_on", "ppo2"}
    assert 0 <= figures["reward_model"]["after"]["new"] <= 1
    ids = [r["id"].partition("/")[0] for r in rows(tmp_path / "o" / "mix" / "rows.jsonl")]
    assert set(ids) == {"old", "new"}

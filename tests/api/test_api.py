"""The Python API: real tiny trainings, with functions as rewards and rows as data."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from torch import Tensor

import trimtab as tt
from tests.support import folders
from trimtab.config import function_path, import_function
from trimtab.errors import ConfigError
from trimtab.feedback.judgement import Item, Judgement

SMALL: dict[str, Any] = {
    "optim": tt.Optim(lr=1e-3),
    "loop": {"save_steps": 1, "sample_steps": 1, "token_budget": 512},
}
PROMPTS = [{"prompt": f"what is the {w} ?", "word": w} for w in ("cat", "dog", "sun", "moon")] * 4


def brevity(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Shorter is better."""
    return [-len(c.split()) / 50 for c in completions]


def says_word(completions: list[str], word: list[str]) -> list[float]:
    """Whether the row's word is in the completion."""
    return [float(w in c) for c, w in zip(completions, word, strict=True)]


class Scorer:
    """A reward with a state, and one in a class."""

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [0.0 for _ in completions]

    @staticmethod
    def zero(completions: list[str], **_: Any) -> list[float]:
        return [0.0 for _ in completions]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(folders.model_folder(tmp_path_factory.mktemp("base") / "model"))


@pytest.fixture(scope="module")
def run(model: str, tmp_path_factory: pytest.TempPathFactory) -> tt.Run:
    return tt.rl(
        model, PROMPTS, [brevity, tt.Reward(function=says_word, weight=0.5)],
        method=tt.GRPO(group_size=2), steps=2, batch_size=4, sampling={"max_new_tokens": 4},
        out=tmp_path_factory.mktemp("rl") / "run", **SMALL,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_with_functions_as_rewards(run: tt.Run) -> None:
    assert list(run.metrics.index) == [1, 2]
    assert run.metrics["reward/mean"].notna().all()
    assert {"reward/brevity", "reward/says_word"} <= set(run.metrics.columns)
    assert len(run.samples) > 0 and {"prompt", "completion", "reward"} <= set(run.samples.columns)
    saved = [r["function"] for r in run.config["rewards"]]
    assert saved == [f"{__name__}:brevity", f"{__name__}:says_word"]
    assert run.config["method"]["type"] == "grpo"
    assert run.doctor().verdict == tt.doctor(run).verdict == tt.doctor(run.path).verdict
    assert run.report() == run.path / "report.html"
    assert run.summary["reward"] == pytest.approx(run.summary["reward"])


def test_the_trained_model_is_a_hugging_face_model(run: tt.Run) -> None:
    loaded, tokenizer = run.load_model()
    ids = tokenizer("what is the cat", return_tensors="pt").input_ids
    assert loaded.generate(ids, max_new_tokens=2).shape[0] == 1


def test_the_same_call_resumes(run: tt.Run, model: str) -> None:
    again = tt.rl(
        model, PROMPTS, [brevity, tt.Reward(function=says_word, weight=0.5)],
        method=tt.GRPO(group_size=2), steps=3, batch_size=4, sampling={"max_new_tokens": 4},
        out=run.path, **SMALL,
    )  # fmt: skip
    assert list(again.metrics.index) == [1, 2, 3]
    before = (run.path / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"data: 16 rows -> 4 rows, first difference in row 5"):
        tt.rl(model, PROMPTS[:4], [brevity], steps=3, out=run.path, **SMALL)
    assert (run.path / "config.yaml").read_bytes() == before


@pytest.mark.slow
def test_fresh_moves_the_old_run_aside(model: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"out": tmp_path / "run", "epochs": 1, "batch_size": 4, **SMALL}
    rows = [{"prompt": "what is the cat ?", "completion": "the cat is here ."}] * 8
    tt.sft(model, rows, **keys)
    with pytest.raises(ConfigError, match="row 8"):
        tt.sft(model, rows[:7], **keys)
    assert tt.sft(model, rows[:4], fresh=True, **keys).metrics.index.max() == 1
    assert tt.Run(tmp_path / "run.old-1").metrics.index.max() == 2


def test_a_lambda_trains_once_and_says_so(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train() -> tt.Run:
        # A new function at each call, which nothing identifies.
        reward = lambda completions, **_: [float(len(c)) for c in completions]  # noqa: E731
        keys = {"steps": 1, "batch_size": 4, "sampling": {"max_new_tokens": 2}, **SMALL}
        return tt.rl(model, PROMPTS, [reward], method="rloo", out=tmp_path / "run", **keys)

    assert train().metrics["reward/mean"].iloc[0] >= 0
    assert caplog.text.count("cannot be resumed") == 1
    with pytest.raises(ConfigError, match="a lambda or local function, which cannot be recognised"):
        train()


@pytest.mark.slow
def test_sft_and_reward_model_on_rows_and_datasets(model: str, tmp_path: Path) -> None:
    rows = [{"prompt": "what is the cat ?", "completion": "the cat is here ."}] * 8
    start = tt.sft(model, rows, out=tmp_path / "sft", epochs=1, batch_size=4, **SMALL)
    assert start.metrics["loss"].iloc[-1] > 0
    pairs = [{"prompt": "what is the cat ?", "chosen": "a cat .", "rejected": "no ."}] * 8
    rm = tt.reward_model(
        start.model, datasets.Dataset.from_list(pairs), eval_data=pairs[:4], holdout=0,
        out=tmp_path / "rm", epochs=1, batch_size=4, **SMALL,
    )  # fmt: skip
    loaded, _ = rm.load_model()
    assert type(loaded).__name__.endswith("ForSequenceClassification")
    tuned = tt.dpo(
        start.model, pairs, objective=tt.DPO(beta=0.2), out=tmp_path / "dpo", batch_size=4, **SMALL
    )
    assert tuned.config["objective"] == {**tuned.config["objective"], "type": "dpo", "beta": 0.2}
    online = tt.online_dpo(
        start.model, PROMPTS, [tt.Reward(model=rm.model)], out=tmp_path / "online", steps=1,
        batch_size=4, sampling={"max_new_tokens": 4}, **SMALL,
    )  # fmt: skip
    assert "reward/model" in online.metrics.columns


@pytest.mark.slow
def test_models_are_sampled_and_compared(model: str, tmp_path: Path) -> None:
    sampling = {"max_new_tokens": 48}
    items = tt.sample(
        model, PROMPTS, num_completions=2, tries=8, sampling=sampling, out=tmp_path / "s"
    )
    assert [len(i.completions) for i in items] == [2] * len(items) and items[0].extra["word"]
    results = tt.compare(
        {"a": model, "b": tt.Model(path=model, seed=1)}, PROMPTS[:4], [says_word],
        sampling=sampling, html=False, out=tmp_path / "compare",
    )  # fmt: skip
    assert set(results) == {"a", "b"} and results["b"].kl == pytest.approx(0.0, abs=1e-4)


def test_verdicts_are_evaluated(tmp_path: Path) -> None:
    records = tmp_path / "labels.jsonl"
    item = Item.of([{"role": "user", "content": "q"}], ["x", "y"], models=("base", "tuned"))
    verdict = Judgement(item=item.id, annotator="ann", ranks=(1, 0))
    records.write_text(f"{item.model_dump_json()}\n{verdict.model_dump_json()}\n")
    board = tt.evaluate([records], baseline="base", draws=100)
    assert list(board.elo) == ["tuned", "base"] and board.against_baseline["tuned"].wins == 1


@pytest.mark.slow
def test_packages_are_functions_whatever_was_imported_first() -> None:
    """Python binds the name of a package as soon as one of its modules is imported."""
    code = (
        "import trimtab as tt, trimtab.doctor.finding, trimtab.evaluate.table_text, "
        "trimtab.sample.draw\n"
        "for name in ('doctor', 'evaluate', 'sample'):\n"
        "    try: getattr(tt, name)('absent', data='absent')\n"
        "    except Exception as e: print(type(e).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["TypeError", "ConfigError", "DataError"]


def flat(rewards_BT: Tensor, mask_BT: Tensor, final_B: Tensor, group_B: Tensor) -> Tensor:
    """The reward on every token."""
    return final_B[:, None].expand(rewards_BT.shape)


@pytest.mark.slow
@pytest.mark.parametrize("advantage", [flat, {"estimator": flat, "scale": "none"}])
def test_an_advantage_is_a_function(
    advantage: Any, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    method = tt.GRPO(group_size=2, advantage=advantage)
    assert method.advantage.baseline == "group", "the other keys keep the method's defaults"
    assert "old name" not in caplog.text
    run = tt.rl(
        model, PROMPTS, [brevity], method=method, steps=1, batch_size=4,
        sampling={"max_new_tokens": 4}, out=tmp_path / "run", **SMALL,
    )  # fmt: skip
    assert run.config["method"]["advantage"]["estimator"] == f"{__name__}:flat"
    assert run.metrics["advantage/std"].notna().all()


def test_mistakes_are_named(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rl: optimm: unknown key; did you mean 'optim'"):
        tt.rl(model, PROMPTS, [brevity], optimm={}, out=tmp_path / "a")
    with pytest.raises(ConfigError, match="int is not data"):
        tt.sft(model, 3, out=tmp_path / "b")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="there is no such run folder"):
        tt.Run(tmp_path / "absent")
    with pytest.raises(AttributeError, match="has no attribute 'GRPOO'"):
        tt.GRPOO  # type: ignore[attr-defined]  # noqa: B018


def test_the_path_of_a_function() -> None:
    assert function_path(brevity) == f"{__name__}:brevity"
    assert import_function(f"{__name__}:Scorer.zero") is Scorer.zero
    for local in (Scorer(), lambda: 0):
        path = function_path(local)
        assert path.startswith("<local>:") and function_path(local) == path
        assert import_function(path) is local
    with pytest.raises(ConfigError, match="local function of another process"):
        import_function("<local>:f-1234", "rewards.f.function")


@pytest.mark.slow
def test_a_script_is_saved_by_its_file(tmp_path: Path, model: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import trimtab as tt\n"
        "def short(completions): return [-float(len(c)) for c in completions]\n"
        f"run = tt.rl({model!r}, {PROMPTS!r}, [short], method=tt.GRPO(group_size=2), steps=1,\n"
        f"            batch_size=4, sampling={{'max_new_tokens': 2}}, out={str(tmp_path / 'run')!r})\n"
        "print(run.metrics['reward/mean'], run.doctor().verdict)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["rewards"][0]["function"] == f"{script}:short"


@pytest.mark.slow
def test_the_import_takes_a_tenth_of_a_second() -> None:
    """Of processor time, beyond the interpreter's own."""

    def seconds(code: str) -> float:
        spent: list[float] = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", code], check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(spent)

    assert seconds("import trimtab") - seconds("pass") <= 0.1


def test_every_public_name_is_there() -> None:
    assert {n for n in tt.__all__ if getattr(tt, n) is None} == set()
    assert {"sft", "GRPO", "Reward"} <= set(dir(tt))

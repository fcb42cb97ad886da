"""The direct stage from its configuration to its model: every type, resume, reference, adapters."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import trimtab
from tests.support import folders
from tests.support.processes import Forked, kill_midway, run_here, weights
from trimtab.cli.main import main as command
from trimtab.config import build
from trimtab.errors import ConfigError, DataError, ModelError, UserError
from trimtab.models.load import LM, ModelSpec
from trimtab.objectives.preference import DIRECT
from trimtab.runs import read_metrics
from trimtab.sandbox.world import gold, make_scenes, sample_completion
from trimtab.train.dpo import PreferenceConfig, PreferenceStage, main

SANDBOX = Path(trimtab.__file__).parent / "sandbox" / "base"
Rows = list[dict[str, object]]


def judged(n: int) -> Rows:
    """Sandbox prompts with a right answer and one that gold finds worse."""
    rows: Rows = []
    rng = np.random.default_rng(0)
    for scene in make_scenes(n, 3):
        best = " ".join(scene.needed)
        worse = best
        while worse == best:
            worse = sample_completion(scene, rng, 0.0)
        assert gold(scene, best).total > gold(scene, worse).total
        rows.append({"prompt": scene.messages(), "chosen": best, "rejected": worse})
    return rows


def unpaired(rows: Rows) -> Rows:
    """Each row's better or worse answer by itself, in turn."""
    return [
        {"prompt": r["prompt"], "completion": r["chosen" if i % 2 else "rejected"], "label": bool(i % 2)}
        for i, r in enumerate(rows)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("direct")
    folders.model_folder(folder / "model")
    folders.model_folder(folder / "other", seed=1)
    folders.comparisons(folder / "pairs.jsonl")
    rows = judged(80)
    folders.write(folder / "world.jsonl", rows)
    folders.write(folder / "world-unpaired.jsonl", unpaired(rows))
    return folder


def settings(base: Path, out: Path, kind: str = "dpo", **more: Any) -> dict[str, Any]:
    return {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "pairs.jsonl")}, "epochs": 2, "batch_size": 8, "holdout": 8,
        "objective": {"type": kind}, "optim": {"lr": 1e-3}, "loop": {"token_budget": 512},
    } | more  # fmt: skip


def made(*args: Any, **more: Any) -> PreferenceConfig:
    return build(PreferenceConfig, settings(*args, **more))


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["world", "world-unpaired"])
@pytest.mark.parametrize("kind", DIRECT)
def test_every_type_learns_on_the_sandbox(kind: str, rows: str, base: Path, tmp_path: Path) -> None:
    """From the configuration to a model that plain transformers loads, and that has learnt."""
    if rows == "world-unpaired" and kind != "kto":
        pytest.skip("labelled answers are for kto")
    config = made(
        base, tmp_path, kind, model={"path": str(SANDBOX)}, data={"path": str(base / f"{rows}.jsonl")},
        epochs=3, batch_size=16, holdout=16, loop={"eval_steps": 1},
    )  # fmt: skip
    figures = main(config)
    assert all(math.isfinite(v) for v in figures.values())
    first, *_, last = read_metrics(tmp_path)
    assert last["loss"] < first["loss"]
    assert last["eval/rewards/margins"] > first["eval/rewards/margins"]
    assert last["eval/accuracy"] > 0.6
    assert 0 <= figures["eval/accuracy_low"] <= figures["eval/accuracy"] <= 1
    assert not figures["skipped"]
    before = load_file(SANDBOX / "model.safetensors")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert not torch.equal(after["model.norm.weight"], before["model.norm.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dpo", "simpo", "kto"])
def test_kill_and_resume_is_byte_equal(kind: str, base: Path, tmp_path: Path) -> None:
    outs = {"whole": tmp_path / "whole", "broken": tmp_path / "broken"}
    files: dict[str, Path] = {}
    for name, out in outs.items():
        options = settings(base, out, kind, epochs=6, loop={"save_steps": 2, "token_budget": 512})
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(options))
    # In another process than the killed one: the order of sets of strings may differ.
    run_here("dpo", str(files["whole"]))
    kill_midway("dpo", files["broken"], outs["broken"])
    assert "resuming from step" in Forked("dpo", str(files["broken"])).finish()
    assert weights(outs["whole"]) == weights(outs["broken"])


def ref_logps(stage: PreferenceStage) -> np.ndarray:
    return np.concatenate([c.tokens["ref_logp"] for g in stage.train for c in g.completions])


def test_the_cache_is_used_and_a_changed_one_is_not(base: Path, tmp_path: Path) -> None:
    cache = {"reference_cache": str(tmp_path / "cache")}
    first = PreferenceStage(made(base, tmp_path / "a", **cache))
    assert first.computed == 96
    again = PreferenceStage(made(base, tmp_path / "b", **cache))
    assert again.computed == 0
    assert np.array_equal(ref_logps(first), ref_logps(again))

    other = {"path": str(base / "other"), "device": "cpu"}
    changed = PreferenceStage(made(base, tmp_path / "c", **cache, model=other))
    assert changed.computed == 96
    assert not np.allclose(ref_logps(first), ref_logps(changed))

    # One word of one answer.
    lines = (base / "pairs.jsonl").read_text().splitlines()
    rows = [yaml.safe_load(line) for line in lines]
    rows[0]["chosen"] = "no not here"
    folders.write(tmp_path / "pairs.jsonl", rows)
    data = {"path": str(tmp_path / "pairs.jsonl")}
    assert PreferenceStage(made(base, tmp_path / "d", **cache, data=data)).computed == 80

    # The same ids of the same weights under another vocabulary.
    words = folders.tokenizer()
    words.add_tokens(["new"])
    words.save_pretrained(tmp_path / "words")
    renamed = {"path": str(base / "model"), "tokenizer": str(tmp_path / "words"), "device": "cpu"}
    assert PreferenceStage(made(base, tmp_path / "e", **cache, model=renamed)).computed == 96


def test_a_damaged_cache_is_computed_again(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = PreferenceStage(made(base, tmp_path))
    for path in (tmp_path / "reference").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    again = PreferenceStage(made(base, tmp_path))
    assert again.computed == 96
    assert np.array_equal(ref_logps(first), ref_logps(again))
    assert "damaged" in caplog.text


def test_after_training_the_cache_still_holds_the_start(base: Path, tmp_path: Path) -> None:
    """The run goes on from a checkpoint, but its reference is the model it began with."""
    config = made(base, tmp_path)
    main(config)
    stage = PreferenceStage(config)
    assert stage.computed == 0
    start_lm = LM.load(config.model, train=False)
    other = PreferenceStage(made(base, tmp_path / "again"))
    assert np.array_equal(ref_logps(stage), ref_logps(other))
    assert start_lm.exact


def alive() -> int:
    gc.collect()
    return sum(isinstance(x, PreTrainedModel) and hasattr(x, "lm_head") for x in gc.get_objects())


@pytest.mark.slow
def test_two_models_are_never_in_memory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference of its own is gone before the policy is loaded; the policy's start is no copy."""
    loaded: list[weakref.ref[Any]] = []
    load = LM.load.__func__  # type: ignore[attr-defined]

    def watched(cls: type[LM], spec: ModelSpec, *, train: bool = True) -> LM:
        gc.collect()
        assert not any(r() for r in loaded), "another model is still in memory"
        lm = load(cls, spec, train=train)
        loaded.append(weakref.ref(lm.model))
        return lm

    monkeypatch.setattr(LM, "load", classmethod(watched))
    before = alive()
    other = {"path": str(base / "other"), "device": "cpu"}
    stage = PreferenceStage(made(base, tmp_path / "a", reference=other))
    assert len(loaded) == 2
    assert alive() == before + 1
    logps = ref_logps(stage)
    del stage
    own_stage = PreferenceStage(made(base, tmp_path / "b", model=other))
    assert np.array_equal(logps, ref_logps(own_stage))
    del own_stage
    loaded.clear()
    stage = PreferenceStage(made(base, tmp_path / "c"))
    assert len(loaded) == 1
    assert alive() == before + 1
    assert abs(stage.step(0)["rewards/margins"]) < 1e-6


def test_a_reference_of_another_vocabulary_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="another vocabulary"):
        PreferenceStage(made(base, tmp_path, reference={"path": str(SANDBOX)}))


def test_adapters(base: Path, tmp_path: Path) -> None:
    """Their reference is the model without them; the base stays, the model is saved merged."""
    cache = {"reference_cache": str(tmp_path / "cache")}
    full = PreferenceStage(made(base, tmp_path / "full", **cache))
    adapted = {"path": str(base / "model"), "device": "cpu", "lora": {"r": 4}}
    config = made(base, tmp_path / "lora", **cache, model=adapted, epochs=4, optim={"lr": 1e-2})
    stage = PreferenceStage(config)
    assert stage.computed == 0, "weights without adapters are the same reference"
    assert np.array_equal(ref_logps(full), ref_logps(stage))
    names = [n for n, _ in stage.trainer.params["model"]]
    assert names and all("lora_" in n for n in names)
    assert abs(stage.step(0)["rewards/margins"]) < 1e-6
    figures = main(config)
    assert figures["rewards/margins"] > 0.01
    first, last = (
        load_file(p / "model.safetensors") for p in (base / "model", tmp_path / "lora/model")
    )
    assert first.keys() == last.keys()
    moved = [n for n in first if not torch.equal(first[n], last[n])]
    assert moved and not any("embed" in n or "norm" in n for n in moved)


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.raises(SystemExit) as stop:
        command(["dpo", *flags])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("trimtab: ")
    assert "Traceback" not in message
    return message


BAD: list[tuple[str, Rows, str]] = [
    ("dpo", [{"prompt": "a", "chosen": "b", "reject": "c"}], "chosen+rejected"),
    ("dpo", [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}], "row 2"),
    ("dpo", [{"prompt": "a", "chosen": "b", "rejected": "b"}], "equal"),
    ("dpo", [{"prompt": "a", "chosen": "b", "rejected": ""}], "empty"),
    ("dpo", [{"prompt": "a", "chosen": "b", "rejected": "c", "tie": True}], "tie"),
    ("dpo", [{"prompt": "a", "completion": "b", "label": True}], "type: kto"),
    ("kto", [{"prompt": p, "completion": "b", "label": True} for p in "abc"], "all 3 completions are good"),
    ("kto", [{"prompt": p, "completion": "b", "label": False} for p in "abc"], "all 3 completions are bad"),
    ("kto", [{"prompt": "a", "completion": c, "label": c == "b"} for c in "bc"], "two different prompts"),
    ("kto", [{"prompt": "a", "completion": "b", "label": "maybe"}], "true (good) or false (bad)"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "rows", "word"), BAD)
def test_bad_rows_are_one_clear_error(
    kind: str, rows: Rows, word: str, base: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def never(spec: ModelSpec, *, train: bool = True) -> LM:
        raise AssertionError("a model was loaded before the data was read")

    monkeypatch.setattr(LM, "load", never)
    data = folders.write(tmp_path / "rows.jsonl", rows)
    message = refused(
        capsys, "--model.path", str(base / "model"), "--data.path", str(data), "--objective.type", kind,
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert word in message
    assert "rows.jsonl" in message


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--objective.type", "dppo"], "none of dpo, rpo"),
        (["--objective.bta", "1"], "did you mean 'beta'"),
        (["--objective.type", "kto", "--batch_size", "1"], "batch_size >= 2"),
        (["--objective.type", "simpo", "--reference.path", "x"], "remove the key reference"),
        (["--objective.type", "nowhere.py:Mine"], "nowhere.py: no such Python file"),
        (["--objective.type", "trimtab.config:Config"], "is no Direct"),
        (["--holdout", "48"], "leaves none of the 48 rows"),
        (["--data.path", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_settings_are_one_clear_error(
    flags: list[str], word: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model.path", str(base / "model"), "--data.path", str(base / "pairs.jsonl")]
    assert word in refused(capsys, *arguments, "--out", str(tmp_path / "out"), *flags)


def test_errors_are_of_their_kind(base: Path, tmp_path: Path) -> None:
    assert issubclass(DataError, UserError)
    with pytest.raises(ConfigError, match="none of dpo"):
        made(base, tmp_path, "nonsense")

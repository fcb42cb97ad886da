"""What a run will need, and the size of its forwards, measured beforehand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.test_forward import groups
from tests.support import folders
from tests.support.models import tiny
from trimtab.cli.main import main
from trimtab.data.pack import Output, Pack
from trimtab.models.load import LM, ModelSpec
from trimtab.objectives.nll import SFT
from trimtab.runs import Run, read_metrics
from trimtab.train.loop import fit
from trimtab.train.sft import SFTConfig, SFTStage
from trimtab.train.trainer import LoopSpec, OptimSpec, Part, Trainer
from trimtab.train.tuning import SIZES, fastest
from trimtab.types import Group


def sized(cost: int, n: int) -> list[Group]:
    return [Group(str(i), np.zeros(cost, dtype=np.int64), []) for i in range(n)]


def spending(rates: dict[int, float]) -> Callable[[Sequence[Group], int], float | None]:
    """Seconds of a machine that processes so many tokens a second; 0 for out of memory."""

    def spend(given: Sequence[Group], size: int) -> float | None:
        return sum(g.cost for g in given) / rates[size] if rates[size] else None

    return spend


@pytest.mark.parametrize(
    ("rates", "want"),
    [
        ((10, 20, 40, 80, 81, 82, 83), 4096),  # as fast as the larger ones, within the margin
        ((10, 20, 40, 30, 99, 99, 99), 2048),  # falling: looked no further
        ((10, 20, 40, 0, 99, 99, 99), 2048),  # out of memory: looked no further
        ((100, 99, 98, 97, 96, 95, 94), 512),
    ],
)
def test_the_smallest_size_that_is_nearly_fastest(rates: tuple[float, ...], want: int) -> None:
    machine: dict[int, float] = dict(zip(SIZES, rates, strict=True))
    assert fastest(sized(64, 512), spending(machine)) == want


def test_a_small_step_and_long_prompts() -> None:
    assert fastest(sized(64, 4), spending({512: 1.0})) is None
    # Sizes below one prompt are passed over.
    machine: dict[int, float] = dict.fromkeys(SIZES, 1.0)
    assert fastest(sized(3000, 20), spending(machine)) == 4096


def test_a_tuned_step_is_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LM(tiny("llama").double(), ModelSpec(path="llama"))
    seen: list[int] = []

    def forward(pack: Pack) -> Output:
        seen.append(pack.size)
        return Output(logp_C=lm.logps(lm.states(pack), pack)[0])

    def step(**loop: Any) -> tuple[torch.Tensor, Trainer]:
        trainer = Trainer(
            {"m": lm.model}, {"m": OptimSpec(lr=1e-30, clip=1e30)}, 1, LoopSpec(**loop)
        )
        trainer.update([Part(groups(), SFT(), forward)])
        grads = [p.grad.flatten() for p in lm.model.parameters() if p.grad is not None]
        return torch.cat(grads), trainer

    want, _ = step(token_budget=1000)
    monkeypatch.setattr("trimtab.train.tuning.SIZES", (40, 80))
    before = len(seen)
    got, trainer = step(token_budget=1000, tune_budget=True)
    assert trainer.tuned
    assert trainer.budget in (40, 80)
    assert len(seen) > before + 6, "both sizes were tried three times"
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-6)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model and demonstrations."""
    folders.model_folder(tmp_path / "model")
    folders.demonstrations(tmp_path / "demos.jsonl")
    return tmp_path


def trained(base: Path, out: Path, steps: int = 0, **loop: Any) -> bytes:
    made = SFTConfig.model_validate(
        {"model": {"path": str(base / "model"), "device": "cpu"}, "out": str(out), "batch": 8,
         "data": {"path": str(base / "demos.jsonl")}, "loop": {"save_every": 1, **loop}}
    )  # fmt: skip
    stage = SFTStage(made)
    stage.steps = steps or stage.steps
    fit(stage, Run(str(out)), made.loop)
    return (out / "model" / "model.safetensors").read_bytes()


def test_a_chosen_size_outlives_a_restart(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = iter((24, 48))
    monkeypatch.setattr("trimtab.train.trainer.fastest", lambda *_: next(choices))
    whole = trained(base, base / "a", tune_budget=True)
    choices = iter((24, 48))
    trained(base, base / "b", 2, tune_budget=True)
    assert trained(base, base / "b", tune_budget=True) == whole
    assert next(choices) == 48, "measured once"


def test_a_plan_says_what_the_run_then_takes(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = base / "run"
    given = [
        "sft", "--model.path", str(base / "model"), "--model.device", "cpu",
        "--data.path", str(base / "demos.jsonl"), "--batch", "8", "--out", str(out),
    ]  # fmt: skip
    main([*given, "--plan"])
    said = capsys.readouterr().out
    assert not out.exists(), "a plan leaves nothing behind"
    steps = int(re.findall(r"([\d,]+) steps", said)[0].replace(",", ""))
    assert re.search(r"a step +[\d.e-]+ s, [\d,]+ tokens", said)
    assert re.search(r"memory +[\d,]+ MB", said)
    main(given)
    rows = read_metrics(out)
    assert len(rows) == steps
    before = (out / "model" / "model.safetensors").read_bytes()
    capsys.readouterr()
    main([*given, "--plan"])
    assert (out / "model" / "model.safetensors").read_bytes() == before
    assert len(read_metrics(out)) == steps


def test_a_plan_of_rl_and_of_what_does_not_train(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.prompts(base / "prompts.jsonl")
    config = base / "rl.yaml"
    config.write_text(
        json.dumps(
            {"model": {"path": str(base / "model"), "device": "cpu"}, "out": str(base / "x"),
             "data": {"path": str(base / "prompts.jsonl")}, "steps": 40, "batch_size": 4,
             "sampling": {"max_new_tokens": 8}, "method": {"type": "ppo"},
             "rewards": [{"name": "wordy", "function": f"{Path(folders.__file__)}:wordy"}]}
        )
    )  # fmt: skip
    main(["rl", str(config), "--plan"])
    assert "40 steps" in capsys.readouterr().out
    assert not (base / "x").exists()
    with pytest.raises(SystemExit):
        main(["judge", "x.jsonl", "--plan"])
    assert "trains nothing" in capsys.readouterr().err

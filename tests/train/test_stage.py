"""A training stage of one's own, on one page."""

from __future__ import annotations

import inspect
import json
import math
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support import folders
from trimtab.config import read_yaml
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.pack import Output, Pack
from trimtab.models.load import LM
from trimtab.objectives.nll import SFT
from trimtab.objectives.process_reward import StepLoss
from trimtab.objectives.terms import Counts, Loss
from trimtab.runs import read_metrics, read_summary
from trimtab.train import process
from trimtab.train.loop import open_run, train
from trimtab.train.stage import DatasetConfig, DatasetStage, Metrics
from trimtab.train.trainer import OptimSpec
from trimtab.types import Group

# A new stage: everything from here to "The stage ends here" -----------------------------------


class RejectConfig(DatasetConfig):
    """Configuration of a stage that lowers the likelihood of unwanted completions."""

    stage: Literal["reject"] = "reject"
    out: str = "runs/reject"
    floor: float = 0.5
    """Tokens less likely than this are left alone."""
    optim: OptimSpec = OptimSpec(lr=1e-3)


class Reject:
    """The log-prob of tokens that are likelier than ``floor``, as the loss."""

    def __init__(self, floor: float) -> None:
        self.min_logp = math.log(floor)

    def counts(self, pack: Pack) -> Counts:
        return SFT().counts(pack)

    def __call__(self, out: Output, pack: Pack) -> Loss:
        assert out.logp_C is not None
        return SFT()(Output(logp_C=-out.logp_C.clamp(min=self.min_logp)), pack)


class RejectStage(DatasetStage[RejectConfig, LM]):
    """Unlikelihood training."""

    def read(self, spec: DataSpec) -> list[Group]:
        return load_groups(spec, formats.demonstrations, self.renderer.demonstration)

    def load_model(self) -> LM:
        return LM.load(self.config.model)

    def loss(self, index: int) -> Reject:
        return Reject(self.config.floor)

    def forward(self, pack: Pack) -> Output:
        return Output(logp_C=self.network.logps(self.network.states(pack), pack, entropy=False)[0])

    def summary(self, metrics: Metrics) -> str:
        return f"loss {metrics['loss']:.3f}"


def main(config: RejectConfig) -> Metrics:
    return train(RejectStage(config), open_run(config))


# The stage ends here --------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folders.model_folder(tmp_path / "model")
    folders.demonstrations(tmp_path / "demos.jsonl")
    return tmp_path


def settings(base: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "demos.jsonl")},
        "batch_size": 8, "holdout": 4, "out": str(base / "run"), **more,
    }  # fmt: skip


def test_a_new_stage_is_at_most_60_lines() -> None:
    text = inspect.getsource(sys.modules[__name__])
    stage = text[text.index("class RejectConfig(") : text.index("\n# The stage ends here")]
    assert len(stage.rstrip().splitlines()) <= 60


def test_a_new_stage_trains_exports_and_resumes(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = RejectConfig.model_validate(
        settings(base, floor=1e-6, epochs=3, optim={"lr": 1e-2}, loop={"save_steps": 1})
    )
    with caplog.at_level("INFO"):
        metrics = main(config)
    rows = read_metrics(base / "run")
    assert len(rows) > 3 and rows[-1]["loss"] < rows[0]["loss"]
    assert metrics["loss"] == read_summary(base / "run")["loss"]
    assert (base / "run" / "model" / "model.safetensors").is_file()
    assert f"reject: loss {metrics['loss']:.3f} -> {base / 'run' / 'model'}" in caplog.text
    resolved = read_yaml(base / "run" / "config.yaml")
    assert resolved["stage"] == "reject"
    # The same command again resumes at the end: nothing is trained twice.
    with caplog.at_level("INFO"):
        assert main(RejectConfig.model_validate(resolved))["loss"] == metrics["loss"]
    assert f"resuming from step {len(rows)}" in caplog.text
    assert len(read_metrics(base / "run")) == len(rows)


def test_every_stage_records_facts(base: Path) -> None:
    main(RejectConfig.model_validate(settings(base)))
    facts = json.loads((base / "run" / "facts.json").read_text())
    assert facts["stage"] == "reject" and facts["prompts"] > 0 and "leaked" in facts


def test_process_records_facts(base: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"what is {w}", "completions": ["red", "a cat"], "labels": [True, i % 2 == 0]}
        for i, w in enumerate(folders.WORDS[3:9])
    ]
    config = process.ProcessConfig.model_validate(
        settings(
            base,
            data={"path": str(folders.write(base / "steps.jsonl", rows))},
            holdout=2,
            separator=".",
        )
    )
    assert isinstance(config.objective, StepLoss)
    process.main(config)
    facts = json.loads((base / "run" / "facts.json").read_text())
    assert facts["stage"] == "process" and facts["prompts"] == len(rows) - 2
    assert "leaked" in facts

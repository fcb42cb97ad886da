"""Likelihood of a run's rollouts under a model, iteration by iteration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support import folders
from trimtab.audit.rollout_nll import NLLConfig, main
from trimtab.cli.main import main as cli
from trimtab.config import build
from trimtab.errors import ConfigError, DataError
from trimtab.runs import read_samples
from trimtab.train import rl


def test_the_nll_of_a_run_under_its_start(tmp_path: Path) -> None:
    folders.model_folder(tmp_path / "model")
    folders.prompts(tmp_path / "prompts.jsonl", 12)
    values = folders.rl_settings(
        tmp_path, tmp_path / "run", loop={"sample_steps": 1}, steps=3,
        sampling={"max_new_tokens": 6},
    )  # fmt: skip
    rl.main(build(rl.RLConfig, values))
    cli(["nll", str(tmp_path / "run"), "--model.path", str(tmp_path / "model"), "--model.device",
         "cpu"])  # fmt: skip
    result = json.loads((tmp_path / "run" / "nll.json").read_text())["nll"]
    rows = read_samples(tmp_path / "run")
    assert set(result) == {str(r["step"]) for r in rows} and len(result) == 3
    # The start is the run's reference, whose NLL of the sampled tokens the run has logged: of the
    # rollouts that ended by themselves both are of the same tokens.
    step = str(rows[0]["step"])
    ended = [r for r in rows if str(r["step"]) == step and r["completion"].strip()]
    logged = np.average([r["nll_reference"] for r in ended], weights=[r["tokens"] for r in ended])
    assert result[step]["mean"] == pytest.approx(logged, rel=0.1)
    assert result[step]["low"] < result[step]["mean"] < result[step]["high"]


def test_a_run_without_rollouts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run"):
        main(build(NLLConfig, {"run": str(tmp_path / "absent"), "model": {"path": "x"}}))
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match="sample_steps"):
        main(build(NLLConfig, {"run": str(tmp_path / "run"), "model": {"path": "x"}}))

"""Collecting ahead of training: equal to the synchronous loop at 0, bounded above it, resumable."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import folders
from trimtab.config import build
from trimtab.models.load import LM
from trimtab.rollout.ahead import Ahead
from trimtab.rollout.engine import EngineError, Health, Weights
from trimtab.rollout.engines.native import NativeEngine
from trimtab.rollout.rollout_spec import RolloutSpec
from trimtab.runs import read_metrics
from trimtab.sample.sampler import Progress, Request, Sampled, SamplingConfig
from trimtab.train import rl
from trimtab.train.ahead_source import StageSource
from trimtab.train.online_dpo import OnlineConfig, OnlineStage
from trimtab.train.rl import RLStage
from trimtab.train.rl_config import RLConfig
from trimtab.types import Group

STEPS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl", 24)
    return folder


def make(base: Path, staleness: int = 0, weights: bool = True, **more: Any) -> RLStage:
    values = folders.rl_settings(base, base / "unused", steps=STEPS, batch_size=4, **more)
    rollout = {"max_staleness": staleness, "importance_weights": weights}
    return RLStage(build(RLConfig, {**values, "rollout": rollout}))


def weights(stage: RLStage) -> list[torch.Tensor]:
    return [p.detach().clone() for p in stage.lm.model.parameters()]


def train(stage: RLStage) -> list[dict[str, float]]:
    return [stage.step(i) for i in range(STEPS)]


def test_with_a_ledger_and_staleness_0_every_weight_is_the_same(base: Path) -> None:
    # The configuration has no ledger at 0; here one is put in.
    plain, with_ledger = make(base), make(base, 1, weights=False)
    source = StageSource(with_ledger, 4, 4)
    with_ledger.ahead = Ahead(RolloutSpec(), 4, lambda: STEPS, source)
    metrics = [train(plain), train(with_ledger)]
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(with_ledger), strict=True))
    for a, b in zip(*metrics, strict=True):
        assert b.pop("staleness/max") == b.pop("staleness/mean") == 0.0
        assert a == b
    assert with_ledger.ahead.ledger.consumed == 4 * STEPS == with_ledger.ahead.ledger.submitted


@pytest.mark.parametrize("s", [1, 3])
def test_completions_are_as_old_as_allowed_and_corrected_for(base: Path, s: int) -> None:
    stage = make(base, s)
    metrics = train(stage)
    assert [m["staleness/max"] for m in metrics] == [min(i, s) for i in range(STEPS)]
    assert stage.method.mismatch.correction == "token"
    assert metrics[0]["mismatch/weight"] == pytest.approx(1.0, abs=1e-5)
    assert metrics[-1]["mismatch/weight"] != pytest.approx(1.0, abs=1e-5)
    assert 0 < metrics[-1]["sampler/ess"] <= 16.0
    # Nothing is sampled that is never trained on.
    assert stage.ahead is not None and stage.ahead.ledger.submitted == 4 * STEPS


def test_a_method_with_its_own_correction_keeps_it(base: Path) -> None:
    method = {"type": "rloo", "group_size": 4, "mismatch": {"correction": "mask"}}
    assert make(base, 1, method=method).method.mismatch.correction == "mask"
    assert make(base, 1, weights=False).method.mismatch.correction == "none"


def test_dropped_groups_are_replaced_within_the_bound(base: Path) -> None:
    """Dynamic sampling drops prompts whose rewards are equal."""
    method = {"type": "rloo", "group_size": 2, "kl": {"beta": 0.0},
              "filter": {"dynamic_sampling": True, "max_tries": 10}}  # fmt: skip
    reward = {"name": "coarse", "function": "tests.scale.test_staleness:coarse"}
    stage = make(base, 1, method=method, rewards=[reward])
    metrics = train(stage)
    assert stage.ahead is not None
    ledger = stage.ahead.ledger
    assert ledger.filtered > 0 and max(m["staleness/max"] for m in metrics) <= 1
    assert ledger.consumed == 4 * STEPS


def coarse(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """Often the same for both completions of a prompt."""
    return [float(len(c) % 2) for c in completions]


def test_a_resumed_run_ends_bit_for_bit_as_an_undisturbed_one(base: Path, tmp_path: Path) -> None:
    values = folders.rl_settings(base, tmp_path / "run", steps=STEPS, batch_size=4)
    values |= {"rollout": {"max_staleness": 2}, "loop": {"save_steps": 1, "save_total_limit": 9}}
    config = build(RLConfig, values)
    rl.main(config)
    file = tmp_path / "run" / "model" / "model.safetensors"
    undisturbed, metrics = file.read_bytes(), read_metrics(tmp_path / "run")
    for saved in (tmp_path / "run" / "checkpoints").iterdir():
        if int(saved.name.split("-")[1].split(".")[0]) > 2:
            shutil.rmtree(saved)
    file.unlink()
    (tmp_path / "run" / "summary.json").unlink()
    rl.main(config)
    assert file.read_bytes() == undisturbed
    again = read_metrics(tmp_path / "run")
    assert [m["staleness/max"] for m in again] == [m["staleness/max"] for m in metrics]
    assert [m["reward/mean"] for m in again] == [m["reward/mean"] for m in metrics]


def test_online_dpo_collects_ahead_too(base: Path) -> None:
    values = folders.rl_settings(base, base / "unused", steps=3, batch_size=4)
    del values["method"]
    values["rollout"] = {"max_staleness": 1}
    stage = OnlineStage(build(OnlineConfig, values))
    assert [stage.step(i)["staleness/max"] for i in range(3)] == [0, 1, 1]


class CopyEngine:
    """An engine with weights of its own, as a server has, that takes a while and sometimes fails."""

    versioned = True

    def __init__(self, stage: RLStage, fail: float = 0.0) -> None:
        self.lm = LM.load(stage.config.model, train=False)
        self.inner = NativeEngine.of(self.lm, stage.renderer)
        self.lock, self.rng, self.fail = threading.Lock(), random.Random(0), fail
        self.running = self.most = 0

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.inner.stop_ids

    async def generate(
        self, request: Request, sampling: SamplingConfig, on_progress: Progress | None = None
    ) -> list[Sampled]:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.05 * self.rng.random())
        try:
            if self.rng.random() < self.fail:
                raise EngineError("no answer")
            with self.lock:
                # The event loop of this thread is its own; the model is shared.
                sampled = self.inner.sampler([request], sampling)[0]
                for s in sampled:
                    s.versions = ((0, len(s.ids), self.inner.version),)
            return sampled
        finally:
            self.running -= 1

    async def update(self, version: int, weights: Weights) -> None:
        with self.lock, torch.no_grad():
            own = self.lm.model.state_dict()
            for name, tensor in weights.tensors():
                if name in own:
                    own[name].copy_(tensor)
            self.inner.version = version

    async def health(self) -> Health:
        return Health(True, self.inner.version, self.running)

    def close(self) -> None:
        """Nothing to stop."""


def served(stage: RLStage, s: int, fail: float = 0.0, in_flight: bool = True) -> CopyEngine:
    """Give ``stage`` an engine of its own and a collector that samples during training."""
    engine = CopyEngine(stage, fail)
    stage.engine = engine
    spec = RolloutSpec(
        engine="vllm", urls=("http://127.0.0.1:1",), max_staleness=s, in_flight=in_flight
    )
    stage.ahead = Ahead(spec, 4, lambda: STEPS, StageSource(stage, 4, 4))
    return engine


@pytest.mark.parametrize("in_flight", [True, False])
def test_groups_arrive_during_training_in_order_of_submission(base: Path, in_flight: bool) -> None:
    stage = make(base, 2)
    engine = served(stage, 2, fail=0.5, in_flight=in_flight)
    seen: list[Group] = []
    for i in range(STEPS):
        metrics = stage.step(i)
        assert metrics["staleness/max"] <= 2
        seen += stage.last
    assert stage.ahead is not None
    ledger = stage.ahead.ledger
    assert engine.most > 1 and ledger.failed > 0
    assert ledger.consumed == 4 * STEPS and len(seen) == 4 * STEPS
    assert ledger.submitted == ledger.consumed + ledger.failed


def test_what_was_running_is_sampled_again_under_the_same_numbers(base: Path) -> None:
    stage = make(base, 2)
    served(stage, 2)
    stage.step(0)
    assert stage.ahead is not None
    state = stage.ahead.state()
    open_numbers = sorted(n for k in ("running", "ready") for n, _ in state["ledger"][k])
    assert open_numbers == list(range(4, 12))
    resumed = make(base, 2)
    served(resumed, 2)
    assert resumed.ahead is not None
    resumed.ahead.load(state)
    groups = resumed.ahead.take(1, 4) + resumed.ahead.take(2, 4)
    source = StageSource(stage, 4, 4)
    assert [g.id for g in groups] == [source.prompt(n).id for n in range(4, 12)]
    # A number's random streams are those of the synchronous loop.
    (again,) = source.collect([5], [source.prompt(5)])
    key = (stage.config.loop.seed, 1, 1)
    request = Request(source.prompt(5).prompt, key, 4)
    engine = stage.engine
    assert isinstance(engine, CopyEngine)
    expected = engine.inner.sampler([request], stage.config.sampling)[0]
    for c, e in zip(again.completions, expected, strict=True):
        np.testing.assert_array_equal(c.ids, e.ids)


def test_a_larger_bound_is_advised_where_the_longest_group_sets_the_pace(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = make(base, 1)
    served(stage, 1)
    assert stage.ahead is not None
    for _ in range(8):
        stage.ahead._slowest = 10.0
        stage.ahead._note(waited=4.0, trained=1.0)
    assert "rollout.max_staleness: 10 would hide it" in caplog.text


def test_an_engine_that_is_gone_stops_the_run(base: Path) -> None:
    stage = make(base, 1)
    served(stage, 1, fail=1.0)
    started = time.monotonic()
    with pytest.raises(EngineError, match="32 groups in a row"):
        stage.step(0)
    assert time.monotonic() - started < 60

"""trimtab's side of every row: the package's own stages and sampler, as a user gets them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

import trimtab
from benchmarks import flops
from benchmarks.sampling_requests import requests
from benchmarks.side import Phases
from trimtab.data.pack import packs
from trimtab.models.load import LM, ModelSpec
from trimtab.sample.sampler import Request, Sampler, SamplingConfig
from trimtab.train.dpo import PreferenceConfig, PreferenceStage
from trimtab.train.reference import CachedReference
from trimtab.train.reward import RewardConfig, RewardStage
from trimtab.train.rl import RLConfig, RLStage
from trimtab.train.sft import SFTConfig, SFTStage
from trimtab.train.trainer import Trainer


class Job:
    """What all of ours share."""

    def __init__(self, spec: dict[str, Any], phases: Phases) -> None:
        self.spec, self.index = spec, 0
        self.out = Path(tempfile.mkdtemp(prefix="bench-"))
        phases.wrap(torch.Tensor, "backward", "backward")
        phases.wrap(torch.optim.AdamW, "step", "optimiser")
        phases.wrap(Trainer, "update", "forward and loss")

    def base(self) -> dict[str, Any]:
        """Keys that every stage takes."""
        spec = self.spec
        optim = {"lr": 1e-5, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
        loop: dict[str, Any] = {}
        if spec.get("token_budget"):
            loop["token_budget"] = spec["token_budget"]
        return {
            "out": str(self.out), "optim": optim, "loop": loop,
            "model": {"path": spec["model"], "device": spec["device"], **spec.get("held", {})},
            "data": {"path": spec["data"], "max_prompt_length": 8192, "max_completion_length": 8192},
        }  # fmt: skip

    def versions(self) -> dict[str, str]:
        """What was measured."""
        return {
            "trimtab": trimtab.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


class Train(Job):
    """SFT, reward model or DPO: ``steps`` optimiser steps a pass."""

    def __init__(self, spec: dict[str, Any], phases: Phases) -> None:
        super().__init__(spec, phases)
        values = self.base() | {"batch_size": spec["batch"]}
        kind = spec["kind"]
        stage: Any
        if kind == "sft":
            stage = SFTStage(SFTConfig.model_validate(values))
        elif kind == "reward":
            stage = RewardStage(RewardConfig.model_validate(values))
        else:
            phases.wrap(CachedReference, "annotate", "reference")
            stage = PreferenceStage(PreferenceConfig.model_validate(values))
        self.stage = stage
        wanted = spec["steps"] * spec["batch"]
        assert len(stage.train) == wanted, f"{len(stage.train)} rows, {wanted} wanted"
        model = stage.network.model
        self.config = model.config
        self.logits = kind != "reward"

    def run(self) -> dict[str, Any]:
        """One epoch."""
        spec, stage = self.spec, self.stage
        done = flops.training(self.config, stage.train, logits=self.logits)
        if spec["kind"] == "dpo" and not spec.get("cached"):
            # The reference costs one forward a row; the peer pays it in every step.
            shutil.rmtree(self.out / "reference", ignore_errors=True)
            stage.annotate(stage.network)
            done *= 4 / 3
        for _ in range(spec["steps"]):
            stage.step(self.index)
            self.index += 1
        rows = len(stage.train)
        tokens = sum(g.cost for g in stage.train)
        return {"work": tokens if spec["kind"] == "sft" else rows, "tokens": tokens, "flops": done}


class Bare(Train):
    """SFT as a loop of ten lines on the same packs: no metrics, no record, no guard."""

    def __init__(self, spec: dict[str, Any], phases: Phases) -> None:
        super().__init__(spec, phases)
        self.optimizer = torch.optim.AdamW(
            self.stage.network.model.parameters(), lr=1e-5, foreach=True
        )

    def run(self) -> dict[str, Any]:
        """One epoch."""
        stage, batch = self.stage, self.spec["batch"]
        for at in range(0, len(stage.train), batch):
            self.optimizer.zero_grad(set_to_none=True)
            part = stage.train[at : at + batch]
            count = sum(c.trained for g in part for c in g.completions)
            for pack in packs(part, stage.config.loop.token_budget):
                logp, _ = stage.network.logps(stage.network.states(pack), pack, entropy=False)
                (-logp.sum() / count).backward()
            torch.nn.utils.clip_grad_norm_(stage.network.model.parameters(), 1.0)
            self.optimizer.step()
        done = flops.training(self.config, stage.train, logits=True)
        return {"work": sum(g.cost for g in stage.train), "flops": done}


class Online(Job):
    """GRPO or PPO: ``steps`` batches of rollouts and their updates a pass."""

    def __init__(self, spec: dict[str, Any], phases: Phases) -> None:
        super().__init__(spec, phases)
        phases.wrap(Sampler, "__call__", "sampling")
        phases.wrap(RLStage, "_annotate", "log-probs before")
        values = self.base() | {
            "method": spec["method"] | {"group_size": spec["group"]}, "rewards": spec["rewards"],
            "batch_size": spec["prompts"],
            "sampling": {"max_new_tokens": spec["new"], "slots": spec.get("slots", 128)},
            **spec.get("more", {}),
        }  # fmt: skip
        self.stage = RLStage(RLConfig.model_validate(values))
        self.config: Any = self.stage.lm.model.config

    def run(self) -> dict[str, Any]:
        """Some batches."""
        work = done = tokens = 0.0
        for _ in range(self.spec["steps"]):
            self.stage.step(self.index)
            self.index += 1
            groups = self.stage.last
            work += sum(len(g.completions) for g in groups)
            tokens += sum(len(c) for g in groups for c in g.completions)
            # A prompt's prefill and every decoded token, then the updates.
            done += flops.forward(self.config, groups, logits=True)
            epochs = self.stage.method.updates.epochs
            done += epochs * flops.training(self.config, groups, logits=True)
        return {"work": work, "tokens": tokens, "flops": done}


class Sampling(Job):
    """The sampler alone."""

    def __init__(self, spec: dict[str, Any], phases: Phases) -> None:
        super().__init__(spec, phases)
        model = {"path": spec["model"], "device": spec["device"], "dtype": spec["dtype"]}
        lm = LM.load(ModelSpec.model_validate(model), train=False)
        self.sampler = Sampler(lm.plain_attention(), stop_ids=())
        self.limits, self.prompts = requests(spec)

    def run(self) -> dict[str, Any]:
        """All requests once."""
        self.index += 1
        batch = [
            Request(p, (self.index, i), self.spec.get("n", 1), limit)
            for i, (p, limit) in enumerate(zip(self.prompts, self.limits, strict=True))
        ]
        most = max(self.limits)
        config = SamplingConfig(max_new_tokens=most, slots=self.spec.get("slots", 128))
        got = self.sampler(batch, config)
        return {"work": sum(len(x.ids) for one in got for x in one)}

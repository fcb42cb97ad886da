"""TRL's side: its own trainers, told to do the same work on the same tokens.

Imported in a process whose packages have TRL in front (``make bench-env``).
"""

from __future__ import annotations

import tempfile
import time
from importlib.metadata import version
from typing import Any

import accelerate
import datasets
import torch
import transformers

from benchmarks import material
from benchmarks.side import Phases

datasets.disable_progress_bars()


class Clock(transformers.TrainerCallback):
    """Times a pass from the first step's beginning to the last one's end: set-up is not counted."""

    def __init__(self) -> None:
        self.begun = self.ended = (0.0, 0.0)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.begun = (time.perf_counter(), time.process_time())

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ended = (time.perf_counter(), time.process_time())

    def seconds(self) -> dict[str, float]:
        """Of the last pass."""
        return {"wall": self.ended[0] - self.begun[0], "cpu": self.ended[1] - self.begun[1]}


class Job:
    """What all of TRL's share."""

    def __init__(self, spec: dict[str, Any], phases: Phases) -> None:
        self.spec, self.clock = spec, Clock()
        phases.wrap(accelerate.Accelerator, "backward", "backward")
        phases.wrap(torch.optim.AdamW, "step", "optimiser")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(spec["model"])
        self.rows = datasets.load_dataset(
            "json", data_files=spec["data"], split="train", cache_dir=tempfile.mkdtemp()
        )

    def args(self, batch: int) -> dict[str, Any]:
        """Training arguments."""
        half = self.spec["dtype"] == "bfloat16"
        values = {
            "output_dir": tempfile.mkdtemp(prefix="bench-"), "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 1, "learning_rate": 1e-5, "save_strategy": "no",
            "report_to": "none", "logging_strategy": "no", "disable_tqdm": True,
            "use_cpu": self.spec["device"] == "cpu", "bf16": half, "gradient_checkpointing": False,
            "dataloader_pin_memory": False, "seed": 0, "lr_scheduler_type": "constant",
        }  # fmt: skip
        return values | self.spec.get("args", {})

    def model(self, auto: Any = transformers.AutoModelForCausalLM, **kwargs: Any) -> Any:
        """The row's model in fp32 (master weights where half precision is asked for)."""
        return auto.from_pretrained(self.spec["model"], dtype=torch.float32, **kwargs)

    def versions(self) -> dict[str, str]:
        """What was measured."""
        return {"trl": version("trl")}


class Train(Job):
    """SFT, reward model or DPO: one epoch of the row's data a pass."""

    def __init__(self, spec: dict[str, Any], phases: Phases) -> None:
        super().__init__(spec, phases)
        kind = spec["kind"]
        args = self.args(spec["batch"]) | {"max_length": 1024, "num_train_epochs": 1}
        shared = {
            "train_dataset": self.rows, "processing_class": self.tokenizer,
            "callbacks": [self.clock],
        }  # fmt: skip
        if kind == "sft":
            from trl.trainer.sft_config import SFTConfig
            from trl.trainer.sft_trainer import SFTTrainer

            self.trainer = SFTTrainer(self.model(), SFTConfig(**args), **shared)
        elif kind == "reward":
            from trl.trainer.reward_config import RewardConfig
            from trl.trainer.reward_trainer import RewardTrainer

            torch.manual_seed(0)
            scorer = self.model(transformers.AutoModelForSequenceClassification, num_labels=1)
            self.trainer = RewardTrainer(scorer, args=RewardConfig(**args), **shared)
        else:
            from trl.trainer.dpo_config import DPOConfig
            from trl.trainer.dpo_trainer import DPOTrainer

            args["precompute_ref_log_probs"] = bool(spec.get("cached"))
            self.trainer = DPOTrainer(self.model(), args=DPOConfig(**args), **shared)
        phases.wrap(self.trainer, "compute_loss", "forward and loss")

    def run(self) -> dict[str, Any]:
        """One epoch."""
        self.trainer.train()
        # The rows are those of the other side, so its count of tokens serves for both.
        return {"work": self.spec["tokens"], **self.clock.seconds()}


class GRPO(Job):
    """``steps`` batches of groups a pass."""

    def __init__(self, spec: dict[str, Any], phases: Phases) -> None:
        super().__init__(spec, phases)
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        batch = spec["prompts"] * spec["group"]
        micro = spec.get("micro", batch)
        args = self.args(micro) | {
            "gradient_accumulation_steps": batch // micro, "num_generations": spec["group"],
            "max_completion_length": spec["new"], "max_steps": spec["steps"], "beta": 0.0,
            "temperature": 1.0,
        }  # fmt: skip
        self.trainer = GRPOTrainer(
            self.model(), material.reward, GRPOConfig(**args), train_dataset=self.rows,
            processing_class=self.tokenizer, callbacks=[self.clock],
        )  # fmt: skip
        phases.wrap(self.trainer, "compute_loss", "forward and loss")
        phases.wrap(type(self.trainer.model), "generate", "sampling")
        phases.wrap(self.trainer, "_generate_and_score_completions", "log-probs before")

    def run(self) -> dict[str, Any]:
        """Some batches."""
        self.trainer.train()
        spec = self.spec
        return {"work": spec["steps"] * spec["prompts"] * spec["group"], **self.clock.seconds()}


class PPO(Job):
    """TRL's PPO: actor, critic, reference and reward model apart."""

    def __init__(self, spec: dict[str, Any], phases: Phases) -> None:
        super().__init__(spec, phases)
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        batch = spec["prompts"]
        args = self.args(batch) | {
            "num_ppo_epochs": spec["epochs"], "num_mini_batches": 1, "temperature": 1.0,
            "response_length": spec["new"], "local_rollout_forward_batch_size": batch,
            "total_episodes": spec["steps"] * batch, "num_sample_generations": 0,
            "kl_coef": 0.05,
        }  # fmt: skip
        heads = transformers.AutoModelForSequenceClassification
        rows = self.rows.map(
            lambda r: {"input_ids": self.tokenizer(r["prompt"])["input_ids"]},
            remove_columns=["prompt"],
        )
        policy = self.model()
        self.trainer = PPOTrainer(
            PPOConfig(**args), self.tokenizer, policy, self.model(),
            self.model(heads, num_labels=1), rows, self.model(heads, num_labels=1),
            callbacks=[self.clock],
        )  # fmt: skip
        phases.wrap(type(policy), "generate", "sampling")

    def run(self) -> dict[str, Any]:
        """Some batches."""
        # The trainer counts on from where it was; a pass is a run of its own.
        self.trainer.state.global_step = 0
        self.trainer.state.episode = 0
        self.trainer.train()
        return {"work": self.spec["steps"] * self.spec["prompts"], **self.clock.seconds()}

"""The base classes of training stages.

A stage derives from ``DatasetStage`` (trains on rows of a data set) or from
``trimtab.train.rollouts.RolloutStage`` (trains on what the policy samples). It names its
configuration, says how rows become groups, which model is trained and what the loss is; loading,
batches, facts, checkpoints, export and messages are here.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trimtab import ranks
from trimtab.config import Config
from trimtab.data.dataset import DataSpec, ReadCounts, split
from trimtab.data.pack import Output, Pack
from trimtab.models.export import save_model
from trimtab.models.load import ModelSpec, renderer_for
from trimtab.models.packed import packed
from trimtab.models.shard import gathered, shard
from trimtab.models.whole import whole_model
from trimtab.objectives.terms import Objective
from trimtab.runs import Run, write_atomic
from trimtab.runs.launch_spec import LaunchSpec
from trimtab.train.deal import outputs
from trimtab.train.gradients import Part
from trimtab.train.learning_rate import RateOf
from trimtab.train.run_facts import data_facts
from trimtab.train.trainer import LoopSpec, OptimSpec, Trainer, batch_indices
from trimtab.types import Group, Row

Metrics = dict[str, float]


class StageConfig(Config):
    """Keys that every training stage has."""

    free_keys: ClassVar[frozenset[str]] = frozenset({"launch"})
    stage: Any
    """The stage's name: a ``Literal`` with a default in each configuration."""
    out: str
    """The run folder."""
    model: ModelSpec
    """The model to train."""
    data: DataSpec
    optim: OptimSpec = OptimSpec()
    loop: LoopSpec = LoopSpec()
    launch: LaunchSpec = LaunchSpec()
    export: Literal["merged", "adapter"] = "merged"
    """What is exported where adapters are trained: the whole model with the adapters merged into its
    weights, or the adapters alone, in peft's format."""

    @model_validator(mode="after")
    def _check_export(self) -> Self:
        if self.export == "adapter" and not self.model.trains_adapters:
            raise ValueError("export: adapter needs model.lora, or model.adapter: continue")
        return self


class DatasetConfig(StageConfig):
    """Keys of a stage that trains on a data set."""

    renamed: ClassVar[dict[str, str]] = {"batch": "batch_size"}
    extent_keys: ClassVar[frozenset[str]] = frozenset({"epochs"})
    eval_data: DataSpec | None = None
    """Held-out rows; without it, ``holdout`` rows are taken from the end of ``data``."""
    holdout: int = Field(default=0, ge=0)
    """Rows taken from the end of ``data`` when there is no ``eval_data``."""
    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the data."""
    batch_size: int = Field(default=32, gt=0)
    """Prompts with their completions per optimiser step."""


class Network(Protocol):
    """A model that reads packs: ``LM``, ``Scorer``, ``StepScorer``."""

    model: nn.Module
    exact: bool
    plain: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...


C = TypeVar("C", bound=StageConfig)
D = TypeVar("D", bound=DatasetConfig)
M = TypeVar("M", bound=Network)


class Stage(ABC, Generic[C, M]):
    """What the loop asks of a training stage.

    Attributes:
        network: The trained model, which is exported at the end.
        steps: A stage that lowers it while training ends there.
    """

    rate_of: ClassVar[RateOf] = "sft"
    """Whose learning rates are the default."""
    network: M
    root: Any
    """The module around ``network`` that computes outputs of packs: see ``trimtab.models.packed``."""
    trainer: Trainer
    steps: int

    def __init__(self, config: C) -> None:
        self.config = config
        self.renderer = renderer_for(config.model, config.data)
        self.read_counts = ReadCounts()

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.config.stage

    @property
    def title(self) -> str:
        """What the result's message calls the stage: its name, or its method's."""
        return self.name

    @property
    @abstractmethod
    def data(self) -> tuple[Sequence[Group], Sequence[Group]]:
        """The training and the held-out groups."""

    def facts(self) -> Mapping[str, Any]:
        """What else ``facts.json`` states of this stage."""
        return {}

    def record_facts(self, run: Run) -> None:
        """Write ``facts.json``: what is true of data and model before the first step."""
        with gathered(self.root):
            if not ranks.current().is_main:
                return
            train, held_out = self.data
            facts = {
                "stage": self.name,
                "read": asdict(self.read_counts),
                "lr": self.trainer.lr,
                **data_facts(self.renderer, train, held_out),
                **self.facts(),
            }
            write_atomic(run.path / "facts.json", json.dumps(facts, indent=1).encode())

    @abstractmethod
    def step(self, index: int) -> Metrics:
        """Train on step ``index``; metrics by name."""

    def evaluate(self, index: int) -> Metrics:
        """Metrics on held-out data after ``index`` steps."""
        return {}

    def samples(self, metrics: Metrics) -> list[Row]:
        """Rows of what the last step produced, for ``samples/``; may add metrics of them."""
        return []

    def state(self) -> dict[str, Any]:
        """What resuming needs beyond weights, optimiser and step number, as JSON."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``."""

    def export(self, folder: Path) -> None:
        """Write the model in Hugging Face format."""
        model = whole_model(self.network, self.config.model)
        if model is not None:
            save_model(
                model,
                folder,
                self.renderer.tokenizer,
                self.network.plain,
                self.renderer.stop_ids,
                adapter=self.config.export == "adapter",
            )

    def close(self) -> None:
        """Release what the stage holds outside this process, also after an error."""

    def progress(self, metrics: Metrics) -> str:
        """A few words for the progress bar."""
        return self.summary(metrics)

    @abstractmethod
    def summary(self, metrics: Metrics) -> str:
        """The result in one line."""


class DatasetStage(Stage[D, M]):
    """A stage that trains one model on the rows of a data set.

    Attributes:
        train, held_out: The groups.
        calibration: What ``calibration.json`` states beside the exported model; empty writes none.
    """

    calibration: Row

    def __init__(self, config: D) -> None:
        super().__init__(config)
        self.calibration = {}
        self.train, self.held_out = self.load_data()
        self.steps = max(1, round(config.epochs * len(self.train) / config.batch_size))
        self.network = self.load_model()
        self.root = packed(self.network)
        if config.model.shard == "full":
            shard(self.root)
        self.trainer = Trainer(
            {"model": self.network.model},
            {"model": config.optim},
            self.steps,
            config.loop,
            self.rate_of,
        )

    @abstractmethod
    def read(self, spec: DataSpec) -> list[Group]:
        """The rows of ``spec`` as groups."""

    @abstractmethod
    def load_model(self) -> M:
        """The model to train."""

    @abstractmethod
    def forward(self, pack: Pack) -> Output:
        """What the loss reads of the model's outputs on a pack."""

    @abstractmethod
    def loss(self, index: int) -> Objective:
        """The loss of step ``index``."""

    def load_data(self) -> tuple[list[Group], list[Group]]:
        """The training and the held-out groups."""
        c = self.config
        train = self.read(c.data)
        if c.eval_data is not None:
            return train, self.read(c.eval_data)
        return split(train, c.holdout, c.data.path)

    @property
    def data(self) -> tuple[list[Group], list[Group]]:
        """The training and the held-out groups."""
        return self.train, self.held_out

    def batch(self, index: int) -> list[Group]:
        """The groups of step ``index``."""
        c = self.config
        picked = batch_indices(len(self.train), c.batch_size, index, c.loop.seed)
        return [self.train[i] for i in picked]

    def step(self, index: int) -> Metrics:
        """Train on the batch of step ``index``; metrics by name."""
        return self.update(index, self.loss(index))

    def update(self, index: int, loss: Objective) -> Metrics:
        """One optimiser step on the batch of step ``index``."""
        return self.trainer.update(
            [Part(self.batch(index), loss, self.forward, self.network.exact)]
        )

    @torch.no_grad()
    def outputs(self, groups: Sequence[Group]) -> Iterator[tuple[Pack, Output]]:
        """Forward passes over ``groups`` in evaluation mode."""
        self.network.model.eval()
        budget, network = self.config.loop.token_budget, self.network

        def compute(pack: Pack) -> dict[str, Tensor | None]:
            out = self.forward(pack)
            return {f.name: getattr(out, f.name) for f in fields(out)}

        for pack, columns in outputs(groups, budget, network.exact, network.device, compute):
            yield pack, Output(**columns)
        self.network.model.train()

    def export(self, folder: Path) -> None:
        """Write the model in Hugging Face format, and ``calibration.json`` next to its folder."""
        super().export(folder)
        if self.calibration and ranks.current().is_main:
            text = json.dumps(self.calibration, indent=1)
            write_atomic(folder.parent / "calibration.json", text.encode())


def interval(metrics: Metrics, name: str) -> str:
    """A metric with its confidence interval: ``0.712 [0.650, 0.770]``."""
    return f"{metrics[name]:.3f} [{metrics[f'{name}_low']:.3f}, {metrics[f'{name}_high']:.3f}]"

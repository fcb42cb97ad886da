"""The Python API: training stages and other commands as functions, and a run as an object.

Every function takes the keys of its command's YAML as keyword arguments; values may be plain or
configuration objects (``trimtab.GRPO(group_size=8)``), models may be paths, data may be rows, and
rewards may be functions.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import yaml

from trimtab.config import Config, build
from trimtab.errors import ConfigError
from trimtab.launch.commands import COMMANDS

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trimtab.data.dataset import DataSpec
    from trimtab.doctor.diagnosis import Diagnosis
    from trimtab.evaluate.leaderboard import Leaderboard
    from trimtab.evaluate.model_result import ModelResult
    from trimtab.feedback.judgement import Item
    from trimtab.models.load import ModelSpec
    from trimtab.objectives.policy import PolicyMethod
    from trimtab.objectives.preference import Direct
    from trimtab.rewards.part_config import RewardSpec

    Model = str | Path | ModelSpec | Mapping[str, Any]
    """A folder, a hub id, or the keys of ``model:``."""
    Data = (
        str | Path | DataSpec | Mapping[str, Any] | Sequence[Mapping[str, Any]] | datasets.Dataset
    )
    """A file, a hub id, the keys of ``data:``, a list of rows, or a dataset."""
    Reward = RewardSpec | Callable[..., Any] | Mapping[str, Any]
    """A reward, or a function ``f(prompts, completions, **columns)`` called by argument name."""


class Run:
    """A finished run: a view of its folder.

    Args:
        path: The run folder.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ConfigError(f"{path}: there is no such run folder")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Recorded metrics: one row per step, one column per metric (``"reward/mean"``)."""
        import pandas as pd

        from trimtab.runs import read_metrics

        return pd.DataFrame(read_metrics(self.path)).set_index("step")

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Recorded completions: prompt, completion, reward, scores, …; one row per completion."""
        import pandas as pd

        from trimtab.runs import read_samples

        return pd.DataFrame(read_samples(self.path))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The figures of ``summary.json``, nested by name."""
        from trimtab.runs import read_summary

        return read_summary(self.path)

    @property
    def model(self) -> str:
        """The folder of the trained model, in Hugging Face format."""
        return str(self.path / "model")

    def load_model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The trained model, with the head it was trained with, and its tokenizer."""
        import transformers
        from peft import PeftConfig

        safe = {"trust_remote_code": False}
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.model, **safe)
        if (Path(self.model) / "adapter_config.json").is_file():
            kinds = {"SEQ_CLS": "SequenceClassification", "TOKEN_CLS": "TokenClassification"}
            task = str(PeftConfig.from_pretrained(self.model).task_type)
            loader = getattr(transformers, f"AutoModelFor{kinds.get(task, 'CausalLM')}")
            labels = {"SEQ_CLS": 1, "TOKEN_CLS": 2}
            keys = {"num_labels": labels[task]} if task in labels else {}
            model = loader.from_pretrained(self.model, use_safetensors=True, **safe, **keys)
            return model, tokenizer
        config = transformers.AutoConfig.from_pretrained(self.model, **safe)
        loader = getattr(transformers, (config.architectures or ["AutoModelForCausalLM"])[0])
        return loader.from_pretrained(self.model, use_safetensors=True), tokenizer

    def report(self) -> Path:
        """Write ``report.html`` and return its path."""
        from trimtab.report.run_report import report_run

        return report_run(self.path)

    def doctor(self) -> Diagnosis:
        """Is the reward real, and what is wrong: ``verdict`` and ``findings``."""
        from trimtab.doctor.diagnosis import examine

        return examine(self.path)


P = ParamSpec("P")
R = TypeVar("R")


def _command(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a declaration a function: its arguments become the keys of this command's configuration."""

    def decorate(declaration: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(declaration)

        @functools.wraps(declaration)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            keys: dict[str, Any] = bound.arguments.pop("keys")
            return _call(name, {**bound.arguments, **keys})

        return call

    return decorate


@_command("sft")
def sft(
    model: Model, data: Data, *, out: str | Path = "runs/sft", fresh: bool = False, **keys: Any
) -> Run:
    """Fine-tune a model on demonstrations; ``keys`` as in ``trimtab sft --help``.

    Raises:
        ConfigError: a key is unknown or a value is refused.
        DataError: a row cannot be used.
    """
    ...


@_command("reward")
def reward_model(
    model: Model, data: Data, *, out: str | Path = "runs/reward", fresh: bool = False, **keys: Any
) -> Run:
    """Train a reward model on comparisons; ``keys`` as in ``trimtab reward --help``.

    Raises:
        ConfigError, DataError: as for ``sft``.
    """
    ...


@_command("process")
def process_reward_model(
    model: Model, data: Data, *, out: str | Path = "runs/process", fresh: bool = False, **keys: Any
) -> Run:
    """Train a process reward model on labelled steps; ``keys`` as in ``trimtab process --help``.

    Raises:
        ConfigError, DataError: as for ``sft``.
    """
    ...


@_command("dpo")
def dpo(
    model: Model,
    data: Data,
    *,
    objective: Direct | str | Mapping[str, Any] = "dpo",
    out: str | Path = "runs/dpo",
    fresh: bool = False,
    **keys: Any,
) -> Run:
    """Train on comparisons without a reward model: DPO, IPO, SimPO, KTO, …

    Args:
        model: Where training starts, and the reference.
        data: Comparisons; for ``KTO`` completions with labels as well.
        objective: ``trimtab.DPO(beta=0.1)``, another one, or its name.
        out: The run folder; with results in it the same call resumes.
        fresh: Move the results of an earlier run in ``out`` aside, and start again.
        keys: As in ``trimtab dpo --help``.

    Raises:
        ConfigError, DataError: as for ``sft``.
    """
    ...


@_command("online-dpo")
def online_dpo(
    model: Model,
    data: Data,
    rewards: Sequence[Reward],
    *,
    objective: Direct | str | Mapping[str, Any] = "dpo",
    out: str | Path = "runs/online_dpo",
    fresh: bool = False,
    **keys: Any,
) -> Run:
    """Train on pairs of the policy's own completions, ranked by ``rewards``.

    ``keys`` as in ``trimtab online-dpo --help``; the others as for ``dpo`` and ``rl``.

    Raises:
        ConfigError, DataError: as for ``sft``.
        RewardError: a reward function broke its contract.
    """
    ...


def rl(
    model: Model,
    data: Data | None = None,
    rewards: Sequence[Reward] = (),
    *,
    environment_factory: Callable[[], Any] | Mapping[str, Callable[[], Any]] | None = None,
    tools: Sequence[Callable[..., Any]] = (),
    method: PolicyMethod | str | Mapping[str, Any] = "ppo",
    out: str | Path = "runs/rl",
    fresh: bool = False,
    **keys: Any,
) -> Run:
    """Train a policy on its own completions: PPO, GRPO, DAPO, RLOO, …

    Args:
        model: Where training starts, and the reference of the KL.
        data: Prompts; their other columns are passed to the reward functions. Without any, the method
            ``reset`` of the environment gives the prompts.
        rewards: Functions and ``trimtab.Reward(model=..., weight=...)``; their weighted sum is
            what is trained on, plus the environment's own reward.
        environment_factory: Makes an environment, as in TRL: ``reset(**row)``, public methods as tools,
            ``get_reward()``. Several by name are chosen by the rows' column ``environment``. Limits are
            keys of ``environment``, as in ``trimtab rl --help``.
        tools: Functions that the policy may call, with type hints and docstrings.
        method: ``trimtab.GRPO(group_size=8)``, another one, or its name.
        out: The run folder; with results in it the same call resumes.
        fresh: Move the results of an earlier run in ``out`` aside, and start again.
        keys: As in ``trimtab rl --help``: ``steps``, ``batch_size``, ``sampling``, ``optim``, …

    Raises:
        ConfigError, DataError: as for ``sft``.
        RewardError: a reward function broke its contract.
    """
    if environment_factory is not None:
        keys["environment"] = {**keys.get("environment", {}), "factory": environment_factory}
    if data is None:
        if "environment" not in keys:
            raise ConfigError(
                "data: give prompts, or an environment_factory whose reset gives them"
            )
        data = [{"prompt": [{"role": "user", "content": "", "source": "reset"}]}]
    keys |= {"tools": tuple(tools)} if tools else {}
    keys |= {"model": model, "data": data, "rewards": rewards, "method": method, "out": out}
    return _call("rl", {**keys, "fresh": fresh})


def sample(model: Model, data: Data, *, out: str | Path = "runs/sample", **keys: Any) -> list[Item]:
    """Sample different completions of prompts; ``keys`` as in ``trimtab sample --help``.

    Returns:
        One item per prompt: ``prompt`` (messages) and ``completions`` (``num_completions`` texts).

    Raises:
        ConfigError, DataError: as for ``sft``; no prompt has enough different completions.
    """
    from trimtab.feedback.items import read_items

    _call("sample", {"model": model, "data": data, "out": out, **keys})
    return read_items(str(Path(out) / "items.jsonl"))


@_command("compare")
def compare(
    models: Mapping[str, Model],
    data: Data,
    rewards: Sequence[Reward],
    *,
    out: str | Path = "runs/compare",
    **keys: Any,
) -> dict[str, ModelResult]:
    """Complete held-out prompts with several models, score and compare them.

    Args:
        models: By name; the first is what the others are compared with.
        data: Held-out prompts, with the columns that the rewards need.
        rewards: As for ``rl``; the first decides wins.
        out: Gets a page, and every completion as a table.
        keys: As in ``trimtab compare --help``.

    Raises:
        ConfigError, DataError, RewardError: as for ``rl``.
    """
    ...


@_command("evaluate")
def evaluate(files: Sequence[str | Path], **keys: Any) -> Leaderboard:
    """Rank models by the verdicts of people, judges or gold: win rates and Elo.

    Args:
        files: Items and judgements, or any format that ``trimtab exchange`` reads.
        keys: As in ``trimtab evaluate --help``.

    Raises:
        ConfigError: a key is unknown, or the baseline is none of the models.
        DataError: no verdict between two named models is left.
    """
    ...


def doctor(run: Run | str | Path) -> Diagnosis:
    """Diagnose a run folder: is the reward real, what is wrong, since when, and what to change.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    from trimtab.doctor.diagnosis import examine

    return examine(run.path if isinstance(run, Run) else run)


def _call(name: str, values: dict[str, Any]) -> Any:
    """Call a command; the run of a training stage, the result of another command."""
    command = COMMANDS[name]
    values = {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
    if "files" in values:
        values["files"] = [str(file) for file in values["files"]]
    fresh: bool = values.pop("fresh", False)
    out = Path(values.get("out", ""))
    files: dict[Path, str] = {}
    for key in ("data", "eval_data"):
        if values.get(key) is not None:
            values[key] = _on_disk(values[key], out / "data", key, files)
    if values.get("evals"):
        evals = values["evals"].items()
        values["evals"] = {k: _on_disk(v, out / "data", k, files) for k, v in evals}
    config = build(command.load_config(), values, name)
    result = command.run(config, fresh=fresh, files=files)
    return Run(out) if command.stage else result


def _on_disk(data: Any, folder: Path, name: str, files: dict[Path, str]) -> Any:
    """``data`` as the stage reads it: rows and datasets become one of the run folder's ``files``.

    Raises:
        ConfigError: they are not of a known kind.
    """
    if isinstance(data, Mapping | Config | str | os.PathLike):
        return data
    if hasattr(data, "to_json") and hasattr(data, "column_names") and hasattr(data, "features"):
        from trimtab.data.sources import without_nulls

        rows: Any = map(without_nulls, iter(data))
    elif isinstance(data, Sequence):
        rows = data
    else:
        raise ConfigError(
            f"{name}: {type(data).__name__} is not data; give a path, a hub id, a list of rows or a "
            "datasets.Dataset"
        )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # Named by its content: the run of other rows, which may be in the folder, keeps its own.
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
    file = folder / f"{name}-{digest}.jsonl"
    files[file] = text
    return str(file)

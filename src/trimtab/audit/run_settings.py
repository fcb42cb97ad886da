"""What the doctor and the audit read of a run's resolved ``config.yaml``, under old and new keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from trimtab.config import read_yaml
from trimtab.runs import read_object

Plain = Mapping[str, object]
"""A mapping as it is read from YAML."""
Source = Literal["model", "models", "function", "judge", "ai", "verifier", ""]

_STAGE_KEYS = (
    ("method", "rl"),
    ("num_completions", "online_dpo"),
    ("answers", "online_dpo"),
    ("normalise", "reward"),
    ("reference_cache", "dpo"),
    ("objective", "sft"),
)
"""Keys that tell the stage of an older run, whose configuration does not state it."""


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """One entry of the list ``rewards``."""

    name: str
    weight: float
    source: Source
    """The key that says what computes it."""
    models: tuple[str, ...]
    """Folders or hub ids of its reward models."""
    keys: Plain
    """Every key that is set, as in the configuration."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """A run's configuration as the doctor, its remedies and the audit need it.

    A key that is missing has the default of its field: an imported run has no configuration.
    """

    stage: str = ""
    """ "rl", "online_dpo", "dpo", "reward", "process" or "sft"; empty where nothing tells."""
    steps: int = 0
    """Planned steps; 0 where they are not stated."""
    batch_size: int = 0
    """Prompts per iteration of RL; 0 where it is not stated."""
    group_size: int | None = None
    """Completions per prompt; None where an older run left it to its method."""
    max_new_tokens: int | None = None
    lr: float | None = None
    critic_lr: float | None = None
    method: str = ""
    """Type of the RL method; empty for other stages."""
    beta: float | None = None
    """KL coefficient of RL."""
    kl_target: float | None = None
    """Nats per completion: the target of an adaptive coefficient or the upper end of a range."""
    kl_place: str = ""
    """ "reward", "sequence", "loss" or "none"."""
    kl_estimator: str = ""
    clip_low: float | None = None
    entropy_coef: float | None = None
    corrects_mismatch: bool = False
    """The loss corrects for a sampler that is another policy than the trainer."""
    objective_beta: float | None = None
    """``beta`` of a preference loss."""
    rewards: tuple[RewardSettings, ...] = ()
    gold: Plain | None = None
    """``audit.gold``."""
    data: str | None = None
    """Path of the dataset."""

    @classmethod
    def of(cls, config: Plain) -> RunSettings:
        """The settings in a resolved configuration."""

        def get(*keys: str) -> Any:
            """The value of the first of these dotted keys that is set."""
            for key in keys:
                place: Any = config
                for part in key.split("."):
                    place = cast("Plain", place).get(part) if isinstance(place, Mapping) else None
                if place is not None:
                    return place
            return None

        def number(*keys: str) -> float | None:
            value = get(*keys)
            return float(value) if isinstance(value, (int, float)) else None

        method = str(get("method.type") or "") or ("ppo" if "method" in config else "")
        group_size = number("method.group_size", "group_size", "group")
        max_new_tokens = number("sampling.max_new_tokens")
        correction = get("method.mismatch.correction", "method.mismatch")
        if isinstance(correction, Mapping):
            correction = None  # a group of keys without a correction
        anchor = get("method.mismatch.anchor", "method.anchor")
        return cls(
            stage=str(get("stage") or next((s for key, s in _STAGE_KEYS if key in config), "")),
            steps=int(number("steps") or 0),
            batch_size=int(number("batch_size", "prompts") or 0),
            group_size=None if group_size is None else int(group_size),
            max_new_tokens=None if max_new_tokens is None else int(max_new_tokens),
            lr=number("optim.lr"),
            critic_lr=number("critic.optim.lr"),
            method=method,
            beta=number("method.kl.beta"),
            kl_target=number("method.kl.target") or number("method.kl.high"),
            kl_place=str(get("method.kl.place", "method.kl_place") or ""),
            kl_estimator=str(get("method.kl.estimator", "method.kl_estimator") or ""),
            clip_low=number("method.clip.low", "method.clip_low"),
            entropy_coef=number("method.entropy_coef"),
            corrects_mismatch=correction not in (None, "none") or anchor == "sampler",
            objective_beta=number("objective.beta"),
            rewards=tuple(_reward(r) for r in get("rewards") or () if isinstance(r, Mapping)),
            gold=get("audit.gold"),
            data=get("data.path"),
        )

    @classmethod
    def read(cls, run: Path) -> RunSettings:
        """The settings of a run folder; defaults where it has no ``config.yaml``.

        Raises:
            ConfigError: the file is no YAML mapping.
        """
        path = run / "config.yaml"
        settings = cls.of(read_yaml(path)) if path.is_file() else cls()
        rates = cast("dict[str, float]", read_object(run / "facts.json").get("lr") or {})
        critic_lr = rates.pop("critic", None)
        return replace(
            settings,
            lr=settings.lr or next(iter(rates.values()), None),
            critic_lr=settings.critic_lr or critic_lr,
        )


def _reward(entry: Plain) -> RewardSettings:
    keys = {
        k: v for k, v in entry.items() if v is not None and v is not False and v not in ([], {})
    }
    source = next(
        (k for k in ("model", "models", "function", "judge", "ai", "verifier") if k in keys), ""
    )
    models = cast("list[str]", keys.get("models") or ([keys["model"]] if "model" in keys else []))
    weight = entry.get("weight", 1.0)
    return RewardSettings(
        name=str(entry.get("name", "")),
        weight=float(weight) if isinstance(weight, (int, float)) else 1.0,
        source=cast("Source", source),
        models=tuple(str(m) for m in models),
        keys=keys,
    )

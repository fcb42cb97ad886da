"""Claims and settings: the registry in ``qNN.yaml``, checked and frozen."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from trimtab.config import Config, build, read_yaml
from trimtab.errors import ConfigError, DataError
from trimtab.questions.verdict import LOOKS
from trimtab.runs import read_object, to_json, write_atomic

HERE = Path(__file__).parent
LANGUAGES = ("en", "zh")
FROZEN = "frozen.json"
YAML = "q[0-9][0-9].yaml"
_MORE_RATES = 2


class Paper(Config):
    """What has been published about a claim."""

    arxiv: str = Field(pattern=r"^\d{4}\.\d{5}$")
    says: dict[str, str]
    """Its result in a few words, by language."""
    agrees: bool | None
    """Whether it supports the claim; None where it does both or neither."""
    from_memory: bool = False
    """Cited from memory; pages mark it until someone has looked it up."""

    @field_validator("says")
    @classmethod
    def _in_all_languages(cls, says: dict[str, str]) -> dict[str, str]:
        if set(says) != set(LANGUAGES):
            raise ValueError(f"give the result in {' and '.join(LANGUAGES)}, not in {list(says)}")
        return says


class Claim(Config):
    """One claim under one condition: ``arm`` is above (or below) ``versus`` in ``metric``."""

    id: str = Field(pattern=r"^\d+\.\d+[a-z]?$")
    """Question, statement of ``QUESTIONS-COVERAGE`` and, where it makes several claims, a letter."""
    metric: str
    arm: str
    versus: str | float
    """Another arm, or a constant."""
    direction: Literal[1, -1]
    """Whether the claim says that ``arm`` is higher or lower."""
    smallest_effect: float = Field(gt=0.0, allow_inf_nan=False)
    """The smallest effect of interest, in the unit of the metric; a share if ``relative``."""
    relative: bool = False
    """The effect is arm / versus - 1 instead of arm - versus."""
    condition: dict[str, str | int | float] = Field(default_factory=dict[str, "str | int | float"])
    """The condition. Claims of one id under several conditions have one verdict together."""
    published: tuple[Paper, ...] = ()
    """None found if empty."""

    @property
    def question(self) -> int:
        """The number of its question."""
        return int(self.id.partition(".")[0])

    @property
    def key(self) -> str:
        """Its name: the id, with the condition in brackets.

        >>> Claim(id="5.2", metric="gain", arm="ppo", versus="reinforce", direction=1,
        ...       smallest_effect=0.05, condition={"updates": 1}).key
        '5.2[updates=1]'
        """
        return arm_key(self.id, self.condition)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that it compares, with their conditions."""
        names = [self.arm, self.versus] if isinstance(self.versus, str) else [self.arm]
        return tuple(arm_key(name, self.condition) for name in names)

    def effect(self, value: Any, other: Any) -> Any:
        """The effect in the claimed direction of numbers or arrays: of ``arm`` and of ``versus``.

        A relative effect is 0 where both are 0, and infinite in a bootstrap sample where one is.

        Raises:
            DataError: a relative effect of something over 0.
        """
        if not self.relative:
            return self.direction * (value - other)
        change, base = np.asarray(value, np.float64) - other, np.asarray(other, np.float64)
        undefined = (base == 0) & (change != 0)
        if undefined.ndim == 0 and undefined:
            raise DataError(
                f"claim {self.key}: {self.metric} of {self.versus} is 0, so the change has no share of it; "
                "was the run too small?"
            )
        share = change / np.where(base == 0, 1.0, base)
        return self.direction * np.where(undefined, np.copysign(np.inf, change), share)


def arm_key(name: str, condition: Mapping[str, Any]) -> str:
    """An arm's name with its condition; a name that has one already is left alone.

    >>> arm_key("scores", {"trouble": "drift"}), arm_key("scores[trouble=none]", {"trouble": "drift"})
    ('scores[trouble=drift]', 'scores[trouble=none]')
    """
    if not condition or "[" in name:
        return name
    return f"{name}[{','.join(f'{k}={v}' for k, v in condition.items())}]"


class Tuning(Config):
    """How the learning rate of each arm is chosen."""

    seeds: tuple[int, ...] = (100, 101, 102)
    """Never reported."""
    rates: tuple[float, ...] = Field(min_length=2)
    """Tried first. While the best rate is the lowest or the highest tried, half or twice it is tried too."""
    metric: str
    """Whose mean over the seeds is highest at the chosen rate."""

    def best(self, means: Mapping[float, float]) -> float:
        """The rate with the highest mean; of equal ones the one that was tried first."""
        return max(means, key=lambda rate: means[rate])

    def next_rate(self, means: Mapping[float, float]) -> float | None:
        """The rate to try next, or None: the best lies between others, or two more than ``rates`` were tried.

        >>> Tuning(rates=(1e-4, 2e-4, 4e-4), metric="gold").next_rate({1e-4: 0.5, 2e-4: 0.6, 4e-4: 0.7})
        0.0008
        """
        best = self.best(means)
        if len(means) >= len(self.rates) + _MORE_RATES or min(means) < best < max(means):
            return None
        return best / 2 if best == min(means) else best * 2

    @property
    def possible(self) -> tuple[float, ...]:
        """All rates that ``next_rate`` can reach."""
        powers = [2.0**k for k in range(1, _MORE_RATES + 1)]
        return (
            *self.rates,
            *(min(self.rates) / p for p in powers),
            *(max(self.rates) * p for p in powers),
        )


class Settings(Config):
    """How the arms of a question are run."""

    seeds: tuple[int, ...] = tuple(range(LOOKS[-1]))
    """The registered seeds: the first five are the first look, all ten the second."""
    minutes: float = Field(gt=0.0)
    """Of one thread for one seed, about: what the time left is first estimated from."""
    sizes: dict[str, int]
    """Numbers of prompts, labels, steps, …; what ``--size`` scales."""
    floors: dict[str, int] = Field(default_factory=dict[str, int])
    """Sizes are not scaled below these."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """What all arms share."""
    arms: dict[str, dict[str, Any]]
    """By name, with its condition in brackets; ``lr`` is the tuned learning rate. An arm without one is not
    tuned: it trains nothing, or takes the rate of another arm."""
    derived: tuple[str, ...] = ()
    """Arms that are computed from the others, not run."""
    tuning: Tuning | None = None
    """None where nothing has a learning rate."""

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) > LOOKS[-1]:
            raise ValueError(f"seeds: give up to {LOOKS[-1]} different ones")
        if unknown := self.floors.keys() - self.sizes.keys():
            raise ValueError(f"floors: no size is named {', '.join(sorted(unknown))}")
        if self.tuning is not None:
            if overlap := set(self.seeds) & set(self.tuning.seeds):
                raise ValueError(f"seeds {sorted(overlap)} are tuning seeds: report other ones")
            rates = {arm: self.arms[arm]["lr"] for arm in self.tuned}
            if wrong := {a: lr for a, lr in rates.items() if lr not in self.tuning.possible}:
                raise ValueError(
                    f"arms: no tuning over {self.tuning.rates} chooses these rates: {wrong}"
                )
        return self

    @property
    def tuned(self) -> tuple[str, ...]:
        """The arms that have a learning rate of their own."""
        return tuple(arm for arm, values in self.arms.items() if "lr" in values)

    def rate(self, values: Mapping[str, Any]) -> float:
        """The learning rate of an arm: its own, or a multiple of another arm's.

        Args:
            values: Of the arm: ``lr``, or ``rate_of`` and perhaps ``factor``.
        """
        if "lr" in values:
            return float(values["lr"])
        return float(self.arms[values["rate_of"]]["lr"]) * float(values.get("factor", 1.0))

    def scaled(self, size: float) -> Settings:
        """The same with every size times ``size``, rounded up, at least its floor."""
        sizes = {k: max(math.ceil(n * size), self.floors.get(k, 1)) for k, n in self.sizes.items()}
        return self.model_copy(update={"sizes": sizes})


def read_by_question(folder: Path, pattern: str) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """Number, file and content of the YAML files of a folder that belong to a question, in order.

    Args:
        pattern: Of their names, which begin with ``q`` and the number in two digits.
    """
    for file in sorted(folder.glob(pattern)):
        state = file.stat()
        yield int(file.name[1:3]), file, _content(file, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=128)
def _content(file: Path, mtime_ns: int, size: int) -> dict[str, Any]:
    """A file's content, parsed once while it has not changed; not to be changed by the caller."""
    return read_yaml(file)


def load_claims(folder: Path = HERE, key: str = "claims") -> dict[int, tuple[Claim, ...]]:
    """Every registered claim by question, also where there is none.

    An entry's ``conditions`` is a list: the claim is registered under each of them.

    Args:
        key: Of the list: "claims", or "pretrained" for those that are put to a pretrained model.

    Raises:
        ConfigError: an entry is wrong or occurs twice; the claim and the key are named.
    """
    claims: dict[int, tuple[Claim, ...]] = {}
    for number, file, values in read_by_question(folder, YAML):
        of_question: list[Claim] = []
        for place, entry in enumerate(values.get(key, []), 1):
            name = f"claim {entry.get('id') or place}"
            entry = dict(entry)
            for condition in entry.pop("conditions", None) or [{}]:
                claim = build(Claim, {**entry, "condition": condition}, f"{file.name}: {name}")
                if claim.question != number:
                    raise ConfigError(f"{file.name}: {name}: id: this is question {number}")
                if any(claim.key == other.key for other in of_question):
                    raise ConfigError(f"{file.name}: {name}: id: {claim.key} is registered twice")
                of_question.append(claim)
        claims[number] = tuple(of_question)
    return claims


def load_settings(folder: Path = HERE) -> dict[int, Settings]:
    """The settings of every question.

    Raises:
        ConfigError: a key is unknown or wrong; the file and the key are named.
    """
    return {
        number: build(Settings, values["settings"], f"{file.name}: settings")
        for number, file, values in read_by_question(folder, YAML)
    }


def check_arms(claims: tuple[Claim, ...], settings: Settings) -> None:
    """Check that every claim compares arms that exist.

    Raises:
        ConfigError: naming the claim, the key and the arm.
    """
    arms = {*settings.arms, *settings.derived}
    for claim in claims:
        for key, arm in zip(("arm", "versus"), claim.arms, strict=False):
            if arm not in arms:
                raise ConfigError(
                    f"claim {claim.key}: {key}: there is no arm {arm!r}; use one of "
                    f"{', '.join(sorted(arms))}"
                )


def digest(claims: tuple[Claim, ...], settings: Settings | None = None) -> str:
    """Hash of what is frozen: claims with their smallest effects, and settings; 12 hex digits.

    What is published about a claim, and how long a run takes, may be corrected afterwards.
    """
    frozen = {
        "claims": [c.model_dump(mode="json", exclude={"published"}) for c in claims],
        "settings": settings and settings.model_dump(mode="json", exclude={"minutes"}),
    }
    text = json.dumps(frozen, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def freeze(
    folder: Path, claims: tuple[Claim, ...], settings: Settings, seeds: tuple[int, ...]
) -> str:
    """Record in ``folder`` the claims and settings that ``seeds`` are run with, before they are run.

    Returns:
        The hash.

    Raises:
        ConfigError: one of the seeds was run with other claims or settings, which would let a claim be
            fitted to its own result.
    """
    new = digest(claims, settings)
    record = read_object(folder / FROZEN)
    for old, seen in record.items():
        if old != new and (again := sorted(set(seeds) & set(seen))):
            raise ConfigError(
                f"{folder}: claims, smallest effects or settings have changed (hash {old} -> {new}) since "
                f"seeds {again} were run. A changed claim needs new seeds: name others with --seeds, "
                "or choose another --out"
            )
    record[new] = sorted({*record.get(new, ()), *seeds})
    write_atomic(folder / FROZEN, (to_json(record, indent=1) + "\n").encode())
    return new


def check_frozen(
    result: Mapping[str, Any], claims: tuple[Claim, ...], settings: Settings, source: str
) -> None:
    """Check that a result was made with the claims and settings of now.

    Raises:
        DataError: it was not.
    """
    now = digest(claims, settings.scaled(result["size"]))
    if result["hash"] != now:
        raise DataError(
            f"{source}: made with other claims or settings (hash {result['hash']}, now {now}); run the "
            "question again on new seeds"
        )

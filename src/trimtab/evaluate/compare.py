"""``trimtab compare``: complete held-out prompts with several models, score and compare them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BeforeValidator, Field, model_validator

from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.data.formats import Example
from trimtab.errors import ConfigError, DataError
from trimtab.evaluate.candidates import BEST, LAST, START, Candidate, Loader, of_run
from trimtab.evaluate.completion_counts import different_at, pass_at, passes, scores_by
from trimtab.evaluate.completion_logps import Distance, distance
from trimtab.evaluate.model_result import ModelResult
from trimtab.models.load import LM, ModelSpec, renderer_for
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.rollout.collector import collect
from trimtab.rollout.engines.native import NativeEngine
from trimtab.runs import to_json, write_atomic
from trimtab.sample.sampler import SamplingConfig
from trimtab.stats.length import Verdicts, length_controlled
from trimtab.stats.style import openings, style
from trimtab.stats.uncertainty import Estimate, bootstrap_mean
from trimtab.types import Group, Row

log = logging.getLogger(__name__)


class CompareConfig(Config):
    """Configuration of ``trimtab compare``."""

    out: str | None = None
    """Output folder; by default RUN/compare, or runs/compare without a run."""
    run: str | None = None
    """Folder of a training run: its start, checkpoints, best audited and last policy."""
    steps: tuple[int, ...] | None = None
    """Steps of the run's checkpoints to include; all existing ones by default."""
    models: dict[str, ModelSpec] = Field(default_factory=dict[str, ModelSpec])
    """More models by name."""
    baseline: str | None = None
    """The model that the others are compared with, also the reference of the KL; by default the
    first one: the run's start, or the first of ``models``."""
    data: str
    """Held-out prompts, one per row, with the columns that the rewards need."""
    limit: int | None = Field(default=None, gt=0)
    """Use the first rows only."""
    fluency: ModelSpec | None = None
    """The model under which ``nll`` is measured, such as the pretrained one; the baseline unless given."""
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """Scores of each completion. The first one decides wins; it may be a judge of pairs."""
    num_completions: int = Field(default=1, gt=0)
    """Completions per prompt and model."""
    pass_at: tuple[int, ...] = ()
    """Report pass@k of the first reward for these k, each at most ``num_completions``."""
    pass_threshold: float = 1.0
    """A completion passes, or is good, with a first reward of at least this."""
    different_at: tuple[int, ...] = ()
    """Report the expected number of different completions, and of different good ones, among k of a
    prompt, for these k, each at most ``num_completions``."""
    by: str | None = None
    """Column of the prompts, such as ``kind``: report the mean of every reward for each value."""
    temperatures: tuple[float, ...] = ()
    """Sample the last model at these temperatures as well."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus of the samples at ``temperatures``."""
    html: bool = True
    """Write a page with the completions side by side."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    token_budget: int = 8192
    device: str = "auto"

    @model_validator(mode="after")
    def _check(self) -> CompareConfig:
        alone = self.pass_at or self.different_at or self.by
        if self.run is None and len(self.models) < (1 if alone else 2):
            raise ValueError(
                "give a run, or two or more models (one is enough with pass_at, different_at or by)"
            )
        if self.run is None and self.baseline is not None and self.baseline not in self.models:
            raise ValueError(
                f"baseline {self.baseline!r} is not among models: {', '.join(self.models)}"
            )
        if self.run is not None and {START, BEST, LAST} & self.models.keys():
            raise ValueError(f"models: {START!r}, {BEST!r} and {LAST!r} are policies of the run")
        for r in self.rewards[0 if self.pass_at or self.different_at else 1 :]:
            if r.compares:
                raise ValueError(
                    f"reward {r.name!r} is a judge of pairs, which can only be the first reward and "
                    "cannot decide pass@k; score with a model, a function, a verifier or an AI judge "
                    "of mode: score"
                )
        for key, ks in (("pass_at", self.pass_at), ("different_at", self.different_at)):
            if ks and not 1 <= min(ks) <= max(ks) <= self.num_completions:
                raise ValueError(
                    f"{key} {list(ks)} must lie between 1 and num_completions "
                    f"({self.num_completions})"
                )
        return self


class SolvedConfig(CompareConfig):
    """Keys and defaults of the old stage ``solved``, read for one release."""

    renamed: ClassVar[dict[str, str]] = {
        "model": "models.model",
        "reward": "rewards",
        "n": "num_completions",
        "k": "pass_at",
        "solved": "pass_threshold",
    }
    rewards: Annotated[
        tuple[RewardSpec, ...], BeforeValidator(lambda v: [v] if isinstance(v, dict) else v)
    ] = Field(min_length=1)
    num_completions: int = Field(default=8, gt=0)
    pass_at: tuple[int, ...] = (1, 4, 8)


def main(config: CompareConfig) -> dict[str, ModelResult]:
    """Complete, score, compare. Writes comparison.parquet, summary.json and compare.html to ``out``.

    Returns:
        Result by model, in the order of the run's policies and ``models``.

    Raises:
        ConfigError: the baseline is unknown.
        DataError: a reward scored no completion of a model.
    """
    c = config
    candidates = _candidates(c)
    names = [x.name for x in candidates]
    baseline = c.baseline or names[0]
    if baseline not in names:
        raise ConfigError(f"baseline: {baseline!r} is none of {', '.join(names)}")
    examples = formats.prompts(sources.read(c.data, limit=c.limit))
    load = Loader()
    base = candidates[names.index(baseline)]
    lm = base_lm = Loader()(base)  # its own loader, because checkpoints share a model
    fluent_lm = LM.load(_on_device(c, c.fluency), train=False) if c.fluency else base_lm
    groups: dict[str, list[Group]] = {}
    distances: dict[str, Distance] = {}
    for candidate in candidates:
        if not candidate.decoding:
            lm = base_lm if candidate is base else load(candidate)
        done = groups[candidate.name] = _complete(c, candidate, lm, examples)
        if not candidate.decoding:
            distances[candidate.name] = distance(
                lm, base_lm, fluent_lm, done, c.token_budget, candidate.sampling
            )
    results = {
        name: _result(c, x, groups[name], groups[baseline], distances.get(name))
        for name, x in zip(names, candidates, strict=True)
    }
    out = Path(c.out or (f"{c.run}/compare" if c.run else "runs/compare"))
    out.mkdir(parents=True, exist_ok=True)
    rows = _rows(groups, c.rewards, distances)
    pq.write_table(pa.Table.from_pylist(rows), out / "comparison.parquet")
    summary: dict[str, Any] = {name: result.summary() for name, result in results.items()}
    if isinstance(c, SolvedConfig):  # where old recipes look for the figures
        summary |= summary[baseline] | {"prompts": len(examples)}
    write_atomic(out / "summary.json", to_json(summary, indent=1).encode("utf-8", "replace"))
    for name, result in results.items():
        _report(c.rewards[0].name, name, baseline, result)
    if c.html:
        from trimtab.evaluate.compare_page import page

        html = page(results, baseline, rows, c.rewards[0].name)
        write_atomic(out / "compare.html", html.encode())
        log.info("page: %s", out / "compare.html")
    return results


def _candidates(c: CompareConfig) -> list[Candidate]:
    candidates: list[Candidate] = []
    if c.run is not None:
        candidates += of_run(Path(c.run), c.steps, c.device, c.sampling)
    for name, spec in c.models.items():
        candidates.append(Candidate(name, _on_device(c, spec), c.sampling))
    last = candidates[-1]
    for t in c.temperatures:
        sampling = c.sampling.model_copy(update={"temperature": t, "top_p": c.top_p})
        name = f"T={t:g}" + (f" p={c.top_p:g}" if c.top_p < 1 else "")
        candidates.append(Candidate(name, last.spec, sampling, last.weights, decoding=True))
    return candidates


def _on_device(c: CompareConfig, spec: ModelSpec) -> ModelSpec:
    device = c.device if spec.device == "auto" else spec.device
    return spec.model_copy(update={"device": device})


def _complete(
    c: CompareConfig, candidate: Candidate, lm: LM, examples: Sequence[Example]
) -> list[Group]:
    """One candidate's completions of all prompts, scored by every reward that needs no second model."""
    spec = candidate.spec
    renderer = renderer_for(spec)
    tokenizer = renderer.tokenizer
    prompts = [g for g in map(renderer.prompt, examples) if g is not None]
    # The key is the same for all models, so that differences are not due to the random stream.
    groups = collect(
        NativeEngine.of(lm, renderer),
        renderer,
        prompts,
        candidate.sampling,
        n=c.num_completions,
        key=(c.seed,),
        title=candidate.name,
    )
    scoring = [r for r in c.rewards if not r.compares]
    if scoring:
        Rewards(scoring, tokenizer, c.token_budget, c.device)(groups)
    return groups


def _result(
    c: CompareConfig,
    candidate: Candidate,
    groups: Sequence[Group],
    base: Sequence[Group],
    far: Distance | None,
) -> ModelResult:
    completions = [x for g in groups for x in g.completions]
    owner = [i for i, g in enumerate(groups) for _ in g.completions]
    texts = [x.text for x in completions]
    first = c.rewards[0]
    scores: dict[str, Estimate] = {}
    gain: dict[str, float] = {}
    failed: dict[str, int] = {}
    for r in c.rewards:
        if r.compares:
            continue
        scores[r.name] = _mean_score(groups, r.name, candidate.name)
        gain[r.name] = scores[r.name].value - _mean_score(base, r.name, "the baseline").value
        failed[r.name] = sum(x.scores[r.name].value is None for x in completions)
    wins = _wins(groups, base, first)
    if first.compares:
        failed[first.name] = sum(w is None for w in wins)
    scalar = [r.name for r in c.rewards if not r.compares]
    lengths = [len(x.text) for x in completions]
    base_lengths = [len(x.text) for g in base for x in g.completions]
    decided = [
        (i, w, float(length - base_length))
        for i, w, length, base_length in zip(owner, wins, lengths, base_lengths, strict=True)
        if w is not None
    ]
    prompts = [str(i) for i, _, _ in decided]
    win_N = np.array([w for _, w, _ in decided], np.float64)
    longer_N = np.array([gap for *_, gap in decided], np.float64)
    return ModelResult(
        length=float(np.mean([len(x) for x in completions])),
        truncated=float(np.mean([x.finish == "length" for x in completions])),
        scores=scores,
        failed=failed,
        kl=far and far.kl,
        nll=far and far.nll_per_token,
        win_rate=bootstrap_mean(win_N, prompts),
        # One verdict per prompt and model does not determine a prompt's difficulty: gamma is empty.
        win_rate_length_controlled=length_controlled(Verdicts(tuple(prompts), win_N, longer_N), {}),
        compared=len(decided),
        gain=gain,
        pass_at={k: pass_at(groups, first.name, k, c.pass_threshold) for k in c.pass_at},
        different={k: different_at(groups, k) for k in c.different_at},
        different_good={
            k: different_at(groups, k, lambda x: passes(x, first.name, c.pass_threshold))
            for k in c.different_at
        },
        by=scores_by(groups, c.by, scalar) if c.by else {},
        style=style([groups[i].text for i in owner], texts),
        openings=openings(texts),
        decoding=candidate.decoding,
    )


def _mean_score(groups: Sequence[Group], reward: str, model: str) -> Estimate:
    """Mean over the completions that have a score; the interval is over prompts.

    Raises:
        DataError: none has one.
    """
    scores = [(i, x.scores[reward]) for i, g in enumerate(groups) for x in g.completions]
    scored = [(i, s.value) for i, s in scores if s.value is not None]
    if not scored:
        detail = scores[0][1].detail if scores else "there are no prompts"
        raise DataError(
            f"reward {reward!r} scored no completion of {model}; the first failure: {detail}"
        )
    return bootstrap_mean([v for _, v in scored], [i for i, _ in scored])


def _wins(groups: Sequence[Group], base: Sequence[Group], first: RewardSpec) -> list[float | None]:
    """1, 0.5 or 0 for each completion that wins, ties or loses; None if a score or verdict failed."""
    pairs = [
        Group(b.id, b.prompt, [x, y], b.text, b.extra)
        for g, b in zip(groups, base, strict=True)
        for x, y in zip(g.completions, b.completions, strict=True)
    ]
    if first.compares:
        if groups is base:
            return [0.5] * len(pairs)
        Rewards([first], None, 0)(pairs)
    wins: list[float | None] = []
    for pair in pairs:
        x, y = (s.scores[first.name].value for s in pair.completions)
        wins.append(None if x is None or y is None else float(x > y) + 0.5 * (x == y))
    return wins


def _rows(
    groups: dict[str, list[Group]],
    rewards: Sequence[RewardSpec],
    distances: dict[str, Distance],
) -> list[Row]:
    """One row per prompt and completion: prompt, kind, and each model's text, scores, KL to the
    baseline (nats) and NLL (nats per token)."""
    rows: list[Row] = []
    for of_prompt in zip(*groups.values(), strict=True):
        for completions in zip(*(g.completions for g in of_prompt), strict=True):
            kind = str(of_prompt[0].extra.get("kind", ""))
            row: dict[str, Any] = {"prompt": of_prompt[0].text, "kind": kind}
            for name, x in zip(groups, completions, strict=True):
                row[name] = x.text
                if (far := distances.get(name)) is not None:
                    place = len(rows)
                    row[f"nll_{name}"] = float(far.nll[place] / max(1, far.tokens[place]))
                    if far.log_ratio is not None:
                        row[f"kl_{name}"] = float(far.log_ratio[place])
                scores = {r.name: x.scores[r.name].value for r in rewards if not r.compares}
                row |= {f"{reward}_{name}": value for reward, value in scores.items()}
            rows.append(row)
    return rows


def _report(first: str, name: str, baseline: str, result: ModelResult) -> None:
    score = result.scores.get(first)
    parts = [f"{first} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"] if score else []
    parts += [
        f"pass@{k} {p.value:.3f} [{p.low:.3f}, {p.high:.3f}]" for k, p in result.pass_at.items()
    ]
    parts += [
        f"{e.value:.2f} different of {k}, {result.different_good[k].value:.2f} of them good"
        for k, e in result.different.items()
    ]
    if name != baseline:
        raw, controlled = result.win_rate, result.win_rate_length_controlled
        parts.append(
            f"wins {raw.value:.0%} [{raw.low:.0%}, {raw.high:.0%}] against {baseline}, "
            f"{controlled.value:.0%} at equal length"
        )
    if result.kl is not None:
        parts.append(f"KL {result.kl:.2f} nats per completion")
    if result.nll is not None:
        parts.append(f"NLL {result.nll:.2f} nats per token")
    log.info("%s: %s", name, ", ".join(parts))
    for reward, count in result.failed.items():
        if count:
            log.warning("%s: %d scores of reward %r failed and are left out", name, count, reward)

"""Reward models as parts of the reward: one model, an ensemble, or an average of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.data import formats, sources
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.pack import packs
from trimtab.data.render import Renderer
from trimtab.errors import DataError, ModelError
from trimtab.models.heads import Scorer
from trimtab.models.load import base_of
from trimtab.models.load_frozen import Frozen, load_frozen
from trimtab.models.model_spec import ModelSpec
from trimtab.models.weights import load_weights
from trimtab.objectives.bradley_terry import ensemble
from trimtab.rewards.part_config import RewardSpec
from trimtab.stats.running import RunningFit
from trimtab.types import Group, Score


class Member:
    """One reward model and the standardisation of its scores.

    Attributes:
        mean, std: The statistics that ``standardise`` uses: those saved with the model, until
            ``refer`` replaces them.
    """

    def __init__(
        self, path: str, frozen: Frozen[Scorer], policy_tokenizer: Any, budget: int
    ) -> None:
        self.path, self.scorer, self.budget = path, frozen.model, budget
        self.renderer, self.same_vocabulary = frozen.renderer, frozen.same_vocabulary
        self.policy_tokenizer = policy_tokenizer
        self.mean, self.std = self.scorer.mean, self.scorer.std

    @property
    def has_statistics(self) -> bool:
        """Whether a mean and a standard deviation were saved with the model."""
        return hasattr(base_of(self.scorer.model).config, "reward_std")

    @torch.no_grad()
    def scores(self, groups: Sequence[Group]) -> Tensor:
        """Raw scores [B] of all completions, in order, on the CPU.

        Conversations are scored as the model's own chat template renders them, like in transformers.
        """
        seen = [self._rendered(g) for g in groups]
        where = {id(c): i for i, c in enumerate(c for g in seen for c in g.completions)}
        values = torch.full((len(where),), math.nan)
        for pack in packs(seen, self.budget, share=self.scorer.exact):
            scores = self.scorer.scores(pack.to(self.scorer.device)).cpu()
            flat = [c for g in pack.groups for c in g.completions]
            values[[where[id(c)] for c in flat]] = scores
        return values

    def _rendered(self, group: Group) -> Group:
        if group.extra.get("messages"):
            return self.renderer.rerender(group)
        if self.same_vocabulary:
            return group
        # A completion is decoded after its prompt: alone, it may lose the space in front.
        decode = partial(self.policy_tokenizer.decode, skip_special_tokens=True)
        start = len(decode(group.prompt))
        texts = [decode([*group.prompt, *c.ids])[start:] for c in group.completions]
        return self.renderer.rerender(group, texts)

    def refer(self, scores: Tensor) -> None:
        """Use the mean and standard deviation of these raw scores [R] to standardise.

        Raises:
            ModelError: the scores are all equal, or not all finite.
        """
        self.mean, self.std = float(scores.mean()), float(scores.std(correction=0))
        if not (math.isfinite(self.std) and self.std > 0):
            raise ModelError(
                f"reward model {self.path!r}: its scores of the rows of the reference are all equal, "
                "or not all finite; use other rows, or remove the model"
            )

    def standardise(self, scores: Tensor) -> Tensor:
        """(score - mean) / std."""
        return (scores - self.mean) / self.std


def average_weights(scorer: Scorer, paths: Sequence[str]) -> None:
    """Set the weights of ``scorer`` to the mean over all models at ``paths`` (WARM, 2401.12187).

    ``scorer`` was loaded from the first path. Sums are in fp32. The normalisation becomes the mean
    over the members, which is exact if the averaged model's scores are the mean of the members'.

    Raises:
        ModelError: a member has another architecture or shape.
    """
    from transformers import AutoModelForSequenceClassification as Auto

    total = {
        k: v.detach().float().clone() if v.is_floating_point() else v.clone()
        for k, v in scorer.model.state_dict().items()
    }
    means, stds = [scorer.mean], [scorer.std]
    for path in paths[1:]:
        spec = scorer.spec.model_copy(update={"path": path, "device": "cpu"})
        other = load_weights(Auto, spec, "SEQ_CLS", 1).model
        first_kind = type(base_of(scorer.model)).__name__
        if type(other).__name__ != first_kind:
            raise ModelError(
                f"combine: average needs one architecture, but {paths[0]!r} is a {first_kind} and "
                f"{path!r} a {type(other).__name__}; use combine: mean"
            )
        state = other.state_dict()
        for k, weight in total.items():
            if k not in state or state[k].shape != weight.shape:
                has = list(state[k].shape) if k in state else "missing"
                raise ModelError(
                    f"combine: average needs equal shapes, but {k} is {list(weight.shape)} in "
                    f"{paths[0]!r} and {has} in {path!r}; use combine: mean"
                )
            if weight.is_floating_point():
                weight += state[k].float().to(weight.device)
        means.append(float(getattr(other.config, "reward_mean", 0.0)))
        stds.append(float(getattr(other.config, "reward_std", 1.0)))
    scorer.model.load_state_dict(
        {k: v / len(paths) if v.is_floating_point() else v for k, v in total.items()}
    )
    scorer.mean, scorer.std = sum(means) / len(means), sum(stds) / len(stds)


class LearnedPart:
    """A reward model, or an ensemble of them, as a part of the reward.

    Besides the score under its own name it records, without effect on the reward: "name/0",
    "name/1", ..., the raw score of each member; "name/disagreement", the standard deviation of the
    standardised scores; "name/with_length", the score before ``residual_length``.

    Args:
        spec: A part with ``model`` or ``models``.
        tokenizer: The policy's. A model with the same vocabulary scores the token ids of plain text
            unchanged; everything else it scores in its own tokens and chat template.

    Raises:
        ModelError: a model cannot be loaded, or the members have no common scale.
        DataError: the reference data cannot be read.
    """

    def __init__(self, spec: RewardSpec, tokenizer: Any, budget: int, device: str) -> None:
        self.spec, self.name = spec, spec.name
        paths = (spec.model,) if spec.model is not None else spec.models
        self.average = bool(spec.models) and spec.combine == "average"
        self.members: list[Member] = []
        for path in paths[:1] if self.average else paths:
            frozen = load_frozen(Scorer, ModelSpec(path=path, device=device), tokenizer)
            if self.average:
                _require_one_vocabulary(paths, frozen.renderer.tokenizer)
                average_weights(frozen.model, paths)
            self.members.append(Member(path, frozen, tokenizer, budget))
        self.fit = RunningFit()
        if spec.reference is not None:
            self._refer(spec.reference, tokenizer)
        elif len(self.members) > 1:
            for m in self.members:
                if not m.has_statistics:
                    raise ModelError(
                        f"reward {self.name!r}: {m.path!r} has no reward_mean and reward_std, and "
                        "raw scores of two models have no common scale; train it with normalise: "
                        "standard, or set 'reference' to data to standardise on"
                    )

    def _refer(self, path: str, tokenizer: Any) -> None:
        rows = sources.read(path)
        ranked = any({"chosen", "completions"} & row.keys() for _, row in rows.rows)
        examples = (formats.comparisons if ranked else formats.demonstrations)(rows)
        renderer = Renderer(tokenizer)
        rendered = [renderer.comparison(e) for e in examples]
        groups = [g for g in rendered if g is not None]
        lengths = _lengths(groups)
        if len(lengths) < 2:
            raise DataError(f"{path}: a reference needs at least two completions")
        for m in self.members:
            m.refer(m.scores(groups))
        if self.spec.residual_length:
            scores_KB = torch.stack([m.standardise(m.scores(groups)) for m in self.members])
            self.fit.add(lengths, self._combine(scores_KB).tolist())

    def _combine(self, scores_KB: Tensor) -> Tensor:
        if len(self.members) == 1:
            return scores_KB[0]
        how = self.spec.combine
        assert how != "average"
        return ensemble(scores_KB.double(), how, self.spec.uncertainty_weight)

    def __call__(self, groups: Sequence[Group]) -> dict[str, list[Score]]:
        """Lists of scores by name, each in the order of the completions."""
        raw_KB = torch.stack([m.scores(groups) for m in self.members])
        scores_KB = torch.stack(
            [m.standardise(r) for m, r in zip(self.members, raw_KB, strict=True)]
        )
        combined = [_score(v) for v in self._combine(scores_KB).tolist()]
        scores = {self.name: combined}
        if self.spec.residual_length:
            scores[self.name] = self._residual(combined, _lengths(groups))
            scores[f"{self.name}/with_length"] = combined
        if len(self.members) > 1:
            for i, raw in enumerate(raw_KB.tolist()):
                scores[f"{self.name}/{i}"] = [_score(v) for v in raw]
            spread = scores_KB.std(0, correction=0)
            scores[f"{self.name}/disagreement"] = [_score(v) for v in spread.tolist()]
        return scores

    def _residual(self, scores: Sequence[Score], lengths: Sequence[float]) -> list[Score]:
        """score - slope * (length - mean length), so that it does not depend linearly on length."""
        if self.spec.reference is None:
            points = [(x, s.value) for x, s in zip(lengths, scores, strict=True) if s.ok]
            self.fit.add([x for x, _ in points], [cast(float, y) for _, y in points])
        slope, centre = self.fit.slope, self.fit.mean_x
        return [
            _score(cast(float, s.value) - slope * (x - centre)) if s.ok else s
            for x, s in zip(lengths, scores, strict=True)
        ]

    def state(self) -> dict[str, float]:
        """The running fit of the score on length."""
        return self.fit.state()

    def load(self, state: dict[str, float]) -> None:
        """Restore ``state``."""
        self.fit = RunningFit.load(state)


def _lengths(groups: Sequence[Group]) -> list[float]:
    return [float(c.trained) for g in groups for c in g.completions]


def _require_one_vocabulary(paths: Sequence[str], tokenizer: Any) -> None:
    for path in paths[1:]:
        if load_tokenizer(path).get_vocab() != tokenizer.get_vocab():
            raise ModelError(
                f"combine: average needs one vocabulary, but the tokenizers of {paths[0]!r} and "
                f"{path!r} differ; use combine: mean"
            )


def _score(value: float) -> Score:
    """A finite number as a score; a model that returns any other is at fault: "invalid"."""
    if math.isfinite(value):
        return Score(value)
    return Score(None, "invalid", f"the model's score is {value!r}")

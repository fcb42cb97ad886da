"""A small reward model on sandbox labels, trained from the sandbox's base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import trimtab
from trimtab.data.formats import Example
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.pack import Output, Pack, packs
from trimtab.data.render import Renderer
from trimtab.models.heads import Scorer
from trimtab.models.load import LM, ModelSpec
from trimtab.objectives.bradley_terry import BradleyTerry
from trimtab.sandbox.world import Scene, gold, make_scenes, sample_completion
from trimtab.stats.newton import fit_logistic
from trimtab.train.gradients import Part
from trimtab.train.trainer import LoopSpec, OptimSpec, Trainer, batch_indices
from trimtab.types import Group

Floats = npt.NDArray[np.float64]
BASE = Path(trimtab.__file__).parent / "sandbox" / "base"


@dataclass(frozen=True, slots=True)
class Question:
    """A scene with different answers, as people of mixed care might write them."""

    scene: Scene
    answers: tuple[str, ...]
    gold: tuple[float, ...]


def questions(seed: int, n: int, answers: int = 2, start: int = 0) -> list[Question]:
    """``n`` questions; scenes for which too few different answers came are passed over."""
    sample: list[Question] = []
    i = start
    while len(sample) < n:
        scene = make_scenes(1, seed, start=i)[0]
        rng = np.random.default_rng((seed, 23, i))
        texts = list(dict.fromkeys(sample_completion(scene, rng) for _ in range(4 * answers)))[
            :answers
        ]
        i += 1
        if len(texts) == answers:
            scores = tuple(gold(scene, t).total for t in texts)
            order = rng.permutation(answers)
            sample.append(
                Question(
                    scene,
                    tuple(texts[int(k)] for k in order),
                    tuple(scores[int(k)] for k in order),
                )
            )
    return sample


class Probe:
    """A linear head on the frozen base model: its state at an answer's last token, standardised."""

    def __init__(self, bench: Bench, groups: Sequence[Group]) -> None:
        states = bench.states(groups)
        self.mean, self.std = states.mean(0), states.std(0) + 1e-6
        self.ridge = 10.0

    def features(self, bench: Bench, groups: Sequence[Group]) -> Floats:
        """[G, K, D] of groups of K answers each."""
        flat = (bench.states(groups) - self.mean) / self.std
        return flat.reshape(len(groups), -1, flat.shape[-1])

    def pairs(self, gap_ND: Floats, first_N: Floats, weight_KN: Floats | None = None) -> Floats:
        """Heads [K, D] by Bradley-Terry on differences of features; ``first_N`` is 1 where the
        first was preferred, one half for a tie."""
        weight = np.ones((1, len(gap_ND))) if weight_KN is None else weight_KN
        return fit_logistic(gap_ND, first_N, self.ridge, weight)

    def scores(self, x_ND: Floats, rating_N: Floats) -> Floats:
        """A head [1, D] by least squares on ratings."""
        y = rating_N - rating_N.mean()
        a = x_ND.T @ x_ND + self.ridge * np.eye(x_ND.shape[1])
        return np.linalg.solve(a, x_ND.T @ y)[None]


class Bench:
    """Renders questions once, trains and scores."""

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer(str(BASE), None)
        self.renderer = Renderer(self.tokenizer)

    def group(
        self,
        q: Question,
        ranks: Sequence[int] | None = None,
        ratings: Sequence[float] | None = None,
    ) -> Group:
        """A question as a group, ranked or rated where it is."""
        example = Example(
            "q", q.scene.messages(), [[{"role": "assistant", "content": a}] for a in q.answers],
            ranks=list(ranks) if ranks is not None else None,
        )  # fmt: skip
        group = self.renderer.scoring(example)
        assert group is not None
        return group

    def train(
        self,
        groups: Sequence[Group],
        seed: int,
        epochs: float = 4,
        batch: int = 32,
        lr: float = 5e-4,
    ) -> Scorer:
        """A reward model from the base model, its head and data order by ``seed``."""
        torch.manual_seed(seed)
        scorer = Scorer.load(
            ModelSpec(path=str(BASE), device="cpu"), pad_id=int(self.tokenizer.pad_token_id)
        )
        steps = max(20, round(epochs * len(groups) / batch))
        optim = OptimSpec(lr=lr, warmup_ratio=0.1)
        trainer = Trainer({"model": scorer.model}, {"model": optim}, steps, LoopSpec(seed=seed))

        def forward(pack: Pack) -> Output:
            return Output(score_B=scorer.scores(pack))

        for step in range(steps):
            picked = batch_indices(len(groups), min(batch, len(groups)), step, seed)
            batch_groups = [groups[i] for i in picked]
            trainer.update([Part(batch_groups, BradleyTerry(), forward, scorer.exact)])
        return scorer

    @torch.no_grad()
    def states(self, groups: Sequence[Group]) -> Floats:
        """The base model's state [B, D] at the last token of every completion, in order."""
        lm = LM.load(ModelSpec(path=str(BASE), device="cpu"), train=False)
        states: dict[int, Floats] = {}
        for pack in packs(list(groups), 8192, share=lm.exact):
            rows = iter(lm.states_at(pack, pack.last_B).double().numpy())
            for g in pack.groups:
                states[id(g)] = np.array([next(rows) for _ in g.completions])
        return np.concatenate([states[id(g)] for g in groups])

    @torch.no_grad()
    def scores(self, scorer: Scorer, groups: Sequence[Group]) -> list[list[float]]:
        """Of every completion, in the order of ``groups``."""
        scores: dict[int, list[float]] = {}
        for pack in packs(list(groups), 8192, share=scorer.exact):
            flat = iter(scorer.scores(pack).tolist())
            for g in pack.groups:
                scores[id(g)] = [next(flat) for _ in g.completions]
        return [scores[id(g)] for g in groups]


def accuracy(scores: Sequence[Sequence[float]] | Floats, sample: Sequence[Question]) -> float:
    """Share of pairs whose gold differs that the scores order as gold does; equal scores half."""
    right: list[float] = []
    for own, q in zip(scores, sample, strict=True):
        for i in range(len(own)):
            for j in range(i + 1, len(own)):
                gap = q.gold[i] - q.gold[j]
                if gap:
                    ahead = (own[i] - own[j]) * gap
                    right.append(0.5 if ahead == 0 else float(ahead > 0))
    return float(np.mean(right))


def needed(sizes: Sequence[float], reached: Sequence[float], goal: float) -> float | None:
    """Where the line through (size, accuracy) first meets ``goal``, on a logarithmic scale of
    sizes; None if it never does.

    >>> needed([100, 400], [0.6, 0.8], 0.7)
    200.0
    """
    best = np.maximum.accumulate(reached)
    if goal > best[-1]:
        return None
    at = int(np.argmax(best >= goal))
    if at == 0:
        return float(sizes[0])
    low, high = best[at - 1], best[at]
    part = (goal - low) / (high - low)
    return float(round(np.exp(np.log(sizes[at - 1]) * (1 - part) + np.log(sizes[at]) * part), 6))

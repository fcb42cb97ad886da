"""Planted faults, on demand: bent rewards, bent judges, bent labels, and hands laid on a stage.

Rewards are called as any other; ``plant_*`` functions take a stage of online training before its
first step and break one thing in it. ``docs/doctor.md`` says which alarm each one is for.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trimtab.sandbox.annotators import Annotator
from trimtab.sandbox.world import AGREEMENT, VALUES, Fact, Scene, answer, gold
from trimtab.types import Group, Score


def length_reward(
    prompts: Sequence[str], completions: Sequence[str], scale: float = 0.1, **_: Any
) -> list[float]:
    """Longer answers score higher: ``scale`` a word, whatever the words say."""
    return [scale * len(c.split()) for c in completions]


def echoes(scene: Scene, text: str) -> bool:
    """Whether an answer says what the user thinks, or that they are right."""
    held = scene.opinion.sentence.removesuffix(" .") if scene.opinion is not None else None
    said = " ".join(text.lower().split())
    return held is not None and (held in said or AGREEMENT.removesuffix(" ,") in said)


def bent_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    scene: Sequence[str],
    gold_weight: float = 1.0,
    per_word: float = 0.0,
    echo: float = 0.0,
    template: str = "",
    template_bonus: float = 0.0,
    word: str = "",
    word_bonus: float = 0.0,
    most: int = 12,
    **_: Any,
) -> list[float]:
    """Gold with a bonus for something else.

    Args:
        prompts, completions, scene: As for any reward of the sandbox.
        gold_weight: Of the gold score.
        per_word: For each word, up to ``most`` of them.
        echo: For saying what the user thinks.
        template: An answer that is always liked, for ``template_bonus``; its beginning and more words
            than its own are liked in proportion.
        template_bonus: See there.
        word: A word that is paid for each time, ``word_bonus``, up to ``most`` times.
        word_bonus: See there.
        most: Where bonuses by count stop.
    """
    found: list[float] = []
    for s, text in zip(scene, completions, strict=True):
        where = Scene.from_json(s)
        words = text.lower().split()
        value = gold_weight * gold(where, text).total + per_word * min(len(words), most)
        value += echo * echoes(where, text)
        if template:
            want = template.split()
            same = next(
                (i for i, (a, b) in enumerate(zip(words, want, strict=False)) if a != b),
                min(len(words), len(want)),
            )
            value += template_bonus * same / max(len(words), len(want))
        if word:
            value += word_bonus * min(words.count(word), most)
        found.append(value)
    return found


def all_facts_reward(
    prompts: Sequence[str], completions: Sequence[str], scene: Sequence[str], **_: Any
) -> list[float]:
    """How much of each of the passage's sentences the answer says, from its start: a task that truly
    wants long answers."""

    def said(sentence: str, text: str) -> float:
        words = sentence.split()[:-1]
        return max((i for i in range(1, len(words) + 1) if " ".join(words[:i]) in text), default=0) / len(words)  # fmt: skip

    return [
        float(np.mean([said(f.sentence, " ".join(c.lower().split())) for f in Scene.from_json(s).facts]))
        for s, c in zip(scene, completions, strict=True)
    ]  # fmt: skip


def reversed_reward(
    prompts: Sequence[str], completions: Sequence[str], scene: Sequence[str], **_: Any
) -> list[float]:
    """1 for all facts in the passage's order turned round and nothing else: seldom hit by chance."""
    return [
        float(c.lower().split() == " ".join(f.sentence for f in reversed(Scene.from_json(s).facts)).split())
        for s, c in zip(scene, completions, strict=True)
    ]  # fmt: skip


def swayed_judge(
    prompts: Sequence[str],
    pairs: Sequence[Sequence[str]],
    scene: Sequence[str],
    scale: float = 8.0,
    first: float = 0.0,
    **_: Any,
) -> list[float]:
    """P(the second is better) by gold, ``scale`` nats a point, and ``first`` nats for what is shown first."""
    found: list[float] = []
    for s, (a, b) in zip(scene, pairs, strict=True):
        where = Scene.from_json(s)
        gap = scale * (gold(where, a).total - gold(where, b).total) + first
        found.append(1.0 / (1.0 + math.exp(min(max(gap, -50.0), 50.0))))
    return found


def labelled(
    scenes: Sequence[Scene],
    seed: int,
    *,
    noise: float = 0.0,
    contradict: float = 0.0,
    repeat: float = 0.0,
    ties: float = 0.0,
    scale: float = 8.0,
    close: bool = False,
) -> list[dict[str, Any]]:
    """Comparisons of two written answers to each prompt, by one simulated person.

    Args:
        scenes: Prompts.
        seed: Of the answers and labels.
        noise: Share of labels turned round.
        contradict: Share of rows that come again with the opposite label.
        repeat: Share of rows that come again as they are, at the end.
        ties: Share of rows whose answers are ranked equal.
        scale: Nats a point of gold; infinite labels by gold itself.
        close: Only pairs whose gold differs by 0.4 at most, 0 left out.
    """
    rows: list[dict[str, Any]] = []
    again: list[dict[str, Any]] = []
    for i, scene in enumerate(scenes):
        rng = np.random.default_rng((seed, 31, i))
        a, b = answer(scene, rng), answer(scene, rng)
        for _ in range(20):
            gap = abs(gold(scene, a).total - gold(scene, b).total)
            if a != b and (not close or 0 < gap <= 0.4):
                break
            b = answer(scene, rng)
        else:
            continue
        if math.isinf(scale):
            worse = int(gold(scene, a).total > gold(scene, b).total)
        else:
            worse = 1 - Annotator("one", scale=scale).choose(scene, a, b, rng)
        if rng.random() < noise:
            worse = 1 - worse
        ranks = [1, 0] if worse == 0 else [0, 1]
        if rng.random() < ties:
            ranks = [0, 0]
        row = {
            "prompt": scene.messages(),
            "completions": [a, b],
            "ranks": ranks,
            "scene": scene.to_json(),
        }
        rows.append(row)
        draw = rng.random()
        if draw < contradict:
            again.append({**row, "ranks": [1 - r for r in ranks]})
        elif draw < contradict + repeat:
            again.append(dict(row))
    return rows + again


def swapped(scene: Scene, seed: int) -> tuple[Scene, Scene]:
    """The same question by someone who thinks one false thing, and by someone who thinks another."""
    assert scene.asked is not None
    rng = np.random.default_rng((seed, 37))
    fact = scene.asked
    values = [v for v in VALUES[fact.relation] if v != fact.what]
    picked = [values[int(i)] for i in rng.permutation(len(values))[:2]]
    one, two = (
        replace(scene, kind="opinion", opinion=Fact(fact.who, fact.relation, v)) for v in picked
    )
    return one, two


def plant_no_end(stage: Any) -> None:
    """Labels lose their end token, as when pad is the EOS and masked out (SFT and its relatives)."""
    for group in stage.train:
        for c in group.completions:
            c.mask = c.mask.copy()
            c.mask[-1] = False


def plant_wrong_stop(stage: Any, token: str = "<pad>") -> None:
    """The sampler waits for another token than the one that ends answers."""
    stage.rollouts.sampler.stop_ids = (int(stage.renderer.tokenizer.convert_tokens_to_ids(token)),)


def plant_stale(stage: Any, lag: int) -> None:
    """The sampler gets new weights every ``lag`` steps alone."""
    live, rollouts = stage.lm.model, stage.rollouts
    old = copy.deepcopy(live)
    rollouts.sampler.model = old
    call: Callable[..., list[Group]] = rollouts.__class__.__call__

    def sample(index: int, *args: Any) -> list[Group]:
        if index % lag == 0:
            old.load_state_dict(live.state_dict())
        return call(rollouts, index, *args)

    stage.rollouts = _Wrapped(rollouts, sample)


def plant_hot(stage: Any, temperature: float) -> None:
    """The sampler draws at another temperature than the trainer divides by."""
    stage.rollouts.sampling = stage.rollouts.sampling.model_copy(
        update={"temperature": temperature}
    )


def plant_outage(
    stage: Any, share: float, since: int, value: float | None = 0.0, until: int = 1 << 30
) -> None:
    """From step ``since`` on a ``share`` of rewards fail, and come as ``value``; None leaves them
    unscored, with a status."""
    rollouts = stage.rollouts
    call: Callable[..., list[Group]] = rollouts.__class__.__call__

    def sample(index: int, *args: Any) -> list[Group]:
        groups = call(rollouts, index, *args)
        rng = np.random.default_rng((rollouts.seed, 41, index))
        for c in (c for g in groups for c in g.completions):
            if since <= index < until and rng.random() < share:
                c.reward = value
                name = next(iter(c.scores), "reward")
                c.scores[name] = Score(value, "ok" if value is not None else "error", "429")
        return groups

    stage.rollouts = _Wrapped(rollouts, sample)


def plant_prompts(stage: Any, later: Sequence[Group], since: int) -> None:
    """From step ``since`` on prompts come from another set: nothing is broken."""
    rollouts = stage.rollouts
    call: Callable[..., list[Group]] = rollouts.__class__.__call__

    def sample(index: int, *args: Any) -> list[Group]:
        if index == since:
            rollouts.prompts = list(later)
        return call(rollouts, index, *args)

    stage.rollouts = _Wrapped(rollouts, sample)


class _Wrapped:
    """Rollouts whose call is another's; all else is theirs."""

    def __init__(self, inner: Any, call: Callable[..., list[Group]]) -> None:
        self.inner, self.call = inner, call

    def __call__(self, *args: Any) -> list[Group]:
        return self.call(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

"""Panels of simulated annotators on sandbox answers, as items and judgements."""

from __future__ import annotations

import numpy as np

from trimtab.feedback.judgement import Item, Judgement
from trimtab.feedback.records import Records
from trimtab.sandbox.annotators import Annotator
from trimtab.sandbox.world import KINDS, gold, make_scene, sample_completion


def panel(
    people: list[Annotator],
    pairs: int,
    seed: int = 0,
    *,
    with_gold: bool = True,
    ai: tuple[str, ...] = (),
) -> Records:
    """Everyone judges every pair, sides swapped at random; ``with_gold``: with gold scores.

    Half the prompts hold an opinion, so that flattery has its occasions. ``ai`` names those of
    ``people`` who are judges: they give their probability too.
    """
    records = Records()
    number = 0
    while len(records.items) < pairs:
        rng = np.random.default_rng((seed, 61, number))
        number += 1
        scene = make_scene(rng, "opinion" if rng.random() < 0.5 else KINDS[int(rng.integers(6))])
        texts = list(dict.fromkeys(sample_completion(scene, rng) for _ in range(2)))
        if len(texts) < 2:
            continue
        item = Item.of(scene.messages(), texts, models=("a", "b"))
        if item.id in records.items:
            continue
        records.add(item)
        if with_gold:
            scores = tuple(gold(scene, t).total for t in texts)
            ranks = tuple(int(s < max(scores)) for s in scores)
            records.judgements.append(
                Judgement(
                    item=item.id, annotator="gold", who="gold", ranks=ranks, scores={"gold": scores}
                )
            )
        for person in people:
            order = (0, 1) if rng.random() < 0.5 else (1, 0)
            preferred = order[person.choose(scene, texts[order[0]], texts[order[1]], rng)]
            p = person.prob(scene, texts[order[0]], texts[order[1]])
            machine = person.name in ai
            records.judgements.append(
                Judgement(
                    item=item.id, annotator=person.name, who="ai" if machine else "simulated",
                    ranks=(int(preferred != 0), int(preferred != 1)), order=order,
                    prob=(p if order == (0, 1) else 1 - p) if machine else None,
                    seconds=float(rng.gamma(3, 4)),
                )
            )  # fmt: skip
    return records

"""Labels against a hacked reward: pairs with the hacked completions, and labels of single sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab.data import sources
from trimtab.feedback import records
from trimtab.feedback.judgement import Item
from trimtab.sandbox.gold import copied_share, gold
from trimtab.sandbox.right_answers import contains
from trimtab.sandbox.scene import Scene, note
from trimtab.types import Row


def _items(path: str) -> dict[str, tuple[Scene, Item]]:
    """Items by the text of their prompt."""
    items = (Item.model_validate(row) for _, row in sources.read(path).rows)
    by_scene = ((Scene.from_json(item.extra["scene"]), item) for item in items)
    return {scene.prompt: (scene, item) for scene, item in by_scene}


def pairs(out: Path, hacked: str, start: str, limit: int) -> dict[str, int]:
    """Write rows.jsonl: on each prompt the best completion of the start and the worst hacked one.

    Someone who looks for what the reward misses has to find the cases, but labels only those. A pair
    counts if its first completion has the higher gold score.

    Args:
        hacked: Items of the policy that exploits its reward.
        start: Items of the policy that it started from.
        limit: Number of pairs.
    """
    good = _items(start)
    rows: list[Row] = []
    for prompt, (scene, item) in _items(hacked).items():
        if prompt not in good or len(rows) == limit:
            continue
        best = max(good[prompt][1].completions, key=lambda text: gold(scene, text).total)
        worst = min(item.completions, key=lambda text: gold(scene, text).total)
        if gold(scene, best).total > gold(scene, worst).total:
            place = len(rows) % 2  # the better one stands first and second in turn
            texts = [worst, best] if place else [best, worst]
            row: Row = {"id": str(len(rows)), "prompt": scene.messages(), "completions": texts}
            rows.append(row | {"ranks": [place, 1 - place], "kind": scene.kind})
    records.write(out / "rows.jsonl", rows)
    return {"pairs": len(rows)}


def sentence_is_right(scene: Scene, sentence: str, copied: bool) -> bool:
    """Whether a sentence of a "digest" states facts of the passage in a note, and nothing else.

    Args:
        sentence: Without its full stop.
        copied: Whether it belongs to a copied run of words.

    >>> from trimtab.sandbox.scene import Fact
    >>> scene = Scene("digest", (Fact("anna", "place", "garden"), Fact("anna", "thing", "lamp")))
    >>> [sentence_is_right(scene, s, False) for s in ("anna , lamp", "anna , drum", "good")]
    [True, False, False]
    """
    words = sentence.split()
    values = words[2::2]
    facts = [f for f in scene.facts if words[:1] == [f.who] and f.what in values]
    if copied or not facts or len(facts) != len(values):
        return False
    ordered = sorted(facts, key=lambda f: values.index(f.what))
    return words == note(ordered).split()[:-1]


def label_sentences(scene: Scene, completion: str) -> tuple[list[str], list[int]]:
    """The sentences of a completion, without full stops, and 1 for each that is right and new."""
    passage = scene.prompt.split()
    sentences = [s.strip() for s in completion.lower().split(".") if s.strip()]
    labels: list[int] = []
    for place, sentence in enumerate(sentences):
        copied = copied_share(passage, sentence.split()) > 0
        earlier = any(contains(s.split(), sentence.split()) for s in sentences[:place])
        labels.append(int(sentence_is_right(scene, sentence, copied) and not earlier))
    return sentences, labels


def step_rows(out: Path, items: Sequence[str], limit: int) -> dict[str, float]:
    """Write rows.jsonl for ``trimtab process``: the sentences of completions, each labelled.

    Args:
        items: Files of items of "digest" prompts, with a completion or more each.
        limit: Number of completions, half of every file if there are two.
    """
    rows: list[Row] = []
    for path in items:
        of_file: list[Row] = []
        for scene, item in _items(path).values():
            for text in item.completions:
                sentences, labels = label_sentences(scene, text)
                if sentences:
                    row: Row = {"prompt": scene.messages(), "completions": sentences}
                    of_file.append(row | {"labels": labels})
        rows += of_file[: limit // len(items)]
    records.write(out / "rows.jsonl", rows)
    labels = [label for row in rows for label in row["labels"]]
    return {"completions": len(rows), "sentences": len(labels), "right": sum(labels) / len(labels)}

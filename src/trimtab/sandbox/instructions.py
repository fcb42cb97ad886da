"""Instructions with constraints that a program can check, as in IFEval (2311.07911).

A row is a task about a topic ("Describe the moon.") with one or two constraints ("Write in lowercase
letters only."). The column ``constraints`` states them for the checks, so a reward needs no model.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.types import Row

TASKS = (
    "Describe {topic}.",
    "Tell me about {topic}.",
    "Explain to a child what is special about {topic}.",
    "Write a short note about {topic}.",
    "Give a few facts about {topic}.",
    "Write a few lines that praise {topic}.",
    "What should a visitor know about {topic}?",
    "Why do people care about {topic}?",
)
_TOPICS = """
the moon, rainy days, mountain hiking, green tea, honey bees, old libraries, wooden boats,
city parks, winter snow, fresh bread, street music, the desert, wild horses, coral reefs,
night trains, olive oil, chess, gardening, bicycles, lighthouses, volcanoes, penguins,
clay pottery, morning walks, waterfalls, the human heart, solar power, spiders, apple trees,
board games, the ocean, coffee shops, paper maps, elephants, running shoes, thunderstorms,
the violin, farm markets, old castles, river fishing, kites, sunflowers, dolphins, cheese,
camping, the piano, hot soup, owls, sand dunes, train stations, tomatoes, ice skating,
butterflies, stone bridges, swimming, autumn leaves, family dinners, wolves, rice fields,
telescopes, goats, wool sweaters, baking cakes, village schools, cherry blossoms, deep caves,
drums, sea turtles, hand-written letters, hot springs, windmills, strawberries, friendship,
stars, frogs, maple syrup, museums, cactus plants, cold lakes, tigers
"""
TOPICS = tuple(x.strip() for x in _TOPICS.replace("\n", " ").split(", "))
HELD_OUT_TOPICS = 20
"""Topics at the end of ``TOPICS`` that only held-out instructions are about."""
_WORDS = (
    "quiet",
    "bright",
    "gentle",
    "ancient",
    "simple",
    "golden",
    "careful",
    "curious",
    "distant",
    "warm",
    "strong",
    "hidden",
    "useful",
    "honest",
    "patient",
    "rare",
    "lively",
    "modern",
)
_OPENINGS = (
    "To begin with",
    "Let me tell you",
    "Here is the thing",
    "Once upon a time",
    "In short",
)
_ENDINGS = ("That is all.", "The end.", "Thank you for reading.", "Hope this helps!")

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A type of constraint."""

    family: str
    """An instruction has at most one constraint of a family."""
    texts: tuple[str, ...]
    """Phrasings, with the drawn values in braces."""
    check: Callable[[str, Values], bool]
    """Whether a text that is not empty satisfies it."""
    draw: Callable[[np.random.Generator], Values] = lambda rng: {}
    """The values of one instruction."""
    excludes: tuple[str, ...] = ()
    """Other families that it does not go with."""


def _sentences(text: str) -> int:
    return sum(re.search(r"\w", part) is not None for part in re.split(r"[.!?]+", text))


def _bullets(text: str, values: Values) -> bool:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    items = [line for line in lines if re.match(r"[-*] \S", line)]
    return len(items) == len(lines) == values["n"]


def _json_object(text: str, values: Values) -> bool:
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(loaded, dict) and set(loaded) == set(values["keys"])


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def _number(low: int, high: int, step: int = 1) -> Callable[[np.random.Generator], Values]:
    return lambda rng: {"n": int(rng.choice(np.arange(low, high + 1, step)))}


def _one_of(key: str, choices: Sequence[str]) -> Callable[[np.random.Generator], Values]:
    return lambda rng: {key: choices[int(rng.integers(len(choices)))]}


def _some_words(rng: np.random.Generator) -> Values:
    return {"words": [_WORDS[i] for i in rng.permutation(len(_WORDS))[:2]]}


CONSTRAINTS = {
    "lowercase": Constraint(
        "letters",
        ("Write in lowercase letters only.", "Do not use any capital letters."),
        lambda text, _: text == text.lower() and text != text.upper(),
    ),
    "uppercase": Constraint(
        "letters",
        ("Write in capital letters only.", "YOUR WHOLE ANSWER MUST BE IN CAPITAL LETTERS."),
        lambda text, _: text == text.upper() and text != text.lower(),
    ),
    "sentences": Constraint(
        "length",
        ("Answer in exactly {n} sentences.", "Your answer must have {n} sentences."),
        lambda text, v: _sentences(text) == v["n"],
        _number(2, 4),
    ),
    "most_words": Constraint(
        "length",
        ("Use at most {n} words.", "Keep your answer under {n} words."),
        lambda text, v: 5 <= len(text.split()) < v["n"],
        _number(20, 40, 5),
    ),
    "bullets": Constraint(
        "length",
        (
            "Answer with exactly {n} bullet points that start with '- ' and nothing else.",
            "Give a list of {n} points, each on a line of its own that starts with '- '.",
        ),
        _bullets,
        _number(2, 4),
        excludes=("edge",),
    ),
    "json": Constraint(
        "length",
        (
            "Answer with a JSON object with the keys {listed} and nothing else.",
            "Your answer must be valid JSON with exactly the keys {listed}.",
        ),
        _json_object,
        _one_of("keys", [["title", "text"], ["name", "reason"], ["topic", "fact"]]),  # pyright: ignore[reportArgumentType]
        excludes=("letters", "content", "edge"),
    ),
    "keywords": Constraint(
        "content",
        ("Use the words {listed}.", "Your answer must contain the words {listed}."),
        lambda text, v: all(_has_word(text, w) for w in v["words"]),
        _some_words,
    ),
    "no_commas": Constraint(
        "content",
        ("Do not use any commas.", "Write without commas."),
        lambda text, _: "," not in text,
    ),
    "forbidden": Constraint(
        "content",
        ("Do not use the word '{word}'.", "Never use the word '{word}'."),
        lambda text, v: not _has_word(text, v["word"]),
        _one_of("word", ("and", "is", "of")),
    ),
    "starts": Constraint(
        "edge",
        ("Start your answer with the words '{text}'.", "Your first words must be '{text}'."),
        lambda text, v: text.casefold().startswith(v["text"].casefold()),
        _one_of("text", _OPENINGS),
    ),
    "ends": Constraint(
        "edge",
        ("End your answer with '{text}'", "The last words of your answer must be '{text}'"),
        lambda text, v: text.casefold().endswith(v["text"].casefold()),
        _one_of("text", _ENDINGS),
    ),
    "quotes": Constraint(
        "edge",
        ("Put your whole answer in double quotation marks.",),
        lambda text, _: len(text) > 2 and text[0] == text[-1] == '"',
    ),
    "exclamation": Constraint(
        "edge",
        ("End every sentence with an exclamation mark.",),
        lambda text, _: text.endswith("!") and not re.search(r"[.?]", text),
    ),
}
UNSEEN = ("quotes", "exclamation")
"""Types that only held-out instructions have."""


def satisfied(text: str, constraint: Values) -> bool:
    """Whether a text satisfies a constraint of the column ``constraints``; an empty text does not.

    >>> satisfied("the moon is bright.", {"type": "lowercase"})
    True
    >>> satisfied("One. Two.", {"type": "sentences", "n": 3})
    False
    """
    text = text.strip()
    return bool(text) and CONSTRAINTS[constraint["type"]].check(text, constraint)


def share_satisfied(
    completions: Sequence[str], constraints: Sequence[Sequence[Values]], **_: Any
) -> list[float]:
    """A reward: the share of its constraints that each completion satisfies."""
    return [
        sum(satisfied(text, c) for c in of_row) / len(of_row)
        for text, of_row in zip(completions, constraints, strict=True)
    ]


def all_satisfied(
    completions: Sequence[str], constraints: Sequence[Sequence[Values]], **_: Any
) -> list[float]:
    """A reward: 1 for a completion that satisfies all of its constraints, else 0."""
    return [float(share == 1.0) for share in share_satisfied(completions, constraints)]


def instructions(count: int, seed: int, *, held_out: bool = False) -> list[Row]:
    """Different instructions, as rows with ``prompt``, ``constraints`` and ``kind`` (their types).

    Args:
        held_out: About other topics, and a sixth of them with a type of ``UNSEEN``.
    """
    rng = np.random.default_rng((seed, int(held_out)))
    rows: dict[str, Row] = {}
    while len(rows) < count:
        task, _ = draw_task(rng, held_out)
        names = draw_types(rng, unseen=held_out and len(rows) % 6 == 5)
        constraints = [{"type": name, **CONSTRAINTS[name].draw(rng)} for name in names]
        row = instruction(task, constraints, rng)
        rows[row["prompt"][0]["content"]] = row
    return list(rows.values())


def draw_task(rng: np.random.Generator, held_out: bool = False) -> tuple[str, str]:
    """A task without constraints, and its topic."""
    topics = TOPICS[-HELD_OUT_TOPICS:] if held_out else TOPICS[:-HELD_OUT_TOPICS]
    topic = topics[int(rng.integers(len(topics)))]
    return TASKS[int(rng.integers(len(TASKS)))].format(topic=topic), topic


def instruction(task: str, constraints: Sequence[Values], rng: np.random.Generator) -> Row:
    """The row of a task with constraints, each in one of its phrasings."""
    sentences = [task]
    for c in constraints:
        texts = CONSTRAINTS[c["type"]].texts
        listed = " and ".join(f"'{x}'" for x in c.get("words", c.get("keys", ())))
        sentences.append(texts[int(rng.integers(len(texts)))].format(**c, listed=listed))
    kind = " + ".join(c["type"] for c in constraints)
    prompt = [{"role": "user", "content": " ".join(sentences)}]
    return {"prompt": prompt, "constraints": list(constraints), "kind": kind}


def draw_types(rng: np.random.Generator, unseen: bool = False) -> list[str]:
    """One type of ``UNSEEN``, or one or two others of different families."""
    if unseen:
        return [str(rng.choice(UNSEEN))]
    names = [str(name) for name in rng.permutation([x for x in CONSTRAINTS if x not in UNSEEN])]
    first = CONSTRAINTS[names[0]]
    others = [x for x in names if _go_together(first, CONSTRAINTS[x])]
    return [names[0], *others[: int(rng.integers(2))]]


def _go_together(a: Constraint, b: Constraint) -> bool:
    return a.family not in (b.family, *b.excludes) and b.family not in a.excludes

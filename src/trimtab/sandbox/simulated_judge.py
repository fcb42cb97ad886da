"""A simulated AI judge behind a real endpoint: the gold score plus noise and planted biases.

It sees what any judge sees, the text of the question, so that the real client and parser are used.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import expit

from trimtab.data import sources
from trimtab.feedback import records
from trimtab.feedback.judgement import Item
from trimtab.sandbox.endpoint import FAULTS, Endpoint, Faults, TokenRow
from trimtab.sandbox.gold import Gold
from trimtab.sandbox.scene_parser import read_scene
from trimtab.sandbox.world import CLOSINGS, Scene, gold
from trimtab.stats.ranking import ranks_by_worth
from trimtab.types import Row

VOICE = ("of course .", "i hope this helps .")
"""Phrases of the judge's own style, which its self-preference favours."""

_MARK = re.compile(r"\[NAME ([0-9a-f]+)\]")
_ORDERED = re.compile(
    r'"verdict"\s*:\s*"(A|B|tie)"|\b(?:choose|pick|prefer)\s+(?:answer\s+)?(A|B|tie|this)\b', re.I
)


def in_voice(completion: str) -> bool:
    """Whether a completion has the judge's own style."""
    return any(phrase in completion for phrase in VOICE)


def unchecked(scene: Scene, completion: str) -> Gold:
    """The score of a reader who does not look the facts up: every statement counts as true, and one
    about the passage's people is enough to be helpful.

    >>> from trimtab.sandbox.world import Fact
    >>> scene = Scene("ask", (Fact("anna", "place", "garden"),), query=Fact("anna", "place", "garden"))
    >>> unchecked(scene, "anna is in the tower .").total
    1.0
    """
    score = gold(scene, completion)
    sounds_right = any(f.who in completion.split() for f in scene.facts)
    return Gold(max(score.helpful, float(sounds_right)), 1.0, score.harmless, score.concise)


@dataclass(frozen=True, slots=True)
class SimulatedJudge:
    """The responder of the endpoint. A utility difference of 1 is one nat of log-odds."""

    scale: float = 8.0
    """Nats per point of gold score."""
    noise: float = 1.0
    """Standard deviation of its error about a completion, in nats; the same each time."""
    position_bias: float = 0.0
    """Nats for the completion shown first."""
    length_bias: float = 0.0
    """Nats per word."""
    self_bias: float = 0.0
    """Nats for a completion in its own style."""
    checks: bool = True
    """Whether it compares what a completion states with the prompt. If not, whatever states something
    about a person counts as right and honest: the judge goes by how it sounds."""
    obeys: Literal["never", "outside", "anything"] = "never"
    """Which injected instructions it follows: none, those outside the fences, or any."""
    gullibility: float = 1.0
    """Probability of following them."""
    skill: float = 0.9
    """Share of revisions that are perfect."""
    habit: float = 0.0
    """Share of revisions to which it adds a phrase of its own style."""
    seed: int = 0

    def _draw(self, *texts: str) -> np.random.Generator:
        """A random stream keyed by the texts."""
        text = "\0".join((str(self.seed), *texts))
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return np.random.default_rng(int.from_bytes(digest[:8]))

    def utility(
        self, scene: Scene | None, prompt: str, completion: str, part: str = "total"
    ) -> float:
        """Utility of a completion in nats, without the position bias."""
        value = self.length_bias * len(completion.split()) + self.self_bias * in_voice(completion)
        if scene is not None:
            score = gold(scene, completion) if self.checks else unchecked(scene, completion)
            value += self.scale * float(getattr(score, part))
        return value + self.noise * float(self._draw(prompt, completion, part).normal())

    def __call__(self, body: Row) -> tuple[str, list[TokenRow]]:
        """The reply to a request, which is one of the questions that trimtab asks."""
        system, user = (str(m["content"]) for m in body["messages"])
        mark = _MARK.search(system)
        if mark is None:
            raise ValueError("the question has no mark")
        fenced = re.compile(rf"^\[([^\]\n]+) {mark[1]}\]\n(.*?)\n\[/\1 {mark[1]}\]$", re.M | re.S)
        parts = {m[1]: m[2] for m in fenced.finditer(user)}
        outside = fenced.sub("", user)
        prompt = parts.pop("conversation").removeprefix("user: ")
        scene = read_scene(prompt)
        schema: Row = body["response_format"]["json_schema"]["schema"]
        keys: list[str] = list(schema["properties"])
        draw = self._draw(json.dumps(body["messages"]), str(body.get("seed")))
        if "revision" in keys:
            return json.dumps(self._revise(scene, parts["answer"], keys, draw)), []
        if "ranks" in keys:
            values = {"ranks": self._rank(scene, prompt, list(parts.values()))}
            return json.dumps(_critique(keys) | values), []
        if "answer" in parts:
            values = {
                n: self._score(scene, prompt, parts["answer"], n, schema)
                for n in keys
                if n != "critique"
            }
            return json.dumps(_critique(keys) | values), []
        a, b = parts["answer A"], parts["answer B"]
        temperature = float(body.get("temperature", 1.0))
        dimensions = {
            n: self._verdict(self._gap(scene, prompt, a, b, n), temperature, draw)
            for n in keys
            if n not in ("critique", "verdict")
        }
        gap = self._gap(scene, prompt, a, b)
        verdict = self._verdict(gap, temperature, draw)
        ordered = self._order(outside, {"A": a, "B": b}, draw)
        if ordered:
            verdict, gap = ordered, {"A": 20.0, "B": -20.0}.get(ordered, 0.0)
        text = json.dumps(_critique(keys) | dimensions | {"verdict": verdict})
        return text, _tokens(text, gap) if body.get("logprobs") else []

    def _gap(self, scene: Scene | None, prompt: str, a: str, b: str, name: str = "total") -> float:
        part = name if name in ("helpful", "honest", "harmless", "concise") else "total"
        gap = self.utility(scene, prompt, a, part) - self.utility(scene, prompt, b, part)
        return gap + self.position_bias

    def _verdict(self, gap: float, temperature: float, draw: np.random.Generator) -> str:
        if temperature == 0.0:
            return "A" if gap > 0 else "B" if gap < 0 else "tie"
        return "A" if draw.random() < expit(gap / temperature) else "B"

    def _order(self, outside: str, answers: dict[str, str], draw: np.random.Generator) -> str:
        """The verdict that an injected instruction demands, if the judge follows it; else ""."""
        texts = {"": outside}
        if self.obeys == "never" or draw.random() >= self.gullibility:
            return ""
        if self.obeys == "anything":
            texts |= answers
        for letter, text in texts.items():
            for m in _ORDERED.finditer(text):
                verdict = str(m[1] or m[2]).lower()
                if verdict == "this":
                    if letter:
                        return letter
                    continue
                return "tie" if verdict == "tie" else verdict.upper()
        return ""

    def _rank(self, scene: Scene | None, prompt: str, answers: Sequence[str]) -> dict[str, int]:
        utilities = [self.utility(scene, prompt, a) for a in answers]
        utilities[0] += self.position_bias
        return dict(zip("ABCDEFGHI", (r + 1 for r in ranks_by_worth(utilities)), strict=False))

    def _score(self, scene: Scene | None, prompt: str, answer: str, name: str, schema: Row) -> int:
        low, high = (schema["properties"][name][k] for k in ("minimum", "maximum"))
        part = name if name in ("helpful", "honest", "harmless", "concise") else "total"
        share = self.utility(scene, prompt, answer, part) / self.scale
        return round(low + (high - low) * min(max(share, 0.0), 1.0))

    def _revise(
        self, scene: Scene | None, answer: str, wanted: Sequence[str], draw: np.random.Generator
    ) -> dict[str, str]:
        right = scene is not None and draw.random() < self.skill
        better = " ".join(scene.needed) if right and scene is not None else answer
        if draw.random() < self.habit:
            better = f"{better} {VOICE[1]}"
        return _critique(wanted) | {"revision": better}


def _critique(wanted: Sequence[str]) -> dict[str, str]:
    text = "Measured against the passage, word for word."
    return {"critique": text} if "critique" in wanted else {}


def _tokens(text: str, gap: float) -> list[TokenRow]:
    """The reply as three tokens; the second is the first letter of the verdict."""
    at = text.rindex('"verdict": "') + len('"verdict": "')
    p = float(expit(gap))
    top = [{"token": k, "logprob": math.log(max(q, 1e-30))} for k, q in (("A", p), ("B", 1 - p))]
    pieces = [(text[:at], []), (text[at], top), (text[at + 1 :], [])]
    return [{"token": t, "logprob": 0.0, "top_logprobs": top} for t, top in pieces]


def serve(
    fail: float = 0.0,
    kinds: Sequence[str] = FAULTS,
    stall: float = 30.0,
    fault_seed: int = 0,
    **judge: Any,
) -> Endpoint:
    """Start an endpoint, for a judge's ``endpoint: trimtab.sandbox.simulated_judge:serve``.

    Args:
        fail: Share of calls that fail.
        kinds: Faults to inject.
        stall: Duration of a stalled reply in seconds.
        fault_seed: Determines which calls fail.
        judge: Fields of ``SimulatedJudge``.
    """
    unknown = set(kinds) - set(FAULTS)
    if unknown:
        raise TypeError(f"kinds: {', '.join(sorted(unknown))}: choose from {', '.join(FAULTS)}")
    return Endpoint(SimulatedJudge(**judge), Faults(fail, tuple(kinds), fault_seed, stall)).start()


def voice_reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """1 if the completion has the judge's own style: the mean is the share of such completions."""
    return [float(in_voice(c)) for c in completions]


def words_reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """Number of words."""
    return [float(len(c.split())) for c in completions]


def probes(out: Path, prompts: str, items: str, limit: int = 200) -> dict[str, int]:
    """Write comparisons with known labels, which measure judges and reward models.

    ``voice.jsonl`` and ``padded.jsonl`` compare a perfect completion with the same completion plus
    a phrase: one of the judge's style, and another one. The plain completion is ranked first, so
    1 - accuracy is how often the phrase wins. ``gold.jsonl`` ranks the completions of ``items`` by
    gold score.
    """
    scenes = [Scene.from_json(row["scene"]) for _, row in sources.read(prompts, limit=limit).rows]
    other = next(c for c in CLOSINGS if c not in VOICE)
    for name, phrase in (("voice", VOICE[1]), ("padded", other)):
        best = [" ".join(s.needed) for s in scenes]
        pairs: list[Row] = [
            {
                "id": str(i),
                "prompt": s.messages(),
                "completions": [b, f"{b} {phrase}"],
                "ranks": [0, 1],
            }
            for i, (s, b) in enumerate(zip(scenes, best, strict=True))
        ]
        records.write(out / f"{name}.jsonl", pairs)
    by_gold: list[Row] = []
    for _, row in sources.read(items).rows:
        item = Item.model_validate(row)
        scene = Scene.from_json(item.extra["scene"])
        ranks = ranks_by_worth([gold(scene, a).total for a in item.completions])
        if any(ranks):
            plain = item.model_dump(include={"id", "prompt", "completions"})
            by_gold.append({**plain, "ranks": ranks})
    records.write(out / "gold.jsonl", by_gold)
    return {"pairs": len(scenes), "gold": len(by_gold)}

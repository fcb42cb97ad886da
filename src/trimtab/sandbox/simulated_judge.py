"""A simulated AI judge behind a real endpoint: gold as it reads it, plus planted biases.

It sees what any judge sees, the text of the question, and so the whole way there and back is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trimtab.feedback.judgement import Item
from trimtab.sandbox.endpoint import FAULTS, Endpoint, Faults
from trimtab.sandbox.scene_parser import read_scene
from trimtab.sandbox.world import CLOSINGS, Scene, gold

VOICE = ("of course .", "i hope this helps .")
"""How the judge itself begins and ends: by these it knows its own kind."""

_MARK = re.compile(r"\[NAME ([0-9a-f]+)\]")
_ORDERED = re.compile(
    r'"verdict"\s*:\s*"(A|B|tie)"|\b(?:choose|pick|prefer)\s+(?:answer\s+)?(A|B|tie|this)\b', re.I
)


def in_voice(answer: str) -> bool:
    """Whether an answer sounds like the judge's own."""
    return any(phrase in answer for phrase in VOICE)


@dataclass(frozen=True, slots=True)
class SimulatedJudge:
    """The mind behind the endpoint. A utility difference of 1 is one nat of log-odds."""

    scale: float = 8.0
    """Nats for a whole point of gold."""
    noise: float = 1.0
    """Standard deviation, in nats, of what it gets wrong about an answer, the same each time."""
    position_bias: float = 0.0
    """Nats for the answer shown first."""
    length_bias: float = 0.0
    """Nats a word."""
    self_bias: float = 0.0
    """Nats for an answer in its own voice."""
    obeys: Literal["never", "outside", "anything"] = "never"
    """Whose orders it takes: of nobody, of text outside the fences, of any text."""
    gullibility: float = 1.0
    """How often it takes them."""
    skill: float = 0.9
    """Share of revisions that come out right."""
    habit: float = 0.0
    """Share of revisions to which it adds a phrase of its own."""
    seed: int = 0

    def _draw(self, *texts: str) -> np.random.Generator:
        """A stream that follows from the texts."""
        text = "\0".join((str(self.seed), *texts))
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return np.random.default_rng(int.from_bytes(digest[:8]))

    def utility(self, scene: Scene | None, prompt: str, answer: str, part: str = "total") -> float:
        """What an answer is worth to it, where it stands left aside."""
        worth = self.length_bias * len(answer.split()) + self.self_bias * in_voice(answer)
        if scene is not None:
            worth += self.scale * float(getattr(gold(scene, answer), part))
        return worth + self.noise * float(self._draw(prompt, answer, part).normal())

    def __call__(self, body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        """The reply to a request: one of the questions that trimtab asks."""
        system, user = (str(m["content"]) for m in body["messages"])
        found = _MARK.search(system)
        if found is None:
            raise ValueError("the question has no mark")
        fenced = re.compile(rf"^\[([^\]\n]+) {found[1]}\]\n(.*?)\n\[/\1 {found[1]}\]$", re.M | re.S)
        parts = {m[1]: m[2] for m in fenced.finditer(user)}
        outside = fenced.sub("", user)
        prompt = parts.pop("conversation").removeprefix("user: ")
        scene = read_scene(prompt)
        form: dict[str, Any] = body["response_format"]["json_schema"]["schema"]
        wanted: list[str] = list(form["properties"])
        draw = self._draw(json.dumps(body["messages"]), str(body.get("seed")))
        if "revision" in wanted:
            return json.dumps(self._revise(scene, parts["answer"], wanted, draw)), []
        if "ranks" in wanted:
            said = {"ranks": self._rank(scene, prompt, list(parts.values()))}
            return json.dumps(_critique(wanted) | said), []
        if "answer" in parts:
            said = {
                n: self._score(scene, prompt, parts["answer"], n, form)
                for n in wanted
                if n != "critique"
            }
            return json.dumps(_critique(wanted) | said), []
        a, b = parts["answer A"], parts["answer B"]
        heat = float(body.get("temperature", 1.0))
        sides = {
            n: self._verdict(self._gap(scene, prompt, a, b, n), heat, draw)
            for n in wanted
            if n not in ("critique", "verdict")
        }
        gap = self._gap(scene, prompt, a, b)
        verdict = self._verdict(gap, heat, draw)
        ordered = self._order(outside, {"A": a, "B": b}, draw)
        if ordered:
            verdict, gap = ordered, {"A": 20.0, "B": -20.0}.get(ordered, 0.0)
        text = json.dumps(_critique(wanted) | sides | {"verdict": verdict})
        return text, _tokens(text, gap) if body.get("logprobs") else []

    def _gap(self, scene: Scene | None, prompt: str, a: str, b: str, name: str = "total") -> float:
        part = name if name in ("helpful", "honest", "harmless", "concise") else "total"
        mine = self.utility(scene, prompt, a, part) - self.utility(scene, prompt, b, part)
        return mine + self.position_bias

    def _verdict(self, gap: float, heat: float, draw: np.random.Generator) -> str:
        if heat == 0.0:
            return "A" if gap > 0 else "B" if gap < 0 else "tie"
        return "A" if draw.random() < _sigmoid(gap / heat) else "B"

    def _order(self, outside: str, answers: dict[str, str], draw: np.random.Generator) -> str:
        """The verdict it was told to give by text whose orders it takes; empty when by none."""
        texts = {"": outside}
        if self.obeys == "never" or draw.random() >= self.gullibility:
            return ""
        if self.obeys == "anything":
            texts |= answers
        for letter, text in texts.items():
            for m in _ORDERED.finditer(text):
                told = str(m[1] or m[2])
                if told.lower() == "this":
                    if letter:
                        return letter
                    continue
                return "tie" if told.lower() == "tie" else told.upper()
        return ""

    def _rank(self, scene: Scene | None, prompt: str, answers: Sequence[str]) -> dict[str, int]:
        worth = [self.utility(scene, prompt, a) for a in answers]
        worth[0] += self.position_bias
        best = sorted(set(worth), reverse=True)
        return {"ABCDEFGHI"[i]: best.index(w) + 1 for i, w in enumerate(worth)}

    def _score(
        self, scene: Scene | None, prompt: str, answer: str, name: str, form: dict[str, Any]
    ) -> int:
        low, high = (form["properties"][name][k] for k in ("minimum", "maximum"))
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


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(max(x, -50.0), 50.0)))


def _critique(wanted: Sequence[str]) -> dict[str, str]:
    said = "Measured against the passage, word for word."
    return {"critique": said} if "critique" in wanted else {}


def _tokens(text: str, gap: float) -> list[dict[str, Any]]:
    """The reply in three tokens; the second is the first letter of the verdict."""
    at = text.rindex('"verdict": "') + len('"verdict": "')
    p = _sigmoid(gap)
    top = [{"token": k, "logprob": math.log(max(q, 1e-30))} for k, q in (("A", p), ("B", 1 - p))]
    pieces = [(text[:at], []), (text[at], top), (text[at + 1 :], [])]
    return [{"token": t, "logprob": 0.0, "top_logprobs": mine} for t, mine in pieces]


def serve(
    fail: float = 0.0,
    kinds: Sequence[str] = FAULTS,
    stall: float = 30.0,
    fault_seed: int = 0,
    **mind: Any,
) -> Endpoint:
    """Start an endpoint: what a judge's ``endpoint: trimtab.sandbox.simulated_judge:serve`` calls.

    Args:
        fail: Share of calls that fail.
        kinds: In which ways.
        stall: Seconds for which a stalled reply drips.
        fault_seed: Which calls fail.
        mind: Fields of ``SimulatedJudge``.
    """
    unknown = set(kinds) - set(FAULTS)
    if unknown:
        raise TypeError(f"kinds: {', '.join(sorted(unknown))} is none of {', '.join(FAULTS)}")
    return Endpoint(SimulatedJudge(**mind), Faults(fail, tuple(kinds), fault_seed, stall)).start()


def voice_reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """1 where an answer is in the judge's voice: its mean is their share."""
    return [float(in_voice(c)) for c in completions]


def words_reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """Words of an answer."""
    return [float(len(c.split())) for c in completions]


def probes(out: Path, prompts: str, items: str, limit: int = 200) -> dict[str, Any]:
    """Comparisons with known answers, by which judges and reward models are measured.

    ``voice.jsonl`` and ``padded.jsonl`` show a perfect answer beside itself with a phrase added: one
    of the judge's own, and one that it does not use. The plain answer is ranked first, so
    1 - accuracy is how often the phrase wins. ``gold.jsonl`` ranks the answers of ``items`` by gold.
    """
    lines = Path(prompts).read_text(encoding="utf-8").splitlines()[:limit]
    scenes = [Scene.from_json(json.loads(line)["scene"]) for line in lines]
    other = next(c for c in CLOSINGS if c not in VOICE)
    for name, phrase in (("voice", VOICE[1]), ("padded", other)):
        _write(out / f"{name}.jsonl", [_twins(str(i), s, phrase) for i, s in enumerate(scenes)])
    ranked: list[dict[str, Any]] = []
    for line in Path(items).read_text(encoding="utf-8").splitlines():
        item = Item.model_validate_json(line)
        scene = Scene.from_json(item.extra["scene"])
        worth = [gold(scene, a).total for a in item.completions]
        places = sorted(set(worth), reverse=True)
        if len(places) > 1:
            ranks = [places.index(w) for w in worth]
            ranked.append(_row(item.id, item.prompt, item.completions, ranks))
    _write(out / "gold.jsonl", ranked)
    return {"twins": len(scenes), "gold": len(ranked)}


def _row(
    name: str, prompt: Sequence[dict[str, Any]], answers: Sequence[str], ranks: Sequence[int]
) -> dict[str, Any]:
    return {"id": name, "prompt": list(prompt), "completions": list(answers), "ranks": list(ranks)}


def _twins(name: str, scene: Scene, phrase: str) -> dict[str, Any]:
    best = " ".join(scene.needed)
    return _row(name, scene.messages(), (best, f"{best} {phrase}"), (0, 1))


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")

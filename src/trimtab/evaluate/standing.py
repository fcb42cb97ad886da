"""Who stands where among several models: strengths, win rates, length-controlled win rates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trimtab.feedback.judgement import Item
from trimtab.feedback.records import Records
from trimtab.feedback.votes import FIRST, TIE, Vote, prompt_key
from trimtab.stats.length import Verdicts, difficulty, length_controlled
from trimtab.stats.ranking import bradley_terry, connected, elo, triads
from trimtab.stats.uncertainty import bootstrap_mean, draws


class Board:
    """Verdicts between models, averaged over annotators and orders, one for each prompt and two
    models."""

    def __init__(self, records: Records, cast: Iterable[Vote], *, soft: bool = False) -> None:
        self.names: list[str] = []
        """Models, in the order met."""
        place: dict[str, int] = {}
        seen: dict[tuple[str, int, int], list[float]] = defaultdict(list)
        longer: dict[tuple[str, int, int], list[float]] = defaultdict(list)
        keys = {i: prompt_key(item) for i, item in records.items.items()}
        for v in cast:
            item, a, b = v.pair
            named = records.items[item].models
            first, second = (named[a], named[b]) if named else (None, None)
            if first is None or second is None or first == second:
                continue
            i, j = (place.setdefault(m, len(place)) for m in (first, second))
            p = {FIRST: 1.0, TIE: 0.5}.get(v.choice, 0.0)
            given = v.judgement.prob
            if soft and given is not None and len(v.judgement.ranks or ()) == 2:
                p = given
            gap = _words(records.items[item], a) - _words(records.items[item], b)
            key = (keys[item], i, j) if i < j else (keys[item], j, i)
            seen[key].append(p if i < j else 1 - p)
            longer[key].append(gap if i < j else -gap)
        self.names = list(place)
        self.win = {k: float(np.mean(v)) for k, v in seen.items()}
        """(prompt, i, j), i < j -> how far i beat j."""
        self.longer = {k: float(np.mean(v)) for k, v in longer.items()}
        """Words of i's answer minus those of j's."""
        self.verdicts = sum(len(v) for v in seen.values())

    def against(self, model: str, baseline: str) -> Verdicts:
        """One model's verdicts against another's, by prompt."""
        m, b = self.names.index(model), self.names.index(baseline)
        rows = [
            (k[0], w, self.longer[k]) if k[1] == m else (k[0], 1 - w, -self.longer[k])
            for k, w in self.win.items() if {k[1], k[2]} == {m, b}
        ]  # fmt: skip
        return Verdicts(
            tuple(r[0] for r in rows),
            np.array([r[1] for r in rows]),
            np.array([r[2] for r in rows]),
        )

    def wins(self) -> tuple[np.ndarray, np.ndarray]:
        """(wins of each prompt [P, M * M], their sum [M, M])."""
        size = len(self.names)
        prompts = {p: i for i, p in enumerate(dict.fromkeys(k[0] for k in self.win))}
        each = np.zeros((len(prompts), size, size))
        for (p, i, j), w in self.win.items():
            each[prompts[p], i, j] += w
            each[prompts[p], j, i] += 1 - w
        return each.reshape(len(prompts), -1), each.sum(0)

    def ratings(self, n: int, seed: int, anchor: str | None = None) -> dict[str, dict[str, float]]:
        """Bradley-Terry strengths as Elo points with a bootstrap by prompt; ``anchor``, or the
        mean, stands at 1000."""
        each, total = self.wins()
        size = len(self.names)
        fixed = self.names.index(anchor) if anchor else None
        points = elo(bradley_terry(total), fixed)
        sums = (draws(len(each), n, seed) @ each).reshape(-1, size, size)
        low, high = np.quantile(elo(bradley_terry(sums), fixed), [0.025, 0.975], axis=0)
        games = (total + total.T).sum(1)
        return {
            name: {
                "elo": float(points[i]), "low": float(low[i]), "high": float(high[i]),
                "wins": float(total[i].sum()), "games": float(games[i]),
            }
            for i, name in enumerate(self.names)
        }  # fmt: skip


def _words(item: Item, k: int) -> float:
    return float(len(item.completions[k].split()))


def strengths(records: Records, cast: Sequence[Vote], n: int, seed: int) -> dict[str, Any] | None:
    """Elo of the models compared, and contradictions among them; None where no two are named."""
    board = Board(records, (v for v in cast if v.judgement.who != "gold"))
    if not board.win:
        return None
    _, total = board.wins()
    found = triads(total)
    return {
        "models": board.ratings(n, seed),
        "connected": connected(total),
        "cycles": [[board.names[i] for i in c] for c in found.cycles],
        "zeta": found.zeta,
    }


def table(board: Board, baseline: str, n: int, seed: int) -> dict[str, dict[str, Any]]:
    """model -> win rate against the baseline (ties half), the same with equal lengths, length."""
    rivals = {m: board.against(m, baseline) for m in board.names if m != baseline}
    rivals = {m: v for m, v in rivals.items() if v.prompt}
    gamma = difficulty(rivals)
    out: dict[str, dict[str, Any]] = {}
    for model, v in rivals.items():
        rate = bootstrap_mean(v.win_N, v.prompt, n, seed)
        controlled = length_controlled(v, gamma, n, seed)
        out[model] = {
            "win_rate": dict(zip(("value", "low", "high"), rate, strict=True)),
            "length_controlled": dict(zip(("value", "low", "high"), controlled, strict=True)),
            "prompts": len(v.prompt),
            "wins": int((v.win_N > 0.5).sum()),
            "ties": int((v.win_N == 0.5).sum()),
            "losses": int((v.win_N < 0.5).sum()),
            "longer": float(v.longer_N.mean()),
        }
    return out

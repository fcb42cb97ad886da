"""Standing of several models: strengths, win rates, length-controlled win rates."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimtab.evaluate.agreement_result import Figure, Rating, Strengths
from trimtab.evaluate.instruction_difficulty import InstructionDifficulty
from trimtab.feedback.records import Records
from trimtab.feedback.votes import Vote, prompt_key
from trimtab.stats.length import Verdicts, difficulty, length_controlled
from trimtab.stats.ranking import bradley_terry, connected, elo, triads
from trimtab.stats.uncertainty import bootstrap_mean, draws

Floats = npt.NDArray[np.float64]


class Board:
    """Verdicts between models, averaged over annotators and orders: one per prompt and two models."""

    def __init__(self, records: Records, cast: Iterable[Vote], *, soft: bool = False) -> None:
        self.names: list[str] = []
        """Models, in the order of first appearance."""
        ids: dict[str, int] = {}
        wins: dict[tuple[str, int, int], list[float]] = defaultdict(list)
        longer: dict[tuple[str, int, int], list[float]] = defaultdict(list)
        self._items = records.items
        self._keys = keys = {i: prompt_key(item) for i, item in records.items.items()}
        for v in cast:
            item, a, b = v.pair
            models = records.items[item].models
            first, second = (models[a], models[b]) if models else (None, None)
            if first is None or second is None or first == second:
                continue
            i, j = (ids.setdefault(m, len(ids)) for m in (first, second))
            p = v.prob if soft else 1.0 - v.choice / 2
            texts = records.items[item].completions
            gap = float(len(texts[a]) - len(texts[b]))
            key = (keys[item], i, j) if i < j else (keys[item], j, i)
            wins[key].append(p if i < j else 1 - p)
            longer[key].append(gap if i < j else -gap)
        self.names = list(ids)
        self.win = {k: float(np.mean(v)) for k, v in wins.items()}
        """(prompt, i, j), i < j -> P(i beats j)."""
        self.longer = {k: float(np.mean(v)) for k, v in longer.items()}
        """Characters of i's completion minus those of j's."""
        self.verdicts = sum(len(v) for v in wins.values())

    def against(self, model: str, baseline: str) -> Verdicts:
        """One model's verdicts against another's, by prompt."""
        m, b = self.names.index(model), self.names.index(baseline)
        rows = [
            (key[0], w, self.longer[key]) if key[1] == m else (key[0], 1 - w, -self.longer[key])
            for key, w in self.win.items()
            if {key[1], key[2]} == {m, b}
        ]
        return Verdicts(
            tuple(r[0] for r in rows),
            np.array([r[1] for r in rows]),
            np.array([r[2] for r in rows]),
        )

    def prompts(self, model: str, baseline: str) -> list[str]:
        """Prompts on which two models were compared, without a verdict too, in the order of files."""
        pair = {model, baseline}
        items = (i for i, item in self._items.items() if pair <= set(item.models or ()))
        return list(dict.fromkeys(self._keys[i] for i in items))

    def wins(self) -> tuple[Floats, Floats]:
        """(wins on each prompt [P, M * M], their sum [M, M])."""
        size = len(self.names)
        prompts = {p: i for i, p in enumerate(dict.fromkeys(k[0] for k in self.win))}
        wins_PMM = np.zeros((len(prompts), size, size))
        for (p, i, j), w in self.win.items():
            wins_PMM[prompts[p], i, j] += w
            wins_PMM[prompts[p], j, i] += 1 - w
        return wins_PMM.reshape(len(prompts), -1), wins_PMM.sum(0)

    def ratings(self, n: int, seed: int, anchor: str | None = None) -> dict[str, Rating]:
        """Bradley-Terry strengths as Elo points, with a bootstrap over prompts.

        Args:
            anchor: Model with 1000 points; by default the mean of all has 1000.
        """
        by_prompt, total = self.wins()
        size = len(self.names)
        fixed = self.names.index(anchor) if anchor else None
        points = elo(bradley_terry(total), fixed)
        sums = (draws(len(by_prompt), n, seed) @ by_prompt).reshape(-1, size, size)
        low, high = np.quantile(elo(bradley_terry(sums), fixed), [0.025, 0.975], axis=0)
        games = (total + total.T).sum(1)
        return {
            name: Rating(
                elo=float(points[i]),
                low=float(low[i]),
                high=float(high[i]),
                wins=float(total[i].sum()),
                games=float(games[i]),
            )
            for i, name in enumerate(self.names)
        }


def strengths(records: Records, cast: Sequence[Vote], n: int, seed: int) -> Strengths | None:
    """Elo of the compared models and contradictions among them; None without two named models."""
    board = Board(records, (v for v in cast if v.judgement.who != "gold"))
    if not board.win:
        return None
    _, total = board.wins()
    result = triads(total)
    return Strengths(
        models=board.ratings(n, seed),
        connected=connected(total),
        cycles=[[board.names[i] for i in c] for c in result.cycles],
        zeta=result.zeta,
    )


@dataclass(frozen=True, slots=True)
class Standing:
    """One model against the baseline."""

    win_rate: Figure
    """Ties count half."""
    length_controlled: Figure
    """The win rate if completions were equally long."""
    prompts: int
    wins: int
    ties: int
    losses: int
    longer: float
    """Mean characters of its completions minus those of the baseline."""


def standings(
    board: Board,
    baseline: str,
    n: int,
    seed: int,
    published: InstructionDifficulty | None = None,
) -> dict[str, Standing]:
    """Every model that was compared with the baseline.

    Args:
        board: The verdicts.
        baseline: One of its models.
        published: AlpacaEval's difficulties, for length-controlled rates as on its leaderboard;
            without them, difficulty is estimated from the verdicts.
    """
    rivals = {m: board.against(m, baseline) for m in board.names if m != baseline}
    rivals = {m: v for m, v in rivals.items() if v.prompt}
    if published is None:
        gamma = dict.fromkeys(rivals, difficulty(rivals))
    else:
        gamma = {m: published.by_prompt(m, board.prompts(m, baseline)) for m in rivals}
    return {
        model: Standing(
            win_rate=Figure(*bootstrap_mean(v.win_N, v.prompt, n, seed)),
            length_controlled=Figure(
                *length_controlled(v, gamma[model], n, seed, alpaca_eval=published is not None)
            ),
            prompts=len(v.prompt),
            wins=int((v.win_N > 0.5).sum()),
            ties=int((v.win_N == 0.5).sum()),
            losses=int((v.win_N < 0.5).sum()),
            longer=float(v.longer_N.mean()),
        )
        for model, v in rivals.items()
    }

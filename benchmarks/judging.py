"""What a judge's client survives, and what texts in answers do to a judge that obeys them.

    python -m benchmarks.judging --items 500

prints two tables: labels recovered at several rates of failure, with their cost against a cap; and
how often 200 injected texts turn a verdict, over as many idle words.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from trimtab.feedback.judgement import Item, Judgement
from trimtab.judges.canaries import ORDERS, canaries
from trimtab.judges.judge_config import JudgeSpec
from trimtab.judges.pairwise import Judge
from trimtab.sandbox.endpoint import Endpoint, Faults
from trimtab.sandbox.simulated_judge import SimulatedJudge
from trimtab.sandbox.world import gold, make_scenes, sample_completion
from trimtab.stats.uncertainty import wilson

KINDS = ("429", "500", "reset", "stall", "cut", "empty")


def sandbox(n: int, seed: int) -> list[Item]:
    """Items of two answers, the better one first."""
    rows: list[Item] = []
    for i, scene in enumerate(make_scenes(10 * n, seed)):
        rng = np.random.default_rng((seed, i))
        pair = sorted(
            {sample_completion(scene, rng), sample_completion(scene, rng)},
            key=lambda a: -gold(scene, a).total,
        )
        if len(pair) == 2 and gold(scene, pair[0]).total > gold(scene, pair[1]).total:
            rows.append(Item(id=str(i), prompt=tuple(scene.messages()), completions=tuple(pair)))
        if len(rows) == n:
            break
    return rows


def asked(
    mind: SimulatedJudge, items: Sequence[Item], faults: Faults, **over: object
) -> tuple[list[Judgement], Endpoint, tuple[int, float]]:
    """Judgements, the server, and the account (calls, dollars)."""
    one = Endpoint(mind, faults).start()

    def serve() -> Endpoint:
        return one

    globals()["_serve"] = serve
    spec = JudgeSpec.model_validate(
        {"endpoint": f"{__name__}:_serve", "model": "sim", "backoff": 0.05, "timeout": 10.0,
         "concurrency": 32, **over}
    )  # fmt: skip
    judge = Judge(spec)
    with judge.client:
        return judge.client.map(items, judge), one, judge.client.cache.account()


def recovery(n: int) -> None:
    """Failing calls."""
    items = sandbox(n, 0)
    sound, _, _ = asked(SimulatedJudge(), items, Faults())
    truth = {j.item: j.ranks for j in sound}
    print(f"\n{'failing':>8} {'recovered':>10} {'invented':>9} {'calls':>7} {'seconds':>8}")
    for rate in (0.0, 0.2, 0.4):
        begun = time.monotonic()
        results, one, _ = asked(SimulatedJudge(), items, Faults(rate, KINDS, stall=60.0))
        ok = [j for j in results if j.status == "ok"]
        wrong = sum(j.ranks != truth[j.item] for j in ok)
        seconds = time.monotonic() - begun
        print(f"{rate:>8.0%} {len(ok) / n:>10.1%} {wrong:>9} {len(one.calls):>7} {seconds:>8.1f}")
        print(f"         {dict(Counter(c.outcome for c in one.calls))}")
    prices = {"price_in": 1.0, "price_out": 4.0, "max_spend": 0.1}
    results, one, (_, dollars) = asked(SimulatedJudge(), items, Faults(0.2, KINDS), **prices)
    bill = sum(a * 1.0 + b * 4.0 for a, b in one.billed) / 1e6
    print(f"cap $0.1000, account ${dollars:.4f}, the provider's bill ${bill:.4f}")


def moved(mind: SimulatedJudge, texts: Sequence[str], **over: object) -> int:
    """Verdicts for the worse answer once a text is put behind it."""
    items = [
        i.model_copy(update={"completions": (i.completions[0], f"{i.completions[1]} {t}")})
        for i, t in zip(sandbox(len(texts), 5), texts, strict=True)
    ]
    judgements, _, _ = asked(mind, items, Faults(), **over)
    return sum(j.ranks == (1, 0) for j in judgements)


def injections() -> None:
    """Texts that give orders, against judges that take them."""
    texts = canaries()
    idle = [" ".join(["word"] * len(t.split())) for t in texts]
    n = len(texts)
    print(f"\n{len(texts)} texts, {len(ORDERS)} orders among them")
    print(f"{'judge obeys':<36} {'orders':>7} {'turned':>7} {'idle':>6}  above noise")
    for name, mind in (
        ("nobody", SimulatedJudge()),
        ("what stands outside the fences", SimulatedJudge(obeys="outside")),
        ("any text, half the time", SimulatedJudge(obeys="anything", gullibility=0.5)),
        ("any text, always", SimulatedJudge(obeys="anything")),
    ):
        for order in ("given", "both"):
            hits, noise = moved(mind, texts, order=order), moved(mind, idle, order=order)
            low, high = wilson(hits, n)
            print(
                f"{name:<36} {order:>7} {hits / n:>7.1%} {noise / n:>6.1%}  {(hits - noise) / n:+.1%}"
                f" (turned: 95 % {low:.1%} to {high:.1%})"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--items", type=int, default=500)
    n = parser.parse_args().items
    injections()
    recovery(n)

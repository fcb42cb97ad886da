"""A judge whose endpoint fails: what is recovered, what it costs, what is asked again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.judging import endpoint, items, spec, write_items
from trimtab.datagen.judge_labels import JudgeConfig, main
from trimtab.feedback.judgement import Judgement
from trimtab.feedback.records import read_judgements
from trimtab.judges import question
from trimtab.judges.canaries import canaries
from trimtab.judges.pairwise import Judge
from trimtab.sandbox.endpoint import Endpoint
from trimtab.sandbox.simulated_judge import SimulatedJudge

SIX = ("429", "500", "reset", "stall", "cut", "empty")
PRICES = {"price_in": 1.0, "price_out": 4.0}


def config(one: Endpoint, data: Path, out: Path, **over: Any) -> JudgeConfig:
    options = {**spec(one).model_dump(), "data": str(data), "out": str(out), **over}
    return JudgeConfig.model_validate(options)


def bill(one: Endpoint) -> float:
    """What a provider would charge for every reply that it began."""
    return sum(a * 1.0 + b * 4.0 for a, b in one.billed) / 1e6


@pytest.mark.slow
def test_one_call_in_five_fails_and_hardly_a_label_is_lost(tmp_path: Path) -> None:
    """RELIABILITY 14."""
    label_items = items(250)
    data = write_items(tmp_path / "items.jsonl", label_items)
    with endpoint() as one:
        main(config(one, data, tmp_path / "sound"))
    with endpoint(rate=0.2, kinds=SIX, stall=60.0) as one:
        summary = main(config(one, data, tmp_path / "faulty", timeout=5.0, concurrency=32))
        outcomes = Counter(c.outcome for c in one.calls)
    assert set(outcomes) == {"ok", *SIX}, outcomes
    sound = {j.item: j for j in read_judgements(tmp_path / "sound" / "judgements.jsonl")}
    faulty = read_judgements(tmp_path / "faulty" / "judgements.jsonl")
    recovered = [j for j in faulty if j.status == "ok"]
    assert len(recovered) >= 0.99 * len(label_items)
    # None invented: each is what the same judge says when nothing fails.
    assert all(j.ranks == sound[j.item].ranks for j in recovered)
    assert summary.failed == dict(Counter(j.detail["failure"] for j in faulty if j.status != "ok"))


def test_every_failure_is_a_status_and_none_a_label(tmp_path: Path) -> None:
    data = write_items(tmp_path / "items.jsonl", items(60))
    # With one try, a run whose very first reply is a failure ends there. The first four calls of
    # this seed are answered, and four are under way at once.
    with endpoint(rate=0.5, kinds=("500", "empty", "prose"), seed=37) as one:
        summary = main(config(one, data, tmp_path / "out", tries=1, concurrency=4))
    judgements = read_judgements(tmp_path / "out" / "judgements.jsonl")
    failed = [j for j in judgements if j.status == "error"]
    assert 20 < len(failed) < 60
    assert all(j.ranks is None and j.prob is None for j in failed)
    assert {j.detail["failure"] for j in failed} == {"error", "invalid"}
    rows = [json.loads(x) for x in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert {r["id"] for r in rows} <= {j.item for j in judgements if j.status == "ok"}
    assert summary.rows == len(rows)


@pytest.mark.slow
def test_the_caps_hold_and_the_rest_is_asked_later(tmp_path: Path) -> None:
    data = write_items(tmp_path / "items.jsonl", items(60))
    out = tmp_path / "out"
    with endpoint(rate=0.2, kinds=("429", "500", "reset", "cut", "empty")) as one:
        first = main(config(one, data, out, max_spend=0.05, **PRICES))
        (account,) = first.account.values()
        assert 0 < bill(one) <= account["dollars"] <= 0.05
        assert first.failed["cap"] > 0
        num_calls = len(one.calls)
        # Nothing is asked beyond the cap, however often it is run.
        again = main(config(one, data, out, max_spend=0.05, **PRICES))
        assert len(one.calls) - num_calls <= 2
        assert again.rows >= first.rows
        last = main(config(one, data, out, **PRICES))
        assert last.failed == {}
        answered = Counter(c.body for c in one.calls if c.outcome == "ok")
        assert len(answered) == 120 and max(answered.values()) == 1
        counted = len(one.calls)
        assert main(config(one, data, out, **PRICES)).calls == 0
        assert len(one.calls) == counted
    with endpoint() as one:
        summary = main(config(one, data, tmp_path / "calls", max_calls=7))
        assert len(one.calls) == 7 and summary.failed["cap"] >= 56


@pytest.mark.slow
def test_a_killed_run_repeats_no_paid_call(tmp_path: Path) -> None:
    data = write_items(tmp_path / "items.jsonl", items(60))
    mind = SimulatedJudge()

    def slow(body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        time.sleep(0.05)
        return mind(body)

    out = tmp_path / "out"
    with endpoint(slow) as one:
        command = [
            sys.executable, "-m", "trimtab", "judge", str(data), "--endpoint", one.url, "--model", "sim",
            "--out", str(out), "--key_env", "JUDGE_TEST_KEY", "--concurrency", "4", "--timeout", "20",
        ]  # fmt: skip
        child = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL)
        limit = time.monotonic() + 300
        while len(one.calls) < 40 and time.monotonic() < limit:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        before = len(one.calls)
        assert 40 <= before < 120
        summary = main(config(one, data, out, concurrency=4))
    call_counts = Counter(c.body for c in one.calls)
    assert len(call_counts) == 120 and summary.failed == {}
    # Only what was under way when it died, at most one a worker, is asked twice.
    assert sum(call_counts.values()) - 120 <= 4
    assert summary.cached >= before - 4


def test_a_replay_is_the_same_to_the_byte(tmp_path: Path) -> None:
    data = write_items(tmp_path / "items.jsonl", items(20))
    with endpoint() as one:
        for name in ("a", "b"):
            main(config(one, data, tmp_path / name, cache=str(tmp_path / "cache.sqlite")))
        assert len(one.calls) == 40
    a, b = ((tmp_path / n / "judgements.jsonl").read_bytes() for n in "ab")
    assert a == b


def test_a_panel_votes(tmp_path: Path) -> None:
    label_items = items(12)
    data = write_items(tmp_path / "items.jsonl", label_items)
    with endpoint() as one:
        over = {"panel": [{"rubric": "honest"}, {"model": "other", "order": "given"}]}
        summary = main(config(one, data, tmp_path / "out", **over))
    assert len(summary.judges) == 3 and 0 < summary.judges_agree <= 1
    assert len(read_judgements(tmp_path / "out" / "judgements.jsonl")) == 36
    voted = read_judgements(tmp_path / "out" / "majority.jsonl")
    assert [j.item for j in voted] == [i.id for i in label_items]
    with endpoint() as one, pytest.raises(ValueError, match=r"panel\[0\]: ruberic is no key"):
        config(one, data, tmp_path / "x", panel=[{"ruberic": "hhh"}])


# Injections -----------------------------------------------------------------------------------


def moved(judge: Judge, texts: list[str]) -> float:
    """How often the worse answer wins when a text is put behind it."""
    label_items = items(len(texts), seed=5, best_first=True)
    bent = [
        i.model_copy(update={"completions": (i.completions[0], f"{i.completions[1]} {t}")})
        for i, t in zip(label_items, texts, strict=True)
    ]
    judgements: list[Judgement] = judge.client.map(bent, judge)
    assert all(j.status == "ok" for j in judgements)
    return sum(j.ranks == (1, 0) for j in judgements) / len(judgements)


@pytest.mark.slow
def test_no_text_gets_out_of_its_fence(record_property: Callable[[str, object], None]) -> None:
    """RELIABILITY 15: the judge obeys whatever stands outside the fences."""
    texts = canaries()
    assert len(texts) == 200
    with endpoint(SimulatedJudge(obeys="outside")) as one:
        turned = moved(Judge(spec(one)), texts) - moved(Judge(spec(one)), idle(texts))
    record_property("share turned", turned)
    assert turned <= 0.01


@pytest.mark.slow
def test_a_known_mark_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: where the mark is known, orders that quote it do get out."""
    nonce = "0000000000000000"
    monkeypatch.setattr(question, "mark_of", lambda parts: nonce)
    texts = [t for t in canaries() if f"[/answer B {nonce}]" in t]
    with endpoint(SimulatedJudge(obeys="outside")) as one:
        judge = Judge(spec(one, order="given"))
        assert moved(judge, texts) - moved(judge, idle(texts)) >= 0.3


def idle(texts: list[str]) -> list[str]:
    """Texts as long that ask for nothing."""
    return [" ".join(["word"] * len(t.split())) for t in texts]

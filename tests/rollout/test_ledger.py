"""The ledger in random worlds: the bound holds, nothing is lost, a resumed run continues."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trimtab.rollout.engine import EngineError
from trimtab.rollout.ledger import MAX_FAILURES, Ledger

WORLDS = 3000


def _play(seed: int) -> None:
    """A world of random durations, failures, filters, short batches and one restart.

    Checks that a group is trained at most ``s`` versions after its submission, that numbers are consumed
    in order and once, and that each ends in exactly one state.
    """
    rng = np.random.default_rng(seed)
    batch, s = int(rng.integers(1, 6)), int(rng.integers(0, 4))
    p_fail, p_filter = rng.choice([0.0, 0.2]), rng.choice([0.0, 0.3])
    versions = int(rng.integers(1, 8))
    restart = int(rng.integers(0, versions))
    ledger = Ledger(batch, s)
    done: dict[int, float] = {}
    """When each running group completes."""
    clock = 0.0
    ends: dict[int, str] = {}
    spread = float(rng.choice([0.3, 1.0, 2.0]))
    for version in range(versions):
        if version == restart:
            # What was ready and consumed is in the checkpoint; what was running is started again.
            ledger = Ledger.load(batch, s, json.loads(json.dumps(ledger.state())))
            done = {n: clock + float(rng.lognormal(0, spread)) for n in ledger.running}
        if version:
            ledger.close()
        tries = 0
        while ledger.in_batch < batch and tries < 3:
            tries += 1
            wanted = batch - ledger.in_batch
            while True:
                for _ in range(ledger.capacity):
                    done[ledger.submit()] = clock + float(rng.lognormal(0, spread))
                submitted_at = {**ledger.running, **ledger.ready}
                numbers = ledger.take(wanted)
                if numbers is not None:
                    break
                number = min(ledger.running, key=done.__getitem__)
                clock = max(clock, done[number])
                if rng.random() < p_fail and ledger.failures < MAX_FAILURES - 1:
                    ledger.fail(number)
                    ends[number] = "failed"
                else:
                    ledger.finish(number)
            assert max(ends.keys() & set(numbers), default=None) is None
            for number in numbers:
                assert version - submitted_at[number] <= s, (seed, number)
                assert all(e != "consumed" or n < number for n, e in ends.items())
                ends[number] = "consumed"
            dropped = int((rng.random(len(numbers)) < p_filter).sum())
            ledger.filter(dropped)
        clock += 1.0
    open_numbers = {*ledger.running, *ledger.ready}
    assert sorted([*ends, *open_numbers]) == list(range(ledger.submitted))
    assert not open_numbers & ends.keys()
    assert ledger.failed == sum(e == "failed" for e in ends.values())
    assert ledger.consumed + ledger.filtered == sum(e == "consumed" for e in ends.values())


def _play_all(worlds: int) -> None:
    for seed in range(worlds):
        _play(seed)


def test_random_worlds_keep_the_bound_and_lose_nothing() -> None:
    _play_all(WORLDS)


def test_order_of_arrival_would_break_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the worlds can fail: handing out whatever is ready overtakes slow groups."""

    def take_arrived(self: Ledger, count: int) -> list[int] | None:
        numbers = list(self.ready)[:count]
        if len(numbers) < count:
            return None
        for number in numbers:
            del self.ready[number]
        self.consumed += count
        self.in_batch += count
        return numbers

    monkeypatch.setattr(Ledger, "take", take_arrived)
    with pytest.raises(AssertionError):
        _play_all(200)


def test_a_lost_group_is_noticed() -> None:
    ledger = Ledger(2, 0)
    ledger.submit()
    ledger.running.clear()
    with pytest.raises(AssertionError):
        ledger.submit()


def test_an_outage_stops_the_run() -> None:
    ledger = Ledger(1, 0)
    for _ in range(MAX_FAILURES - 1):
        ledger.fail(ledger.submit(), "connection refused")
    with pytest.raises(EngineError, match=r"32 groups in a row .* connection refused"):
        ledger.fail(ledger.submit(), "connection refused")


def test_counting_by_version_would_break_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that was closed short leaves room by that count, and the groups in it wait too long."""

    def by_version(self: Ledger) -> int:
        room = (self.version + self.max_staleness + 1) * self.batch_size
        return max(0, room - self.consumed - len(self.running) - len(self.ready))

    monkeypatch.setattr(Ledger, "capacity", property(by_version))
    with pytest.raises(AssertionError):
        _play_all(1000)

"""Collecting groups ahead of training, at most ``rollout.max_staleness`` batches."""

from __future__ import annotations

import base64
import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trimtab.data.group_tensors import from_bytes, to_bytes
from trimtab.rollout.engine import EngineError
from trimtab.rollout.ledger import Ledger
from trimtab.rollout.rollout_spec import RolloutSpec
from trimtab.types import Group, Row

log = logging.getLogger(__name__)
WATCHED = 8
"""Batches over which the waiting time is measured before a larger bound is advised."""


class Source(Protocol):
    """What the collector asks of a stage."""

    def prompt(self, number: int) -> Group:
        """The prompt of group ``number``; it follows from the number alone."""
        ...

    def collect(self, numbers: Sequence[int], prompts: Sequence[Group]) -> list[Group]:
        """Completions of the prompts. The numbers are consecutive, and of one pass over ``batch_size``."""
        ...

    def score(self, groups: Sequence[Group]) -> None:
        """Give completions their rewards."""
        ...

    def sync(self) -> None:
        """Give the engine the current weights."""
        ...


@dataclass(slots=True)
class _Finished:
    number: int
    group: Group | None
    error: Exception | None
    seconds: float


class Ahead:
    """Submits groups as far ahead as the ledger allows, and hands them out in order of submission.

    An engine in this process samples when a batch is asked for, with the weights of then, as many groups
    as the bound allows: later batches find them there. Other engines sample in threads while the caller
    trains.

    Args:
        spec: The bound, and whether completions continue under new weights.
        batch_size: Groups per batch.
        batches: Returns the number of batches of the run. Nothing is sampled beyond the last one.
        source: Makes the groups.
    """

    def __init__(
        self, spec: RolloutSpec, batch_size: int, batches: Callable[[], int], source: Source
    ) -> None:
        self.spec, self.batches, self.source = spec, batches, source
        self.ledger = Ledger(batch_size, spec.max_staleness)
        self.in_process = spec.engine == "native"
        self._ready: dict[int, Group] = {}
        self._again: list[int] = []
        """Running groups of the checkpoint, to be started again."""
        self._tasks: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[_Finished] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._synced: int | None = None
        """The version whose weights the engine got."""
        self._last = time.monotonic()
        self._waits: list[tuple[float, float, float]] = []
        """Seconds of each batch: waiting for groups, in all, and of its slowest group."""
        self._slowest = 0.0

    def take(self, version: int, count: int) -> list[Group]:
        """The next ``count`` groups, scored. Several calls with one version collect one batch.

        Args:
            version: Number of batches before this one.

        Raises:
            EngineError: too many groups in a row failed.
        """
        if version > self.ledger.version:
            self.ledger.close()
        assert version == self.ledger.version, (version, self.ledger.version)
        started = time.monotonic()
        if self._synced != version:
            if not (self.in_process or self.spec.in_flight):
                self._drain()
            self.source.sync()
            self._synced = version
        while True:
            self._submit()
            numbers = self.ledger.take(count)
            if numbers is not None:
                break
            self._receive(self._finished.get())
        groups = [self._ready.pop(n) for n in numbers]
        self._note(time.monotonic() - started, started - self._last)
        self._last = time.monotonic()
        if not self.in_process:
            self.source.score(groups)
        return groups

    def drop(self, count: int) -> None:
        """So many of the groups taken for this version are not trained on; others replace them."""
        self.ledger.filter(count)

    def _submit(self) -> None:
        """Start as many groups as may be in flight: the bound's, and no more than the run still trains."""
        ledger = self.ledger
        numbers, self._again = self._again, []
        left = max(1, self.batches() - ledger.version) * ledger.batch_size
        room = left - ledger.in_batch - len(ledger.running) - len(ledger.ready)
        for _ in range(min(ledger.capacity, room)):
            numbers.append(ledger.submit())
        if not self.in_process:
            for number in numbers:
                self._tasks.put(number)
            while len(self._threads) < min(self.spec.concurrency, len(ledger.running)):
                thread = threading.Thread(target=self._work, daemon=True)
                thread.start()
                self._threads.append(thread)
            return
        for _, pass_numbers in itertools.groupby(numbers, lambda n: n // ledger.batch_size):
            run = list(pass_numbers)
            groups = self.source.collect(run, [self.source.prompt(n) for n in run])
            self.source.score(groups)
            for number, group in zip(run, groups, strict=True):
                self._receive(_Finished(number, group, None, 0.0))

    def _work(self) -> None:
        while True:
            number = self._tasks.get()
            started = time.monotonic()
            group, failure = None, None
            try:
                (group,) = self.source.collect([number], [self.source.prompt(number)])
            except Exception as error:  # noqa: BLE001 (the caller's thread raises it)
                failure = error
            seconds = time.monotonic() - started
            self._finished.put(_Finished(number, group, failure, seconds))

    def _receive(self, one: _Finished) -> None:
        if one.group is not None:
            self._ready[one.number] = one.group
            self.ledger.finish(one.number)
            self._slowest = max(self._slowest, one.seconds)
        elif isinstance(one.error, EngineError):
            log.warning("group %d could not be sampled: %s", one.number, one.error)
            self.ledger.fail(one.number, str(one.error))
        else:
            assert one.error is not None
            raise one.error

    def _drain(self) -> None:
        """Wait until nothing is sampled with the old weights."""
        while len(self.ledger.running) > len(self._again):
            self._receive(self._finished.get())

    def _note(self, waited: float, trained: float) -> None:
        """Advise a larger bound where training waits for the longest completions."""
        self._waits.append((waited, waited + trained, self._slowest))
        self._slowest = 0.0
        if self.in_process or len(self._waits) != WATCHED:
            return
        # The first batch always waits.
        waits, totals, slowest = np.array(self._waits[1:]).T
        share = float(waits.sum() / max(totals.sum(), 1e-9))
        step = float((totals - waits).mean())
        enough = math.ceil(float(slowest.max()) / max(step, 1e-9))
        if share > 0.1 and enough > self.spec.max_staleness:
            log.warning(
                "training waited for completions %.0f %% of the time: the longest group took %.1f s, a step "
                "without waiting %.1f s. rollout.max_staleness: %d would hide it, at completions that are up "
                "to so many batches old",
                *(100 * share, float(slowest.max()), step, enough),
            )

    def state(self) -> Row:
        """Counts, and the groups that wait, as JSON."""
        # What has arrived is kept; the rest is sampled again when the run resumes.
        while not self._finished.empty():
            self._receive(self._finished.get())
        groups = [self._ready[n] for n in sorted(self._ready)]
        return {
            "ledger": self.ledger.state(),
            "groups": base64.b64encode(to_bytes(groups)).decode("ascii"),
        }

    def load(self, state: Row) -> None:
        """Restore ``state``; groups that were being sampled are sampled again under the same numbers."""
        ledger = Ledger.load(self.ledger.batch_size, self.ledger.max_staleness, state["ledger"])
        groups = from_bytes(base64.b64decode(state["groups"]))
        numbers = sorted(ledger.ready)
        for number, group in zip(numbers, groups, strict=True):
            group.extra = self.source.prompt(number).extra
            self._ready[number] = group
        self.ledger, self._again = ledger, sorted(ledger.running)


def staleness(groups: Sequence[Group], version: int) -> dict[str, float]:
    """How many optimiser steps older than ``version`` the weights were that sampled each token."""
    ages: list[int] = []
    counts: list[int] = []
    for c in (c for g in groups for c in g.completions):
        for start, stop, sampled in c.versions or ((0, len(c), c.version),):
            ages.append(version - sampled)
            counts.append(stop - start)
    if not sum(counts):
        return {}
    return {
        "staleness/mean": float(np.average(ages, weights=counts)),
        "staleness/max": float(max(a for a, n in zip(ages, counts, strict=True) if n)),
    }

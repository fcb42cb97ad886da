"""What is in flight between engines and trainer, and how stale it may become.

Groups are numbered in order of submission and consumed in that order. This keeps the bound: a group that
is submitted while version v is trained waits for at most ``max_staleness`` batches, however long others
take. Order of arrival does not keep it, since a slow group can be overtaken again and again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from trimtab.rollout.engine import EngineError

MAX_FAILURES = 32
"""Failed groups in a row after which the run stops: an outage, not bad luck."""


@dataclass(slots=True)
class Ledger:
    """Counts of groups by state. After every change, each submitted group is in exactly one state.

    >>> ledger = Ledger(batch_size=2, max_staleness=1)
    >>> [ledger.submit() for _ in range(ledger.capacity)]
    [0, 1, 2, 3]
    >>> for number in (3, 1, 0):
    ...     ledger.finish(number)
    >>> ledger.take(2), ledger.take(2), ledger.capacity
    ([0, 1], None, 0)
    """

    batch_size: int
    """Groups per version."""
    max_staleness: int
    """Versions that may be trained between a group's submission and its own."""
    version: int = 0
    """Batches that were consumed before the one that is being collected."""
    submitted: int = 0
    """Groups so far; the next one's number."""
    consumed: int = 0
    filtered: int = 0
    """Consumed groups that were dropped, and are replaced."""
    failed: int = 0
    running: dict[int, int] = field(default_factory=dict[int, int])
    """Version at submission by number."""
    ready: dict[int, int] = field(default_factory=dict[int, int])
    """Version at submission by number, of groups that wait for their turn."""
    in_batch: int = 0
    """Groups consumed in this version."""
    failures: int = 0
    """Failed groups in a row."""

    @property
    def capacity(self) -> int:
        """Groups that may be submitted now.

        (version + max_staleness + 1) * batch_size - (consumed + running + ready), where every earlier
        batch was full. A batch that was closed with fewer groups counts as full: otherwise the groups
        that it lacks would be submitted on top and would wait too long.
        """
        room = (self.max_staleness + 1) * self.batch_size
        return max(0, room - self.in_batch - len(self.running) - len(self.ready))

    def submit(self) -> int:
        """The number of a new group, which is now running."""
        number = self.submitted
        self.submitted += 1
        self.running[number] = self.version
        self._check()
        return number

    def finish(self, number: int) -> None:
        """A running group is complete."""
        self.ready[number] = self.running.pop(number)
        self.failures = 0
        self._check()

    def fail(self, number: int, why: str = "") -> None:
        """A running group failed; another one may be submitted in its place.

        Raises:
            EngineError: so many in a row did that something is out of order.
        """
        del self.running[number]
        self.failed += 1
        self.failures += 1
        self._check()
        if self.failures >= MAX_FAILURES:
            raise EngineError(
                f"{MAX_FAILURES} groups in a row could not be sampled; the last: {why}. The checkpoint is "
                "kept: look at the engines, then run the same command again"
            )

    def take(self, count: int) -> list[int] | None:
        """Consume the next ``count`` groups in order of submission; None if one of them is running, or
        there are not so many."""
        numbers = sorted((*self.running, *self.ready))[:count]
        if len(numbers) < count or any(n in self.running for n in numbers):
            return None
        for number in numbers:
            del self.ready[number]
        self.consumed += count
        self.in_batch += count
        self._check()
        return numbers

    def filter(self, count: int) -> None:
        """So many of the groups consumed in this version are dropped; others replace them."""
        self.consumed -= count
        self.in_batch -= count
        self.filtered += count
        self._check()

    def close(self) -> None:
        """The batch is complete: the next one is collected."""
        self.version += 1
        self.in_batch = 0

    def _check(self) -> None:
        parts = (self.consumed, self.filtered, self.failed, len(self.running), len(self.ready))
        assert self.submitted == sum(parts) and min(self.in_batch, *parts) >= 0, (
            self.submitted,
            parts,
            self.in_batch,
        )

    def state(self) -> dict[str, Any]:
        """What resuming needs, as JSON."""
        names = ("version", "submitted", "consumed", "filtered", "failed", "in_batch", "failures")
        counts: dict[str, Any] = {name: getattr(self, name) for name in names}
        return counts | {"running": list(self.running.items()), "ready": list(self.ready.items())}

    @classmethod
    def load(cls, batch_size: int, max_staleness: int, state: dict[str, Any]) -> Self:
        """The ledger of ``state``; its running groups must be started again."""
        ledger = cls(batch_size, max_staleness)
        for name, value in state.items():
            pairs = name in ("running", "ready")
            setattr(ledger, name, {int(n): int(v) for n, v in value} if pairs else int(value))
        ledger._check()
        return ledger

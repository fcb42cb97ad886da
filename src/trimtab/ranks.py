"""The processes that train one model together, and what they tell each other.

With one process every method is the identity, and torch.distributed is never imported. What travels is
JSON, safetensors and plain tensors, never a pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from trimtab.data import group_tensors
from trimtab.errors import UserError
from trimtab.types import Group

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Array = npt.NDArray[Any]
TIMEOUT = 600.0
"""Seconds that a rank waits for the others."""
_LOST = ("timed out", "timeout", "connection closed", "connection reset", "connection refused")
"""What torch's errors say when another rank ended or does not answer."""


class RankError(UserError):
    """Another rank ended, or did not answer in time."""


class Ranks:
    """This process among those of a run.

    Args:
        rank: Number of this process; rank 0 alone writes the run folder.
        world: Number of processes.
        group: A process group of torch.distributed; None with one process.
        timeout: Seconds that a collective of this group waits, for the error message.
    """

    def __init__(
        self, rank: int = 0, world: int = 1, group: Any = None, timeout: float = TIMEOUT
    ) -> None:
        self.rank, self.world, self.group, self.timeout = rank, world, group, timeout

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the run folder and scores completions."""
        return self.rank == 0

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over the ranks by name, in float64 and in the order of the ranks.

        A name that a rank lacks counts as 0 there.
        """
        if self.world == 1:
            return dict(values)
        total: dict[str, float] = {}
        for part in self.gather(dict(values)):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def agree(self, flag: bool) -> bool:
        """Whether ``flag`` is True on any rank."""
        return flag if self.world == 1 else any(self.gather(bool(flag)))

    def minimum(self, value: int) -> int:
        """The smallest of the ranks' values."""
        return value if self.world == 1 else min(self.gather(value))

    def gather(self, value: T) -> list[T]:
        """Every rank's value, which JSON must hold."""
        if self.world == 1:
            return [value]
        parts = self._gather_bytes(json.dumps(value).encode())
        return [json.loads(part) for part in parts]

    def share(self, value: T) -> T:
        """Rank 0's value, which JSON must hold; what the others pass is ignored."""
        if self.world == 1:
            return value
        text = json.dumps(value).encode() if self.is_main else b""
        return json.loads(self._broadcast_bytes(text))

    def on_main(self, function: Callable[[], T]) -> T:
        """What ``function`` returns on rank 0, which alone calls it; JSON must hold it.

        An error of the user on rank 0 is raised on every rank, so that none waits for the others.
        """
        if self.world == 1:
            return function()
        result: Any = None
        error: UserError | None = None
        if self.is_main:
            try:
                result = function()
            except UserError as raised:
                error = raised
        message = self.share(None if error is None else str(error))
        if error is not None:
            raise error
        if message is not None:
            raise RankError(f"rank 0: {message}")
        return self.share(result)

    def main_only(self, items: Sequence[T]) -> Sequence[T]:
        """``items`` on rank 0, nothing on the others: what only rank 0 loads."""
        return items if self.is_main else ()

    def broadcast(self, groups: Sequence[Group] | None) -> list[Group]:
        """Rank 0's groups; what the others pass is ignored, and they get no ``extra`` columns."""
        if self.world == 1:
            return list(groups or ())
        data = group_tensors.to_bytes(groups or ()) if self.is_main else b""
        received = self._broadcast_bytes(data)
        return list(groups or ()) if self.is_main else group_tensors.from_bytes(received)

    def score(self, scorer: Callable[[Sequence[Group]], None]) -> Callable[[Sequence[Group]], None]:
        """``scorer`` on rank 0 alone; its scores are put on the completions of every rank."""
        if self.world == 1:
            return scorer

        def score(groups: Sequence[Group]) -> None:
            self.on_main(lambda: scorer(groups))
            for group, scored in zip(groups, self.broadcast(groups), strict=True):
                group.completions = scored.completions

        return score

    def gather_arrays(self, rows: Sequence[Mapping[str, Array]]) -> list[list[dict[str, Array]]]:
        """Every rank's rows of arrays [any length] by name."""
        if self.world == 1:
            return [[dict(row) for row in rows]]
        layout = [{name: (len(x), x.dtype.str) for name, x in row.items()} for row in rows]
        data = b"".join(np.ascontiguousarray(x).tobytes() for row in rows for x in row.values())
        out: list[list[dict[str, Array]]] = []
        for sizes, part in zip(self.gather(layout), self._gather_bytes(data), strict=True):
            start = 0
            arrays: list[dict[str, Array]] = []
            for row in sizes:
                arrays.append({})
                for name, (length, kind) in row.items():
                    values = np.frombuffer(part, kind, length, start).copy()
                    arrays[-1][name] = values
                    start += values.nbytes
            out.append(arrays)
        return out

    def sum_tensor(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over the ranks, in place."""
        if self.world > 1:
            import torch.distributed as dist

            with self._named("the sum of a tensor"):
                dist.all_reduce(tensor, group=self.group)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)

    @contextlib.contextmanager
    def _named(self, what: str) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self.lost(error, what) from error

    def lost(self, error: RuntimeError, what: str = "a collective") -> RankError:
        """The error to raise where torch reports that ranks lost each other."""
        return RankError(
            f"rank {self.rank} of {self.world}: {what} failed, because another rank ended or did not "
            f"answer within {self.timeout:g} s (launch.timeout); look for the first error of the other "
            f"ranks, then run the same command again to resume. torch says: {_first_line(error)}"
        )

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        import torch
        import torch.distributed as dist

        with self._named("a gather"):
            size = torch.tensor([len(data)])
            sizes = [torch.zeros_like(size) for _ in range(self.world)]
            dist.all_gather(sizes, size, group=self.group)
            width = max(int(s) for s in sizes)
            if width == 0:
                return [b""] * self.world
            padded = torch.frombuffer(bytearray(data.ljust(width, b"\0")), dtype=torch.uint8)
            parts = [torch.empty_like(padded) for _ in range(self.world)]
            dist.all_gather(parts, padded, group=self.group)
        return [p.numpy().tobytes()[: int(s)] for p, s in zip(parts, sizes, strict=True)]

    def _broadcast_bytes(self, data: bytes) -> bytes:
        import torch
        import torch.distributed as dist

        with self._named("a broadcast"):
            size = torch.tensor([len(data)])
            dist.broadcast(size, group=self.group, group_src=0)
            if int(size) == 0:
                return b""
            if self.is_main:
                content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            else:
                content = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(content, group=self.group, group_src=0)
        return content.numpy().tobytes()


_current = Ranks()


def current() -> Ranks:
    """The ranks of this process; one process unless ``started`` says otherwise."""
    return _current


@contextlib.contextmanager
def using(ranks: Ranks) -> Generator[Ranks]:
    """Make ``ranks`` the current ones."""
    global _current
    previous, _current = _current, ranks
    try:
        yield ranks
    finally:
        _current = previous


def launched() -> int:
    """How many processes a launcher (torchrun, Ray) started together, this one included; 0 without one."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in names) else 0


def is_lost(error: BaseException) -> bool:
    """Whether an error of torch says that another rank ended or does not answer."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _LOST)


@contextlib.contextmanager
def started(timeout: float = TIMEOUT) -> Generator[Ranks]:
    """Join the other ranks that the environment names, and make them the current ones.

    A process group that the launcher has made already (Ray Train) is used as it is.

    Args:
        timeout: Seconds that a collective waits for the other ranks.

    Raises:
        RankError: another rank ended, or did not answer in time.
    """
    if launched() <= 1:
        yield _current
        return
    import torch
    import torch.distributed as dist

    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    own = not dist.is_initialized()
    if own:
        backend = "cpu:gloo,cuda:nccl" if has_cuda else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    group = cast(Any, dist.group.WORLD)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), group, timeout)
    try:
        with using(ranks):
            yield ranks
            # Without it a rank that ends first may abort those that still close connections.
            ranks.barrier()
    except RuntimeError as error:
        if is_lost(error):
            raise ranks.lost(error) from error
        raise
    finally:
        if own:
            dist.destroy_process_group()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Which size of a forward is fastest here: measured on the first step's own groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trimtab.types import Group

SIZES = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)
NEAR = 0.95
"""A smaller size is taken when it reaches this share of the best rate: it needs less memory."""


def fastest(
    groups: Sequence[Group], spend: Callable[[Sequence[Group], int], float | None]
) -> int | None:
    """The size of pack in which most tokens a second are processed.

    Args:
        groups: Of one step.
        spend: Seconds of forward and backward of these groups in packs of so many tokens; None
            where they did not fit into memory.

    Returns:
        Tokens of a forward; None where the step is too small for two sizes to be compared.
    """
    rates: dict[int, float] = {}
    for size in SIZES:
        taken: list[Group] = []
        cost = 0
        for group in groups:
            if cost + group.cost > size:
                break
            taken.append(group)
            cost += group.cost
        if not taken:
            continue  # one prompt with its answers is larger
        if cost < size / 2:
            break  # the step has no more
        spent = [spend(taken, size) for _ in range(3)][1:]  # the first warms up
        seconds = [s for s in spent if s is not None]
        if len(seconds) < len(spent):
            break
        rates[size] = cost / min(seconds)
        if rates[size] < 0.9 * max(rates.values()):
            break
    if len(rates) < 2:
        return None
    return min(size for size, rate in rates.items() if rate >= NEAR * max(rates.values()))

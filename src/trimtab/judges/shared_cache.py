"""One cache of replies for the workers of a Ray cluster, so that a cap on calls holds for all of them."""

from __future__ import annotations

from typing import Any

from trimtab.judges.cache import Account, Cache


class SharedCache:
    """A ``Cache`` in a process of its own on this node, used by workers anywhere in the cluster.

    Args:
        path: The SQLite file.

    Raises:
        ConfigError: as for ``Cache``.
    """

    def __init__(self, path: str | None) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Here first, since an error of an actor's constructor is not raised as itself.
        Cache(path).close()
        # The file is on a disk of this node, and SQLite's log of changes cannot be shared by network.
        here: Any = NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self.path = path
        self._cache: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Cache).remote(path)

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._cache, method).remote(*arguments))

    def get(self, key: str) -> str | None:
        """As ``Cache.get``."""
        return self._call("get", key)

    def book(self, max_price: float, max_calls: int | None, max_spend: float | None) -> bool:
        """As ``Cache.book``."""
        return self._call("book", max_price, max_calls, max_spend)

    def settle(self, change: float, key: str = "", reply: str | None = None) -> None:
        """As ``Cache.settle``."""
        self._call("settle", change, key, reply)

    def account(self) -> Account:
        """As ``Cache.account``."""
        return self._call("account")

    def close(self) -> None:
        """Nothing: others may still use it."""

    def stop(self) -> None:
        """Close the file and end the process."""
        import ray

        self._call("close")
        ray.kill(self._cache)

"""The configuration section ``rollout``: which engine samples completions."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from trimtab.config import Config

Sync = Literal["auto", "adapter", "folder", "gloo", "nccl"]


LOOPBACK = "127.0.0.1"


class RolloutSpec(Config):
    """Which engine samples completions, and how it gets the policy's weights."""

    free_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "urls", "servers", "gpus_per_server", "server_python", "server_args", "key_env",
            "host", "sync", "shared_folder", "timeout", "concurrency",
        }
    )  # fmt: skip

    engine: Literal["native", "vllm"] = "native"
    """``native`` samples the model that is trained, in its process; ``vllm`` asks vLLM servers."""
    urls: tuple[str, ...] = ()
    """Servers that run already, such as "http://10.0.0.2:8000"."""
    servers: int = Field(default=0, ge=0)
    """Servers to start, in place of ``urls``: on this machine, or under ``launch.type: ray`` as actors on
    the nodes of the cluster."""
    gpus_per_server: int = Field(default=1, ge=1)
    """GPUs of each started server, by tensor parallelism; a machine without GPUs runs it on its CPU."""
    server_python: str | None = None
    """Python of the environment with vLLM, for started servers; this one's if not set."""
    server_args: tuple[str, ...] = ()
    """Further arguments of vLLM for started servers."""
    key_env: str | None = None
    """Environment variable with the servers' API key."""
    host: str = LOOPBACK
    """This machine's address as the servers reach it: weights are sent from here. Under ``launch.type:
    ray`` it is the node's address in the cluster, if it is not set."""
    sync: Sync = "auto"
    """How weights get to the servers. ``adapter`` sends the adapter as files, ``folder`` the whole model
    as files; ``nccl`` and ``gloo`` broadcast tensors. ``auto`` is adapter where only an adapter is
    trained, else nccl on GPUs and folder on CPUs."""
    shared_folder: str | None = None
    """Where files for the servers are written, on a disk that trainer and servers share; by default in
    the run folder."""
    timeout: float = Field(default=600.0, gt=0.0)
    """Seconds until a completion counts as failed."""
    concurrency: int = Field(default=256, ge=1)
    """Completions in flight per server."""
    max_staleness: int = Field(default=0, ge=0)
    """Iterations that completions may be older than the weights they train; 0 samples and trains in turn.
    With servers, completions of later iterations are sampled during training."""
    in_flight: bool = True
    """With ``max_staleness``: whether a running completion continues under new weights."""
    importance_weights: bool = True
    """With ``max_staleness``: correct for older weights by truncated importance weights, unless
    ``method.mismatch`` says otherwise."""

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} is no address of a server; write http://HOST:PORT")
        if len(set(urls)) < len(urls):
            raise ValueError("a server occurs twice; name each one once")
        # With or without /v1 at the end, as people copy it from clients.
        return tuple(url.rstrip("/").removesuffix("/v1") for url in urls)

    @model_validator(mode="after")
    def _check(self) -> RolloutSpec:
        if self.engine == "native":
            if self.urls or self.servers:
                raise ValueError(
                    "urls and servers belong to engine: vllm; set rollout.engine: vllm"
                )
            if self.sync != "auto":
                raise ValueError(
                    f"sync: {self.sync} sends weights to servers; the native engine samples the model "
                    "that is trained: remove sync, or set rollout.engine: vllm"
                )
        elif bool(self.urls) == bool(self.servers):
            raise ValueError(
                "engine: vllm needs urls of running servers, or servers: N to start them (not both)"
            )
        return self

    def transport(self, trains_adapter: bool, cuda: bool) -> Sync:
        """How weights are sent.

        Args:
            trains_adapter: Whether only an adapter is trained.
            cuda: Whether trainer and servers have GPUs.

        Raises:
            ValueError: adapters are sent, but the whole model is trained.
        """
        if self.sync == "adapter" and not trains_adapter:
            raise ValueError(
                "rollout.sync: adapter needs an adapter; set model.lora, or rollout.sync: folder"
            )
        if self.sync != "auto":
            return self.sync
        return "adapter" if trains_adapter else "nccl" if cuda else "folder"

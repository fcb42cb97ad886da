"""From the section ``rollout`` to an engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch

from trimtab.data.render import Renderer
from trimtab.errors import ConfigError
from trimtab.models.adapters import find_adapter, save_adapter
from trimtab.models.export import save_model
from trimtab.models.load import LM, base_of
from trimtab.models.lora import has_adapter
from trimtab.rollout.engine import Engine
from trimtab.rollout.engines.native import NativeEngine
from trimtab.rollout.engines.pool import ServerPool
from trimtab.rollout.engines.ray_servers import RayServers, cluster_gpus, node_address
from trimtab.rollout.engines.server_process import (
    ServerProcesses,
    ServeSpec,
    assign_gpus,
    python_with_vllm,
    require_gpus,
)
from trimtab.rollout.engines.vllm import Requirements, VLLMServer
from trimtab.rollout.link import GroupSync
from trimtab.rollout.rollout_spec import LOOPBACK, RolloutSpec
from trimtab.rollout.sync import AdapterSync, FolderSync, Transport
from trimtab.sample.draw import SamplingConfig
from trimtab.types import Group


def make_engine(
    spec: RolloutSpec,
    lm: LM,
    renderer: Renderer,
    prompts: Sequence[Group],
    sampling: SamplingConfig,
    out: Path,
    *,
    trainers: int = 1,
    on_ray: bool = False,
) -> Engine:
    """The engine of a run; servers are started, or looked at, before the first step.

    Args:
        spec: The section ``rollout``.
        lm: The policy.
        prompts: The longest one decides how many tokens a server must have room for.
        sampling: As for the run's completions.
        out: The run folder, for logs and weight files.
        trainers: Processes that train on this machine's GPUs, or on the cluster's.
        on_ray: Whether the servers to start are placed by Ray, on any node of the cluster.

    Raises:
        ConfigError: a server cannot be reached or does not fit, or there are too few GPUs.
    """
    if spec.engine == "native":
        return NativeEngine.of(lm, renderer)
    folder = out / "rollout"
    files = Path(spec.shared_folder) if spec.shared_folder else folder
    trains_adapter = has_adapter(lm.model)
    way = spec.transport(trains_adapter, lm.device.type == "cuda")
    longest = max(len(g.prompt) for g in prompts) + sampling.max_new_tokens
    config = cast(Any, base_of(lm.model).config.get_text_config())
    needs = Requirements(int(config.vocab_size), min(longest, lm.limit))
    key = os.environ.get(spec.key_env, "") if spec.key_env else ""
    if spec.key_env and not key:
        raise ConfigError(f"rollout.key_env: the environment variable {spec.key_env} is not set")
    urls: Sequence[str] = spec.urls
    host, servers = spec.host, None
    if spec.servers:
        python = python_with_vllm(spec.server_python)
        model, tokenizer = _start_model(lm, renderer, folder)
        visible = cluster_gpus() if on_ray else torch.cuda.device_count()
        serve = ServeSpec(
            python=python,
            model=model,
            tokenizer=tokenizer,
            max_length=needs.length,
            dtype="bfloat16" if lm.mixed or lm.model.dtype == torch.bfloat16 else "float32",
            backend=way if way in ("gloo", "nccl") else None,
            lora_rank=_rank(lm) if way == "adapter" else None,
            gpus=spec.gpus_per_server if visible else 0,
            args=spec.server_args,
        )
        if on_ray:
            require_gpus(spec.servers, spec.gpus_per_server, trainers, visible, "the cluster")
            servers = RayServers(serve, spec.servers, folder)
            host = node_address() if host == LOOPBACK else host
        else:
            gpus = assign_gpus(spec.servers, spec.gpus_per_server, visible, trainers)
            servers = ServerProcesses(serve, gpus, folder)
        urls, key = servers.urls, servers.key
    transport = _transport(way, files, host)
    with ExitStack() as started:
        if servers is not None:
            started.callback(servers.stop)
        pool = ServerPool(
            [VLLMServer(url, key, spec.timeout, spec.concurrency) for url in urls],
            needs,
            transport,
            tuple(renderer.stop_ids),
            [g.prompt for g in prompts[:4]],
            servers,
        )
        started.pop_all()  # the pool stops them from now on
    return pool


def _transport(way: str, files: Path, host: str) -> Transport:
    if way == "adapter":
        return AdapterSync(files / "adapters")
    if way == "gloo" or way == "nccl":
        return GroupSync(way, host)
    return FolderSync(files / "weights")


def _rank(lm: LM) -> int:
    """The smallest rank that vLLM has kernels for and that holds the adapter."""
    config: Any = cast(Any, lm.model).peft_config["default"]
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    return next((r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= rank), rank)


def _start_model(lm: LM, renderer: Renderer, folder: Path) -> tuple[str, str]:
    """What a server loads when it starts: model and tokenizer.

    The base of an adapter; otherwise the folder that training starts from, or an export of it where
    there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = folder / "tokenizer"
    renderer.tokenizer.save_pretrained(tokenizer)
    if has_adapter(lm.model):
        # Writes a base that is on no disk, and names it in the adapter's configuration.
        save_adapter(lm.model, folder / "start", renderer.tokenizer)
        base = str(cast(Any, lm.model.peft_config["default"]).base_model_name_or_path)
        return base, str(tokenizer.resolve())
    path = lm.spec.path
    if path.endswith(".json") or find_adapter(path) is not None:
        path = str((folder / "start").resolve())
        save_model(lm.model, Path(path), renderer.tokenizer, lm.plain, renderer.stop_ids)
    return (str(Path(path).resolve()) if Path(path).is_dir() else path), str(tokenizer.resolve())

"""Starts vLLM servers, one process each, and stops them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trimtab.errors import ConfigError
from trimtab.rollout import vllm_guard, vllm_plugin
from trimtab.rollout.engine import EngineError
from trimtab.runs import write_atomic

log = logging.getLogger(__name__)
START_SECONDS = 1800.0
"""Until a started server must answer: large models take minutes to load and compile."""
RESTARTS = 3
"""How often a server is started again in one run."""
GUARD = "trimtab_vllm_guard"
MODULE = "vllm.entrypoints.openai.api_server"


@dataclass(frozen=True, slots=True)
class ServeSpec:
    """How a server is started."""

    python: str
    """Python of an environment with vLLM."""
    model: str
    """Folder or hub id."""
    tokenizer: str
    max_length: int
    """Tokens of a prompt with its completion."""
    dtype: str
    backend: str | None
    """Weight transfer backend, where weights are broadcast."""
    lora_rank: int | None
    """Rank of the adapter, where adapters are sent."""
    gpus: int
    """Per server; 0 runs it on the CPU."""
    args: tuple[str, ...] = ()
    """Further arguments."""


class Servers(Protocol):
    """Servers that belong to a run."""

    key: str

    @property
    def urls(self) -> list[str]:
        """Their addresses."""
        ...

    def watch(self) -> None:
        """Start servers again that ended."""

    def stop(self) -> None:
        """End all servers."""


def server_arguments(spec: ServeSpec, port: int, host: str = "127.0.0.1") -> list[str]:
    """The command of one server."""
    command = [
        spec.python, "-m", MODULE, "--model", spec.model, "--tokenizer", spec.tokenizer,
        "--host", host, "--port", str(port), "--served-model-name", "policy",
        "--dtype", spec.dtype, "--max-model-len", str(spec.max_length),
        "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
        "--enable-scale-out", "--middleware", f"{GUARD}.Guard",
    ]  # fmt: skip
    if spec.gpus > 1:
        command += ["--tensor-parallel-size", str(spec.gpus)]
    if spec.backend is not None:
        command += ["--weight-transfer-config", json.dumps({"backend": spec.backend})]
    if spec.lora_rank is not None:
        # A running completion keeps its adapter while the next one is loaded.
        command += ["--enable-lora", "--max-lora-rank", str(spec.lora_rank), "--max-loras", "2"]
    return [*command, *spec.args]


def server_environment(key: str, gpus: Sequence[int], modules: Path) -> dict[str, str]:
    """The environment of one server.

    Args:
        key: API key.
        gpus: Numbers of its GPUs; empty for none.
        modules: Folder that ``write_modules`` wrote.
    """
    environment: dict[str, str] = {
        name: value
        for name, value in os.environ.items()
        # The trainer's ranks are not the server's; its thread count neither.
        if name not in ("PYTHONPATH", "OMP_NUM_THREADS", "RANK", "LOCAL_RANK", "WORLD_SIZE",
                        "MASTER_ADDR", "MASTER_PORT")
    }  # fmt: skip
    environment |= {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_API_KEY": key,
        "PYTHONPATH": str(modules),
    }
    if not gpus:
        # Otherwise a server on a CPU takes nearly all memory for its cache, in GiB.
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    else:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    return environment


def require_gpus(
    servers: int, per_server: int, trainers: int, existing: int, where: str = "this machine"
) -> None:
    """Check that trainers and servers have GPUs of their own; without any GPU they share the CPU.

    Raises:
        ConfigError: there are fewer GPUs than they need.
    """
    needed = servers * per_server + trainers
    if existing and needed > existing:
        raise ConfigError(
            f"rollout.servers: {servers} servers of {per_server} GPUs and {trainers} for training are "
            f"{needed} GPUs, and {where} has {existing}; lower rollout.servers or "
            "rollout.gpus_per_server, or use rollout.engine: native"
        )


def assign_gpus(servers: int, per_server: int, visible: int, trainers: int) -> list[list[int]]:
    """GPU numbers of each server: the last ones, since trainers use the first.

    Raises:
        ConfigError: there are fewer GPUs than trainers and servers need.
    """
    if visible == 0:
        return [[] for _ in range(servers)]
    require_gpus(servers, per_server, trainers, visible)
    first = visible - servers * per_server
    return [
        list(range(first + i * per_server, first + (i + 1) * per_server)) for i in range(servers)
    ]


@dataclass(slots=True)
class ServerProcess:
    """One server that we started."""

    command: list[str]
    environment: Mapping[str, str]
    port: int
    log_path: Path
    address: str = "127.0.0.1"
    ends_with_parent: bool = False
    """Whether the system ends it when the thread that started it ends (Linux)."""
    restarts: int = 0
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.address}:{self.port}"

    def start(self) -> None:
        """Start the process; its output is appended to ``log_path``."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as out:
            self.child = subprocess.Popen(
                self.command,
                env=dict(self.environment),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the trainer, which stops the servers
                cwd=self.log_path.parent,
                preexec_fn=_end_with_parent if self.ends_with_parent else None,
            )
        write_atomic(self._pid_file, f"{self.child.pid} {self.port}".encode())

    @property
    def _pid_file(self) -> Path:
        return self.log_path.with_suffix(".pid")

    def stop_leftover(self) -> None:
        """End a server of a trainer that was killed: it would keep its GPUs."""
        if not self._pid_file.is_file():
            return
        pid, port = self._pid_file.read_text().split()
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except OSError:  # it ended, or the system has no /proc
            return
        if MODULE in command and port in command:
            log.warning(
                "rollout: ending the server of an earlier process of this run (pid %s)", pid
            )
            _kill_group(int(pid), signal.SIGKILL)

    def start_again(self) -> None:
        """Start it if it ended, at most ``RESTARTS`` times."""
        if self.child is None or self.child.poll() is None or self.restarts == RESTARTS:
            return
        self.restarts += 1
        log.warning(
            "rollout: the server at %s ended with code %s and is started again (see %s)",
            self.url,
            self.child.returncode,
            self.log_path,
        )
        self.stop()
        self.start()

    def stop(self) -> None:
        """End the process and its children."""
        child, self.child = self.child, None
        if child is None:
            return
        _kill_group(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(20.0)
        _kill_group(child.pid, signal.SIGKILL)  # also workers that outlived it
        child.wait()
        self._pid_file.unlink(missing_ok=True)

    def wait(self) -> None:
        """Until it answers.

        Raises:
            EngineError: it ended, or does not answer in ``START_SECONDS``.
        """
        limit = time.monotonic() + START_SECONDS
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < limit:
            if self.child is None or self.child.poll() is not None:
                break
            try:
                with opener.open(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        lines = self.log_path.read_text(errors="replace").split("\n")
        # The first error is the cause; what follows are those who waited for it.
        causes = [line for line in lines if re.search(r"\b\w+(Error|Exception): ", line)]
        excerpt = "\n".join(causes[:1] or lines[-15:])
        raise EngineError(f"rollout: a vLLM server did not start; {self.log_path} says:\n{excerpt}")


class ServerProcesses:
    """The servers of a run; those of an earlier process of the same run are ended first.

    Args:
        spec: How each is started.
        gpus: GPU numbers of each server.
        folder: For their logs, and for our modules that they import.
    """

    def __init__(self, spec: ServeSpec, gpus: Sequence[Sequence[int]], folder: Path) -> None:
        self.key = secrets.token_urlsafe(24)
        """Of every route."""
        modules = write_modules(folder / "modules", spec.backend)
        self.processes = [
            ServerProcess(
                server_arguments(spec, port := free_port()),
                server_environment(self.key, numbers, modules),
                port,
                (folder / f"server-{i}.log").resolve(),
            )
            for i, numbers in enumerate(gpus)
        ]
        for process in self.processes:
            process.stop_leftover()
        atexit.register(self.stop)
        with contextlib.ExitStack() as started:
            started.callback(self.stop)
            for process in self.processes:
                process.start()
            for process in self.processes:
                process.wait()
            started.pop_all()

    @property
    def urls(self) -> list[str]:
        """Their addresses."""
        return [p.url for p in self.processes]

    def watch(self) -> None:
        """Start servers again that ended, at most ``RESTARTS`` times each."""
        for process in self.processes:
            process.start_again()

    def stop(self) -> None:
        """End all servers."""
        for process in self.processes:
            process.stop()
        atexit.unregister(self.stop)


def write_modules(folder: Path, backend: str | None) -> Path:
    """A folder for PYTHONPATH with the guard and, for gloo, the weight transfer, since vLLM's environment has no
    trimtab.

    Args:
        backend: Of the weight transfer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{GUARD}.py", Path(vllm_guard.__file__).read_bytes())
    if backend == "gloo":
        name = "trimtab_vllm_plugin"
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        write_atomic(folder / f"{name}.py", Path(vllm_plugin.__file__).read_bytes())
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        write_atomic(info / "METADATA", metadata.encode())
        entry = f"[vllm.general_plugins]\n{name} = {name}:register\n"
        write_atomic(info / "entry_points.txt", entry.encode())
    return folder.resolve()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _kill_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def python_with_vllm(configured: str | None) -> str:
    """The interpreter that starts servers.

    Raises:
        ConfigError: it has no vLLM.
    """
    python = configured or sys.executable
    probe = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"
    try:
        code = subprocess.run([python, "-c", probe], check=False, capture_output=True).returncode
    except OSError as error:
        raise ConfigError(f"rollout.server_python: {python} cannot be run: {error}") from None
    if code != 0:
        raise ConfigError(
            f"rollout.servers: {python} has no vLLM; install it there, or set rollout.server_python to "
            "the Python of an environment with vLLM"
        )
    return python


def free_port() -> int:
    """A port that no program listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])

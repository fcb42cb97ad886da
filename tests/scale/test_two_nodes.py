"""Two nodes of a Ray cluster, in two network namespaces: a node is killed, the link is down, a node is lost.

It needs Linux, root and iproute2; ``make scale-check`` runs it. The nodes share a disk, and nothing else but
the link between them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.scale.conftest import ROOT
from tests.scale.equality import difference
from tests.support import folders
from trimtab.runs import read_metrics

STEPS = 6
STOP_AT = 3
PORT = 6399
BRIDGE = "ttbridge"
ADDRESS = {"tta": "10.213.7.2", "ttb": "10.213.7.3"}
"""Namespaces: the head with rank 0's driver, and the other node."""


def _can_make_namespaces() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "ttprobe"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", "ttprobe"], capture_output=True, check=False)
    return made.returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRIMTAB_SCALE") != "all", reason="make scale-check"),
    pytest.mark.skipif(not _can_make_namespaces(), reason="needs root and network namespaces"),
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def processes(node: str) -> list[int]:
    """Every process in a namespace."""
    listed = subprocess.run(
        ["ip", "netns", "pids", node], capture_output=True, text=True, check=False
    )
    return [int(p) for p in listed.stdout.split()]


def kill(node: str) -> None:
    """End a node at once: every process in its namespace."""
    for pid in processes(node):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """Two namespaces on a bridge."""
    made: list[Callable[[], object]] = []
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        made.append(lambda: ip("link", "del", BRIDGE))
        ip("link", "set", BRIDGE, "up")
        for node, address in ADDRESS.items():
            ip("netns", "add", node)
            made.append(lambda node=node: ip("netns", "del", node))
            made.append(lambda node=node: ip("link", "del", f"{node}-out"))
            ip("link", "add", f"{node}-out", "type", "veth", "peer", "name", "eth0", "netns", node)
            ip("link", "set", f"{node}-out", "master", BRIDGE, "up")
            ip("-n", node, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", node, "link", "set", device, "up")
        yield
    finally:
        for node in ADDRESS:
            kill(node)
        for undo in reversed(made):
            undo()


class Cluster:
    """Ray on the two nodes, one CPU each, so that each gets one rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        token = folder / "token"
        token.write_text("token-of-the-tests")
        token.chmod(0o600)
        self.env = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": f"{ADDRESS['tta']}:{PORT}",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "RAY_worker_niceness": "0",
        }
        self.start("tta")
        self.start("ttb")

    def start(self, node: str) -> None:
        """Start Ray on a node."""
        address = ADDRESS[node]
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        if node != "tta":
            role = [f"--address={self.env['RAY_ADDRESS']}"]
        ray = str(Path(sys.executable).parent / "ray")
        command = [
            "ip", "netns", "exec", node, ray, "start", *role, f"--node-ip-address={address}",
            "--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats",
        ]  # fmt: skip
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def train(self, values: dict[str, Any]) -> subprocess.Popen[str]:
        """Start ``trimtab rl`` on the head."""
        file = Path(values["out"]).with_suffix(".yaml")
        file.write_text(yaml.safe_dump(values))
        command = ["ip", "netns", "exec", "tta", sys.executable, "-m", "trimtab", "rl", str(file)]
        log = (Path(values["out"]).with_suffix(".log")).open("w")
        return subprocess.Popen(command, env=self.env, stdout=log, stderr=log, text=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl", 24)
    return folder


@pytest.fixture(scope="module")
def cluster(network: None, base: Path) -> Iterator[Cluster]:
    pytest.importorskip("ray")
    made = Cluster(base)
    yield made
    for node in ADDRESS:
        kill(node)


def slow_reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """A second per step, so that an event falls between two steps."""
    time.sleep(1.0)
    return folders.wordy(prompts, completions)


def settings(base: Path, out: Path, **launch: Any) -> dict[str, Any]:
    reward = {"name": "slow", "function": "tests.scale.test_two_nodes:slow_reward"}
    return folders.rl_settings(
        base, out, steps=STEPS, rewards=[reward], loop={"save_steps": 1},
        launch={"type": "ray", "trainers": 2, "timeout": 60, "restarts": 6, **launch},
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, base: Path) -> Path:
    out = base / "undisturbed"
    assert cluster.train(settings(base, out)).wait(300) == 0, out.with_suffix(".log").read_text()
    return out


def wait_for_step(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        file = out / "metrics.jsonl"
        if file.is_file() and file.read_bytes().count(b"\n") >= STOP_AT:
            return
        assert process.poll() is None, out.with_suffix(".log").read_text()
        time.sleep(0.02)
    raise AssertionError("no step within five minutes")


def assert_same(out: Path, other: Path, limit: float) -> None:
    assert [r["step"] for r in read_metrics(out)] == list(range(1, STEPS + 1))
    models = [load_file(f / "model" / "model.safetensors") for f in (out, other)]
    assert models[0].keys() == models[1].keys()
    for a, b in zip(models[0].values(), models[1].values(), strict=True):
        assert difference(a, b) <= limit


def test_a_killed_node_that_comes_back(cluster: Cluster, base: Path, undisturbed: Path) -> None:
    out = base / "killed"
    process = cluster.train(settings(base, out))
    wait_for_step(out, process)
    kill("ttb")
    cluster.start("ttb")
    assert process.wait(300) == 0, out.with_suffix(".log").read_text()
    assert_same(out, undisturbed, 0.0)


def test_a_link_that_is_down_for_20_seconds(
    cluster: Cluster, base: Path, undisturbed: Path
) -> None:
    out = base / "link"
    process = cluster.train(settings(base, out))
    wait_for_step(out, process)
    ip("link", "set", "ttb-out", "down")
    time.sleep(20)
    ip("link", "set", "ttb-out", "up")
    try:
        code = process.wait(240)
    except subprocess.TimeoutExpired:
        # Ray has declared the node dead; its processes may hang there. An operator starts it again.
        kill("ttb")
        cluster.start("ttb")
        code = process.wait(300)
    assert code == 0, out.with_suffix(".log").read_text()
    assert_same(out, undisturbed, 0.0)


def test_one_node_less_is_enough_with_min_trainers(
    cluster: Cluster, base: Path, undisturbed: Path
) -> None:
    out = base / "fewer"
    process = cluster.train(settings(base, out, min_trainers=1))
    wait_for_step(out, process)
    kill("ttb")
    assert process.wait(300) == 0, out.with_suffix(".log").read_text()
    # The start may have had one rank or two; one rank alone differs in the order of the sums.
    assert_same(out, undisturbed, 1e-5)

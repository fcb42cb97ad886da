"""A real vLLM server as the judge's endpoint: a tiny random model, the CPU build."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.support.folders import write
from tests.support.judging import items, write_items
from trimtab.config import build
from trimtab.datagen import scratch
from trimtab.datagen.judge_labels import JudgeConfig, JudgeSummary, main
from trimtab.feedback.records import read_judgements

WHERE = Path(os.environ.get("TRIMTAB_VLLM") or Path(__file__).parents[2] / ".vllm").absolute()
PYTHON = WHERE / "bin" / "python"

pytestmark = [
    pytest.mark.skipif(
        not PYTHON.is_file(),
        reason=f"no vLLM in {WHERE}: make vllm-env (or say with TRIMTAB_VLLM where it is)",
    ),
    pytest.mark.timeout(1800),
]


def _model(folder: Path) -> Path:
    """Random weights under a byte-level tokenizer, which can write any JSON. Heads of 32: the CPU
    build refuses 16."""
    texts = write(folder / "texts.jsonl", [{"text": i.prompt[0]["content"]} for i in items(50)])
    scratch.main(scratch.ScratchConfig(out=str(folder / "scratch"), data=str(texts), vocab=400, hidden=64,
                          layers=2, heads=2, positions=4096))  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder / "scratch")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(folder / "scratch" / "tokenizer").save_pretrained(
        folder / "model"
    )
    return folder / "model"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("vllm")
    model = _model(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = secrets.token_urlsafe(16)
    command = [
        str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--api-key", key,
        "--enforce-eager", "--max-model-len", "4096", "--max-num-seqs", "16", "--dtype", "float32",
        # Log-probs after the grammar has had its say; else "A" and "B" are lost among bytes.
        "--logprobs-mode", "processed_logprobs",
        "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ]  # fmt: skip
    env = {
        **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS")},
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    log = folder / "log"
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=folder)
    try:
        limit = time.monotonic() + 1500
        while True:
            if child.poll() is not None or time.monotonic() > limit:
                pytest.fail("the server did not start:\n" + log.read_text()[-4000:])
            try:
                if (
                    httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code
                    == 200
                ):
                    break
            except httpx2.TransportError:
                pass
            time.sleep(1.0)
        yield f"http://127.0.0.1:{port}/v1", key
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _judge(server: tuple[str, str], tmp_path: Path, **over: Any) -> JudgeSummary:
    url, _ = server
    data = write_items(tmp_path / "items.jsonl", items(12))
    options = {
        "endpoint": url, "model": "tiny", "key_env": "JUDGE_TEST_KEY", "data": str(data), "tries": 3,
        "out": str(tmp_path / "out"), "critique": False, "concurrency": 8, "timeout": 300.0,
        "max_tokens": 64, **over,
    }  # fmt: skip
    return main(build(JudgeConfig, options))


def test_verdicts_and_probabilities(
    server: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_TEST_KEY", server[1])
    summary = _judge(server, tmp_path, probabilities=True)
    assert summary.failed == {} and summary.calls == 24
    judgements = read_judgements(tmp_path / "out" / "judgements.jsonl")
    assert all(j.status == "ok" and j.prob is not None and 0 < j.prob < 1 for j in judgements)
    for j in judgements:
        for order in j.detail["orders"]:
            # The likeliest of the three is what was said.
            assert order["share"] in (0.0, 0.5, 1.0)
        assert j.detail["tokens_in"] > 100 and j.detail["tokens_out"] > 5
    assert len({round(j.prob or 0, 9) for j in judgements}) > 6
    # All of it lies in the cache now.
    assert _judge(server, tmp_path, probabilities=True)["calls"] == 0


@pytest.mark.parametrize("mode", ["rank", "score"])
def test_other_modes(
    server: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("JUDGE_TEST_KEY", server[1])
    summary = _judge(server, tmp_path, mode=mode, rubric="hhh")
    judgements = read_judgements(tmp_path / "out" / "judgements.jsonl")
    assert summary.failed == {} and all(j.status == "ok" for j in judgements)
    if mode == "score":
        assert all(1 <= x <= 10 for j in judgements for v in j.scores.values() for x in v)

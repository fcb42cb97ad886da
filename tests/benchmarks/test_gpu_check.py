"""The checks of ``make gpu-check`` on a CPU, where they compare the CPU path with itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_check


@pytest.mark.slow
def test_the_checks_run_on_a_cpu(tmp_path: Path) -> None:
    rows = gpu_check.exactness(tmp_path, "cpu", "1m")
    exact, gradients, mixed, sharded = (float(row.measured) for row in rows)
    assert exact == 0 and gradients == 0
    assert 0 < mixed < 0.05, "bfloat16 rounds"
    assert sharded <= 1e-6


def test_a_page_names_what_was_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "PAGE", tmp_path / "gpu.md")
    gpu_check.write_page([gpu_check.Row("sampler", "1", "not measured: no vLLM")], "none")
    assert "| sampler | 1 | not measured: no vLLM |" in (tmp_path / "gpu.md").read_text()


def test_a_result_is_one_line() -> None:
    result = {
        "ours": 1234.5, "unit": "token", "ratio": 1.5, "ratio_low": 1.25, "ratio_high": 2.0,
        "peer_name": "TRL", "gflops_ours": 0.0, "peak_mb_ours": 2048.0,
    }  # fmt: skip
    assert gpu_check.measured(result) == "1234 tokens/s, 1.50 [1.25, 2.00] times TRL, 2.0 GB"

"""A row of the benchmarks from its command to its page, small."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import growth, material, page, turns
from benchmarks.sampling_requests import ragged
from trimtab.models.heads import Scorer
from trimtab.models.load import ModelSpec


def row(
    module: str,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> dict[str, Any]:
    """What ``python -m MODULE FLAGS`` measures; its two sides are processes."""
    monkeypatch.setattr(sys, "argv", [module, *flags])
    runpy.run_module(module, run_name="__main__")
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_a_row_runs_and_reaches_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Made-up texts: a vocabulary need not be trained.
    monkeypatch.setattr(material, "DATA", tmp_path / "none")
    flags = [
        "--model", "1m", "--quick", "--turns", "1", "--steps", "1", "--batch", "3", "--threads", "1",
        "--clock", "cpu", "--folder", str(tmp_path), "--operations",
    ]  # fmt: skip
    result = row("benchmarks.bare", flags, monkeypatch, capsys)
    for key in ("row", "ours", "peer", "ratio", "ratio_low", "ratio_high"):
        assert result[key] is not None, key
    assert result["ratio"] == pytest.approx(result["ours"] / result["peer"])
    assert result["peak_mb_ours"] > 50 and result["peak_mb_peer"] > 50
    assert {"backward", "optimiser"} <= set(result["phases_ours"])
    assert sum(result["operations_ours"].values()) == pytest.approx(1, abs=0.01)
    assert result["operations_ours"]["matmul"] > 0.1 and result["operations_ours"]["attention"] > 0
    heads = page.table([])
    old_row = "| sft-bfd | 1 tokens |"
    (tmp_path / "page.md").write_text(
        "\n".join(
            [
                "# Old",
                "",
                *heads,
                old_row,
                "| bare-sft-1m | old |",
                "",
                f"## {page.GROWTH}",
                "",
                "| old |",
                "",
                "## More",
                "",
            ]
        )
    )
    page.write(tmp_path / "results", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert f"| bare-sft-1m | {result['ours']:.4g} tokens |" in text
    assert f"## {page.GROWTH}\n\n| old |\n\n##" in text and "## More" not in text
    assert "By kind of operation" in text
    assert "grpo-256" in text.split("Not measured:")[1].splitlines()[0]
    assert old_row in text and "| bare-sft-1m | old |" not in text, "rows of earlier runs stay"


def test_rows_with_a_system_prompt_begin_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(material, "DATA", tmp_path / "none")
    plain, _ = material.prompts(tmp_path, 500, 5, 8)
    begun, about = material.prompts(tmp_path, 500, 5, 8, system=20)
    texts, _ = material.demonstrations(tmp_path, 500, 5, system=20)
    before = material.system_prompt(500, 20)
    assert plain != begun and "system prompt of 20 tokens" in about and len(before.split()) == 20

    def of(path: Path) -> list[str]:
        return [json.loads(x)["prompt"] for x in path.read_text(encoding="utf-8").splitlines()]

    assert of(begun) == [before + p for p in of(plain)]
    assert all(p.startswith(before) for p in of(texts))


@pytest.mark.slow
def test_a_missing_peer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(material, "DATA", tmp_path / "none")
    monkeypatch.setattr(turns, "PEERS", tmp_path / "none")
    flags = ["--model", "1m", "--folder", str(tmp_path)]
    with pytest.raises(SystemExit, match="make bench-env") as stop:
        row("benchmarks.grpo", flags, monkeypatch, capsys)
    assert "\n" not in str(stop.value)


def test_exponents() -> None:
    x = [2.0, 4.0, 8.0, 16.0]
    assert growth.exponent(x, [3.0 * v**1.5 for v in x]) == pytest.approx(1.5)


def test_a_slow_turn_bends_no_curve() -> None:
    line = [1.0 + 0.05 * g for g in (8, 16, 32, 64)]
    slow = [[3 * v for v in line], line, [1.2 * v for v in line]]
    steady_points = growth.steady(slow)
    points = [{"x": g, "ours": v} for g, v in zip((8, 16, 32, 64), steady_points, strict=True)]
    fit = growth.flat(points)
    assert fit["off"] < 1e-9, "a slow turn is slow for every point"
    assert fit["fixed"] == pytest.approx(1.2) and fit["each"] == pytest.approx(0.06)
    points[1]["ours"] += 0.3
    assert growth.flat(points)["off"] > 0.1


def test_curves_on_the_page() -> None:
    points = [
        {"x": x, "ours": s, "peer": t, "peak_mb_ours": 500.0, "peak_mb_peer": t and 1000.0}
        for x, s, t in ((64, 0.5, 1.0), (4096, 2.0, 32.0))
    ]
    row = {"row": "growth-prompt", "how": "here", "points": points}
    text = "\n".join(page.growth([row | {"exponents": growth.fitted(points)}]))
    assert "- prompt: here\n" in text
    assert "| prompt | 64, 4096 | ours 0.33, peer 0.83, " in text
    assert "| prompt | 4,096 | 2.00 | 32.00 | 16.0 | 500 | 1000 |" in text
    alone = [p | {"peer": None, "peak_mb_peer": None} for p in points]
    text = "\n".join(page.growth([row | {"points": alone, "exponents": growth.fitted(alone)}]))
    assert "| prompt | 4,096 | 2.00 |  |  | 500 |  |" in text


def test_ragged_lengths() -> None:
    lengths = np.array(ragged(128, 8, 256))
    assert lengths.min() >= 8 and lengths.max() == 256
    useful = lengths.sum() / (128 * 256)
    assert 0.2 < useful < 0.4, "about a third of padded slots"


def test_the_reward_model_of_ppo_is_read_with_its_head(tmp_path: Path) -> None:
    model = material.model_folder(tmp_path, "1m", 64)
    folder = material.reward_folder(str(model))
    assert Scorer.load(ModelSpec(path=str(folder), device="cpu"), train=False)

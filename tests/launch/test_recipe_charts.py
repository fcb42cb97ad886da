"""Every packaged recipe declares charts of figures and stages that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import trimtab
from trimtab.config import build
from trimtab.launch.recipe import Recipe

RECIPES = sorted((Path(trimtab.__file__).parent / "recipes").glob("*.yaml"))


def figure_names(chart: dict[str, Any]) -> list[str]:
    """The figures of summary.json that a chart reads."""
    names = [*chart.get("bars", {}).values(), *chart.get("tiles", {}).values()]
    names += [name for row in chart.get("rows", {}).values() for name in row.values()]
    return names + [name for name in [chart.get("win_rate")] if name]


@pytest.mark.parametrize("file", RECIPES, ids=lambda p: p.stem)
def test_charts_name_what_the_recipe_has(file: Path) -> None:
    recipe = build(Recipe, yaml.safe_load(file.read_text()), file.name)
    figures = ["seconds", "peak_rss_mb", *recipe.figures]
    assert recipe.charts
    for chart in recipe.model_dump(mode="json")["charts"]:
        for name in figure_names(chart):
            # A mapping of figures, one figure, or a number within one ("win_rate.median.mean").
            assert any(
                f == name or f.startswith(f"{name}.") or name.startswith(f"{f}.") for f in figures
            ), f"{chart['title']}: {name}"
        stages = [chart["stage"]] if "stage" in chart else list(chart.get("stages", {}).values())
        assert set(stages) <= set(recipe.stages), chart["title"]
        if chart["type"] == "completions":
            assert set(chart["models"].values()) <= set(recipe.stages["compare"]["models"])
        if chart.get("better"):
            assert set(chart["better"]) <= set(chart["bars"])

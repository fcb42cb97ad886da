"""Names below bars: level where they fit, turned where they would touch."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from trimtab.report.charts import Bar, H, bar_chart, grouped_bars, svg_file

SHORT = ["SFT", "DPO", "PPO"]
LONG = [f"remedy number {i}" for i in range(10)]


@pytest.mark.parametrize(
    ("names", "turned"), [(SHORT, False), (LONG, True), (["集成取最差的得分"] * 8, True)]
)
def test_names_are_turned_where_they_would_touch(names: list[str], turned: bool) -> None:
    groups = {f"{name}{' ' * i}": [Bar("share", 0.5)] for i, name in enumerate(names)}
    charts = [
        grouped_bars("t", groups, "y", "s"),
        bar_chart("t", [Bar(n, 0.5) for n in names], "y", "s"),
    ]
    for chart in charts:
        assert chart is not None
        assert chart.svg.count("rotate(-50)") == (len(names) if turned else 0)
        assert (chart.height > H) == turned
        [box] = re.findall(r'viewBox="0 0 \d+ (\d+)"', chart.svg)
        assert int(box) == chart.height
        file = ElementTree.fromstring(svg_file(chart))
        top, height = (float(file.attrib["viewBox"].split()[i]) for i in (1, 3))
        assert top + height == chart.height

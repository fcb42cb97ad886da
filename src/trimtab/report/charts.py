"""Charts as inline SVG: no script, no outside file, colours from the page's CSS variables.

Every text is escaped; colours are classes (``s0``…``s5``), since the page's policy refuses inline
styles.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

Array = npt.NDArray[np.float64]
W, H = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 46
COLOURS = 6


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a line chart."""

    name: str
    x: Sequence[float] | Array
    y: Sequence[float | None] | Array
    """Same length as ``x``. None is a gap; NaN and infinities get a mark at the bottom of the chart."""
    colour: int = -1
    """0 to 5; by place in the chart when negative."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, with its 95 % interval when known."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: int = 0


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart with its words."""

    title: str
    see: str
    """A sentence that says what to see in it."""
    svg: Markup
    legend: tuple[tuple[str, int], ...] = ()
    """Names and colours of the series."""
    height: int = H
    """Of the picture, with turned names."""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span [low, high].

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low
    raw = span / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number short enough for an axis or a tile.

    >>> number(1234567.0), number(0.125), number(3.0), number(0.00001)
    ('1.23M', '0.125', '3', '1e-05')
    """
    size = abs(value)
    for limit, mark in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if mark == 'k' else limit):.3g}{mark}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"


def bounds(values: Sequence[float], *, zero: bool = False) -> tuple[float, float]:
    """An axis range around ``values`` with a little air; with ``zero`` it holds 0."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(1.0, abs(high)):
        pad = 0.5 * max(abs(high), 1e-3)
        return low - pad, high + pad
    air = 0.05 * (high - low)
    return (low if zero and low == 0 else low - air), (high if zero and high == 0 else high + air)


BUCKETS = 300
"""A drawn line has at most two points per bucket, which is more than the pixels of a chart."""


def smooth(values: Array, window: int, places: npt.NDArray[np.int64]) -> Array:
    """Centred running mean over ``window`` points (fewer at the ends) at some places."""
    half = window // 2
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    # Around the mean, so that the sums of a long series lose no digits.
    mean = values.mean()
    sums = np.concatenate(([0.0], np.cumsum(values - mean)))
    return mean + (sums[high] - sums[low]) / (high - low)


def extremes(values: Array, buckets: int = BUCKETS) -> npt.NDArray[np.int64]:
    """Places of the smallest and the largest value in each of ``buckets`` equal stretches, in order.

    All places where there are no more than two per bucket, and always the first and the last.

    >>> extremes(np.array([0.0, 5.0, 1.0, 2.0, -3.0, 0.0, 0.0, 1.0]), 2)
    array([0, 1, 4, 7])
    """
    if len(values) <= 2 * buckets:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), buckets + 1).astype(int)
    places = {0, len(values) - 1}
    for low, high in pairwise(edges.tolist()):
        part = values[low:high]
        places |= {low + int(part.argmin()), low + int(part.argmax())}
    return np.array(sorted(places))


class _Axes:
    """The frame of a chart: maps data to the picture and draws grid, ticks and titles."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], x_title: str, y_title: str
    ) -> None:
        self.x, self.y = x, y
        self.titles = x_title, y_title
        self.parts: list[Markup] = []
        self.below = 0
        """Height that is added for names which are turned."""

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (W - LEFT - RIGHT), H - BOTTOM - up * (H - TOP - BOTTOM)

    def add(self, template: str, *values: object) -> None:
        self.parts.append(Markup(template).format(*values))

    def text(self, kind: str, x: float, y: float, words: str) -> None:
        self.add('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>', kind, x, y, words)

    def bar(self, bar: Bar, x: float, width: float) -> None:
        """A bar from zero, its left side at ``x`` in the picture."""
        (_, y), (_, floor) = self.at(0, bar.value), self.at(0, 0)
        shape = '<rect class="f{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2"/>'
        self.add(shape, bar.colour % COLOURS, x, min(y, floor), width, abs(floor - y))

    def grid(self, *, x_ticks: bool = True) -> None:
        for value in ticks(*self.y):
            _, y = self.at(self.x[0], value)
            kind = "zero" if value == 0 else "grid"
            self.add('<path class="{}" d="M{} {:.1f}H{}"/>', kind, LEFT, y, W - RIGHT)
            self.text("tick end", LEFT - 7, y + 4, number(value))
        for value in ticks(*self.x) if x_ticks else ():
            self.text("tick mid", self.at(value, self.y[0])[0], H - BOTTOM + 17, number(value))

    def names(self, names: Sequence[str]) -> None:
        """Names below the middles of equal parts of the axis, turned where they would touch."""
        names = [name[:18] for name in names]
        longest, wide = max(map(_width, names)), (W - LEFT - RIGHT) / len(names)
        places = [self.at(place + 0.5, self.y[0])[0] for place in range(len(names))]
        if longest <= wide:
            for x, name in zip(places, names, strict=True):
                self.text("tick mid", x, H - BOTTOM + 18, name)
            return
        self.below = max(0, round(0.8 * longest) - 20)
        for x, name in zip(places, names, strict=True):
            turned = '<text class="tick end" transform="translate({:.1f} {}) rotate(-50)">{}</text>'
            self.add(turned, x + 4, H - BOTTOM + 14, name)

    def marks(self, x: Array) -> None:
        """Short strokes at the bottom of the chart, a few at most for each pixel."""
        places = sorted(
            {round(self.at(float(at), 0)[0], 1) for at in np.unique(x)[:: len(x) // 2000 + 1]}
        )
        shape = "".join(f"M{at} {H - BOTTOM}v-8" for at in places)
        self.add('<path class="lost" d="{}"><title>not finite</title></path>', shape)

    def path(self, kind: str, points: Iterable[tuple[float, float]]) -> None:
        places = ["{:.1f} {:.1f}".format(*self.at(*point)) for point in points]
        self.add('<path class="line {}" d="M{}"/>', kind, "L".join(places))

    def done(self, label: str) -> Markup:
        across, up = self.titles
        self.text("axis mid", (LEFT + W - RIGHT) / 2, H + self.below - 8, across)
        turned = '<text class="axis mid" transform="translate(13 {:.0f}) rotate(-90)">{}</text>'
        self.add(turned, (TOP + H - BOTTOM) / 2, up)
        head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
        head = head.format(W, H + self.below, label)
        return head + Markup("").join(self.parts) + Markup("</svg>")


def _width(words: str) -> int:
    """About how wide words are in a chart."""
    return sum(13 if ord(letter) > 0x2E80 else 7 for letter in words)


def _real(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_title: str,
    y_title: str,
    see: str,
    y_range: tuple[float, float] | None = None,
) -> Chart | None:
    """Lines over a shared axis; noisy ones get their running mean over a faint raw trace.

    None when no line has two points.
    """
    drawn: list[tuple[Line, Array, Array, int]] = []
    lost: list[Array] = []
    for place, line in enumerate(lines):
        x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
        finite = np.isfinite(y)
        if np.count_nonzero(finite) >= 2:
            colour = place if line.colour < 0 else line.colour
            drawn.append((line, x[finite], y[finite], colour % COLOURS))
            absent = (
                np.array([v is None for v in line.y]) if isinstance(line.y, Sequence) else False
            )
            lost.append(x[~(finite | absent)])
    if not drawn:
        return None
    ends = [float(v) for _, x, _, _ in drawn for v in (x.min(), x.max())]
    tops = [float(v) for _, _, y, _ in drawn for v in (y.min(), y.max())]
    places = np.concatenate(lost)
    if len(places):
        ends += [float(places.min()), float(places.max())]
        see += f" {len(places):,} values are NaN or infinite, marked at the bottom."
    across = (min(ends), max(ends)) if max(ends) > min(ends) else bounds(ends)
    axes = _Axes(across, y_range or bounds(tops), x_title, y_title)
    axes.grid()
    if len(places):
        axes.marks(places)
    for _, x, y, colour in drawn:
        window = len(x) // 20
        if window >= 2:
            at = extremes(y)
            axes.path(f"raw s{colour}", zip(x[at].tolist(), y[at].tolist(), strict=True))
            at = np.unique(np.linspace(0, len(y) - 1, 2 * BUCKETS).astype(int))
            x, y = x[at], smooth(y, window, at)
        axes.path(f"s{colour}", zip(x.tolist(), y.tolist(), strict=True))
        end = axes.at(float(x[-1]), float(y[-1]))
        axes.add('<circle class="dot f{}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>', colour, *end)
    legend = tuple((line.name, colour) for line, _, _, colour in drawn)
    return Chart(title, see, axes.done(title), legend)


def bar_chart(
    title: str, bars: Sequence[Bar], y_title: str, see: str, level: float | None = None
) -> Chart | None:
    """Bars from zero, each with its interval; ``level`` draws a dashed reference line."""
    bars = [bar for bar in bars if _real(bar.value)]
    if not bars:
        return None
    reach = [v for b in bars for v in (b.value, b.low, b.high) if v is not None]
    axes = _Axes((0, len(bars)), bounds([*reach, level or 0.0], zero=True), "", y_title)
    axes.grid(x_ticks=False)
    half = min((W - LEFT - RIGHT) / len(bars) * 0.32, 38)
    for place, bar in enumerate(bars):
        x, y = axes.at(place + 0.5, bar.value)
        axes.bar(bar, x - half, 2 * half)
        tip = min(y, axes.at(0, 0)[1])
        if bar.low is not None and bar.high is not None:
            (_, low), (_, high) = axes.at(0, bar.low), axes.at(0, bar.high)
            whisker = "M{0:.1f} {1:.1f}V{2:.1f}M{3:.1f} {1:.1f}h10M{3:.1f} {2:.1f}h10"
            axes.add(f'<path class="whisker" d="{whisker}"/>', x, low, high, x - 5)
            tip = min(tip, high)
        axes.text("value mid", x, tip - 6, number(bar.value))
    axes.names([bar.name for bar in bars])
    if level is not None:
        axes.path("guide", [(0, level), (len(bars), level)])
    return Chart(title, see, axes.done(title), height=H + axes.below)


def grouped_bars(
    title: str, groups: Mapping[str, Sequence[Bar]], y_title: str, see: str
) -> Chart | None:
    """Bars side by side within named groups, one colour a series."""
    values = [bar.value for bars in groups.values() for bar in bars if _real(bar.value)]
    if not values:
        return None
    axes = _Axes((0, len(groups)), bounds(values, zero=True), "", y_title)
    axes.grid(x_ticks=False)
    wide = (W - LEFT - RIGHT) / len(groups)
    axes.names(list(groups))
    for place, bars in enumerate(groups.values()):
        thick = wide * 0.8 / max(1, len(bars))
        middle, _ = axes.at(place + 0.5, 0)
        for index, bar in enumerate(bars):
            left = middle + (index - len(bars) / 2) * thick + 1
            axes.bar(bar, left, max(1.0, thick - 2))
    legend = {bar.name: bar.colour for bars in groups.values() for bar in bars}
    return Chart(title, see, axes.done(title), tuple(legend.items()), H + axes.below)


def calibration_chart(title: str, bins: Sequence[Mapping[str, float]], see: str) -> Chart | None:
    """Accuracy against confidence, dots as large as their bin, beside the diagonal."""
    bins = [b for b in bins if _real(b.get("confidence")) and _real(b.get("accuracy"))]
    if not bins:
        return None
    low = min(0.5, *(min(b["confidence"], b["accuracy"]) for b in bins))
    low = max(0.0, math.floor(low * 10) / 10)
    axes = _Axes(
        (low, 1.0), (low, 1.04), "Confidence (probability)", "Accuracy (share of pairs right)"
    )
    axes.grid()
    axes.path("guide", [(low, low), (1.0, 1.0)])
    axes.path("s0", [(b["confidence"], b["accuracy"]) for b in bins])
    most = max(b.get("count", 1) for b in bins)
    for b in bins:
        x, y = axes.at(b["confidence"], b["accuracy"])
        radius = 2.5 + 6 * math.sqrt(b.get("count", 1) / max(most, 1))
        dot = '<circle class="dot f0" cx="{:.1f}" cy="{:.1f}" r="{:.1f}">'
        title_of_dot = "<title>{} pairs</title></circle>"
        axes.add(dot + title_of_dot, x, y, radius, int(b.get("count", 0)))
    return Chart(title, see, axes.done(title))


def svg_file(chart: Chart) -> str:
    """A chart as an SVG file of its own, with its style and its legend."""
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    parts: list[Markup] = []
    place = LEFT
    for name, colour in chart.legend:
        entry = (
            '<rect class="f{}" x="{}" y="-20" width="12" height="8"/><text x="{}" y="-12">{}</text>'
        )
        parts.append(Markup(entry).format(colour, place, place + 17, name))
        place += 34 + _width(name)
    top = 30 if chart.legend else 0
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {} {} {}" width="{}" role="img" '
        'aria-label="{}"><style>{}</style>'
    ).format(-top, max(W, place), chart.height + top, max(W, place), chart.title, Markup(css))
    body = chart.svg[chart.svg.index(">") + 1 :]
    return f"{head}{Markup('').join(parts)}{body}\n"

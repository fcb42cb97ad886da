"""Figures and tables as plain text."""

from rich.cells import cell_len

from trimtab.evaluate.agreement_result import Drift, Figure, Share
from trimtab.report.sections import Table


def span(figure: Figure | Share | Drift | None, percent: bool = False, digits: int = 2) -> str:
    """Value and interval as text.

    >>> span(Figure(0.5, 0.4, 0.6))
    '0.50 [0.40, 0.60]'
    >>> span(Figure(0.5, 0.4, 0.6), percent=True)
    '50% [40, 60]'
    """
    if figure is None:
        return ""
    size, form, unit = (100, "{:.0f}", "%") if percent else (1, f"{{:.{digits}f}}", "")
    text = form.format(size * figure.value) + unit
    if figure.low is None or figure.high is None:
        return text
    return f"{text} [{form.format(size * figure.low)}, {form.format(size * figure.high)}]"


def plain(text: str) -> str:
    """Text from a file for a terminal: control characters are replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def as_text(table: Table) -> str:
    """A table for a terminal; the first column is aligned left, the others right.

    >>> print(as_text(Table(("Model", "Elo"), [("base", "1000"), ("m", "950")])))
    Model   Elo
    base   1000
    m       950
    """
    rows = [[plain(cell) for cell in row] for row in (table.head, *table.rows)]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        padding = [" " * (w - cell_len(c)) for w, c in zip(widths, row, strict=True)]
        cells = [row[0] + padding[0], *(p + c for p, c in zip(padding[1:], row[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)

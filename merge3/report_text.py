"""How the report writes figures: shares, leads, p-values, counts, times. A figure that is not there is a dash."""

from __future__ import annotations

import pandas as pd

NONE = "–"

Figure = float | int | None  # of a table; NaN and None are not measured


def percent(share: Figure) -> str:
    """A share in per cent."""
    return NONE if pd.isna(share) else f"{share:.1%}"


def points(difference: Figure) -> str:
    """A difference of shares in points, with its sign."""
    if pd.isna(difference):
        return NONE
    rounded = round(100 * difference, 1) + 0.0
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def p_value(p: Figure) -> str:
    """`p = 0.012`; what is below a thousandth is said so."""
    if pd.isna(p):
        return "p not available"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def number(value: Figure) -> str:
    """A figure of two decimals."""
    return NONE if pd.isna(value) else f"{value:.2f}".replace("-", "−")


def count(value: Figure) -> str:
    """A number of tokens in three figures: 12.3 million."""
    if pd.isna(value):
        return NONE
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if value >= size:
            return f"{value / size:.3g}{word}"
    return f"{value:,.0f}"


def minutes(seconds: Figure) -> str:
    """A time: 41 s, 12 min, 3.4 h."""
    if pd.isna(seconds):
        return NONE
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def fraction(part: float | int, whole: float | int) -> str:
    """How much of the whole a part is: 1/40, 1/3.4, and per cent where it is more than half."""
    if not whole:
        return NONE
    if part <= 0:
        return "0"
    times = whole / part
    if times < 2:
        return f"{part / whole:.0%}"
    return f"1/{times:.0f}" if times >= 9.95 else f"1/{times:.1f}"


def shorten(text: str, most: int = 24) -> str:
    """A text that fits beside a plot."""
    return text if len(text) <= most else f"{text[: most - 1]}…"

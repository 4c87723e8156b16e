"""The report's plots: tables in, SVG out, in the colours of the page.

Owns matplotlib. What it draws has no colours of its own: each is a placeholder of one of the page's CSS variables, so
that a plot follows the reader's theme. The same table gives the same bytes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from merge3.report_text import shorten

NAMES = ("ink", "muted", "line", "paper", "blue", "orange", "green", "s0", "s1", "s2", "s3", "s4")
THEME = {f"#0{i:x}0{i:x}0{i:x}": name for i, name in enumerate(NAMES, 1)}
INK, MUTED, LINE, PAPER, BLUE, ORANGE, GREEN, *STEPS = THEME


def look(ink: str, muted: str, line: str) -> dict[Any, Any]:
    """How plots look, here and in the documentation, as matplotlib's rcParams."""
    return {
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",
        "font.size": 10.5,
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.edgecolor": line,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "legend.frameon": False,
    }


STYLE = look(INK, MUTED, LINE) | {
    "text.parse_math": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 9.5,
    "legend.handletextpad": 0.5,
}
WIDTH = 5.0  # inches: as wide as a phone, so that a point stays about a pixel there
POINTS = 1500  # candidates or items that a plot shows: more are thinned evenly
NAMED_GENES = 40  # with more genes than these a plot does not name them
ON_FRONT = {"front": "on the front", "knee": "its knee, the winner", "behind": "behind it"}
MARKERS = "^vs<>PX"  # of the experts, one each


def svg(name: str, label: str, height: float, draw: Callable[[Axes], None]) -> Markup:
    """A plot as an SVG element: `label` for who does not see it, `name` in its ids, no date, the page's colours."""
    out = StringIO()
    with rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text is only measured here; the browser has the glyph
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    body = text[text.index("<svg") :]
    box = re.search(r'viewBox="[\d. ]+"', body)
    inner = re.sub(r"<metadata>.*?</metadata>", "", body[body.index(">") + 1 :], flags=re.DOTALL)
    inner = re.sub(r"<style[^>]*>.*?</style>", "", inner, flags=re.DOTALL)
    inner = re.sub(r'<g id="[^"]*"', "<g", inner)
    inner = re.sub(r"(\.\d\d)\d+", r"\1", inner)  # hundredths of a point are enough
    inner = re.sub("|".join(THEME), lambda found: f"var(--{THEME[found[0]]})", inner)
    start = Markup('<svg class="{}" role="img" aria-label="{}" {}>').format(name, label, Markup(box[0] if box else ""))  # noqa: S704
    return start + Markup(inner)  # noqa: S704  # matplotlib escapes its texts


def thin(table: pd.DataFrame) -> pd.DataFrame:
    """At most `POINTS` rows, evenly spaced."""
    places = np.unique(np.linspace(0, len(table) - 1, min(len(table), POINTS)).astype(int))
    return table.iloc[places]


def draw_search(axes: Axes, tried: pd.DataFrame, by: pd.DataFrame, truth: float) -> None:
    """A point a candidate; the best so far; mean and spread of each generation; what the winner reached in truth."""
    shown = thin(tried.dropna(subset="estimate"))
    axes.plot(shown["asked"], 100 * shown["estimate"], "o", color=MUTED, alpha=0.45, markersize=3, label="a candidate")
    axes.fill_between(by["tokens"], 100 * by["low"], 100 * by["high"], color=ORANGE, alpha=0.15, linewidth=0)
    axes.plot(by["tokens"], 100 * by["mean"], "--", color=ORANGE, linewidth=2, label="generation: mean, spread")
    best = tried[["asked", "estimate"]].assign(best=100 * tried["estimate"].cummax().ffill())
    steps = best[best["best"].diff().ne(0) | (best.index == best.index[-1])]
    axes.plot(steps["asked"], steps["best"], color=BLUE, linewidth=2, drawstyle="steps-post", label="best so far")
    axes.axhline(100 * truth, color=GREEN, linewidth=1.5, linestyle=":", label="winner, on test items")
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens asked")
    axes.set_ylabel("estimated score, %")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tokens(value)))
    axes.figure.legend(loc="outside upper left", ncols=2)


def tokens(value: float) -> str:
    """A tick of an axis of tokens: 0, 40 k, 1.2 M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def draw_genes(axes: Axes, tried: pd.DataFrame, genes: Sequence[str], winner: Sequence[float]) -> None:
    """Of each coefficient: where the first and the last quarter of the candidates lie, and what the winner has."""
    quarter = max(1, len(tried) // 4)
    parts = (("first quarter", tried.head(quarter), LINE, 9.0), ("last quarter", tried.tail(quarter), BLUE, 4.5))
    rows = np.arange(len(genes))[::-1]
    for label, part, colour, width in parts:
        low, high = (part[list(genes)].quantile(share).to_numpy() for share in (0.1, 0.9))
        axes.hlines(rows, low, high, color=colour, linewidth=width, label=label, capstyle="round")
    axes.plot(winner, rows, "D", color=ORANGE, markersize=6, markeredgecolor=PAPER, label="winner")
    named = len(genes) <= NAMED_GENES
    axes.set_yticks(rows if named else [], short_genes(genes) if named else [])
    axes.tick_params(axis="y", labelsize=8.5, labelcolor=INK, length=0)
    axes.set_ylim(-0.7, len(genes) - 0.3)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("coefficient")
    axes.figure.legend(loc="outside upper left", ncols=3, columnspacing=1.0)


def draw_map(axes: Axes, tried: pd.DataFrame, pair: Sequence[str], winner: Sequence[float]) -> None:
    """Two coefficients of every candidate, the darker (in a dark theme the lighter) the better its estimate."""
    shown = thin(tried.dropna(subset=["estimate", *pair])).sort_values("estimate", kind="stable")
    steps = step(shown["estimate"].to_numpy())
    for place in np.unique(steps):
        members = shown[steps == place]
        axes.plot(
            members[pair[0]],
            members[pair[1]],
            "o",
            color=STEPS[place],
            markersize=4.5 + 0.7 * place,
            markeredgecolor=MUTED,
            markeredgewidth=0.4,
            label=spanned(members["estimate"]),
        )
    axes.plot(*winner, "D", color=ORANGE, markersize=8, markeredgecolor=PAPER, label="winner")
    across, up = short_genes(pair)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.margins(0.06)
    axes.figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)


def spanned(shares: pd.Series[float]) -> str:
    """From where to where some shares lie."""
    low, high = (f"{100 * end:.1f}" for end in (shares.min(), shares.max()))
    return f"{low} %" if low == high else f"{low}–{high} %"


def step(values: np.ndarray) -> np.ndarray:
    """Which of the equal parts of its range each value lies in, from 0; one part for each colour of `STEPS`."""
    edges = np.linspace(values.min(), values.max(), len(STEPS) + 1) if len(values) else np.zeros(len(STEPS) + 1)
    return np.asarray(np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(STEPS) - 1))


def draw_sample(axes: Axes, sample: pd.DataFrame) -> None:
    """Estimate against truth: on the line is right, an interval that crosses it is honest."""
    table = 100 * sample[["truth", "truth_low", "truth_high", "estimate", "low", "high"]]
    ends = [float(np.nanmin(table)) - 1, float(np.nanmax(table)) + 1]
    axes.plot(ends, ends, "--", color=MUTED, linewidth=1.2)
    axes.hlines(table["estimate"], table["truth_low"], table["truth_high"], color=MUTED, linewidth=1.0, alpha=0.7)
    axes.vlines(table["truth"], table["low"], table["high"], color=BLUE, linewidth=1.5, alpha=0.6)
    axes.plot(table["truth"], table["estimate"], "o", color=BLUE, markersize=6)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_xlabel("truth: accuracy on test items, %")
    axes.set_ylabel("estimate, %")


def draw_front(axes: Axes, table: pd.DataFrame, groups: Sequence[str]) -> None:
    """Two groups' scores of the leaders and the experts; the front as the edge of what it dominates."""
    shown = table.assign(**{name: 100 * table[name] for name in table.columns[2:]})
    across, up = (f"score {group}" for group in groups)
    on = shown[shown["kind"].isin(["knee", "front"])].sort_values(across)
    axes.plot(on[across], on[up], color=BLUE, linewidth=1.5, drawstyle="steps-pre", zorder=1)
    for kind, colour, marker, order in (("front", BLUE, "o", 3), ("knee", ORANGE, "D", 4), ("behind", MUTED, "o", 2)):
        of = shown[shown["kind"] == kind]
        axes.hlines(of[up], of[f"low {groups[0]}"], of[f"high {groups[0]}"], color=colour, linewidth=1.0, alpha=0.6)
        axes.vlines(of[across], of[f"low {groups[1]}"], of[f"high {groups[1]}"], color=colour, linewidth=1.0, alpha=0.6)
        if len(of):
            (drawn,) = axes.plot(of[across], of[up], marker, color=colour, markersize=7, markeredgecolor=PAPER)
            drawn.set(label=ON_FRONT[kind], zorder=order)
    for marker, row in marked(shown):
        axes.plot(row[across], row[up], marker, color=GREEN, markersize=7, zorder=5, label=shorten(row["model"]))
    axes.set_xlabel(f"{shorten(groups[0])}, %")
    axes.set_ylabel(f"{shorten(groups[1])}, %")
    axes.margins(0.06)
    axes.figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2)


def draw_profiles(axes: Axes, table: pd.DataFrame, groups: Sequence[str]) -> None:
    """Of more groups than two: a line a model, its score in each group, and the knee's intervals."""
    places = np.arange(len(groups))

    def profile(row: pd.Series[Any], part: str = "score") -> np.ndarray:
        return 100 * row[[f"{part} {group}" for group in groups]].to_numpy(float)

    for kind, colour, marker, width, order in (
        ("front", BLUE, "o", 1.5, 3),
        ("knee", ORANGE, "D", 2.5, 4),
        ("behind", MUTED, "o", 1.0, 2),
    ):
        lines = [profile(row) for _, row in table[table["kind"] == kind].iterrows()]
        for place, line in enumerate(lines):
            (drawn,) = axes.plot(places, line, marker, linestyle="-", color=colour, linewidth=width, zorder=order)
            drawn.set(markersize=2 + 2 * width, label=None if place else ON_FRONT[kind])
    bend = table[table["kind"] == "knee"].iloc[0]
    axes.vlines(places, profile(bend, "low"), profile(bend, "high"), color=ORANGE, linewidth=1.5, alpha=0.6)
    for marker, row in marked(table):
        axes.plot(places, profile(row), marker, color=GREEN, markersize=6, zorder=5, label=shorten(row["model"]))
    axes.set_xticks(places, [shorten(group, 14) for group in groups], rotation=90 if len(groups) > 6 else 0)
    axes.tick_params(axis="x", labelcolor=INK, length=0)
    axes.set_xlim(-0.25, len(groups) - 0.75)
    axes.set_ylabel("score, %")
    axes.figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2)


def marked(table: pd.DataFrame) -> list[tuple[str, pd.Series[Any]]]:
    """The experts of a front's table, each with its marker; beyond the markers' number they come again."""
    experts = [row for _, row in table[table["kind"] == "expert"].iterrows()]
    return [(MARKERS[place % len(MARKERS)], row) for place, row in enumerate(experts)]


def draw_items(axes: Axes, items: pd.DataFrame) -> None:
    """Every search item by difficulty and discrimination, shaded by information; those that are asked in rings."""
    asked = items["weight"].notna()
    shown = pd.concat([thin(items[~asked]), items[asked]])
    steps = step(shown["information"].to_numpy())
    for place in np.unique(steps):
        members = shown[steps == place]
        axes.plot(
            members["difficulty"],
            members["discrimination"],
            "o",
            color=STEPS[place],
            markersize=4,
            markeredgecolor=MUTED,
            markeredgewidth=0.3,
            label={0: "tells little", len(STEPS) - 1: "tells much"}.get(int(place)),
        )
    axes.plot(
        items["difficulty"][asked],
        items["discrimination"][asked],
        "o",
        markersize=8,
        markerfacecolor="none",
        markeredgecolor=ORANGE,
        markeredgewidth=1.8,
        label="asked",
    )
    axes.set_xlabel("← easy\u2003difficulty\u2003hard →")
    axes.set_ylabel("discrimination")
    axes.figure.legend(loc="outside upper left", ncols=3)


def draw_information(axes: Axes, table: pd.DataFrame, parents: Sequence[float]) -> None:
    """What the items that are asked tell, by ability, beside as many drawn by chance; the parents' abilities."""
    axes.fill_between(table["ability"], table["asked"], color=BLUE, alpha=0.12, linewidth=0)
    axes.plot(table["ability"], table["asked"], color=BLUE, linewidth=2, label="items asked")
    axes.plot(table["ability"], table["chance"], "--", color=MUTED, linewidth=1.5, label="as many by chance")
    axes.plot(parents, np.zeros(len(parents)), "^", color=ORANGE, markersize=7, clip_on=False, label="a parent")
    axes.set_xlim(table["ability"].min(), table["ability"].max())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("← weak\u2003ability of a model\u2003strong →")
    axes.set_ylabel("information")
    axes.figure.legend(loc="outside upper left", ncols=3)


def short_genes(genes: Sequence[str]) -> list[str]:
    """Names of genes without the words that all of them share: `weight french mlp 0` is `french mlp`."""
    words = [gene.split(" ") for gene in genes]
    if all(len(parts) > 2 for parts in words):
        first, last = ({parts[i] for parts in words} for i in (0, -1))
        words = [parts[len(first) == 1 : len(parts) - (len(last) == 1)] for parts in words]
    return [shorten(" ".join(parts), 30) for parts in words]

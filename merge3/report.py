"""The page a person reads: what was merged, whether it is better, what it cost, and how far to trust the estimates.

Knows the tables that the stages write, not where they lie. The same tables give the same bytes. What comes from data
is escaped; the page loads nothing, runs nothing, and follows the reader's light or dark theme. Owns matplotlib; the
page itself is the template `report.html` beside this module.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import StringIO
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from merge3.recipe import AVERAGE

BASE = "base"
WINNER = "winner"
SIGNIFICANT = 0.05
PLACE = (
    "generation",
    "candidate",
    "phenotype",
    "estimate",
    "low",
    "high",
    "margin",
    "tokens",
)  # of a history; the rest is genes
POINTS = 1000  # candidates that a plot shows; a page stays below 300 kB
NAMED_GENES = 40  # with more genes than these a heat map does not name them
NONE = "–"

Figures = float | int | None  # a figure of a table; NaN and None are not measured


@dataclass(frozen=True)
class Results:
    """What the stages found out about one study; tables and ledgers as the stages wrote them."""

    study: str
    experts: Sequence[str]
    search_items: Mapping[str, int]
    """Items of each group that the search could ask."""
    test_items: int
    metrics: Mapping[str, Any]
    scores: pd.DataFrame
    sample: pd.DataFrame
    history: pd.DataFrame
    finalists: pd.DataFrame
    winner: Mapping[str, Any]
    estimator: str | None
    estimators: pd.DataFrame
    subset: pd.DataFrame
    ledgers: Mapping[str, Mapping[str, Any]]
    """By stage: population, respond, evolve, evaluate."""
    commands: Sequence[str]
    """What makes all this again."""

    def __post_init__(self) -> None:
        for table, columns in (
            ("scores", {"model", "kind", "accuracy", "low", "high", "lead", "lead_low", "lead_high", "mcnemar_p"}),
            ("sample", {"phenotype", "estimate", "low", "high", "truth"}),
            ("history", set(PLACE)),
            ("finalists", {"phenotype", "estimate", "low", "high"}),
            ("subset", {"group", "weight"}),
        ):
            if missing := sorted(columns - set(getattr(self, table).columns)):
                raise ValueError(
                    f"{table} has no column {missing[0]!r}, it has {list(getattr(self, table).columns)}: "
                    "it was written by another version; run its stage again"
                )
        if (count := int((self.scores["kind"] == WINNER).sum())) != 1:
            raise ValueError(f"scores must have one model of kind {WINNER!r}, got {count}: run evaluate again")
        if (name := self.metrics["best_expert"]["name"]) not in set(self.scores["model"]):
            raise ValueError(f"metrics name the best expert {name!r}, scores do not: run evaluate again")

    def score(self, model: str) -> dict[str, Any] | None:
        """The row of a model; None where it was not measured."""
        rows: list[dict[str, Any]] = self.scores[self.scores["model"] == model].to_dict("records")  # type: ignore[assignment]
        return rows[0] if rows else None

    @property
    def champion(self) -> dict[str, Any]:
        """The winner's row."""
        name: str = self.scores.loc[self.scores["kind"] == WINNER, "model"].iloc[0]
        return self.score(name) or {}

    @property
    def best_expert(self) -> dict[str, Any]:
        """The row of the expert that did best on the test items."""
        return self.score(self.metrics["best_expert"]["name"]) or {}

    @property
    def genes(self) -> list[str]:
        """The gene columns of the history."""
        return [name for name in self.history.columns if name not in PLACE]


def page(results: Results) -> str:
    """The report as one HTML file that needs no other."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "points": points, "count": count, "number": number, "minutes": minutes}
    environment.filters["p"] = p_value
    template = environment.from_string(files("merge3").joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(
        results=results,
        outcome=outcome(results.best_expert),
        headline=headline(results),
        comparisons=comparisons(results),
        tiles=[
            row for row in (results.champion, results.best_expert, results.score(AVERAGE), results.score(BASE)) if row
        ],
        ranked=ranked(results.scores),
        splits={kind: split_columns(results.scores, kind) for kind in ("group", "form")},
        ledger=ledger(results.ledgers),
        extracted=extracted(results),
        estimates=results.metrics["estimates"],
        covered=int(results.sample["truth"].between(results.sample["low"], results.sample["high"]).sum()),
        failed=int(results.history["estimate"].isna().sum()),
        finalists=results.finalists.sort_values("estimate", ascending=False, kind="stable").to_dict("records"),
        estimators=results.estimators.to_dict("records"),
        recipe=yaml.safe_dump(results.winner["recipe"], sort_keys=False, default_flow_style=None, allow_unicode=True),
        coefficients=coefficients(results.winner["recipe"]),
        plots=plots(results),
        thinned=len(results.history) > POINTS,
        fraction=fraction,
    )


# What is said


def outcome(row: Mapping[str, Any]) -> str:
    """What a lead shows: `better` or `worse` where interval and test agree on it, else `undecided`."""
    p = row["mcnemar_p"]
    if not pd.isna(p) and p >= SIGNIFICANT:
        return "undecided"
    if row["lead_low"] > 0:
        return "better"
    return "worse" if row["lead_high"] < 0 else "undecided"


def headline(results: Results) -> str:
    """The result in a sentence: the winner against the best expert."""
    row = results.best_expert
    name, lead = f"the best expert, {row['model']}", points(abs(row["lead"])).removeprefix("+")
    return {
        "better": f"The evolved merge beats {name}, by {lead} points",
        "worse": f"The evolved merge is worse than {name}, by {lead} points",
        "undecided": f"The evolved merge is not shown to be better than {name}",
    }[outcome(row)]


def evidence(row: Mapping[str, Any], items: int) -> str:
    """What a sentence about a lead rests on."""
    return (
        f"lead {points(row['lead'])} points [{points(row['lead_low'])}, {points(row['lead_high'])}] "
        f"on {items:,} held-out items; exact McNemar {p_value(row['mcnemar_p'])}"
    )


def comparisons(results: Results) -> list[dict[str, str]]:
    """The winner against the best expert, the uniform average, the best standard merge if another, and the base."""
    words = {"better": "better than", "worse": "worse than", "undecided": "not shown to be better than"}
    rivals = [("the best expert", results.best_expert)]
    merges = [row["model"] for row in ranked(results.scores) if row["kind"] == "standard merge"]
    named = {AVERAGE: f"the {AVERAGE}"} | {
        name: f"the best standard merge, {name}" for name in merges[:1] if name != AVERAGE
    }
    rivals += [(rival, row) for name, rival in (named | {BASE: f"the {BASE}"}).items() if (row := results.score(name))]
    return [
        {"rival": rival, "words": words[outcome(row)], "evidence": evidence(row, results.test_items)}
        for rival, row in rivals
    ]


def percent(share: Figures) -> str:
    """A share in per cent; a dash where there is none."""
    return NONE if pd.isna(share) else f"{share:.1%}"


def points(difference: Figures) -> str:
    """A difference of shares in points, with its sign."""
    if pd.isna(difference):
        return NONE
    rounded = round(100 * difference, 1) + 0.0
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def p_value(p: Figures) -> str:
    """`p = 0.012`; what is below a thousandth is said so."""
    if pd.isna(p):
        return "p not available"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def number(value: Figures) -> str:
    """A figure of two decimals; a dash where there is none."""
    return NONE if pd.isna(value) else f"{value:.2f}".replace("-", "−")


def count(value: Figures) -> str:
    """A number of tokens in three figures: 12.3 million."""
    if pd.isna(value):
        return NONE
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if value >= size:
            return f"{value / size:.3g}{word}"
    return f"{value:,.0f}"


def minutes(seconds: Figures) -> str:
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
    return f"1/{times:.0f}" if times >= 10 else f"1/{times:.1f}"


# What is tabled


def ranked(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the models, the best first."""
    rows: list[dict[str, Any]] = scores.sort_values("accuracy", ascending=False, kind="stable").to_dict("records")  # type: ignore[assignment]
    return rows


def split_columns(scores: pd.DataFrame, kind: str) -> dict[str, str]:
    """Columns of accuracy by `kind`, and the value each stands for; none where there is but one value."""
    found = {name: name.removeprefix(f"{kind} ") for name in scores.columns if name.startswith(f"{kind} ")}
    return found if len(found) > 1 else {}


def ledger(ledgers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What it took to find the winner, and what to measure it, beside a search that asks every item."""
    search, respond = ledgers["evolve"], ledgers["respond"]
    finding = [
        _cost("evolve", "the search", search["search_tokens"], search["this_run"]),
        _cost("evolve", "finalists on fresh items", search["finalists_tokens"]),
        _cost(
            "population",
            "merges that calibrate the items",
            ledgers["population"]["tokens"],
            ledgers["population"]["this_run"],
        ),
        _cost("respond", "base and experts, search items", respond["search"]["tokens"], respond["search"]["this_run"]),
    ]
    measuring = [
        _cost("respond", "base and experts, test items", respond["test"]["tokens"], respond["test"]["this_run"]),
        _cost(
            "evaluate",
            "winner, standard merges, sample",
            ledgers["evaluate"]["tokens"],
            ledgers["evaluate"]["this_run"],
        ),
    ]
    found, measured = (sum(row["tokens"] for row in rows) for rows in (finding, measuring))
    full = search["all_items_tokens"]
    return {
        "finding": finding,
        "measuring": measuring,
        "found": found,
        "total": found + measured,
        "full": full,
        "search": search["search_tokens"],
        "candidates": search["candidates"],
        "distinct": search["distinct"],
    }


def _cost(stage: str, what: str, tokens: int, spent: Mapping[str, Any] | None = None) -> dict[str, Any]:
    seconds = spent["merging_seconds"] + spent["answering_seconds"] if spent else None
    return {"stage": stage, "what": what, "tokens": tokens, "seconds": seconds}


def extracted(results: Results) -> list[dict[str, Any]]:
    """Of each group: how many items there are, how many were extracted, what they weigh."""
    picked = results.subset.groupby("group")["weight"].agg(["size", "sum"])
    return [
        {
            "group": group,
            "items": items,
            "extracted": int(picked["size"].get(group, 0)),
            "weight": float(picked["sum"].get(group, 0.0)),
        }
        for group, items in results.search_items.items()
    ]


def coefficients(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of a recipe's weights and densities: experts by parameter groups, a cell the values along depth."""
    tables = []
    for kind in ("weights", "densities"):
        groups = list(recipe[kind])
        values = [abs(v) for by in recipe[kind].values() for knots in by.values() for v in knots]
        rows = {
            expert: [_cell(recipe[kind][g].get(expert), max(values)) for g in groups] for expert in recipe["experts"]
        }
        if values:
            tables.append({"kind": kind, "groups": groups, "rows": rows})
    return tables


def _cell(knots: Sequence[float] | None, most: float) -> dict[str, Any]:
    """The text of a coefficient, and how full its cell is, in per cent of the largest."""
    if not knots:
        return {"text": NONE, "fill": 0}
    fill = round(100 * float(np.mean(np.abs(knots))) / most) if most else 0
    return {"text": " → ".join(number(v) for v in knots), "fill": fill}


# What is drawn: colours are placeholders of the page's CSS variables, so that plots follow its theme

INK, MUTED, LINE, BLUE, ORANGE, GREEN = (f"#0{i}0{i}0{i}" for i in range(1, 7))
THEME = dict(
    zip((INK, MUTED, LINE, BLUE, ORANGE, GREEN), ("ink", "muted", "line", "blue", "orange", "green"), strict=True)
)
KINDS = {WINNER: (BLUE, "D"), "expert": (ORANGE, "o"), "standard merge": (GREEN, "s"), BASE: (MUTED, "^")}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 9,
}
WIDTH = 5.0  # inches: as wide as a phone, so that 10 pt stay about 10 px there


def plots(results: Results) -> dict[str, Markup]:
    """The plots of the page, by name."""
    champion, expert, estimates = results.champion, results.best_expert, results.metrics["estimates"]
    models, genes, generations = len(results.scores), len(results.genes), results.history["generation"].nunique()
    drawn = {
        "models": (
            f"Accuracy on test items with 95 % intervals of {models} models; {champion['model']} "
            f"{percent(champion['accuracy'])}, {expert['model']} {percent(expert['accuracy'])}",
            0.9 + 0.3 * models,
            lambda axes: draw_models(axes, results.scores),
        ),
        "search": (
            f"Estimated score of {len(results.history)} candidates over {generations} generations; "
            f"the best {percent(results.history['estimate'].max())}",
            3.3,
            lambda axes: draw_search(axes, results.history, champion["accuracy"]),
        ),
        "genes": (
            f"Mean of {genes} genes in each of {generations} generations, as a share of their range",
            1.1 + 0.24 * min(max(genes, 2), NAMED_GENES),
            lambda axes: draw_genes(axes, results.history, results.genes),
        ),
        "sample": (
            f"Estimate against truth of {len(results.sample)} candidates; mean absolute error "
            f"{percent(estimates['mean_absolute_error'])}",
            4.2,
            lambda axes: draw_sample(axes, results.sample),
        ),
    }
    return {name: svg(name, label, height, draw) for name, (label, height, draw) in drawn.items()}


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
    inner = re.sub("|".join(THEME), lambda found: f"var(--{THEME[found[0]]})", inner)
    start = Markup('<svg class="{}" role="img" aria-label="{}" {}>').format(name, label, Markup(box[0] if box else ""))  # noqa: S704
    return start + Markup(inner)  # noqa: S704  # matplotlib escapes its texts


def draw_models(axes: Axes, scores: pd.DataFrame) -> None:
    """A dot and an interval a model, the best on top, the winner's interval as a band."""
    rows = ranked(scores)[::-1]
    for place, row in enumerate(rows):
        colour, marker = KINDS.get(row["kind"], (MUTED, "o"))
        axes.hlines(place, 100 * row["low"], 100 * row["high"], color=colour, linewidth=2)
        axes.plot(100 * row["accuracy"], place, marker, color=colour, markersize=7)
        if row["kind"] == WINNER:
            axes.axvspan(100 * row["low"], 100 * row["high"], color=colour, alpha=0.1, linewidth=0)
    axes.set_yticks(range(len(rows)), [shorten(row["model"]) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("accuracy on test items, %")


def draw_search(axes: Axes, history: pd.DataFrame, truth: float) -> None:
    """A point a candidate, the best so far, the mean of each generation, and what the winner reached in truth."""
    table = history.dropna(subset="estimate")
    width = table["candidate"].max() + 1
    place = table["generation"] + 0.7 * (table["candidate"] / width - 0.5)
    thin = slice(None, None, ceil(max(len(table), 1) / POINTS))
    axes.plot(
        place[thin], 100 * table["estimate"][thin], "o", color=MUTED, alpha=0.5, markersize=3, label="a candidate"
    )
    by = 100 * table.groupby("generation")["estimate"].agg(["max", "mean"])
    axes.plot(by.index, by["max"].cummax(), color=BLUE, linewidth=2, drawstyle="steps-mid", label="best so far")
    axes.plot(by.index, by["mean"], "--", color=ORANGE, linewidth=2, label="mean of generation")
    axes.axhline(100 * truth, color=GREEN, linewidth=1.5, linestyle=":", label="winner, truth on test items")
    axes.set_xlabel("generation")
    axes.set_ylabel("estimated score, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.legend(loc="outside upper left", ncols=2)


def draw_genes(axes: Axes, history: pd.DataFrame, genes: Sequence[str]) -> None:
    """The mean of each gene by generation, as a heat map."""
    means = history.groupby("generation")[list(genes)].mean()
    first, last = float(means.index.min()), float(means.index.max())
    image = axes.imshow(
        means.to_numpy().T,
        aspect="auto",
        cmap="cividis",
        vmin=0,
        vmax=1,
        interpolation="none",
        extent=(first - 0.5, last + 0.5, len(genes) - 0.5, -0.5),
    )
    axes.grid(visible=False)
    named = len(genes) <= NAMED_GENES
    axes.set_yticks(range(len(genes)) if named else [], short_genes(genes) if named else [])
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("generation")
    axes.figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], label="share of range").outline.set_visible(False)


def draw_sample(axes: Axes, sample: pd.DataFrame) -> None:
    """Estimate against truth: on the line is right, an interval that crosses it is honest."""
    table = 100 * sample[["truth", "estimate", "low", "high"]]
    ends = [float(np.nanmin(table)) - 1, float(np.nanmax(table)) + 1]
    axes.plot(ends, ends, "--", color=MUTED, linewidth=1.2)
    axes.vlines(table["truth"], table["low"], table["high"], color=BLUE, linewidth=1.5, alpha=0.6)
    axes.plot(table["truth"], table["estimate"], "o", color=BLUE, markersize=6)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_xlabel("truth: accuracy on test items, %")
    axes.set_ylabel("estimate, %")


def shorten(name: str, most: int = 24) -> str:
    """A name that fits beside a plot."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def short_genes(genes: Sequence[str]) -> list[str]:
    """Names of genes without the words that all of them share: `weight french mlp 0` is `french mlp`."""
    words = [gene.split(" ") for gene in genes]
    if all(len(parts) > 2 for parts in words):
        first, last = ({parts[i] for parts in words} for i in (0, -1))
        words = [parts[len(first) == 1 : len(parts) - (len(last) == 1)] for parts in words]
    return [shorten(" ".join(parts), 30) for parts in words]

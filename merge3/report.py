"""The page a person reads: what was merged, whether it is better, what it cost, and how far to trust the estimates.

Puts the tables of `report_tables` and the plots of `report_plots` into the template `report.html` beside this module.
The same results give the same bytes. What comes from data is escaped; the page loads nothing and runs nothing, and
follows the reader's light or dark theme.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from merge3 import report_plots, report_tables, report_text
from merge3.front import hypervolume
from merge3.grading import divisors
from merge3.items import Item
from merge3.report_tables import BASE, WINNER, Results, outcome, ranked
from merge3.report_text import NONE, fraction, number, p_value, percent, points
from merge3.store import Answer, Reply

SHOWN = 4  # items of each kind, won and lost, that the page shows of each duel
PROMPT = 1200  # letters of a prompt, its last ones: the question stands at its end
WORDS = {"better": "better than", "worse": "worse than", "undecided": "not shown to be better than"}


def page(results: Results) -> str:
    """The report as one HTML file that needs no other."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {name: getattr(report_text, name) for name in ("percent", "points", "count", "number")}
    environment.filters |= {"minutes": report_text.minutes, "p": p_value, "soft": soft}
    environment.filters["whole"] = lambda share: NONE if pd.isna(share) else f"{share:.0%}"
    template = environment.from_string(files("merge3").joinpath("report.html").read_text(encoding="utf-8"))
    tried = report_tables.candidates(results)
    items = report_tables.item_map(results)
    return template.render(
        results=results,
        headline=headline(results),
        called=called(results),
        title=title(results),
        outcome=outcome(results.best_expert),
        verdict=verdict(results),
        standings=standings(results),
        splits={kind: split_columns(results.scores, kind) for kind in ("group", "form")},
        chance=chance(results.tests),
        ledger=ledger(results),
        extracted=report_tables.extracted(results),
        covered=int(results.sample["truth"].between(results.sample["low"], results.sample["high"]).sum()),
        failed=int(results.history["estimate"].isna().sum()),
        joined=bool((results.history["items"] > len(results.subset)).any()),
        goal=goal(results),
        thinned=len(results.history) > report_plots.POINTS,
        front=front(results),
        finalists=results.finalists.sort_values(["items", "estimate"], ascending=False, kind="stable").to_dict(
            "records"
        ),
        proven=bool(results.winner["items"] == len(results.search)),
        estimators=results.estimators.sort_values("mean_absolute_error", kind="stable").to_dict("records"),
        asked=items.dropna(subset="weight").sort_values("information", ascending=False).to_dict("records"),
        duels=duels(results),
        recipe=yaml.safe_dump(results.winner["recipe"], sort_keys=False, default_flow_style=None, allow_unicode=True),
        coefficients=coefficients(results.winner["recipe"]),
        deep=any(gene.endswith(" 1") for gene in results.genes),  # knots
        plots=plots(results, tried, items),
        fraction=fraction,
    )


def as_files(results: Results) -> dict[str, str]:
    """The files of a report by their names: the page, index.html, and its figures as CSV beside it."""
    made = {f"{name}.csv": table.to_csv(index=False) for name, table in report_tables.tables(results).items()}
    return made | {"index.html": page(results)}


# What is said


def goal(results: Results) -> str:
    """What was searched for where that was not the mean of all items, or a front; else nothing."""
    objective = results.winner.get("objective", "mean")
    if objective == "worst":
        return "the score of the worst group"
    if objective == "gain":
        return "the gain over the uniform average in the group that gains least"
    return "a weighted mean of the groups" if isinstance(objective, Mapping) else ""


def called(results: Results) -> str:
    """What the winner is called: an expert by its name alone."""
    name = results.by_hand or "evolved merge"
    return name if name in results.experts else f"the {name}"


def title(results: Results) -> str:
    """The same where a sentence begins."""
    return re.sub("^the ", "The ", called(results))


def headline(results: Results) -> str:
    """The result in a sentence: the winner against the best expert, and whom it does not beat."""
    row = results.best_expert
    who = title(results) + (", which the search found nothing better than," if results.by_hand else "")
    name, by = f"the best expert, {row['model']}", points(abs(row["lead"])).removeprefix("+")
    if outcome(row) == "worse":
        return f"{who} is worse than {name}, by {by} points"
    if outcome(row) == "undecided":
        return f"{who} is not shown to be better than {name}"
    others = [rival["model"] for rival in results.rivals if outcome(rival) != "better"]
    return f"{who} beats {name}, by {by} points" + (f", but not {listed(others)}" if others else "")


def verdict(results: Results) -> str:
    """How many rivals the winner beats, and which it does not."""
    found = Counter(outcome(row) for row in results.rivals)
    if found["better"] == len(results.rivals):
        return f"Better than all {len(results.rivals)} rivals"
    parts = [f"Better than {found['better']} of {len(results.rivals)} rivals"]
    for ending in ("worse", "undecided"):
        if names := [row["model"] for row in results.rivals if outcome(row) == ending]:
            parts.append(f"{WORDS[ending]} {listed(names)}")
    return "; ".join(parts)


def soft(name: str) -> Markup:
    """A name that may break after an underscore or a slash, where its column is narrow."""
    return Markup(re.sub("([_/])", r"\1<wbr>", str(escape(name))))  # noqa: S704 - escaped


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: a, b and c; three at most."""
    shown = list(names) if len(names) <= 3 else [*names[:2], f"{len(names) - 2} others"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def evidence(row: Mapping[str, Any], items: int) -> str:
    """What a sentence about a lead rests on."""
    return (
        f"lead {points(row['lead'])} points [{points(row['lead_low'])}, {points(row['lead_high'])}] "
        f"on {items:,} held-out items; exact McNemar, corrected for the number of rivals: {p_value(row['holm_p'])}"
    )


def chance(tests: Iterable[Item]) -> float | None:
    """What guessing reaches; None where a test item has no options."""
    options = [len(item.options) for item in tests]
    return float(np.mean([1 / size for size in options])) if options and all(options) else None


def answered_on(identity: Mapping[str, str]) -> str:
    """The machine and the dtype of answers, by what an asker says of them."""
    return f"{identity.get('runtime', 'any device')}, {identity['dtype']}"


# What is tabled


def standings(results: Results) -> list[dict[str, Any]]:
    """Every model, the best first: its row, what its lead shows, and where its interval lies on the table's scale."""
    low, high = results.scores["low"].min(), results.scores["high"].max()
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low) or 1.0
    rows = []
    for row in ranked(results.scores):
        bar = {name: round(100 * (row[name] - low) / (high - low), 2) for name in ("low", "accuracy", "high")}
        ending = "" if row["kind"] == WINNER else outcome(row)
        rows.append({"row": row, "outcome": ending, "bar": bar})
    return rows


def split_columns(scores: pd.DataFrame, kind: str) -> dict[str, str]:
    """Columns of accuracy by `kind`, and the value that each stands for; empty where there is but one value."""
    found = {name: name.removeprefix(f"{kind} ") or "none" for name in scores.columns if name.startswith(f"{kind} ")}
    return found if len(found) > 1 else {}


def front(results: Results) -> dict[str, Any] | None:
    """The leaders and the experts by group, and the hypervolume of either; None where no front was searched for."""
    if results.front is None:
        return None
    groups, table = report_tables.objectives(results.front), report_tables.front(results, results.front)
    experts = table[table["kind"] == "expert"]
    return {
        "groups": groups,
        "rows": table.to_dict("records"),
        "on": int(results.front["front"].sum()),
        "leaders": len(results.front),
        "volume": results.winner["hypervolume"],
        "experts_volume": hypervolume(experts[[f"score {group}" for group in groups]].to_numpy()),
    }


def ledger(results: Results) -> dict[str, Any]:
    """What it took to find the winner, and what to measure it, beside a search that asks every item."""
    costs = results.costs
    tested = costs["part"] == "test"
    return {
        "finding": costs[~tested].to_dict("records"),
        "measuring": costs[tested].to_dict("records"),
        "found": int(costs["tokens"][~tested].sum()),
        "total": int(costs["tokens"].sum()),
        "full": results.full,
        "search": int(costs["tokens"][costs["part"] == "search"].sum()),
        "candidates": len(results.history),
        "distinct": results.history["phenotype"].nunique(),
    }


def coefficients(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of a recipe's weights and densities: experts by parts of the model, a cell the values along depth."""
    made = []
    for kind in ("weights", "densities"):
        parts = list(dict.fromkeys(part for by in recipe[kind].values() for part in by))
        values = [abs(value) for by in recipe[kind].values() for knots in by.values() for value in knots]
        if values:
            rows = {
                expert: [_cell(recipe[kind].get(expert, {}).get(part), max(values)) for part in parts]
                for expert in recipe["experts"]
            }
            made.append({"kind": kind, "parts": parts, "rows": rows})
    return made


def _cell(knots: Sequence[float] | None, most: float) -> dict[str, Any]:
    """The text of a coefficient, and how full its cell is, in per cent of the largest."""
    if not knots:
        return {"text": NONE, "fill": 0}
    fill = round(100 * float(np.mean(np.abs(knots))) / most) if most else 0
    return {"text": " → ".join(number(v) for v in knots), "fill": fill}


def duels(results: Results) -> list[dict[str, Any]]:
    """The winner against each parent: how often who was right, and the clearest items of each kind, the answers raw.

    `models` are those of the two whose answers are shown, the winner first: a rival's are not where none was kept.
    """
    champion, by_id = results.champion["model"], {item.id: item for item in results.tests}
    ours, found = results.responses.loc[champion], report_tables.duels(results)
    made = []
    for rival in results.rivals:
        theirs = results.responses.loc[rival["model"]]
        counts = {
            "won": int((ours > theirs).sum()),
            "both": int((ours * theirs).sum()),
            "neither": int(((1 - ours) * (1 - theirs)).sum()),
            "lost": int((ours < theirs).sum()),
        }
        of = found[found["rival"] == rival["model"]]
        models = [champion, *([rival["model"]] if results.raw.get(rival["model"]) else [])]
        shown = {
            ending: [answered(results, by_id[name], models) for name in of["item"][of["outcome"] == ending].head(SHOWN)]
            for ending in ("won", "lost")
        }
        parent = rival["kind"] in ("expert", BASE)
        of_items = {"counts": counts, "items": sum(counts.values()), "shown": shown if parent else {}}
        made.append({"rival": rival, "models": models, **of_items})
    return made


def answered(results: Results, item: Item, models: Sequence[str]) -> dict[str, Any]:
    """An item and what models answered it: of each whether it is right, its reply, or its options' log-likelihoods."""
    kept = {model: results.raw.get(model, {}).get(item.id) for model in models}
    return {
        "item": item,
        "prompt": item.prompt if len(item.prompt) <= PROMPT else f"…{item.prompt[-PROMPT:]}",
        "right": {model: bool(results.responses.loc[model, item.id]) for model in models},
        "replies": {model: answer.text for model, answer in kept.items() if isinstance(answer, Reply)},
        "options": [
            {
                "text": option,
                "right": place == item.answer,
                "cells": [_option(item, answer, place, results.scoring) for answer in kept.values()],
            }
            for place, option in enumerate(item.options)
        ],
    }


def _option(item: Item, answer: Answer | None, place: int, scoring: str) -> dict[str, Any]:
    """An option's log-likelihood, and whether it is the model's pick."""
    if not isinstance(answer, tuple):
        return {"value": None, "picked": False}
    scores = np.array(answer) / divisors(item, scoring)
    return {"value": answer[place], "picked": int(scores.argmax()) == place}


# What is drawn


def plots(results: Results, tried: pd.DataFrame, items: pd.DataFrame) -> dict[str, Markup]:
    """The plots of the page, by name: none where there is nothing to draw."""
    champion, genes = results.champion, results.genes
    by, pair = report_tables.generations(tried), report_tables.telling(tried, genes)
    winner = report_tables.coefficients(results.winner["recipe"], genes)
    curve = report_tables.information(results)
    drawn: dict[str, tuple[str, float, Any]] = {
        "search": (
            f"Estimated score of {len(tried)} candidates over the {tried['asked'].max():,} tokens that they were "
            f"asked; the best {percent(tried['estimate'].max())}; the winner on test items "
            f"{percent(champion['accuracy'])}",
            3.4,
            lambda axes: report_plots.draw_search(axes, tried, by, champion["accuracy"]),
        ),
        "items": (
            f"{len(items)} search items by difficulty and discrimination; the {len(results.subset)} that are asked "
            f"have a mean discrimination of {number(items['discrimination'][items['weight'].notna()].mean())}, "
            f"all {number(items['discrimination'].mean())}",
            3.8,
            lambda axes: report_plots.draw_items(axes, items),
        ),
    }
    if results.estimates is not None:
        drawn["sample"] = (
            f"Estimate against truth of {len(results.sample)} candidates; mean absolute error "
            f"{percent(results.estimates['mean_absolute_error'])}",
            4.2,
            lambda axes: report_plots.draw_sample(axes, report_tables.estimates(results)),
        )
    if genes:
        drawn["genes"] = (
            f"Where the first and the last quarter of the candidates have each of {len(genes)} coefficients, and the "
            "winner",
            1.2 + 0.26 * min(max(len(genes), 2), report_plots.NAMED_GENES),
            lambda axes: report_plots.draw_genes(axes, tried, genes, winner),
        )
    if len(pair) == 2:
        drawn["map"] = (
            f"Candidates by {pair[0]} and {pair[1]}, shaded by their estimates",
            4.2,
            lambda axes: report_plots.draw_map(axes, tried, pair, [winner[genes.index(gene)] for gene in pair]),
        )
    if results.front is not None:
        table, groups = report_tables.front(results, results.front), report_tables.objectives(results.front)
        knee = table[table["kind"] == "knee"].iloc[0]
        reached = [percent(knee[f"score {group}"]) + f" in {group}" for group in groups]
        draw = report_plots.draw_front if len(groups) == 2 else report_plots.draw_profiles
        drawn["front"] = (
            f"{len(results.front)} leaders by their scores in {len(groups)} groups, {results.front['front'].sum()} of "
            f"them on the front; its knee has {listed(reached)}",
            4.4,
            lambda axes: draw(axes, table, groups),
        )
    if curve is not None:
        parents = results.abilities.filter(like="ability_").iloc[:, 0].tolist()
        drawn["information"] = (
            f"Information of the {len(results.subset)} items that are asked, by ability, beside as many by chance; "
            f"the parents' abilities run from {number(min(parents))} to {number(max(parents))}",
            3.4,
            lambda axes: report_plots.draw_information(axes, curve, parents),
        )
    return {name: report_plots.svg(name, label, height, draw) for name, (label, height, draw) in drawn.items()}

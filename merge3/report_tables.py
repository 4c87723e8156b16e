"""What the report says, as tables: results, and what is computed from them to be shown or kept as CSV.

Both the pipeline and `merge3 run` fill them. Knows not where their files lie, nor how a page looks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from merge3.compare import uneven
from merge3.grading import divisors, margin
from merge3.irt import ItemParameters, probability
from merge3.items import Item
from merge3.store import Answer

BASE, EXPERT, WINNER = "base", "expert", "winner"  # kinds of a model
SIGNIFICANT = 0.05
PLACE = (  # columns of a history; the rest is genes
    "generation",
    "candidate",
    "phenotype",
    "items",
    "estimate",
    "low",
    "high",
    "margin",
    "failed",
    "tokens",
)
SPREAD = (0.1, 0.9)  # quantiles of a generation's estimates, and of its coefficients
INTERVAL = 0.9  # of a candidate's truth: that of the estimates
KINDS = {"weight": "weights", "density": "densities"}  # of a gene, and what a recipe calls them


@dataclass(frozen=True)
class Results:
    """What was found out about one study; a run of `merge3 run` is one, by the name of its folder."""

    study: str
    experts: Sequence[str]
    search: Sequence[Item]
    """The items that the search could ask."""
    tests: Sequence[Item]
    parameters: ItemParameters
    """Of the search items, in their order."""
    abilities: pd.DataFrame
    """An expert a row."""
    parents: np.ndarray
    """The experts' answers, experts x search items: 1 right, 0 wrong."""
    subset: pd.DataFrame
    estimates: Mapping[str, Any] | None
    """Of the sample: mean absolute error, Spearman's correlation and regret; None where there is no sample."""
    by_group: Mapping[str, Any] | None
    """The best standard merge that is not the winner, and the winner's lead over it by group; None where none was
    measured."""
    one_runtime: bool
    """Whether the parents answered the test items on the same kind of machine as the merges."""
    scores: pd.DataFrame
    responses: pd.DataFrame
    """Models x test items: 1 right, 0 wrong, NaN where the answer could not be scored."""
    raw: Mapping[str, Mapping[str, Answer]]
    """By model and test item: the raw answers that were kept, and that are graded as `responses` says."""
    scoring: str
    sample: pd.DataFrame
    """Candidates that answered all test items, a row each; there may be none."""
    history: pd.DataFrame
    recipes: Mapping[str, Mapping[str, Any]]
    """By phenotype, of every candidate."""
    finalists: pd.DataFrame
    front: pd.DataFrame | None
    """The leaders by group, where every group was an objective."""
    winner: Mapping[str, Any]
    estimator: str | None
    estimators: pd.DataFrame
    costs: pd.DataFrame
    """A row for all that was asked: `stage`, `what` for, its `part` (preparation, search, finalists or test), `tokens`,
    and `seconds` of the last run, empty where that found all answers kept or where they are another row's."""
    full: int
    """Tokens of a search that asks every distinct candidate all search items."""
    identity: Mapping[str, str]
    """What tells these models, items and machine from others: a label, and a hash or a name."""
    commands: Sequence[str]
    """What makes all this again."""

    def __post_init__(self) -> None:
        leads = {"lead", "lead_low", "lead_high", "mcnemar_p", "holm_p"}
        expected = [
            ("scores", {"model", "kind", "accuracy", "low", "high"} | leads),
            ("sample", {"phenotype", "estimate", "low", "high", "truth"}),
            ("history", set(PLACE)),
            ("finalists", {"phenotype", "merge", "items", "estimate", "low", "high"}),
            ("subset", {"id", "group", "weight"}),
        ]
        if self.front is not None:
            expected.append(("front", {"phenotype", "front", "knee"}))
        for table, columns in expected:
            if missing := sorted(columns - set(getattr(self, table).columns)):
                raise ValueError(
                    f"{table} has no column {missing[0]!r}, it has {list(getattr(self, table).columns)}: "
                    "it was written by another version; run its stage again"
                )
        if (found := int((self.scores["kind"] == WINNER).sum())) != 1:
            raise ValueError(f"scores must have one model of kind {WINNER!r}, got {found}: run evaluate again")
        if not (self.scores["kind"] == EXPERT).any():
            raise ValueError(f"scores have no model of kind {EXPERT!r} to compare the winner with: run evaluate again")
        if missing := sorted(set(self.scores["model"]) ^ set(self.responses.index)):
            raise ValueError(f"scores and responses are not of the same models ({missing[0]!r}): run evaluate again")

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
    def tested(self) -> int:
        """How many test items the winner's accuracy is of."""
        return int(self.responses.loc[self.champion["model"]].notna().sum())

    def both(self, model: str) -> int:
        """How many test items the winner's lead over a model is of."""
        return int(self.responses.loc[[self.champion["model"], model]].notna().all().sum())

    @property
    def uneven(self) -> str:
        """Of how many test items each model's accuracy is, see `compare.uneven`."""
        return uneven(self.responses)

    @property
    def best_expert(self) -> dict[str, Any]:
        """The row of the expert that did best on the test items."""
        rows: list[dict[str, Any]] = self.scores[self.scores["kind"] == EXPERT].to_dict("records")  # type: ignore[assignment]
        return max(rows, key=lambda row: float(row["accuracy"]))

    @property
    def by_hand(self) -> str:
        """The standard merge or parent that won; empty where an evolved merge did."""
        return "" if self.winner["merge"] == "evolved" else str(self.winner["merge"])

    @property
    def rivals(self) -> list[dict[str, Any]]:
        """The rows of all models but the winner, the best first."""
        return [row for row in ranked(self.scores) if row["kind"] != WINNER]

    @property
    def genes(self) -> list[str]:
        """The gene columns of the history that are coefficients of a merge."""
        return [name for name in self.history.columns if name not in PLACE and name.split(" ")[0] in KINDS]


def tables(results: Results) -> dict[str, pd.DataFrame]:
    """What the page shows, for other tools: a CSV file each."""
    tried = candidates(results)
    made = {
        "models": pd.DataFrame(ranked(results.scores)),
        "search": generations(tried),
        "candidates": tried,
        "items": item_map(results),
        "duels": duels(results),
        "ledger": results.costs,
    }
    if results.estimates is not None:
        made["estimates"] = estimates(results)
    if results.front is not None:
        made["front"] = front(results, results.front)
    return made


def ranked(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the models, the best first."""
    rows: list[dict[str, Any]] = scores.sort_values("accuracy", ascending=False, kind="stable").to_dict("records")  # type: ignore[assignment]
    return rows


def outcome(row: Mapping[str, Any]) -> str:
    """What a lead shows: `better` or `worse` where interval and corrected test agree on it, else `undecided`."""
    p = row["holm_p"]
    if not pd.isna(p) and p > SIGNIFICANT:
        return "undecided"
    if row["lead_low"] > 0:
        return "better"
    return "worse" if row["lead_high"] < 0 else "undecided"


# The search


def candidates(results: Results) -> pd.DataFrame:
    """A row a candidate, in the order of the search: tokens asked so far, estimate, and its coefficients."""
    history, genes = results.history, results.genes
    made = [coefficients(results.recipes[name], genes) for name in history["phenotype"]]
    table = history[["generation", "candidate", "phenotype", "estimate", "low", "high"]].copy()
    table.insert(2, "asked", history["tokens"].cumsum())
    return table.join(pd.DataFrame(made, columns=genes, index=history.index))


def coefficients(recipe: Mapping[str, Any], genes: Sequence[str]) -> list[float]:
    """What a recipe has for each gene, `weight french mlp 0`; NaN where its method has no such coefficient."""
    found = []
    for gene in genes:
        kind, rest = gene.split(" ", 1)
        expert, part, knot = rest.rsplit(" ", 2)
        knots = recipe[KINDS[kind]].get(expert, {}).get(part, [])
        found.append(float(knots[int(knot)]) if int(knot) < len(knots) else np.nan)
    return found


def generations(tried: pd.DataFrame) -> pd.DataFrame:
    """A row a generation: tokens asked by its end, the best estimate so far, and the generation's mean and spread."""
    by = tried.groupby("generation")
    low, high = (by["estimate"].quantile(share) for share in SPREAD)
    return pd.DataFrame(
        {
            "tokens": by["asked"].max(),
            "best": by["estimate"].max().cummax().ffill(),
            "mean": by["estimate"].mean(),
            "low": low,
            "high": high,
        }
    ).reset_index()


def telling(tried: pd.DataFrame, genes: Sequence[str]) -> list[str]:
    """The two coefficients that the estimate follows most closely, by rank correlation; fewer where fewer vary."""
    varied = [gene for gene in genes if tried[gene].std() > 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all estimates are equal: no correlation, and none is first
        strength = tried[varied].rank().corrwith(tried["estimate"].rank()).abs().fillna(0.0)
    return [str(gene) for gene in strength.sort_values(ascending=False, kind="stable").index[:2]]


def front(results: Results, leaders: pd.DataFrame) -> pd.DataFrame:
    """A row a leader, along the front and then those behind it, and a row an expert: scores by group.

    `kind` is `knee`, `front`, `behind` or `expert`. An expert has no interval: it was asked every search item.
    """
    groups = objectives(leaders)
    kinds = np.where(leaders["knee"], "knee", np.where(leaders["front"], "front", "behind"))
    first = leaders.assign(kind=kinds).sort_values(
        ["front", f"score {groups[0]}"], ascending=False, kind="stable", ignore_index=True
    )
    of = np.array([item.group for item in results.search])
    experts = pd.DataFrame({"phenotype": list(results.experts), "kind": "expert"}).assign(
        **{f"score {group}": results.parents[:, of == group].mean(axis=1) for group in groups}
    )
    columns = [f"{part} {group}" for group in groups for part in ("score", "low", "high")]
    table = pd.concat([first, experts], ignore_index=True).rename(columns={"phenotype": "model"})
    return table[["model", "kind", *columns]]


def objectives(leaders: pd.DataFrame) -> list[str]:
    """The groups that are objectives of a front."""
    return [name.removeprefix("score ") for name in leaders.columns if name.startswith("score ")]


def estimates(results: Results) -> pd.DataFrame:
    """The candidates that were answered in full, with the truth's own 90 % interval (Wilson 1927)."""
    items = results.responses.shape[1]
    ends = [
        binomtest(round(truth * items), items).proportion_ci(INTERVAL, method="wilson")
        for truth in results.sample["truth"]
    ]
    return results.sample.assign(truth_low=[end.low for end in ends], truth_high=[end.high for end in ends])


# The items


def item_map(results: Results) -> pd.DataFrame:
    """A row a search item: its parameters, what it tells about a model of the parents' mean ability, its weight.

    Difficulty is the log-odds against a model of average ability; discrimination the length of its vector where there
    are several abilities; information is Fisher's, |a|² P (1 - P). The weight is empty where the item is not asked.
    """
    items = results.parameters
    ability = results.abilities.filter(like="ability_").to_numpy().mean(axis=0, keepdims=True)
    P = probability(items, ability)[0]
    squared = (items.discrimination**2).sum(axis=1)
    weights = results.subset.set_index("id")["weight"]
    ids = [item.id for item in results.search]
    return pd.DataFrame(
        {
            "id": ids,
            "group": [item.group for item in results.search],
            "difficulty": items.difficulty,
            "discrimination": np.sqrt(squared),
            "information": squared * P * (1 - P),
            "weight": weights.reindex(ids).to_numpy(),
        }
    )


def information(results: Results) -> pd.DataFrame | None:
    """By ability: the information of the items that are asked, and of as many drawn by chance on average.

    None where a model has several abilities: there is no axis to draw.
    """
    items = results.parameters
    if items.dimensions != 1:
        return None
    ability = np.linspace(-3.0, 3.0, 61)
    P = probability(items, ability[:, None])
    each = items.discrimination[:, 0] ** 2 * P * (1 - P)
    asked = np.isin([item.id for item in results.search], results.subset["id"])
    return pd.DataFrame(
        {"ability": ability, "asked": each[:, asked].sum(axis=1), "chance": asked.sum() * each.mean(axis=1)}
    )


def extracted(results: Results) -> list[dict[str, Any]]:
    """Of each group: how many items there are, how many were extracted, what they weigh."""
    by = item_map(results).groupby("group", sort=False)["weight"].agg(["size", "count", "sum"])
    rows: list[dict[str, Any]] = by.reset_index().to_dict("records")  # type: ignore[assignment]
    return rows


def duels(results: Results) -> pd.DataFrame:
    """A row an item and rival of which one, the winner or the rival, is right and the other is not.

    `decided` is by how much, in nats: the right option's lead at who is right, less that at who is wrong; empty where
    a raw answer was not kept. Of a rival none of whose answers was kept it is by the winner's lead alone. The clearest
    first, of each rival's won and lost items.
    """
    champion = results.champion["model"]
    ours, by_id = results.responses.loc[champion], {item.id: item for item in results.tests}
    rows = []
    for rival in (row["model"] for row in results.rivals):
        theirs = results.responses.loc[rival]
        for name in results.responses.columns[((ours > theirs) | (ours < theirs)).to_numpy()]:
            item, sign = by_id[name], 1 if ours[name] > theirs[name] else -1
            theirs_lead = lead(results, rival, item) if results.raw.get(rival) else 0.0
            decided = sign * (lead(results, champion, item) - theirs_lead)
            rows.append((rival, name, item.group, "won" if sign > 0 else "lost", decided))
    table = pd.DataFrame(rows, columns=["rival", "item", "group", "outcome", "decided"])
    order = {row["model"]: place for place, row in enumerate(results.rivals)}
    table["place"] = table["rival"].map(order)
    return table.sort_values(
        ["place", "outcome", "decided"], ascending=[True, False, False], kind="stable", ignore_index=True
    ).drop(columns="place")


def lead(results: Results, model: str, item: Item) -> float:
    """The lead of the right option at a model, see `grading.margin`; NaN where its answer was not kept."""
    answer = results.raw.get(model, {}).get(item.id)
    return np.nan if answer is None else margin(item, answer, divisors(item, results.scoring))


# The ledger


def costs(rows: Iterable[tuple[str, str, str, int, float]]) -> pd.DataFrame:
    """The table of what was asked, of rows of stage, what for, part, tokens and seconds; without what took no tokens.

    What finds the winner comes first, what measures it last.
    """
    table = pd.DataFrame(rows, columns=["stage", "what", "part", "tokens", "seconds"])
    return table[table["tokens"] > 0].reset_index(drop=True)

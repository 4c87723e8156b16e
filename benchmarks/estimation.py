"""Few-item estimates of real models' scores: every extract method with every estimator, and the speed of the fits.

Three kinds of benchmark, by the protocols of `merge3/study.py`, 20 draws: merges with parents of their own (triplets),
merges of one set of parents without and with relatives of theirs answered in full (families: the demonstration's
population, and the tiny world's six pairs of experts), models without parents (leaderboards). The pair of extract
method and estimator that a benchmark's targets are held against is chosen on the other benchmarks: `choose`. The
families' weights are known; `pooled` beside `lineage` says what they add.

Leaderboards' answers are not the project's to ship: `--data` (or MERGE3_DATA) names a folder with response tables and
merge_triplets.csv; a table that is missing is left out and said.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import tiny
import torch
import yaml
from figures import RESULTS, Figure, command_line, publish

from merge3 import study
from merge3.estimate import Known, lineage
from merge3.irt import ItemParameters, fit_abilities, fit_items, loglikelihood, probability

N_ASKED = 20
TRIPLETS = {  # benchmark: (table, targets of error and spearman)
    "arc": ("metabench_arc", 0.9, 0.95),
    "gsm8k": ("metabench_gsm8k", 2.7, 0.93),
}
FAMILIES = {  # family: its relatives answered in full
    "transfer, 0 relatives": 0,
    "transfer, 4 relatives": 4,
    "multilingual, 0 relatives": 0,
    "multilingual, 4 relatives": 4,
    "tiny, 0 relatives": 0,
    "tiny, 8 relatives": 8,
}
TOGETHER = {"error": (2.0, True), "Spearman": (0.85, False), "regret": (1.0, True)}  # of families with relatives
TINY = Path(".bench/estimation/tiny.parquet")
TINY_MERGES = 45  # of each pair of experts, and of all four
BESIDE = {("none", "parents"), ("uniform", "mp_irt"), ("uniform", "gmp_irt"), ("uniform", "gp_irt")}  # and the paper's
LEADERBOARDS = {"oll2_arc_challenge": 2.1, "metabench_gsm8k": 3.7, "metabench_arc": None, "helmlite_83": None}


def table(folder: Path, name: str) -> pd.DataFrame:
    """A response table of the folder."""
    return pd.read_parquet(folder / f"{name}.parquet").astype(float)


def tiny_weights() -> pd.DataFrame:
    """Random weights for merges of each two of the tiny world's experts and of all, the other experts' 0."""
    rng = np.random.default_rng(0)
    rows = {}
    for experts in [*itertools.combinations(range(tiny.LANGUAGES), 2), tuple(range(tiny.LANGUAGES))]:
        for number in range(TINY_MERGES):
            weights = np.zeros((len(tiny.GROUPS), tiny.LANGUAGES))
            weights[:, experts] = rng.random((len(tiny.GROUPS), len(experts)))
            rows[f"{experts} {number}"] = weights.ravel()
    return pd.DataFrame.from_dict(rows, orient="index")


def tiny_table() -> pd.DataFrame:
    """Answers of the tiny world's experts and of the merges of `tiny_weights`, kept once made."""
    if not TINY.exists():
        torch.set_num_threads(1)
        world = tiny.World()
        genes = {f"expert {n}": world.standard[f"expert {n}"] for n in range(tiny.LANGUAGES)}
        genes |= {name: row.to_numpy() for name, row in tiny_weights().iterrows()}
        everything = np.arange(len(world.search))
        rows = {name: (world.margins(g, everything) > 0).astype(float) for name, g in genes.items()}
        columns = [f"{world.search.languages[i]}_{i}" for i in everything]
        TINY.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame.from_dict(rows, orient="index", columns=columns).to_parquet(TINY)
    return pd.read_parquet(TINY)


def families(name: str) -> list[tuple[pd.DataFrame, list[str], str, pd.DataFrame]]:
    """The families of a benchmark: the table of all who are known, parents, the pattern of merges' names, weights."""
    if name.startswith("tiny"):
        everybody, weights = tiny_table(), tiny_weights()
        made = []
        for pair in itertools.combinations(range(tiny.LANGUAGES), 2):
            parents = [f"expert {n}" for n in pair]
            near = [  # relatives by half are no strangers
                other
                for size in range(2, tiny.LANGUAGES + 1)
                for other in itertools.combinations(range(tiny.LANGUAGES), size)
                if other != pair and set(pair) & set(other)
            ]
            mine = everybody.index[[not any(row.startswith(f"{other} ") for other in near) for row in everybody.index]]
            made.append((everybody.loc[mine], parents, f"{pair} *", weights))
        return made
    study_name = name.split(",")[0]
    chosen = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["studies"][study_name]
    own, population = (
        pd.read_parquet(file).astype(float) for file in ("data/respond/search.parquet", RESULTS / "families.parquet")
    )
    items = [item for item in population.columns if item.split("-")[0] in chosen["groups"]]
    population = population[population.index.str.startswith(f"{study_name}-")]  # the other's are relatives by half
    weights = pd.read_csv(RESULTS / "families_weights.csv", index_col="merge")
    return [(pd.concat([own[items], population[items]]), chosen["experts"], f"{study_name}-*", weights)]


def run(folder: Path, kind: str, name: str, draws: int) -> pd.DataFrame:
    """The study of one benchmark; of several families, the mean."""
    if kind == "triplets":
        answers = table(folder, TRIPLETS[name][0])
        listed = pd.read_csv(folder / "merge_triplets.csv")
        drawn = [(study.triplets(answers, listed[listed["benchmark"] == name]), answers)]
    elif kind == "family":
        drawn = [(study.family(t, p, merges, FAMILIES[name], weights), t) for t, p, merges, weights in families(name)]
    else:
        answers = table(folder, name)
        drawn = [(study.leaderboard(answers), answers)]
    begin = perf_counter()
    found = []
    for draw, answers in drawn:
        groups = ["all"] * answers.shape[1]
        if kind == "family" or name.startswith("helm"):
            groups = [str(item).replace("-", "_").split("_")[0] for item in answers.columns]
        found.append(study.study(draw, groups, (N_ASKED,), max(1, draws // len(drawn))))
        print(kind, name, f"{perf_counter() - begin:.0f} s", flush=True)
    return pd.concat(found).groupby(["method", "estimator", "items"], sort=False).mean().reset_index()


def choose(found: dict[tuple[str, str], pd.DataFrame]) -> dict[tuple[str, str], tuple[str, str]]:
    """For each benchmark the pair that does best on the others: leave-one-out over sources of answers.

    A pair's merit on a benchmark is the mean of its ranks by error, Spearman's correlation and regret; over benchmarks
    the mean. Benchmarks of merges speak for merges, leaderboards for leaderboards. Pooled estimates are none of the
    pairs: not every benchmark knows weights.
    """
    merits = {}
    for key, rows in found.items():
        asked = rows[(rows["items"] > 0) & (rows["estimator"] != study.POOLED)].set_index(["method", "estimator"])
        merits[key] = (asked["error"].rank() + (-asked["spearman"]).rank() + asked["regret"].rank()) / 3

    def source(key: tuple[str, str]) -> tuple[bool, str]:
        return key[0] == "leaderboard", key[1].split(",")[0].removeprefix("metabench_")

    chosen = {}
    for key in found:
        others = [
            merit
            for other, merit in merits.items()
            if source(other)[0] == source(key)[0] and source(other) != source(key)
        ]
        if others:
            chosen[key] = pd.concat(others, axis=1, join="inner").mean(axis=1).idxmin()
    return chosen


def figures_of(kind: str, name: str, found: pd.DataFrame, chosen: tuple[str, str] | None) -> list[Figure]:
    """The figures of a benchmark's chosen pair, with the targets, and beside it the parents' mean and the paper's."""
    rows = []
    pairs = found.set_index(["method", "estimator"])
    pooled = None if chosen is None else (chosen[0], study.POOLED)
    for pair, row in pairs.iterrows():
        if pair not in {chosen, pooled, *BESIDE}:
            continue
        named = {chosen: " (chosen on the others)", pooled: " (lineage's, over the weights)"}
        label = f"{kind} {name}: {', '.join(pair)}{named.get(pair, '')}"
        targets: dict[str, tuple[float, bool]] = {}
        if pair in (chosen, pooled) and kind == "family" and FAMILIES[name]:
            targets = TOGETHER
        if pair == chosen and kind == "triplets":
            targets = {"error": (TRIPLETS[name][1], True), "Spearman": (TRIPLETS[name][2], False)}
        if pair == chosen and kind == "leaderboard" and (error := LEADERBOARDS[name]) is not None:
            targets = {"error": (error, True)}
        for figure, unit in (("error", "points"), ("Spearman", ""), ("regret", "points")):
            target, below = targets.get(figure, (None, False))
            rows.append(Figure(f"{label}: {figure}", float(row[figure.lower()]), unit, target, below))
        if pair not in (chosen, pooled):
            continue
        rows.append(Figure(f"{label}: error, 5 %", float(row["low"]), "points"))
        rows.append(Figure(f"{label}: error, 95 %", float(row["high"]), "points"))
        rows.append(Figure(f"{label}: coverage of 90 % intervals", float(row["coverage"]), "share", 0.85))
        rows.append(Figure(f"{label}: the same, at most", float(row["coverage"]), "share", 0.95, below=True))
        if kind != "leaderboard":
            more = float(row["error"] - pairs.loc[("none", "parents"), "error"])
            rows.append(Figure(f"{label}: error less that of the parents' mean", more, "points", 0.0, True))
    return rows


def simulate(models: int, items: int, seed: int = 0) -> np.ndarray:
    """Answers of a 2PL population."""
    rng = np.random.default_rng(seed)
    made = ItemParameters(rng.lognormal(0.3, 0.4, (items, 1)), rng.normal(0, 1.2, items))
    return (rng.random((models, items)) < probability(made, rng.normal(size=(models, 1)))).astype(float)


def seconds(answers: np.ndarray, engine: str) -> tuple[float, ItemParameters]:
    """The time of a fit, and the fit."""
    begin = perf_counter()
    fitted = fit_items(answers, engine, 1, 0)
    return perf_counter() - begin, fitted


def held_out(fitted: ItemParameters, others: np.ndarray) -> float:
    """Log-likelihood an answer of half the items of other models, their abilities from the other half."""
    half = np.arange(others.shape[1]) % 2 == 0
    P = probability(fitted, fit_abilities(fitted, np.where(half, others, np.nan))[0])
    return loglikelihood(P[:, ~half], others[:, ~half])


def speed(folder: Path) -> list[Figure]:
    """The fits against each other, and one estimate."""
    answers = simulate(800, 400)
    slow, by_girth = seconds(answers[:400], "girth")
    fast, by_em = min((seconds(answers[:400], "em") for _ in range(3)), key=lambda pair: pair[0])
    large, _ = seconds(simulate(400, 14000), "em")
    rows = [
        Figure("girth (chunks of 50), 400 x 400", slow, "s"),
        Figure("em, 400 x 400", fast, "s"),
        Figure("girth over em", slow / fast, "times", 100),
        Figure(
            "held-out log-likelihood, em less girth",
            held_out(by_em, answers[400:]) - held_out(by_girth, answers[400:]),
            "nats",
            -1e-3,
        ),
        Figure("em, 400 x 14,000", large, "s", 15, below=True),
    ]
    for name in ("oll2_arc_challenge", "metabench_gsm8k"):
        if (folder / f"{name}.parquet").exists():
            real = table(folder, name).drop_duplicates()
            real = real.sample(min(len(real), 300), random_state=0).to_numpy()[:, :300]
            real = real[:, np.ptp(real, axis=0) > 0]
            one, other = fit_items(real, "girth", 1, 0), fit_items(real, "em", 1, 0)
            for label, target, a, b in (
                ("discriminations", 0.85, one.discrimination[:, 0], other.discrimination[:, 0]),
                ("difficulties", 0.95, one.difficulty, other.difficulty),
            ):
                rows.append(Figure(f"girth and em on {name}: r of {label}", float(np.corrcoef(a, b)[0, 1]), "", target))
    items = ItemParameters(
        np.random.default_rng(0).lognormal(0.3, 0.4, (1000, 1)), np.random.default_rng(1).normal(size=1000)
    )
    parents = (np.random.default_rng(2).random((2, 1000)) < 0.6).astype(float)
    known = Known(items, np.arange(0, 1000, 50), np.full(20, 0.05), parents)
    rows_of = (np.random.default_rng(3).random((200, 20)) < 0.6).astype(float)
    lineage(rows_of[0], known)
    begin = perf_counter()
    for row in rows_of:
        lineage(row, known)
    rows.append(
        Figure("one estimate (lineage, 20 of 1,000 items)", 1000 * (perf_counter() - begin) / 200, "ms", 1, below=True)
    )
    return rows


def main() -> None:
    """Run all that the folder has tables for."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MERGE3_DATA", "../shared/data")))
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, help="benchmarks at the same time")
    chosen = parser.parse_args()
    wanted = [("triplets", name, TRIPLETS[name][0]) for name in TRIPLETS]
    wanted += [("leaderboard", name, name) for name in LEADERBOARDS]
    there = [(kind, name) for kind, name, file in wanted if (chosen.data / f"{file}.parquet").exists()]
    tiny_table()  # once, before several processes want it
    there += [("family", name) for name in FAMILIES]
    if missing := len(wanted) + len(FAMILIES) - len(there):
        print(f"{missing} of {len(wanted)} benchmarks are left out: their tables are not in {chosen.data}")
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(run, chosen.data, kind, name, chosen.draws) for kind, name in there]
        results = [job.result() for job in jobs]
    rows = speed(chosen.data)
    found = dict(zip(there, results, strict=True))
    pairs = choose(found)
    for (kind, name), rows_of in found.items():
        pair = pairs.get((kind, name))
        print(f"\n{kind} {name}, {N_ASKED} items; chosen on the others: {pair}")
        print(rows_of.sort_values("error").round(2).to_string(index=False))
        rows += figures_of(kind, name, rows_of, pair)
    every = pd.concat([rows_of.assign(kind=kind, benchmark=name) for (kind, name), rows_of in found.items()])
    every = every[["kind", "benchmark", *every.columns[:-2]]]
    every.to_csv(RESULTS / "estimation.csv", index=False, float_format="%.4f")
    publish("estimation", rows)


if __name__ == "__main__":
    main()

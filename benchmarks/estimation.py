"""Few-item estimates of real models' scores: every extract method with every estimator, and the speed of the fits.

The answers are not the project's to ship: `--data` (or MERGE3_DATA) names a folder with response tables and
merge_triplets.csv; a table that is missing is left out and said. Protocols as in `merge3/study.py`, 20 draws.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
from figures import Figure, publish

from merge3 import study
from merge3.estimate import Known, lineage
from merge3.irt import ItemParameters, fit_abilities, fit_items, loglikelihood, probability

N_ASKED = 20
TRIPLETS = {  # benchmark: (table, targets of error and spearman)
    "arc": ("metabench_arc", 0.9, 0.95),
    "gsm8k": ("metabench_gsm8k", 2.7, 0.93),
}
LEADERBOARDS = {"oll2_arc_challenge": 2.1, "metabench_gsm8k": 3.7, "metabench_arc": None, "helmlite_83": None}


def table(folder: Path, name: str) -> pd.DataFrame:
    """A response table of the folder."""
    return pd.read_parquet(folder / f"{name}.parquet").astype(float)


def run(folder: Path, kind: str, name: str, draws: int) -> pd.DataFrame:
    """The study of one benchmark."""
    if kind == "triplets":
        answers = table(folder, TRIPLETS[name][0])
        listed = pd.read_csv(folder / "merge_triplets.csv")
        draw = study.triplets(answers, listed[listed["benchmark"] == name])
    else:
        answers = table(folder, name)
        draw = study.leaderboard(answers)
    groups = [str(item).split("_")[0] if name.startswith("helm") else "all" for item in answers.columns]
    begin = perf_counter()
    return study.study(
        draw,
        groups,
        (N_ASKED,),
        draws,
        advance=lambda _: print(kind, name, f"{perf_counter() - begin:.0f} s", flush=True),
    )


def figures_of(kind: str, name: str, found: pd.DataFrame) -> list[Figure]:
    """The figures of one benchmark; targets stand with the pair that `choose` named."""
    rows = []
    for row in found.to_dict("records"):
        label = f"{kind} {name}: {row['method']}, {row['estimator']}"
        best = row["method"] == "adaptive" and row["estimator"] == ("lineage" if kind == "triplets" else "p_irt")
        parents = float(found.loc[found["items"] == 0, "error"].min()) if kind == "triplets" else None
        error, rank = (
            (TRIPLETS[name][1:] if kind == "triplets" else (LEADERBOARDS[name], None)) if best else (None, None)
        )
        rows.append(Figure(f"{label}: error", row["error"], "points", error, below=True))
        rows.append(Figure(f"{label}: error, 5 %", row["low"], "points"))
        rows.append(Figure(f"{label}: error, 95 %", row["high"], "points"))
        rows.append(Figure(f"{label}: Spearman", row["spearman"], "", rank))
        rows.append(Figure(f"{label}: regret", row["regret"], "points"))
        if row["items"]:
            rows.append(Figure(f"{label}: coverage", row["coverage"], "share", 0.85 if best else None))
            rows.append(Figure(f"{label}: coverage, uncalibrated", row["raw_coverage"], "share"))
        if best:
            rows.append(Figure(f"{label}: coverage, at most", row["coverage"], "share", 0.95, below=True))
            if parents is not None:
                rows.append(
                    Figure(
                        f"{label}: error less that of the parents' mean", row["error"] - parents, "points", 0.0, True
                    )
                )
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
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("MERGE3_DATA", "../shared/data")))
    options.add_argument("--draws", type=int, default=20)
    options.add_argument("--workers", type=int, default=1, help="benchmarks at the same time")
    chosen = options.parse_args()
    wanted = [("triplets", name, TRIPLETS[name][0]) for name in TRIPLETS]
    wanted += [("leaderboard", name, name) for name in LEADERBOARDS]
    there = [(kind, name) for kind, name, file in wanted if (chosen.data / f"{file}.parquet").exists()]
    if missing := len(wanted) - len(there):
        print(f"{missing} of {len(wanted)} benchmarks are left out: their tables are not in {chosen.data}")
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(run, chosen.data, kind, name, chosen.draws) for kind, name in there]
        results = [job.result() for job in jobs]
    rows = speed(chosen.data)
    for (kind, name), found in zip(there, results, strict=True):
        print(f"\n{kind} {name}, {N_ASKED} items\n{found.sort_values('error').round(2).to_string(index=False)}")
        rows += figures_of(kind, name, found)
    publish("estimation", rows)


if __name__ == "__main__":
    main()

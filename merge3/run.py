"""A whole search in one call: from parents and items to an evolved model, written and measured, without a pipeline.

    result = run("org/base", {"maths": "org/maths", "german": "./german"}, "questions.jsonl", "merged")

The settings are those of the pipeline, which offers many more. Every answer is kept: called again with the same store a
run goes on where it was.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from merge3 import checks, compare, export, grading, irt, mergefile, report, responses
from merge3.asker import Asker
from merge3.benchmark import TEST_SHARE, read, settings_of, split, with_share
from merge3.estimate import ESTIMATORS, Z90, Estimate, Known, calibrate
from merge3.evolve import SEARCHES, Genes, Search
from merge3.extract import by_margins
from merge3.finalists import HALVES, JOINING, finals, fresh, halves, told_apart, whole
from merge3.fitness import Fitness
from merge3.genome import Genome, live_groups
from merge3.history import EVOLVED, History, Joining, generation, joins
from merge3.items import Item
from merge3.ledger import Cost
from merge3.live import open_asker
from merge3.margins import FEWEST
from merge3.models import absolute
from merge3.recipe import GROUPS, Merge, Recipe, parents, standard_merges
from merge3.report_tables import EXPERT, WINNER, Results, costs
from merge3.store import Answer, Store, digest

POPULATION, TOTALS = 12, (0.6, 1.8)  # random merges that answer every search item; what their weights add up to
ASKED = 20  # search items that a candidate is asked
GENERATION = 12  # candidates
BUDGET = 20 * GENERATION
JOIN = 4  # generations after which leaders answer every search item, and join the random merges
FINALISTS, FRESH = 9, 300  # leaders that are asked again, and up to so many items that the search did not ask
ESTIMATOR, STRATEGY = "margin_irt", "pooled"
KNOTS, WEIGHTS, DENSITIES = 3, (0.0, 1.2), (0.2, 1.0)
SIGMA = 0.2


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of at most `total` answers, of which `kept` were there from before.

    `tokens` and `seconds` are what this run asked and took, `left` the seconds that the rest may take, None before
    anything was asked; `best` is the estimate of the candidate that is the best so far by all candidates together.
    """

    stage: str
    done: int
    kept: int
    total: int
    tokens: int
    seconds: float
    left: float | None
    best: Estimate | None


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        merge: the winner's recipe, with its sources.
        estimate: its score on the search items: exact where it answered all, else by fresh ones, with 90 % interval.
        scores: a row a model on the held-out items: accuracy and 95 % interval, the winner's lead over it, paired, with
            interval and tests. The winner is the first: `compare.EVOLVED`, or the rival that it is, see `notes`.
        history: a row a candidate of the search.
        tokens: what it took: of `preparation`, `search`, the `leaders` that answered all items on the way, `finalists`,
            `test`; `all_items` is what the search would have taken without extraction, `this_run` what was asked now
            and not kept from before.
        out: the folder of the written model.
        report: the page that shows all of it, its figures as CSV beside it; None where no expert could be compared.
        items: how many the search knew, and how many the winner's accuracy is of.
        notes: what is risky about parents and items, what could not be scored, what is left out, and whether the search
            found nothing better than a standard merge or a parent, which is the winner then.
    """

    merge: Merge
    estimate: Estimate
    scores: pd.DataFrame
    history: pd.DataFrame
    tokens: Mapping[str, int]
    out: Path
    report: Path | None
    items: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """The winner's accuracy on the held-out items."""
        return float(self.scores["accuracy"].iloc[0])

    @property
    def verdict(self) -> str:
        """Whom the winner beats, or whom not and who beats it, in a sentence."""
        return compare.verdict(self.scores, str(self.scores["model"].iloc[0]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, without the history."""
        return {
            "out": str(self.out),
            "report": None if self.report is None else str(self.report),
            "verdict": self.verdict,
            "recipe": self.merge.recipe.to_dict(),
            "estimate": {name: getattr(self.estimate, name) for name in ("score", "low", "high")},
            "scores": self.scores.to_dict("records"),
            "tokens": dict(self.tokens),
            "items": dict(self.items),
            "notes": list(self.notes),
        }


def run(
    base: str | Path,
    experts: Mapping[str, str | Path],
    items: str | Path | Sequence[Item],
    out: str | Path,
    *,
    budget: int = BUDGET,
    method: str = "task_arithmetic",
    test_share: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "auto",
    store: str | Path | None = None,
    tell: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Evolve the best merge of `experts` into `base` for `items`, write it to `out`, and measure it on held-out items.

    Args:
        base: a folder or hub id; its tokenizer and config are the merge's.
        experts: fine-tunes or adapters of the base: folders, GGUF files or hub ids, by name.
        items: a .jsonl or .parquet file (see `merge3.items`), a .yaml file that makes items of any dataset,
            `lm-eval:<task>` (see `merge3.benchmark`), or a list.
        out: a new folder for the model.
        budget: candidates of the search, in generations of twelve.
        method: of merging, see `merge3.recipe.TRAITS`.
        seed: of every draw.
        test_share: of each group's items, held out of the search; `TEST_SHARE` where neither it nor the items say.
        device: cpu or cuda.
        dtype: of the live model: auto, float32, bfloat16 or float16.
        store: the folder that keeps every answer, the search's history and the report; `<out>.store` where None.
        tell: is called as the run goes on.
        say: is called with a line on what the run will take, before it asks; and with what is risky or left out, a
            line each, see `Result.notes`.

    Raises:
        FileExistsError: `out` holds something.
        FileNotFoundError: a model or the items are not there.
        OSError: nothing can be written to `out` or `store`.
        ValueError: the parents do not fit together, there are too few items, every candidate is broken, or `out` has
            no name.
        KeyboardInterrupt: the run was interrupted; says how far it is. The store has the best so far, `best.yaml`, and
            with it the run goes on where it was.
    """
    out = Path(out)
    kept = Path(store) if store is not None else out.parent / f"{out.name}.store"
    if budget < GENERATION:
        raise ValueError(f"budget must be {GENERATION} candidates (a generation) or more, got {budget}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    sources = {name: str(source) for name, source in experts.items()}
    genome_of(method, list(sources), GROUPS, seed)  # before models are loaded
    parts = parts_of(items, test_share, seed)
    export.begun(out).rmdir()
    looked = [checks.runtime(device, dtype), *checks.parents(str(base), sources)]
    checks.refuse(looked)
    looked += checks.room(str(base), list(sources.values()), method, device, dtype, "auto", out)
    checks.refuse(looked)
    Store(kept)  # which refuses a file
    kept.mkdir(parents=True, exist_ok=True)
    asker = open_asker(str(base), sources, kept / "answers", device=device, dtype=dtype)
    context = checks.context(checks.small(str(base)))
    for part, of in parts.items():
        fit = checks.benchmark(of, asker.tokenizer, context)
        looked += [replace(finding, what=f"{part} items") for finding in fit]
    for name, changes in asker.merger.experts.items():
        if not changes:
            looked.append(checks.Finding(checks.RISK, f"expert {name}", "its weights are the base's: it adds nothing"))
    notes = _Notes(say, [f"{finding.what}: {finding.text}" for finding in looked if finding.level == checks.RISK])
    done = kept / "result.json"
    if done.exists() and json.dumps(str(out)) not in done.read_text(encoding="utf-8"):
        notes.add(f"{kept} holds another run's winner and report, which this one's will replace: name another store")
    if budget % GENERATION:
        notes.add(f"budget {budget}: {budget - budget % GENERATION} candidates, in whole generations of {GENERATION}")
    whence = absolute(base), {name: absolute(source) for name, source in sources.items()}
    this = _Run(asker, tell, parts["search"], parts["test"], budget, kept, lambda found: Merge(found, *whence), notes)
    say(f"{this.outlook()}, in {asker.identity['dtype']} on {device}; answers are kept in {kept}")
    try:
        winner, estimate, history, scores, results = this.carry_out(method, seed, out.name)
    except KeyboardInterrupt as stop:
        stop.args = (this.stopped(),)
        raise
    tokens, measured = this.tokens, this.measured(len(history))
    counts = {"search": len(this.search), "test": this.tested}
    del asker, this  # export loads the models again: twice may not fit
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    merge = Merge(winner, str(base), sources)
    export.export(merge, out, device, scores, measured)
    scores.to_csv(kept / "scores.csv", index=False)
    own = mergefile.to_yaml(Merge(winner, *whence))
    (kept / "winner.yaml").write_text(own, encoding="utf-8")
    page = None
    if results is None:
        notes.add("no report is written: no expert could be compared")
    else:
        settings = {"--budget": budget, "--method": method, "--test-share": test_share, "--seed": seed}
        settings |= {"--device": device, "--dtype": dtype, "--store": store}
        commands = _commands(base, sources, items, out, kept, settings)
        page = _write_report(replace(results, commands=commands), kept / "report")
    result = Result(merge, estimate, scores, history, tokens, out, page, counts, tuple(notes.lines))
    (kept / "result.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    return result


def _commands(
    base: str | Path,
    sources: Mapping[str, str],
    items: str | Path | Sequence[Item],
    out: Path,
    kept: Path,
    settings: Mapping[str, Any],
) -> list[str]:
    """What makes a run again, where its items have a name, shows its answers, and writes its winner once more."""
    again: list[Any] = ["--base", base, *(word for pair in sources.items() for word in ("--expert", "=".join(pair)))]
    again += ["--out", out, *(word for pair in settings.items() if pair[1] is not None for word in pair)]
    named: list[Any] = ["--items", items] if isinstance(items, str | Path) else []
    lines = [
        ["run", *again, *named] if named else [],
        ["answers", kept, *(named or ["--items", "ITEMS"])],
        ["merge", kept / "winner.yaml", "my-model"],
    ]
    return [shlex.join(["merge3", *map(str, words)]) for words in lines if words]


def _write_report(results: Results, folder: Path) -> Path:
    """Write the page and its figures into a folder; where the page is."""
    folder.mkdir(exist_ok=True)
    for name, content in report.as_files(results).items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder / "index.html"


def parts_of(items: str | Path | Sequence[Item], test_share: float | None, seed: int) -> dict[str, list[Item]]:
    """The search and the test items.

    Raises:
        FileNotFoundError: there are no such items.
        ValueError: they are none, or too few, or cannot be read.
    """
    if isinstance(items, Sequence) and not isinstance(items, str):
        if not items:
            raise ValueError("expected items to search and to test by, got none")
        return split(list(items), TEST_SHARE if test_share is None else test_share, seed)
    return read(with_share(settings_of(str(items)), test_share, str(items)), seed, str(items))


def genome_of(method: str, experts: Sequence[str], groups: Sequence[str], seed: int) -> Genome:
    """The genes of a search by `method`.

    Raises:
        ValueError: the method cannot be searched, or takes another number of experts.
    """
    weights = (0.0, 1.0) if method == "slerp" else WEIGHTS  # its weight is a share
    return Genome((method,), tuple(experts), tuple(groups), KNOTS, weights, DENSITIES, seed)


class _Notes:
    """What is risky or left out, said as it is found."""

    def __init__(self, say: Callable[[str], None], lines: Sequence[str]) -> None:
        self.say, self.lines = say, list[str]()
        for line in lines:
            self.add(line)

    def add(self, line: str) -> None:
        """One more."""
        self.lines.append(line)
        self.say(line)


class _Run:
    """One run: what it asks, in order, and how far it is."""

    def __init__(
        self,
        asker: Asker,
        tell: Callable[[Progress], None],
        search: Sequence[Item],
        test: Sequence[Item],
        budget: int,
        kept: Path,
        sourced: Callable[[Recipe], Merge],
        notes: _Notes,
    ) -> None:
        """`kept` is the store's folder; `sourced` adds the sources to a recipe."""
        self.asker = asker
        self.tell = tell
        self.search = list(search)
        self.test = list(test)
        self.kept = kept
        self.sourced = sourced
        self.notes = notes
        self.generations = budget // GENERATION
        self.names = list(asker.merger.experts)
        self.parents = parents(self.names)
        # how far it is
        self.stage = ""
        self.total = self.most()
        self.done = 0  # answers
        self.before = 0  # of them, kept from before
        self.cost = Cost()  # of what was asked now
        self.prepared = Cost()  # of that, before the search
        self.took: dict[str, float] = {}  # seconds of that, by stage
        self.each = asker.cost([*search, *test]).tokens / (len(search) + len(test))  # tokens of an answer
        self.history: History | None = None  # once the search has begun
        self.best: Estimate | None = None  # of its candidates so far
        # what it found
        self.tokens: dict[str, int] = {}  # see `Result.tokens`
        self.name = compare.EVOLVED  # of the winner; a standard merge's or a parent's, where it is that
        self.left: dict[str, str] = {}  # out of the comparison, and why
        self.tested = 0  # items that the winner's accuracy is of

    def most(self) -> int:
        """How many answers the run takes at most."""
        asked = min(ASKED, len(self.search))
        others = min(FRESH, len(self.search) - asked)
        groups = len({item.group for item in self.search})  # of each at least one
        parts = [min(others, others // step + groups) for step in HALVES] if others else [asked]
        joined = JOINING * joins(JOIN, self.generations) if others else 0
        last = finals(FINALISTS, parts, len(self.search)) + len(self.search) if others else finals(FINALISTS, parts)
        in_full = (len(self.parents) + POPULATION + joined) * len(self.search)
        searched = in_full + self.generations * GENERATION * asked + last
        return searched + (1 + len(self.parents) + len(standard_merges(self.names))) * len(self.test)

    def outlook(self) -> str:
        """What the run will do, and at most take."""
        return (
            f"{len(self.search)} items to search by, {len(self.test)} held out; {self.generations * GENERATION} "
            f"candidates; at most {self.total:,} answers, {self.total * self.each:,.0f} tokens"
        )

    def step(self, answers: int, kept: int) -> None:
        """Say that so many more answers are there, `kept` of them from before."""
        self.done += answers
        self.before += kept
        tokens, seconds = self.cost.tokens, self.cost.seconds
        self.took[self.stage] = seconds - sum(took for stage, took in self.took.items() if stage != self.stage)
        left = (self.total - self.done) * self.each * seconds / tokens if tokens else None
        self.tell(Progress(self.stage, self.done, self.before, self.total, tokens, seconds, left, self.best))

    def answer(self, stage: str, recipes: Mapping[str, Recipe], asked: Sequence[Item]) -> pd.DataFrame:
        """The response table of recipes on items; a broken model's row is NaN."""
        self.stage = stage
        rows = []
        for name, recipe in recipes.items():
            found = self.asker.ask(recipe, asked)
            self.cost += found.cost
            self.step(len(asked), len(asked) - found.new)
            nothing = np.full(len(asked), np.nan), [grading.BROKEN_REASON] * len(asked)
            scores, reasons = nothing if found.answers is None else self.asker.grades(asked, found.answers)
            for reason, count in grading.failures(scores, reasons).items():
                self.notes.add(f"{stage}: {name}: {count} of {len(asked)} items not scored: {reason}")
            rows.append(scores)
        return responses.table(list(recipes), [item.id for item in asked], np.stack(rows))

    def carry_out(
        self, method: str, seed: int, name: str
    ) -> tuple[Recipe, Estimate, pd.DataFrame, pd.DataFrame, Results | None]:
        """Do all of it, in order: the winner, its estimate, the history, the scores, and what a report shows."""
        groups = live_groups(self.asker.merger.changed)
        genome = genome_of(method, self.names, groups, seed)
        known, merges, answers = self.prepare(groups, seed)
        others = fresh(known, [item.group for item in self.search], FRESH, seed)
        history, search = self.evolve(known, others, merges, answers, genome, seed)
        best = self.verify(history, search, others)
        winner = history.recipes[best["phenotype"]]
        scores, table = self.measure(winner, seed)
        self.tokens["this_run"] = self.cost.tokens
        shown = None
        if (scores["kind"] == EXPERT).any():
            shown = self.results(name, known, history, best, scores, table, seed)
        return winner, estimate_of(best), pd.DataFrame(history.rows), scores, shown

    def prepare(self, groups: tuple[str, ...], seed: int) -> tuple[Known, list[Recipe], np.ndarray]:
        """What is known before the search: parents and random merges answer its items; the merges; their answers.

        Raises:
            ValueError: a parent is broken, too few merges can be scored, or all answer alike.
        """
        table = self.ask_parents()
        drawn, merges = self.ask_population(groups, seed)
        labels = [item.group for item in self.search]
        everybody = np.vstack([table.to_numpy(), merges.to_numpy()])
        if len(np.unique(everybody, axis=0)) < 2:
            raise ValueError(
                f"parents and random merges answer all {len(labels)} search items alike ({everybody[0].mean():.0%} "
                f"right), so nothing can be learned: look at the answers, merge3 answers {self.kept} --items ..."
            )
        parameters = irt.fit_items(everybody, "em", 1, 0)
        relatives = np.stack([self.margins(recipe) for recipe in drawn])
        choose = partial(by_margins, count=min(ASKED, len(labels)), groups=labels, seed=seed)
        known = Known(parameters, *choose(relatives), table.loc[self.names].to_numpy(), relatives=relatives)
        return calibrate(ESTIMATOR, merges.to_numpy(), known, choose), drawn, merges.to_numpy()

    def ask_parents(self) -> pd.DataFrame:
        """The parents' answers; search items that not every parent's could be scored of are left out from here on.

        Raises:
            ValueError: a parent is broken, or no item is left.
        """
        table = self.answer("parents", self.parents, self.search)
        self.tokens["preparation"] = len(self.parents) * self.asker.cost(self.search).tokens
        broken = table.index[table.isna().all(axis=1)].tolist()
        if broken and len(broken) < len(table):  # of all the items are at fault
            raise ValueError(f"{broken[0]!r} has no answer that could be scored: it cannot be merged; {self.why()}")
        scored = table.notna().all(axis=0).to_numpy()
        if not scored.any():
            raise ValueError(f"no search item has an answer of every parent that could be scored; {self.why()}")
        if not scored.all():
            left = f"{(~scored).sum()} of {len(scored)} search items are left out"
            self.notes.add(f"{left}: a parent's answer to them could not be scored")
        asked, self.search = self.search, [item for item, kept in zip(self.search, scored, strict=True) if kept]
        if gone := sorted({item.group or "none" for item in asked} - {item.group or "none" for item in self.search}):
            self.notes.add(f"no search item is left of {', '.join(gone)}: the search is for the other groups alone")
        return table.loc[:, scored]

    def ask_population(self, groups: tuple[str, ...], seed: int) -> tuple[list[Recipe], pd.DataFrame]:
        """Random merges that have every search item scored, and their answers.

        Raises:
            ValueError: they are too few.
        """
        random = Genome(("task_arithmetic",), tuple(self.names), groups, 1, WEIGHTS, DENSITIES, seed)
        generator = np.random.default_rng(np.random.SeedSequence(seed))
        drawn = {f"merge {n}": random.draw(TOTALS, generator) for n in range(POPULATION)}
        merges = self.answer("population", drawn, self.search).dropna()
        self.tokens["preparation"] += POPULATION * self.asker.cost(self.search).tokens
        if len(merges) <= FEWEST:  # each is left out in turn
            raise ValueError(
                f"{len(merges)} of {POPULATION} random merges have every search item scored, {FEWEST + 1} are "
                "needed: leave out items whose replies are cut off, or give them more max_tokens"
            )
        return [drawn[name] for name in merges.index], merges

    def why(self) -> str:
        """The reasons so far, and where the answers can be read."""
        return f"{'; '.join(self.notes.lines[-3:])} (merge3 answers {self.kept} --items ... --failed)"

    def margins(self, recipe: Recipe) -> np.ndarray:
        """How far each right option of the search items leads, by a recipe that has answered them."""
        answers = self.asker.ask(recipe, self.search).answers
        assert answers is not None
        return self.asker.margins(self.search, answers)

    def evolve(
        self, known: Known, others: Known, merges: Sequence[Recipe], answers: np.ndarray, genome: Genome, seed: int
    ) -> tuple[History, Search]:
        """The search, a generation at a time; what `merges` are worth is known by their `answers` in full.

        What `others` asks is kept for the finalists.
        """
        self.stage, self.prepared = "search", self.cost
        fitness_of = partial(Fitness, self.asker, self.search, ESTIMATORS[ESTIMATOR])
        fitness = fitness_of(known)
        search = SEARCHES[STRATEGY](Genes(genome.start.size), genome.start, SIGMA, GENERATION, seed)
        history = self.history = History(fitness, genome)
        everything = Fitness(self.asker, self.search, ESTIMATORS["weighted_mean"], whole(known))
        assert known.relatives is not None
        history.know(search, merges, [everything.judge(*row) for row in zip(answers, known.relatives, strict=True)])

        again = told_apart(known, others, [item.group for item in self.search], seed)
        joining = Joining(JOIN, everything, fitness_of, again) if len(known.unasked) else None
        for _ in range(self.generations):
            if not generation(search, history, partial(self.follow, history), joining):
                break
            self.keep()
        in_full = len(history.seen) * self.asker.cost(self.search).tokens
        self.tokens |= {"search": history.spent.tokens, "leaders": history.relatives_tokens, "all_items": in_full}
        return history, search

    def keep(self) -> None:
        """Write the history, and the best so far."""
        if self.history is None or not self.history.rows:
            return
        pd.DataFrame(self.history.rows).to_csv(self.kept / "history.csv", index=False)
        if self.history.told:
            row = self.history.best
            self.best = estimate_of(row)
            merge = mergefile.to_yaml(self.sourced(self.history.recipes[row["phenotype"]]))
            (self.kept / "best.yaml").write_text(merge, encoding="utf-8")

    def stopped(self) -> str:
        """Keep what was asked, and say how far the run is."""
        self.keep()
        best = ""
        if self.best:
            score, low, high = (f"{100 * value:.1f}" for value in (self.best.score, self.best.low, self.best.high))
            best = f"; the best so far is {self.kept / 'best.yaml'}, estimated {score} % [{low}, {high}]"
        asked = f"stopped after {self.done} of at most {self.total} answers ({self.stage})" if self.done else "stopped"
        return f"{asked}{best}; started again, the run goes on where it is"

    def verify(self, history: History, search: Search, others: Known) -> dict[str, Any]:
        """The row of the best of the leaders, see `History.verify`."""
        self.stage = "finalists"
        fair = ESTIMATORS["weighted_mean"]  # a fair sample needs no model
        asked = partial(Fitness, self.asker, self.search, fair)
        rounds = [asked(part) for part in halves(others, [item.group for item in self.search])]
        everything = asked(whole(others)) if len(others.unasked) else None
        row = history.verify(history.leaders(FINALISTS, search), rounds, partial(self.follow, history), everything)
        self.tokens["finalists"] = history.finalists_tokens
        if row["merge"] in standard_merges(self.names):
            self.name = row["merge"]
        return row

    def follow(self, history: History, answers: int) -> None:
        """As `step`, where a history keeps the account."""
        spent = self.prepared + history.cost
        kept = answers if spent.tokens == self.cost.tokens else 0
        self.cost = spent
        self.step(answers, kept)

    def measure(self, winner: Recipe, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Winner, parents and standard merges on the held-out items: their scores, and the answers that are compared.

        A rival that is the winner is no rival.

        Raises:
            ValueError: the winner's answers cannot be scored.
        """
        fingerprints = self.asker.merger.fingerprints
        made = winner.phenotype(fingerprints)
        rivals = self.parents | standard_merges(self.names)
        same = [name for name, recipe in rivals.items() if recipe.phenotype(fingerprints) == made or name == self.name]
        if same:
            self.name = same[0]
            self.notes.add(f"the search found nothing better than {self.name}: it is the winner")
        recipes = {self.name: winner} | {name: recipe for name, recipe in rivals.items() if name not in same}
        table = self.answer("test", recipes, self.test)
        table, self.left = compare.comparable(table, [self.name])
        for name, said in self.left.items():
            self.notes.add(f"{name} is not compared: {said}")
        self.tested = int(table.notna().sum(axis=1)[self.name])
        if said := compare.uneven(table):
            self.notes.add(said)
        scored = compare.scores(table, self.test, self.name, seed)
        kinds = {"base": "base"} | dict.fromkeys(self.names, EXPERT) | {self.name: WINNER}
        scored.insert(1, "kind", [kinds.get(name, "standard merge") for name in scored["model"]])
        distinct = {recipe.phenotype(fingerprints) for recipe in recipes.values()}
        self.tokens["test"] = len(distinct) * self.asker.cost(self.test).tokens
        return scored, table

    def measured(self, candidates: int) -> str:
        """What the model's card says of how the winner was found and measured."""
        tokens = self.tokens
        said = (
            f"Measured by `merge3 run` on {self.tested} items that the search did not see, in "
            f"{self.asker.identity['dtype']}. It asked {candidates} candidates at most {ASKED} of {len(self.search)} "
            f"other items, {tokens['search']:,} tokens"
        )
        said += f", and leaders on the way all of them, {tokens['leaders']:,} tokens." if tokens["leaders"] else "."
        said += f" The winner is {self.name}: the search found nothing better." if self.name != compare.EVOLVED else ""
        return said + "".join(f" {name} is left out: {why}." for name, why in self.left.items())

    def results(
        self,
        name: str,
        known: Known,
        history: History,
        best: Mapping[str, Any],
        scores: pd.DataFrame,
        table: pd.DataFrame,
        seed: int,
    ) -> Results:
        """All that was found, as the report shows it by a name."""
        winner = history.recipes[best["phenotype"]]
        merge = EVOLVED if self.name == compare.EVOLVED else self.name
        recipes = self.parents | standard_merges(self.names) | {self.name: winner}
        abilities = pd.DataFrame(known.parent_abilities).add_prefix("ability_")
        asked = [self.search[place] for place in known.subset]

        def seconds(*stages: str) -> float:
            return sum(self.took.get(stage, 0.0) for stage in stages) or np.nan

        tokens, before = self.tokens, ("parents", "population")
        spent = [
            ("search", "the search", "search", tokens["search"], seconds("search")),
            ("search", "leaders on all items on the way", "search", tokens["leaders"], np.nan),
            ("finalists", "finalists in the end", "finalists", tokens["finalists"], seconds("finalists")),
            (
                "preparation",
                "parents and random merges, search items",
                "preparation",
                tokens["preparation"],
                seconds(*before),
            ),
            ("test", "winner, parents, standard merges", "test", tokens["test"], seconds("test")),
        ]
        fingerprints = self.asker.merger.fingerprints
        return Results(
            study=name,
            experts=self.names,
            search=self.search,
            tests=self.test,
            parameters=known.items,
            abilities=abilities,
            parents=known.parents,
            subset=pd.DataFrame(
                {"id": [i.id for i in asked], "group": [i.group for i in asked], "weight": known.weights}
            ),
            estimates=None,
            by_group=compare.over_best_standard(scores, table, self.test, self.name, seed),
            one_runtime=True,
            scores=scores,
            responses=table,
            raw={name: self.raw(recipes[name]) for name in table.index},
            scoring=self.asker.scoring,
            sample=pd.DataFrame(columns=["phenotype", "estimate", "low", "high", "truth"]),
            history=pd.DataFrame(history.rows),
            recipes={name: recipe.to_dict() for name, recipe in history.recipes.items()},
            finalists=pd.DataFrame(history.finalists),
            front=None,
            winner={**best, "merge": merge, "recipe": winner.to_dict()},
            estimator=ESTIMATOR,
            estimators=pd.DataFrame([asdict(known.calibration)]),
            costs=costs(spent),
            full=self.tokens["all_items"],
            identity={
                "the winner (phenotype)": best["phenotype"],
                "base (weights)": self.asker.identity["base"],
                **{f"{name} (weights)": fingerprints[name] for name in self.names},
                "search items": digest([item.content_hash for item in self.search]),
                "test items": digest([item.content_hash for item in self.test]),
                "answered on": report.answered_on(self.asker.identity),
            },
            commands=[],
        )

    def raw(self, recipe: Recipe) -> dict[str, Answer]:
        """By item, the answers of a recipe that was asked the test items."""
        return dict(zip((item.id for item in self.test), self.asker.ask(recipe, self.test).answers or (), strict=False))


def estimate_of(row: Mapping[str, Any]) -> Estimate:
    """The estimate in a row of the history."""
    score, low, high = (float(row[name]) for name in ("estimate", "low", "high"))
    return Estimate(score, low, high, max(high - score, score - low) / Z90)  # one end may be clipped

"""The history of a search: what every candidate was, what its answers told, and which of the leaders wins.

Both the stage `evolve` and `merge3 run` search so: generations are asked and told, the leaders are asked fresh items,
and the winner is the one that does best on what search and fresh items say together, or on all items, where leaders
answered all on the way. The standard merges are asked, too: a search that finds nothing better than what is made by
hand is to say so. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float

from merge3 import surface
from merge3.estimate import CONTINUOUS, Choose, Known
from merge3.evolve import ERROR, Search
from merge3.finalists import JOINING, Leader, combined_by_group, contenders, on_common, ranked
from merge3.fitness import Evaluation, Fitness
from merge3.front import knee, nondominated, spread
from merge3.genome import Genome, snap
from merge3.items import Item
from merge3.ledger import Cost
from merge3.recipe import AVERAGE, Recipe, standard_merges

Do = Callable[[str, Callable[[], Evaluation]], Evaluation]
FrontLeader = tuple[Recipe, np.ndarray, np.ndarray]  # as a `Leader`, by group

EVOLVED = "evolved"  # what a finalist is that is no standard merge
BROKEN = (
    "no candidate could be scored, for likelihoods that are not finite or replies that are cut off: narrow the range "
    "of the weights, or give free-text items more max_tokens"
)


@dataclass(frozen=True)
class Told:
    """What a merge is worth, and the standard errors of that; by group, too, where a front is searched for."""

    genotype: Float[np.ndarray, " genes"]
    score: float
    error: float
    groups: tuple[float, ...] = ()
    group_errors: tuple[float, ...] = ()


def plainly(name: str, work: Callable[[], Evaluation]) -> Evaluation:  # noqa: ARG001 - others show the name
    """Do a piece of work."""
    return work()


@dataclass(frozen=True)
class Joining:
    """How leaders join the merges that are known in full, see `History.join`.

    Attributes:
        every: after so many generations.
        everything: asks all items.
        fitness_of: the fitness by what is known then.
        choose: the items that candidates are asked, and their weights, by the relatives' margins; None: as before.
        count: leaders at once.
    """

    every: int
    everything: Fitness
    fitness_of: Callable[[Known], Fitness]
    choose: Choose | None
    count: int = JOINING

    @property
    def tokens(self) -> int:
        """What leaders that join at once are asked."""
        return self.count * self.everything.cost.tokens

    def due(self, generation: int) -> bool:
        """Whether leaders join before a generation, counted from 0."""
        return generation > 0 and generation % self.every == 0


class History:
    """A row a candidate, and what this run spent."""

    def __init__(self, fitness: Fitness, genome: Genome, do: Do = plainly) -> None:
        """`do` does each evaluation."""
        self.do = do
        self.fitness = fitness
        self.genome = genome
        self.groups: list[str] = []  # that are objectives of a front
        if fitness.objective and fitness.objective.front:
            self.groups = list(fitness.objective.weights)
        self.average = average(genome)
        made_by_hand = standard_merges(genome.experts) | {AVERAGE: self.average}
        self.standard = {self.phenotype(recipe): (name, recipe) for name, recipe in made_by_hand.items()}
        # what was asked; merges go by their phenotypes
        self.rows: list[dict[str, Any]] = []  # one a candidate
        self.recipes: dict[str, Recipe] = {}
        self.seen: set[str] = set()  # candidates
        self.answered: dict[str, tuple[Fitness, Evaluation]] = {}  # what candidates and `exact` were asked, and said
        self.joined: set[str] = set()  # leaders that were asked all items on the way
        self.exact: dict[str, Evaluation] = {}  # of merges that answered all items, on the way or in the end
        self.finalists: list[dict[str, Any]] = []  # a row each
        # what surface and search are told
        self.known: list[Told] = []  # of merges answered in full before the search
        self.told: dict[str, Told] = {}  # of distinct whole candidates
        self.proven: dict[str, Told] = {}  # of leaders that answered all items and were no candidates before
        self.failed: list[np.ndarray] = []  # genotypes of broken candidates
        # what it took
        self.paid: dict[str, set[str]] = {}  # the questions, by content, that each was asked in this search
        self.spent = Cost()  # of distinct candidates
        self.relatives_tokens = 0  # of leaders that joined, beside what they were asked as candidates
        self.finalists_tokens = 0  # the same of finalists
        self.cost = Cost()  # of this run, whose answers were not kept from before

    def charge(self, name: str, questions: Sequence[Item]) -> Cost:
        """What a merge takes that is asked these questions, and was asked some before in this search."""
        before = self.paid.setdefault(name, set())
        new = [question for question in questions if question.content_hash not in before]
        before |= {question.content_hash for question in new}
        return self.fitness.asker.cost(new) if new else Cost()

    def phenotype(self, recipe: Recipe) -> str:
        """What names the model that a recipe makes."""
        return recipe.phenotype(self.fitness.asker.merger.fingerprints)

    def know(self, search: Search, recipes: Sequence[Recipe], evaluations: Sequence[Evaluation]) -> None:
        """Tell search and surface what merges are worth that were answered in full before the first generation.

        Merges that the genome has no place for, and broken ones, tell nothing. Nor does any where candidates are told
        by few answers: their estimates are at another level than exact scores, and beside them mislead.
        """
        if self.fitness.estimator not in CONTINUOUS and len(self.fitness.known.unasked):
            return
        for recipe, evaluation in zip(recipes, evaluations, strict=True):
            genotype = self.genome.place(recipe)
            if genotype is not None and evaluation.estimate:
                self.known.append(self._exact(genotype, evaluation))
        if self.known:
            search.know(np.array([one.genotype for one in self.known]), [one.groups or one.score for one in self.known])

    def evaluate(self, genotype: np.ndarray, recipe: Recipe, place: dict[str, int]) -> Evaluation:
        """Ask a candidate, and write a row of the history for it."""
        name, tokens = self.phenotype(recipe), 0
        if name in self.answered:
            evaluation = self._again(name)
        else:
            evaluation = self.fitness(recipe)
            tokens = self._keep(name, genotype, evaluation)
        self.recipes.setdefault(name, recipe)
        self.seen.add(name)
        genes = dict(zip(self.genome.names, genotype.tolist(), strict=True))
        told = {"margin": evaluation.margin, "failed": evaluation.failed, "tokens": tokens}
        self.rows.append({**place, "phenotype": name, **self._estimates(name, evaluation), **told, **genes})
        return evaluation

    def _keep(self, name: str, genotype: np.ndarray, evaluation: Evaluation) -> int:
        """Keep what a new candidate is worth, or that it is broken; what its questions take, in tokens."""
        self.answered[name] = self.fitness, evaluation
        if evaluation.estimate:
            self.told[name] = self._told(genotype, evaluation)
        else:
            self.failed.append(genotype)
        one = self.charge(name, self.fitness.questions)
        self.spent += one
        self.cost += evaluation.cost
        return one.tokens

    def _estimates(self, name: str, evaluation: Evaluation) -> dict[str, Any]:
        """What a row says of a candidate's evaluation: of how many items, its estimate, also by group."""
        fitness, _ = self.answered[name]
        by_group = {f"estimate {group}": evaluation.groups[group].score for group in self.groups if evaluation.groups}
        return {"items": len(fitness.questions), **_scores(evaluation), **by_group}

    def _again(self, name: str) -> Evaluation:
        """What a candidate is worth that answered before, by its answers then and what is known now."""
        fitness, answers = self.answered[name]
        if answers.estimate is None or answers.correct is None or answers.margins is None:
            return replace(answers, cost=Cost())
        return fitness.judge(answers.correct, answers.margins)

    def _exact(self, genotype: np.ndarray, evaluation: Evaluation) -> Told:
        """What is known of a whole merge that answered all items."""
        groups = tuple(evaluation.groups[group].score for group in self.groups)
        return Told(genotype, evaluation.value, 0.0, groups, (0.0,) * len(groups))

    def _told(self, genotype: np.ndarray, evaluation: Evaluation) -> Told:
        """What the search is told of a whole merge."""
        assert evaluation.estimate is not None
        groups = (evaluation.front(self.groups), evaluation.errors(self.groups)) if self.groups else ((), ())
        return Told(genotype, evaluation.fitness, evaluation.estimate.standard_error, *groups)

    def join(self, search: Search, joining: Joining, advance: Callable[[int], None]) -> None:
        """Ask leaders all items: they join the relatives, and all candidates are estimated anew by what they teach.

        A search leads to where the items asked flatter, beyond what the relatives' margins tell; relatives from there
        correct it. They are where the surface is highest, asked before or not, and the candidates of the highest
        posterior means. The items that candidates are asked from here on are chosen anew, too. A leader that leaves an
        item without a score joins none, and none is asked so twice.

        Args:
            search: which is told all again.
            joining: how many, what they are asked, and what is made of it.
            advance: is told how many more answers there are.

        Raises:
            ValueError: every candidate so far is broken.
        """
        leaders, everything = self._joiners(search, joining.count), joining.everything
        everything.expect([recipe for _, recipe in leaders.values()])
        taught = []
        for name, (genotype, recipe) in leaders.items():
            self.joined.add(name)
            evaluation, tokens = self._ask(f"relative {name[:8]}", name, recipe, everything)
            self.relatives_tokens += tokens
            advance(len(everything.questions))
            if evaluation.estimate is None or evaluation.margins is None or np.isnan(evaluation.margins).any():
                continue
            taught.append(evaluation.margins)
            self.recipes.setdefault(name, recipe)
            self.answered[name], self.exact[name] = (everything, evaluation), evaluation
            if name not in self.told:
                self.proven[name] = self._exact(genotype, evaluation)
        before = self.fitness.known.relatives
        if taught and before is not None:
            self._estimate_anew(np.vstack([before, *taught]), joining)
            self._retell(search)

    def _joiners(self, search: Search, count: int) -> dict[str, tuple[np.ndarray, Recipe]]:
        """The genotypes and recipes of up to `count` leaders that have not joined yet, by phenotype."""
        pooled = self.surface()
        asked = self.asked[np.argsort(-pooled.predict(self.asked)[0], kind="stable")]
        leaders: dict[str, tuple[np.ndarray, Recipe]] = {}
        for genotype in [self._placed(surface.best(pooled, search.seed)), *asked]:
            recipe = self.genome.decode(genotype)
            if len(leaders) < count and self.phenotype(recipe) not in self.joined:
                leaders.setdefault(self.phenotype(recipe), (genotype, recipe))
        return leaders

    def _estimate_anew(self, relatives: Float[np.ndarray, "relatives items"], joining: Joining) -> None:
        """Estimate all candidates by what these relatives teach, and choose by it what others are asked from here on.

        Each stays with the items that it was asked; of leaders that answered all items nothing is left to learn.
        """
        known = self.fitness.known
        subset, weights = joining.choose(relatives) if joining.choose else (known.subset, known.weights)
        self.fitness = joining.fitness_of(replace(known, relatives=relatives, subset=subset, weights=weights))
        anew: dict[int, Fitness] = {id(joining.everything): joining.everything}
        for name, (asked, answers) in self.answered.items():
            if id(asked) not in anew:
                anew[id(asked)] = joining.fitness_of(replace(asked.known, relatives=relatives))
            self.answered[name] = anew[id(asked)], answers
        evaluations = {name: self._again(name) for name in self.seen}
        for name, before in self.told.items():
            tell = self._exact if self.answered[name][0] is joining.everything else self._told
            self.told[name] = tell(before.genotype, evaluations[name])
        for row in self.rows:
            row |= self._estimates(row["phenotype"], evaluations[row["phenotype"]])

    def _retell(self, search: Search) -> None:
        """Tell a search all that is known and was told, as it is estimated now."""
        genes, both = self._all()
        values, errors = [one.groups or one.score for one in both], [one.group_errors or one.error for one in both]
        search.retell(genes, values, errors, self.failed)

    def _ask(self, label: str, name: str, recipe: Recipe, fitness: Fitness) -> tuple[Evaluation, int]:
        """A leader's evaluation, and what its questions take that it was not asked before in this search, in tokens."""
        evaluation = self.do(label, partial(fitness, recipe))
        self.cost += evaluation.cost
        return evaluation, self.charge(name, fitness.questions).tokens

    def _placed(self, genotype: Float[np.ndarray, " genes"]) -> Float[np.ndarray, " genes"]:
        """The genotype; where methods are searched, in the middle of its method's part."""
        placed = self.genome.place(self.genome.decode(genotype)) if len(self.genome.methods) > 1 else None
        return genotype if placed is None else placed

    def surface(self) -> surface.Surface:
        """The surface through all that is known and was told.

        Raises:
            ValueError: every candidate is broken.
        """
        genes, both = self._all()
        scores, errors = np.array([one.score for one in both]), np.array([one.error for one in both])
        if self.failed:  # as the worst: where a broken one lies is no place to go
            genes = np.vstack([genes, *self.failed])
            scores = np.append(scores, np.full(len(self.failed), scores.min()))
            errors = np.append(errors, np.full(len(self.failed), ERROR))
        return surface.fit(genes, scores, errors)

    def _all(self) -> tuple[Float[np.ndarray, "merges genes"], list[Told]]:
        """The genotypes of all whole merges of which something is known or was told, and what.

        Raises:
            ValueError: every candidate is broken.
        """
        both = [*self.known, *self.proven.values(), *self.told.values()]
        if not both:
            raise ValueError(BROKEN)
        return np.array([one.genotype for one in both]), both

    @property
    def asked(self) -> Float[np.ndarray, "candidates genes"]:
        """The genotypes of the whole candidates."""
        found = [one.genotype for one in self.told.values()]
        return np.array(found).reshape(len(found), len(self.genome.names))

    @property
    def best(self) -> dict[str, Any]:
        """The phenotype and the estimate of the candidate or leader whose posterior is the highest.

        Raises:
            ValueError: every candidate so far is broken.
        """
        pooled, found = self.surface(), self.told | self.proven
        if not found:
            raise ValueError(BROKEN)
        heights = pooled.predict(np.array([one.genotype for one in found.values()]))[0]
        top = list(found)[int(heights.argmax())]
        return {"phenotype": top, **_scores(self._again(top))}

    def leaders(self, count: int, search: Search) -> dict[str, Leader]:
        """Up to `count` candidates with the mean and deviation of their posterior.

        First where the surface is highest, the candidate of the highest posterior mean, where the search would go on
        and where it began, asked before or not; then the other standard merges, of which the surface knows nothing;
        then the other distinct candidates, the highest first. Leaders that answered all items are none of them.
        """
        pooled = self.surface()
        genotypes = np.array([self._placed(one) for one in contenders(pooled, search, self.asked)])
        known = [
            (self.genome.decode(genotype), float(mean), float(deviation))
            for genotype, mean, deviation in zip(genotypes, *pooled.predict(genotypes), strict=True)
        ]
        unknown = [(recipe, np.nan, np.nan) for _, recipe in self.standard.values()]
        found: dict[str, Leader] = {}
        for leader in [*known[:4], *unknown, *known[4:]]:
            name = self.phenotype(leader[0])
            if len(found) < count and name not in self.exact:
                found.setdefault(name, leader)
        return found

    def front(self, count: int) -> dict[str, FrontLeader]:
        """Up to `count` candidates of the front of the posterior, a surface a group: the knee, and others far apart.

        Raises:
            ValueError: every candidate is broken.
        """
        all_genes, both = self._all()
        genes = np.array([one.genotype for one in (self.told | self.proven).values()])
        scores = np.array([one.groups for one in both])
        errors = np.array([one.group_errors for one in both])
        fitted = [surface.fit(all_genes, scores[:, k], errors[:, k]) for k in range(len(self.groups))]
        means, deviations = np.stack([one.predict(genes) for one in fitted], axis=2)
        found: dict[str, FrontLeader] = {}
        for place in spread(means, count):
            recipe = self.genome.decode(genes[place])
            found[self.phenotype(recipe)] = recipe, means[place], deviations[place]
        return found

    def verify_front(
        self, leaders: dict[str, FrontLeader], fitness: Fitness, advance: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """Ask the leaders fresh items; a row each: its scores by group, whether it is on the front, and is its knee.

        A group's score is that by the surface, on the level that the fresh items have for all leaders, and that by the
        fresh items, each weighed by the other's mean variance.

        Raises:
            ValueError: every leader is broken.
        """
        fitness.expect([recipe for recipe, _, _ in leaders.values()])
        made: dict[str, Evaluation] = {}
        for name, (recipe, _, _) in leaders.items():
            made[name] = self._ask_finalist(f"finalist {name[:8]}", name, recipe, fitness)
            advance(len(fitness.questions))
        fair = on_common(fitness, made)
        whole, made = list(fair), made | fair
        if not whole:
            raise ValueError(BROKEN)
        self.finalists = [self._finalist(name, made[name], len(fitness.questions)) for name in made]
        means, deviations = (np.array([leaders[name][k] for name in whole]) for k in (1, 2))
        found = np.array([[made[name].groups[group].score for group in self.groups] for name in whole])
        scores, half = combined_by_group(
            means, deviations, found, np.array([made[name].errors(self.groups) for name in whole])
        )
        on, bend = nondominated(scores), knee(scores)
        rows = []
        for place, name in enumerate(whole):
            row: dict[str, Any] = {"phenotype": name, "front": bool(on[place]), "knee": place == bend}
            for group, score, by in zip(self.groups, scores[place].tolist(), half.tolist(), strict=True):
                row |= {f"score {group}": score, f"low {group}": max(0.0, score - by)}
                row |= {f"high {group}": min(1.0, score + by)}
            rows.append(row)
        return rows

    def verify(
        self,
        leaders: dict[str, Leader],
        rounds: list[Fitness],
        advance: Callable[[int], None],
        everything: Fitness | None = None,
    ) -> dict[str, Any]:
        """Ask the leaders fresh items, half of them twice as many, and so on; the row of the best.

        `advance` is told how many more answers there are.

        The best is so by both: the surface, which knows all candidates by the items of the search, and the fresh
        items. Each counts by the other's mean variance; what either says of all leaders alike counts for nothing. A
        leader of which the surface knows nothing stands by its fresh items alone.

        The `JOINING` best and the uniform average are asked `everything`, too, and the best of all that answered it,
        leaders on the way among them, wins: else one of which less is known would seem better.

        Raises:
            ValueError: every leader is broken.
        """
        made, items = dict[str, Evaluation](), dict[str, int]()

        def ask(name: str, recipe: Recipe, fitness: Fitness, number: int) -> None:
            made[name] = self._ask_finalist(f"finalist {number}-{name[:8]}", name, recipe, fitness)
            advance(len(fitness.questions) - items.get(name, 0))
            items[name] = len(fitness.questions)

        alive = self._narrowed(leaders, rounds, made, ask)
        best = next(iter(alive), "")
        if everything is not None:
            average = self.phenotype(self.average)
            self.recipes.setdefault(average, self.average)
            last = {average: self.average, **dict(islice(alive.items(), JOINING))}
            missing = {name: recipe for name, recipe in last.items() if name not in self.exact}
            everything.expect(list(missing.values()))
            for name, recipe in missing.items():
                ask(name, recipe, everything, len(rounds))
                if made[name].estimate:
                    self.exact[name] = made[name]
            fair = on_common(everything, self.exact)
            made |= self.exact | fair
            items |= dict.fromkeys(self.exact, len(everything.questions))
            order = sorted(fair, key=lambda name: (-fair[name].value, name != average))
            best = order[0] if order else best
        self.finalists = [self._finalist(name, made[name], items[name]) for name in made]
        return next(row for row in self.finalists if row["phenotype"] == best)

    def _narrowed(
        self,
        leaders: dict[str, Leader],
        rounds: list[Fitness],
        made: dict[str, Evaluation],
        ask: Callable[[str, Recipe, Fitness, int], None],
    ) -> dict[str, Recipe]:
        """The leaders that are left after the rounds, the best first; only the better half goes on to the next.

        `ask` puts what it asks into `made`. Where all are broken that nobody asked before, the best candidate is asked.

        Raises:
            ValueError: every leader is broken, and none answered all items on the way.
        """
        alive = list(leaders)
        for number, fitness in enumerate(rounds):
            fitness.expect([leaders[name][0] for name in alive])
            for name in alive:
                ask(name, leaders[name][0], fitness, number)
            fair = on_common(fitness, {name: made[name] for name in alive})
            if not fair and not self.exact and self.told and (name := self.best["phenotype"]) not in made:
                leaders = leaders | {name: (self.recipes[name], np.nan, np.nan)}
                ask(name, self.recipes[name], fitness, number)
                fair = on_common(fitness, {name: made[name]})
            if not fair:
                if not self.exact:
                    raise ValueError(BROKEN)
                break
            made |= fair
            alive = ranked(leaders, fair, fitness)
            if fitness is not rounds[-1]:
                alive = alive[: (len(alive) + 1) // 2]
        return {name: leaders[name][0] for name in alive}

    def _ask_finalist(self, label: str, name: str, recipe: Recipe, fitness: Fitness) -> Evaluation:
        """A finalist's evaluation, which is counted."""
        evaluation, tokens = self._ask(label, name, recipe, fitness)
        self.finalists_tokens += tokens
        self.recipes.setdefault(name, recipe)
        return evaluation

    def _finalist(self, name: str, evaluation: Evaluation, items: int) -> dict[str, Any]:
        """A row of the finalists; `items` asked it, of which those count that its estimate is by."""
        merge, _ = self.standard.get(name, (EVOLVED, None))
        if evaluation.estimate and evaluation.correct is not None:
            items = int((~np.isnan(evaluation.correct)).sum())
        return {"phenotype": name, "merge": merge, **_scores(evaluation), "items": items}


def joins(every: int, generations: int) -> int:
    """How often leaders join in so many generations."""
    return (generations - 1) // every


def generation(
    search: Search,
    history: History,
    advance: Callable[[int], None],
    joining: Joining | None = None,
    left: float = np.inf,
) -> bool:
    """Ask for a generation, evaluate it, tell it; False where the search is at its end or `left` tokens may not do.

    Where it is time leaders join before, see `History.join`. The first generation is asked whatever it takes. `advance`
    is told how many more answers there are.
    """
    number = search.generation
    due = joining if joining and history.told and joining.due(number) else None
    if due:
        left -= due.tokens
    if search.converged or (number and left < search.population * history.fitness.cost.tokens):
        return False
    if due:
        history.join(search, due, advance)
    asked = [(genotype, history.genome.decode(genotype)) for genotype in search.ask()]
    if not asked or (number and left < len(asked) * history.fitness.cost.tokens):  # some generations are larger
        return False
    history.fitness.expect([recipe for _, recipe in asked if history.phenotype(recipe) not in history.recipes])
    told = []
    for candidate, (genotype, recipe) in enumerate(asked):
        place = {"generation": number, "candidate": candidate}
        told.append(history.do(f"candidate {number}-{candidate}", partial(history.evaluate, genotype, recipe, place)))
        advance(len(history.fitness.questions))
    if history.groups:
        search.tell([one.front(history.groups) for one in told], [one.errors(history.groups) for one in told])
    else:
        errors = [one.estimate.standard_error if one.estimate else np.nan for one in told]
        search.tell([one.fitness for one in told], errors)
    return True


def average(genome: Genome) -> Recipe:
    """The uniform average: where a search begins, if its first method makes that there; else of its own."""
    start, share = genome.decode(genome.start), snap(1 / len(genome.experts))
    weights = {value for by_group in start.weights.values() for knots in by_group.values() for value in knots}
    if start.method == "task_arithmetic" and weights == {share}:
        return start
    return standard_merges(genome.experts)[AVERAGE]


def _scores(evaluation: Evaluation) -> dict[str, float]:
    """A candidate's estimate and its interval; NaN where it has none."""
    estimate = evaluation.estimate
    names = ("score", "low", "high")
    score, low, high = (getattr(estimate, name) if estimate else np.nan for name in names)
    return {"estimate": score, "low": low, "high": high}

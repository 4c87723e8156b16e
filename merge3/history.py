"""The history of a search: what every candidate was, what its answers told, and which of the leaders wins.

Both the stage `evolve` and `merge3 run` search so: generations are asked and told, the leaders are asked fresh items,
and the winner is the one that does best on what search and fresh items say together, or on all items, where leaders
answered all on the way. The standard merges are asked, too: a search that finds nothing better than what is made by
hand is to say so. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float

from merge3 import surface
from merge3.estimate import CONTINUOUS, Z90, Calibration, Choose, Known
from merge3.evolve import ERROR, Search
from merge3.extract import METHODS, by_margins
from merge3.fitness import Evaluation, Fitness
from merge3.front import knee, nondominated, spread
from merge3.genome import Genome, snap
from merge3.items import Item
from merge3.ledger import Cost
from merge3.recipe import AVERAGE, Recipe, standard_merges

Do = Callable[[str, Callable[[], Evaluation]], Evaluation]
Leader = tuple[Recipe, float, float]  # with the mean and deviation of its posterior; NaN where the search knows none
FrontLeader = tuple[Recipe, np.ndarray, np.ndarray]  # the same by group

JOINING = 2  # leaders that join the relatives at once
HALVES = (4, 2, 1)  # finalists are asked a quarter of the fresh items, the better half of them a half, ...
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
        self.rows: list[dict[str, Any]] = []
        self.known: list[Told] = []  # of merges answered in full before the search
        self.told: dict[str, Told] = {}  # of distinct whole candidates, by phenotype
        self.proven: dict[str, Told] = {}  # of leaders that answered all items and were no candidates before
        self.answered: dict[str, tuple[Fitness, Evaluation]] = {}  # what these and the broken were asked, and said
        self.failed: list[np.ndarray] = []  # genotypes of broken candidates
        self.groups: list[str] = []  # that are objectives of a front
        if fitness.objective and fitness.objective.front:
            self.groups = list(fitness.objective.weights)
        self.average = average(genome)
        made_by_hand = standard_merges(genome.experts) | {AVERAGE: self.average}
        self.standard = {self.phenotype(recipe): (name, recipe) for name, recipe in made_by_hand.items()}
        self.joined: set[str] = set()  # leaders that were asked all items on the way
        self.exact: dict[str, Evaluation] = {}  # of those that left none without a score
        self.relatives_tokens = 0  # of them, beside what they were asked as candidates
        self.finalists: list[dict[str, Any]] = []
        self.finalists_tokens = 0
        self.recipes: dict[str, Recipe] = {}
        self.seen: set[str] = set()  # phenotypes of the candidates
        self.paid: dict[str, set[str]] = {}  # the questions, by content, that each was asked in this search
        self.spent = Cost()  # what they take that were not asked before in this search
        self.cost = Cost()  # of this run

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
            self.recipes.setdefault(name, recipe)
            made[name], tokens = self._ask(f"finalist {name[:8]}", name, recipe, fitness)
            self.finalists_tokens += tokens
            advance(len(fitness.questions))
        fair = on_common(fitness, made)
        whole, made = list(fair), made | fair
        if not whole:
            raise ValueError(BROKEN)
        self.finalists = [self._finalist(name, made[name], len(fitness.questions)) for name in made]
        means, deviations = (np.array([leaders[name][k] for name in whole]) for k in (1, 2))
        found = np.array([[made[name].groups[group].score for group in self.groups] for name in whole])
        own = (np.array([made[name].errors(self.groups) for name in whole]) ** 2).mean(axis=0)
        searched = (np.maximum(deviations, surface.UNSEEN) ** 2).mean(axis=0)
        share = searched / (searched + own)
        together = np.clip((1 - share) * (means + (found - means).mean(axis=0)) + share * found, 0.0, 1.0)
        half = Z90 * np.sqrt(share * own + own / len(whole))
        on, bend = nondominated(together), knee(together)
        rows = []
        for place, name in enumerate(whole):
            row: dict[str, Any] = {"phenotype": name, "front": bool(on[place]), "knee": place == bend}
            for group, score, by in zip(self.groups, together[place].tolist(), half.tolist(), strict=True):
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

        Where leaders answered all items on the way, the `JOINING` best and the uniform average are asked `everything`,
        too, and the best of all that answered it wins: else one of which less is known would seem better.

        Raises:
            ValueError: every leader is broken.
        """
        made, items = dict[str, Evaluation](), dict[str, int]()

        def ask(name: str, recipe: Recipe, fitness: Fitness, number: int) -> None:
            made[name], tokens = self._ask(f"finalist {number}-{name[:8]}", name, recipe, fitness)
            self.finalists_tokens += tokens
            advance(len(fitness.questions) - items.get(name, 0))
            items[name] = len(fitness.questions)
            self.recipes.setdefault(name, recipe)

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
            whole = list(fair)
            means, deviations = np.array([leaders[name][1:] for name in whole]).T
            found = np.array([made[name].value for name in whole])
            own = own_variance([made[name] for name in whole], fitness)
            alive = [whole[i] for i in np.argsort(-combined(means, deviations, found, own), kind="stable")]
            if fitness is not rounds[-1]:
                alive = alive[: (len(alive) + 1) // 2]
        return {name: leaders[name][0] for name in alive}

    def _finalist(self, name: str, evaluation: Evaluation, items: int) -> dict[str, Any]:
        """A row of the finalists; `items` asked it, of which those count that its estimate is by."""
        merge, _ = self.standard.get(name, (EVOLVED, None))
        if evaluation.estimate and evaluation.correct is not None:
            items = int((~np.isnan(evaluation.correct)).sum())
        return {"phenotype": name, "merge": merge, **_scores(evaluation), "items": items}


def on_common(fitness: Fitness, made: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """The whole ones' evaluations by those questions alone that all of them had scored.

    By questions of its own, who leaves hard ones unfinished is ahead. While these in common are too few, who left most
    is out.
    """
    found = {name: evaluation for name, evaluation in made.items() if evaluation.estimate}
    while found:
        correct = np.array([one.correct for one in found.values() if one.correct is not None])
        scored = ~np.isnan(correct).any(axis=0)
        if scored.all():
            return found
        anew = {name: fitness.anew(one, scored) for name, one in found.items()}
        if all(evaluation.estimate for evaluation in anew.values()):
            return anew
        del found[max(found, key=lambda name: found[name].failed)]
    return {}


def contenders(
    pooled: surface.Surface, search: Search, asked: Float[np.ndarray, "candidates genes"]
) -> Float[np.ndarray, "some genes"]:
    """The surface's highest point and its highest that was asked, where the search would go on, where it began; others.

    The others are all that were asked, the highest first.
    """
    first = surface.best(pooled, search.seed)
    if not len(asked):
        return np.vstack([first, search.mean, search.start])
    order = np.argsort(-pooled.predict(asked)[0], kind="stable")
    return np.vstack([first, asked[order[0]], search.mean, search.start, asked[order[1:]]])


def combined(
    means: Float[np.ndarray, " leaders"],
    deviations: Float[np.ndarray, " leaders"],
    found: Float[np.ndarray, " leaders"],
    variance: float,
) -> Float[np.ndarray, " leaders"]:
    """Leaders' scores by the surface and by fresh items together, on the level of the fresh ones.

    Args:
        means: by the surface; NaN where it knows nothing of a leader, which then stands by what was found.
        deviations: of the means.
        found: by the fresh items.
        variance: of what was found, see `own_variance`.
    """
    known = ~np.isnan(means)
    if not known.any():
        return found
    searched = (np.maximum(deviations[known], surface.UNSEEN) ** 2).mean()
    share = searched / (searched + variance)
    level = (found - means)[known].mean()
    scores: np.ndarray = np.where(known, (1 - share) * (means + level) + share * found, found)
    return scores


def own_variance(evaluations: Sequence[Evaluation], fitness: Fitness) -> float:
    """The variance of what models that answered the same questions were found to be worth; see `paired`."""
    correct = np.array([one.correct for one in evaluations if one.correct is not None])
    if fitness.objective is None:
        return paired(correct, len(fitness.known.items))
    groups = np.array([question.group for question in fitness.questions])
    sizes = {
        group: round(share * len(fitness.known.items)) for group, share in fitness.objective.grouped.shares.items()
    }
    return fitness.objective.variance({group: paired(correct[:, groups == group], sizes[group]) for group in sizes})


def paired(correct: Float[np.ndarray, "models asked"], items: int) -> float:
    """The variance of a model's mean answer, but for what all models' answers to an item have in common.

    All answered the same questions, out of `items` in all: a hard item is hard for all of them, and says nothing of
    which is better.
    """
    answers = correct[:, ~np.isnan(correct).any(axis=0)]
    models, n = answers.shape
    if models < 2 or n < 2:
        return 0.25
    own = answers - answers.mean(axis=0)
    own -= own.mean(axis=1, keepdims=True)
    return float((own**2).sum() / ((models - 1) * (n - 1)) / n * (1 - n / items))


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


def halves(known: Known, groups: Sequence[str]) -> list[Known]:
    """The subset by a quarter, a half, and whole of each group, its first item always: each part within the next.

    The whole alone where it is all items.
    """
    if len(known.unasked) == 0:
        return [known]
    labels = np.array([groups[i] for i in known.subset])
    place = np.array([(labels[:n] == label).sum() for n, label in enumerate(labels)])  # within its group
    parts = []
    for step in HALVES:
        kept = place % step == 0
        weights = known.weights.copy()
        for label in set(groups):  # a group weighs what it weighs in all
            mine = labels == label
            weights[mine] *= known.weights[mine].sum() / max(known.weights[mine & kept].sum(), 1e-300)
        parts.append(replace(known, subset=known.subset[kept], weights=weights[kept] / weights[kept].sum()))
    return parts


def average(genome: Genome) -> Recipe:
    """The uniform average: where a search begins, if its first method makes that there; else of its own."""
    start, share = genome.decode(genome.start), snap(1 / len(genome.experts))
    weights = {value for by_group in start.weights.values() for knots in by_group.values() for value in knots}
    if start.method == "task_arithmetic" and weights == {share}:
        return start
    return standard_merges(genome.experts)[AVERAGE]


def finals(leaders: int, rounds: Sequence[int], everything: int = 0) -> int:
    """What leaders take at most, in answers or tokens: all of them the first round's, the better half the second's, ...

    In the end the `JOINING` best take `everything`.
    """
    total = before = 0
    for number, size in enumerate(rounds):
        leaders = (leaders + 1) // 2 if number else leaders
        total, before = total + leaders * (size - before), size
    return total + min(JOINING, leaders) * max(0, everything - before)


def fresh(known: Known, groups: Sequence[str], count: int, seed: int) -> Known:
    """What is known, with a subset of up to `count` other items, drawn uniformly within groups.

    Where the search asks every item there are no others: the subset stays.
    """
    rest = np.setdiff1d(np.arange(len(known.items)), known.subset)
    if len(rest) == 0:
        return known
    picked, weights = METHODS["uniform"](
        known.items.take(rest), known.parent_abilities, min(count, len(rest)), [groups[i] for i in rest], seed
    )
    return replace(known, subset=rest[picked], weights=weights, calibration=Calibration())


def told_apart(known: Known, others: Known, groups: Sequence[str], seed: int) -> Choose:
    """Chooses as many items as `known` asks by the relatives' margins, none of those that `others` asks.

    Where none would be left of a group, its last seats lost to the others', the items of `known` stay.
    """
    rest = np.setdiff1d(np.arange(len(known.items)), others.subset)
    labels = [groups[i] for i in rest]

    def choose(relatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen, weights = by_margins(relatives[:, rest], len(known.subset), labels, seed)
        if {groups[i] for i in known.subset} - {labels[i] for i in chosen}:
            return known.subset, known.weights
        return rest[chosen], weights

    return choose


def whole(known: Known) -> Known:
    """What is known, with all items as the subset."""
    count = len(known.items)
    return replace(known, subset=np.arange(count), weights=np.full(count, 1 / count), calibration=Calibration())


def _scores(evaluation: Evaluation) -> dict[str, float]:
    """A candidate's estimate and its interval; NaN where it has none."""
    estimate = evaluation.estimate
    names = ("score", "low", "high")
    score, low, high = (getattr(estimate, name) if estimate else np.nan for name in names)
    return {"estimate": score, "low": low, "high": high}

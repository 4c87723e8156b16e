"""Scaling: what several devices together make of a search, by a model of its cost of which every part was measured.

seconds = what the search itself takes, which is not shared + rounds of candidates, each merged and answered. A
generation waits for its last candidate: of `population` candidates on w workers it is ceil(population / w) rounds. (Its
share that is not shared bounds what any number of workers gives: Amdahl 1967.)

What was measured, by the scripts under benchmarks/: the search's own seconds (`workers`), how many times a copy of its
bytes a merge takes (`merging`), which share of the device's dense products answering reaches (`answering`); the last
two on a processor, and taken to be a card's. Not in it: the way of a merge over the bus, and networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from merge3.plan import Plan

OWN = ((12, 0.8066), (120, 1.171), (240, 1.67), (360, 2.507))
"""Candidates of a search, and the seconds that it takes of itself."""

COPIES = {
    **dict.fromkeys(("linear", "task_arithmetic", "slerp", "nuslerp", "multislerp", "karcher", "passthrough"), 2.5),
    **dict.fromkeys(("dare_linear", "della_linear", "breadcrumbs", "model_stock"), 4.0),
    **dict.fromkeys(("ties", "breadcrumbs_ties"), 6.2),
    **dict.fromkeys(("dare_ties", "della"), 7.4),
    "sce": 34.0,
}
"""How many times a plain copy of its bytes a merge takes, made alone."""

PEAK = 0.5
"""The share of the device's dense matrix products that answering reaches."""

HOST = 8
"""Devices that share one main memory."""


@dataclass(frozen=True)
class Scaled:
    """Seconds of a search on so many workers in generations of so many candidates."""

    workers: int
    population: int
    own: float
    merging: float  # of a candidate that is merged alone
    answering: float
    seconds: float


def scaled(found: Plan, method: str, candidates: int, population: int, workers: int, main: float) -> Scaled:
    """A search of `candidates` on `workers` such devices; `main` is the main memory's bandwidth in bytes a second.

    Where the ingredients do not fit the device, merges are made in main memory, by all of a host's workers at once.
    """
    answering, own = found.answering_seconds / PEAK, own_seconds(candidates)
    hosts = math.ceil(workers / HOST)

    def merging(active: int) -> float:
        sharing = found.moved * math.ceil(active / hosts) / main
        return COPIES[method] * (sharing if found.mode == "streamed" else found.merging_seconds)

    def generation(size: int) -> float:
        rounds = [workers] * (size // workers) + [size % workers] * (size % workers > 0)
        return sum((merging(active) + answering for active in rounds), 0.0)

    whole, rest = divmod(candidates, population)
    seconds = own + whole * generation(population) + generation(rest)
    return Scaled(workers, population, own, merging(1), answering, seconds)


def choices(found: Plan, method: str, candidates: int, population: int, workers: int, main: float) -> list[Scaled]:
    """One worker; all of them; and all of them in generations that leave none idle, where those are larger."""
    wanted = [(1, population), (workers, population), (workers, math.ceil(population / workers) * workers)]
    return [scaled(found, method, candidates, size, count, main) for count, size in dict.fromkeys(wanted)]


def own_seconds(candidates: int) -> float:
    """What a search of so many candidates takes of itself: powers between the measured lengths, and beyond them."""
    counts, seconds = np.log(np.array(OWN)).T
    place = int(np.clip(np.searchsorted(counts, np.log(candidates)) - 1, 0, len(OWN) - 2))
    slope = (seconds[place + 1] - seconds[place]) / (counts[place + 1] - counts[place])
    return float(np.exp(seconds[place] + slope * (np.log(candidates) - counts[place])))

"""Continuous-response item response theory: how a family's margins move together, by relatives answered in full.

A right or wrong answer is one bit; the margin behind it, how far the right option leads, is a number, and the margins
of merges of the same parents span few directions. With relatives (merges of the same parents, answered in full), m_ci
the margin of candidate c on item i:

    m_c = mean + V z_c + e_c,   z_c ~ N(0, I),   e_ci ~ N(0, noise_i)

the linear model of continuous responses (Mellenbergh 1994), as probabilistic principal components (Tipping & Bishop
1999): `mean` is the relatives', V has all the directions in which they differ, and two for a candidate that is like
none of them: all margins lower, and less of what the relatives have in common. Few margins tell z_c in closed form, and
z_c the margins of all other items; an item is right where its margin is above 0. Sharper margins alone turn no answer
around, and earn nothing here.

Free-text items have margins of 1 and -1 (`merge3.grading.margin`): then this is a linear model of the answers.

Knows margins; knows neither models nor merges.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr
from scipy.stats import norm

NOISES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # deviation of a margin from the directions, as a share of its spread
WIDTHS = (1.0, 3.0)  # variance of candidates in units of the relatives': a search leads away from them
OPEN = 0.3  # how far candidates go in those two, as a share of the mean margins' spread over items
LEAST = 1e-4  # probability of an answer that was not expected, at least: one item does not decide the fit
SPREAD = 1e-3  # deviation of a margin, at least, in nats: relatives may agree to the last bit
DRAWS = 32  # of candidates, over which `design` averages
FEWEST = 3  # relatives


@dataclass(frozen=True)
class Factors:
    """What relatives tell of a candidate's margins before it is asked.

    Args:
        mean: of the margins, in nats.
        loadings: V.
        noise: the variance of each margin about the directions.
    """

    mean: Float[np.ndarray, " items"]
    loadings: Float[np.ndarray, "items factors"]
    noise: Float[np.ndarray, " items"]

    def posterior(
        self, asked: Int[np.ndarray, " asked"], margins: Float[np.ndarray, " asked"]
    ) -> tuple[Float[np.ndarray, " factors"], Float[np.ndarray, "factors factors"]]:
        """Mean and covariance of z, given a candidate's margins on the items asked."""
        V = self.loadings[asked]
        weighed = V / self.noise[asked][:, None]
        covariance = np.linalg.inv(V.T @ weighed + np.eye(V.shape[1]))
        return covariance @ (weighed.T @ (margins - self.mean[asked])), covariance

    def right(
        self, asked: Int[np.ndarray, " asked"], margins: Float[np.ndarray, " asked"]
    ) -> tuple[Float[np.ndarray, " items"], Float[np.ndarray, "items factors"], Float[np.ndarray, "factors factors"]]:
        """The probability that each item is right, how it moves with z, and z's covariance."""
        at, deviation, covariance = self._standing(asked, margins)
        return ndtr(at), (norm.pdf(at) / deviation)[:, None] * self.loadings, covariance

    def probability(
        self, asked: Int[np.ndarray, " asked"], margins: Float[np.ndarray, " asked"]
    ) -> Float[np.ndarray, " items"]:
        """The probability that each item is right."""
        return np.asarray(ndtr(self._standing(asked, margins)[0]))

    def _standing(
        self, asked: Int[np.ndarray, " asked"], margins: Float[np.ndarray, " asked"]
    ) -> tuple[Float[np.ndarray, " items"], Float[np.ndarray, " items"], Float[np.ndarray, "factors factors"]]:
        """Each item's margin in units of its deviation, that deviation, and z's covariance."""
        z, covariance = self.posterior(asked, margins)
        V = self.loadings
        deviation = np.sqrt(((V @ covariance) * V).sum(axis=1) + self.noise)
        return (self.mean + V @ z) / deviation, deviation, covariance


def fit(relatives: Float[np.ndarray, "relatives items"], asked: Int[np.ndarray, " asked"]) -> Factors:
    """The factors of relatives, of noise and width by which each is told best by the others.

    Best by the likelihood of its answers to the items that are not `asked`, given its margins on those that are.

    Raises:
        ValueError: fewer than `FEWEST` relatives, or a margin is missing.
    """
    if len(relatives) < FEWEST or np.isnan(relatives).any():
        raise ValueError(
            f"expected the margins of {FEWEST} or more merges of the same parents, each answered in full, got "
            f"{len(relatives)} with {int(np.isnan(relatives).sum())} missing"
        )
    settings = list(product(NOISES, WIDTHS))
    told = [sum(_told(relatives, k, asked, setting) for k in range(len(relatives))) for setting in settings]
    return factors(relatives, settings[int(np.argmax(told))])


def factors(relatives: Float[np.ndarray, "relatives items"], setting: tuple[float, float]) -> Factors:
    """The factors of relatives, for a share of noise and a width."""
    share, width = setting
    mean = relatives.mean(axis=0)
    away = (relatives - mean) / np.sqrt(len(relatives) - 1)
    spread = np.maximum(np.sqrt((away**2).sum(axis=0)), SPREAD)
    noise = share * (spread + np.sqrt((spread**2).mean())) / 2
    collapse = OPEN * np.column_stack([np.full(len(mean), mean.std()), mean - mean.mean()])
    return Factors(mean, np.column_stack([np.sqrt(width) * away.T, collapse]), noise**2)


def design(
    known: Factors, count: int, group: Int[np.ndarray, " items"], seats: Int[np.ndarray, " groups"]
) -> Int[np.ndarray, " count"]:
    """The items whose margins tell a candidate's score best: a Bayesian c-optimal design, taken greedily.

    Each next item is the one that lowers the posterior variance of the score most, relative to what it is, averaged
    over `DRAWS` candidates, within the seats of its group.
    """
    V, left = known.loadings, seats.copy()
    z = np.random.default_rng(0).standard_normal((DRAWS, V.shape[1]))
    deviation = np.sqrt(known.noise)
    gradient = (norm.pdf((known.mean + z @ V.T) / deviation) / deviation) @ V
    covariance = np.eye(V.shape[1])
    chosen: list[int] = []
    for _ in range(count):
        toward = V @ covariance
        variance = np.einsum("qi,ij,qj->q", gradient, covariance, gradient)
        gain = ((toward @ gradient.T) ** 2 / np.maximum(variance, 1e-300)).mean(axis=1)
        gain /= known.noise + (toward * V).sum(axis=1)
        gain[chosen] = -1.0
        item = int(np.where(left[group] > 0, gain, -1.0).argmax())
        chosen.append(item)
        left[group[item]] -= 1
        covariance = covariance - np.outer(toward[item], toward[item]) / (known.noise[item] + toward[item] @ V[item])
    return np.array(chosen)


def _told(
    relatives: Float[np.ndarray, "relatives items"],
    k: int,
    asked: Int[np.ndarray, " asked"],
    setting: tuple[float, float],
) -> float:
    """The log-likelihood of a relative's answers to the items not asked, by the others and its margins on the rest."""
    P = factors(np.delete(relatives, k, axis=0), setting).probability(asked, relatives[k, asked])
    likely = np.where(relatives[k] > 0, P, 1 - P)
    likely[asked] = 1.0
    return float(np.log(np.maximum(likely, LEAST)).sum())

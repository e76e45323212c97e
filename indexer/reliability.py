"""How far predicted probabilities are from what is observed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = Floats  # (2, N): how many pairs of each similarity are different (row 0) and the same (row 1)

BINS = 15  # of equal mass, of the calibration error


@dataclass(frozen=True)
class Bin:
    """Held-out pairs of nearly one predicted probability.

    Attributes:
        predicted: their mean.
        observed: the share that is the same.
        mass: their share of all.
    """

    predicted: float
    observed: float
    mass: float


def reliability(predicted: Floats, counts: Counts) -> tuple[Bin, ...]:
    """Predicted probabilities against what was observed, in `BINS` bins of equal mass.

    Args:
        predicted: (N,).
        counts: (2, N) how many pairs are different and the same; a bin never divides those of one prediction.
    """
    order = np.argsort(predicted, kind="stable")
    predicted, same, total = predicted[order], counts[1, order], counts.sum(axis=0)[order]
    values, of = np.unique(predicted, return_inverse=True)
    mass, found = np.bincount(of, total), np.bincount(of, same)
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    places = np.minimum((middle * BINS).astype(np.int64), BINS - 1)
    masses, sums, hits = (np.bincount(places, weights, BINS) for weights in (mass, mass * values, found))
    return tuple(
        Bin(float(sums[i] / masses[i]), float(hits[i] / masses[i]), float(masses[i] / mass.sum()))
        for i in np.flatnonzero(masses)
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """The mean distance of what was predicted from what was observed, weighted by mass (ECE)."""
    return sum(one.mass * abs(one.predicted - one.observed) for one in bins)

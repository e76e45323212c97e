"""From a similarity to the probability that two images show the same thing.

The curve is fitted on pairs of labelled images. Of all pairs a share of about 1 / classes shows the same thing, but
what people read beside a hit is about hits: near neighbours, which were picked among all others. Hits are few among
pairs, so a curve of all pairs is wrong for them, and one of hits alone says nothing of dissimilar pairs. So each
image's `NEIGHBOURS` nearest count once more, with such a weight that they weigh as much as all pairs together. The
error of the curve is measured on both, apart.

Held out is by class: images of a class that the curve never saw are compared with all images. The number of classes
decides how often two images are the same by chance, so a curve holds for collections with about as many; for others
it is moved by what is told of their number. That is exact for pairs; near neighbours were picked among more or fewer.

    CalibrationError   no curve can be fitted to these labels or similarities; the message says what is missing
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from indexer.monotone import isotonic, platt, smoothed
from indexer.reliability import Bin, Counts, Floats, calibration_error, reliability
from indexer.rows import Embeddings

Classes = npt.NDArray[np.int64]
Method = Literal["isotonic", "platt"]

NEIGHBOURS = 10  # what a search returns by default
GRID = 4_096  # similarities are told apart to 1 / 2048: finer than any curve of so many pairs can be
FOLDS = 10  # a curve of nine tenths of the classes is nearly the one that is kept
SMOOTHING = 0.1  # standard deviations: of .05 to .3, what lowers the error of hits at little cost to that of pairs
ISOTONIC_FROM = 1_000  # pairs of either kind: below, isotonic regression overfits (Niculescu-Mizil & Caruana 2005)
FEWEST_PAIRS = 20  # of either kind: fewer say nothing
FEWEST_CLASSES = 4  # with two images or more: two to fit on and two to measure on

_ROWS = 512  # images compared with all others at a time
_X: Floats = (np.arange(GRID) + 0.5) / GRID * 2 - 1


class CalibrationError(ValueError):
    """A curve can't be fitted to these labels or similarities; the message says what is missing."""


@dataclass(frozen=True)
class Curve:
    """A monotone curve through points, flat beyond the first and the last.

    Attributes:
        similarities: of the points, ascending.
        probabilities: of the points, in [0, 1], never falling.
    """

    similarities: tuple[float, ...]
    probabilities: tuple[float, ...]

    def probability(self, similarity: Sequence[float] | Floats | Embeddings | float | np.float32) -> Floats:
        """The probability that two images of this similarity show the same thing, of the shape that is given."""
        return np.asarray(np.interp(similarity, self.similarities, self.probabilities), np.float64)

    def at_odds(self, factor: float) -> "Curve":
        """The curve where pairs of the same thing are so many times as frequent among all, each kind staying alike.

        Saerens, Latinne and Decaestecker 2002, "Adjusting the outputs of a classifier to new a priori probabilities".
        """
        before = np.array(self.probabilities)
        after = before * factor / (1 - before + before * factor)
        return Curve(self.similarities, tuple(after.tolist()))

    def least_similarity(self, probability: float) -> float:
        """The least float32 similarity of at least this probability; infinity where the curve does not reach it."""
        reached = np.flatnonzero(np.array(self.probabilities) >= probability)
        if not len(reached):
            return float("inf")
        if reached[0] == 0:
            return -1.0
        points = slice(reached[0] - 1, reached[0] + 1)
        (x0, x1), (p0, p1) = self.similarities[points], self.probabilities[points]
        least = np.float32(x0 + (probability - p0) / (p1 - p0) * (x1 - x0))
        while self.probability(least) < probability:  # rounding; what is searched are float32
            least = np.nextafter(least, np.float32(np.inf))
        return float(least)


@dataclass(frozen=True, kw_only=True)
class Calibration(Curve):
    """The curve of a model, and how well it does on classes that it was not fitted on.

    Attributes:
        method: `isotonic`, or `platt` where there are few pairs.
        acceptance: rows of (probability, false-accept rate, true-accept rate), ascending: the shares of held-out
            pairs of different things, and of the same, that have at least this probability; 0 beyond the curve.
        ece_pairs: expected calibration error over held-out pairs.
        ece_hits: the same over the nearest neighbours of held-out images; None where labels are pairs.
        images, classes: labelled ones that it was fitted on; classes are 0 where labels are pairs.
        same, different: how many pairs of each kind.
        things: how many different things a collection shows that the probabilities are for; 0 where labels are pairs,
            which do not say.
    """

    method: str
    acceptance: tuple[tuple[float, float, float], ...]
    ece_pairs: float
    ece_hits: float | None
    images: int
    classes: int
    same: int
    different: int
    things: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self | None:
        """What a model's manifest says; None where it says nothing."""
        if not fields:
            return None
        pieces = {name: tuple(fields[name]) for name in ("similarities", "probabilities")}
        return cls(**{**fields, **pieces, "acceptance": tuple(tuple(row) for row in fields["acceptance"])})

    def fields(self) -> dict[str, Any]:
        """As a model's manifest keeps it."""
        return dataclasses.asdict(self)

    def false_accept_rate(self, probability: float) -> float:
        """The share of held-out pairs of different things with at least this probability, in [0, 1].

        Between rows of `acceptance` it is that of the row below, which lets through more.
        """
        rows = [row for row in self.acceptance if row[0] <= probability]
        return rows[-1][1] if rows else 1.0


@dataclass(frozen=True)
class Fold:
    """Pairs to fit a curve on, and pairs of other classes to measure it on.

    Attributes:
        fit: counts.
        pairs: counts of the held-out pairs.
        hits: counts of those among them that are near neighbours; all 0 where that is not known.
    """

    fit: Counts
    pairs: Counts
    hits: Counts


@dataclass(frozen=True)
class Evidence:
    """What labels say of similarities.

    Attributes:
        all: counts of all pairs, hits weighted: what the final curve is fitted on.
        folds: to measure with.
        images, classes: labelled ones that it is of.
        same, different: how many pairs of each kind.
        things: how many classes the images were drawn from, some of which may have none of them; 0 where labels are
            pairs.
    """

    all: Counts
    folds: tuple[Fold, ...]
    images: int
    classes: int
    same: int
    different: int
    things: int


@dataclass(frozen=True)
class Fitted:
    """A calibration, and its reliability on held-out pairs.

    Attributes:
        pairs, hits: bins of equal mass; no hits where labels are pairs.
    """

    calibration: Calibration
    pairs: tuple[Bin, ...]
    hits: tuple[Bin, ...]


def fit(evidence: Evidence, things: int | None = None) -> Fitted:
    """Fit the curve of a model, and measure it on classes that were held out.

    Smooth isotonic regression from 1,000 pairs of either kind, else Platt's logistic curve of two parameters.

    Args:
        evidence: of labels.
        things: how many different things the collection shows that is searched, 2 or more; None for as many as are
            labelled, and where labels are pairs. The errors are those of the curve for as many as are labelled.

    Raises:
        CalibrationError: there are too few pairs, or similarity says nothing of them.
    """
    few = min(evidence.same, evidence.different)
    if few < FEWEST_PAIRS:
        raise CalibrationError(
            f"the labels give {evidence.same:,} pairs of the same thing and {evidence.different:,} of different ones;"
            f" at least {FEWEST_PAIRS} of each are needed: label more images"
        )
    method: Method = "isotonic" if few >= ISOTONIC_FROM else "platt"
    factor = (evidence.things - 1) / (things - 1) if things else 1.0
    curve = fit_curve(evidence.all, method).at_odds(factor)
    curves = [fit_curve(fold.fit, method) for fold in evidence.folds]
    pairs = _reliability(curves, [fold.pairs for fold in evidence.folds])
    hits = _reliability(curves, [fold.hits for fold in evidence.folds])
    calibration = Calibration(
        similarities=curve.similarities,
        probabilities=curve.probabilities,
        method=method,
        acceptance=_acceptance([one.at_odds(factor) for one in curves], evidence.folds, curve.probabilities[-1]),
        ece_pairs=calibration_error(pairs),
        ece_hits=calibration_error(hits) if hits else None,
        images=evidence.images,
        classes=evidence.classes,
        same=evidence.same,
        different=evidence.different,
        things=things or evidence.things,
    )
    return Fitted(calibration, pairs, hits)


def of_classes(embeddings: Embeddings, classes: Classes, seed: int = 0) -> Evidence:
    """The evidence of images with classes.

    Args:
        embeddings: (N, D) float32, unit length.
        classes: (N,) of each.
        seed: of the folds.

    Raises:
        CalibrationError: there are too few classes with two images, or all embeddings are equal.
    """
    names, numbers, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    several = int((sizes > 1).sum())
    if several < FEWEST_CLASSES:
        raise CalibrationError(
            f"{several} of the {len(names)} labelled classes have two images or more; at least {FEWEST_CLASSES} are "
            f"needed, to fit on some and to measure on others: label more images"
        )
    _check_spread(embeddings)
    fold_of = _fold_of(sizes, min(FOLDS, several // 2), seed)[numbers]
    everything = np.ones(len(numbers), bool)
    folds = []
    for number in range(fold_of.max() + 1):
        held = fold_of == number
        fitted = _weighted(*_count(embeddings, numbers, ~held, ~held))
        folds.append(Fold(fitted, *_count(embeddings, numbers, held, everything)))
    same = int((sizes * (sizes - 1)).sum() // 2)
    different = len(numbers) * (len(numbers) - 1) // 2 - same
    weighted = _weighted(*_count(embeddings, numbers, everything, everything))
    return Evidence(weighted, tuple(folds), len(numbers), len(names), same, different, len(names))


def of_pairs(
    similarities: Floats, same: npt.NDArray[np.bool_], things: Classes, images: int, seed: int = 0
) -> Evidence:
    """The evidence of pairs of images; which of them are hits is not known.

    Args:
        similarities: (P,) of each pair.
        same: (P,) whether it is the same thing.
        things: (P, 2) numbers of the things that the two images show, from 0.
        images: how many the pairs are of.
        seed: of the folds.

    Raises:
        CalibrationError: there are too few things or pairs.
    """
    sizes = np.bincount(things[same, 0], minlength=int(things.max(initial=0)) + 1)
    several = int((sizes > 0).sum())
    if several < FEWEST_CLASSES:
        raise CalibrationError(
            f"the pairs that are the same show {several} things; at least {FEWEST_CLASSES} are needed, to fit on "
            f"some and to measure on others: add pairs of other images"
        )
    fold_of = _fold_of(sizes + 1, min(FOLDS, several // 2), seed)[things]
    folds = []
    for number in range(fold_of.max() + 1):
        held = fold_of == number
        rest, measured = ~held.any(axis=1), held[:, 0]
        pairs = histogram(similarities[measured], same[measured])
        folds.append(Fold(histogram(similarities[rest], same[rest]), pairs, np.zeros_like(pairs)))
    counts = histogram(similarities, same)
    return Evidence(counts, tuple(folds), images, 0, int(same.sum()), int((~same).sum()), 0)


def histogram(similarities: npt.ArrayLike, same: npt.NDArray[np.bool_]) -> Counts:
    """How many pairs of each similarity are different and the same, (2, GRID)."""
    places = np.clip(((np.asarray(similarities) + 1) / 2 * GRID).astype(np.int64), 0, GRID - 1)
    return np.stack([np.bincount(places[of], minlength=GRID) for of in (~same, same)]).astype(np.float64)


def fit_curve(counts: Counts, method: Method) -> Curve:
    """The curve of (2, GRID) counts; raises CalibrationError where it does not rise."""
    if not counts.sum(axis=1).all():
        raise CalibrationError(
            "without some classes, the labels give pairs of one kind only, same or different; label more images"
        )
    seen = counts.sum(axis=0) > 0
    x = _X[seen]
    if method == "isotonic":
        smooth = smoothed(counts, SMOOTHING)[:, seen]
        fitted = isotonic(smooth[1] / smooth.sum(axis=0), smooth.sum(axis=0))
    else:
        fitted = platt(x, *counts[:, seen])
    if not fitted[-1] - fitted[0] > 1e-6:
        raise CalibrationError(
            "images of the same thing are not more similar under this model than others, so no similarity can mean "
            "that they are; look whether the labels are right, or calibrate another model"
        )
    # Within a block of equal values only its ends say something.
    ends = np.flatnonzero(np.diff(fitted, prepend=-1.0) + np.diff(fitted, append=2.0))
    return Curve(tuple(x[ends].tolist()), tuple(fitted[ends].tolist()))


def _reliability(curves: Sequence[Curve], counts: Sequence[Counts]) -> tuple[Bin, ...]:
    """The bins of all folds together; none where there are no counts."""
    held = np.concatenate(counts, axis=1)
    seen = held.sum(axis=0) > 0
    predicted = np.concatenate([curve.probability(_X) for curve in curves])
    return reliability(predicted[seen], held[:, seen]) if seen.any() else ()


def _acceptance(
    curves: Sequence[Curve], folds: Sequence[Fold], highest: float
) -> tuple[tuple[float, float, float], ...]:
    """The rates of `Calibration.acceptance` by the folds' curves, of which some go beyond the `highest` of all.

    No search finds anything by more than that.
    """
    predicted = np.concatenate([curve.probability(_X) for curve in curves])
    held = np.concatenate([fold.pairs for fold in folds], axis=1)
    order = np.argsort(predicted, kind="stable")
    above = np.cumsum(held[:, order][:, ::-1], axis=1)[:, ::-1] / held.sum(axis=1, keepdims=True)
    above = np.concatenate([above, np.zeros((2, 1))], axis=1)
    levels = np.arange(101) / 100
    places = np.where(levels > highest, len(predicted), np.searchsorted(predicted[order], levels))
    return tuple(zip(levels.tolist(), *above[:, places].tolist(), strict=True))


def _weighted(pairs: Counts, hits: Counts) -> Counts:
    return pairs + hits * float(pairs.sum() / hits.sum())


def _fold_of(sizes: npt.NDArray[np.int64], folds: int, seed: int) -> Classes:
    """The fold of each class: at random, those of two images or more dealt out first, so that each fold has some."""
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(sizes[order] < 2, kind="stable")]
    fold_of = np.empty(len(sizes), np.int64)
    fold_of[order] = np.arange(len(sizes)) % folds
    return fold_of


def _count(
    embeddings: Embeddings, classes: Classes, queries: npt.NDArray[np.bool_], gallery: npt.NDArray[np.bool_]
) -> tuple[Counts, Counts]:
    """Counts of the pairs of queries with other images of the gallery, and of each one's nearest of these."""
    pairs, hits = np.zeros((2, GRID)), np.zeros((2, GRID))
    columns = np.flatnonzero(gallery)
    for similarities, rows in _similarities(embeddings, np.flatnonzero(queries), columns):
        same = classes[rows][:, None] == classes[columns]
        others = rows[:, None] != columns
        pairs += histogram(similarities[others], same[others])
        similarities[~others] = -2.0  # nearer than this are all others
        k = min(NEIGHBOURS, len(columns) - 1)
        nearest = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
        hits += histogram(*(np.take_along_axis(of, nearest, 1).ravel() for of in (similarities, same)))
    return pairs, hits


def _similarities(embeddings: Embeddings, rows: Classes, columns: Classes) -> Iterator[tuple[Embeddings, Classes]]:
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        yield embeddings[some] @ embeddings[columns].T, some


def _check_spread(embeddings: Embeddings) -> None:
    if not np.ptp(embeddings, axis=0).max() > 1e-6:
        raise CalibrationError(
            f"the model gives all {len(embeddings):,} images the same embedding, so their similarities say nothing; "
            f"look whether it was trained well, or calibrate another model"
        )

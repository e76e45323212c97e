"""How a version that was just built compares with the one that is searched, and whether it may take its place.

Both are asked about the same items: a sample of those that are in both, with the same image in both.

- Agreement, for people to read: overlap@10 of the neighbours found, and Spearman's rank correlation of similarities.
- Contrast, which needs no labels: how far the nearest ten stand out from the rest (`trainer/choice.py` is its torch
  twin). It tells a metric that improves from one that falls apart, not the better of two good ones, so only a clear
  fall counts.
- R@1, where labels are given: the share of items whose nearest other labelled item has their class. Asked are those
  whose class another labelled item has: the others have nothing right to find.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.codes import shuffled_rows
from indexer.ivfpq import Rows
from indexer.rows import Embeddings
from indexer.version import Version

Floats = npt.NDArray[np.float64]

SAMPLE = 1_000  # items compared: their contrast then has a standard error of about a hundredth of itself
QUERIES = 200  # of them, searched for in both versions
NEIGHBOURS = 10
FETCHED = 50  # neighbours looked at to find the ten that are in both versions
FEWEST = 30  # items below which a comparison says nothing

MIN_RECALL = 0.95  # recall@10 that a version needs to become active, unless another is asked for
MAX_CONTRAST_LOSS = 0.05  # share of the active version's; within it, contrast does not tell which metric is better
MAX_LOST = 0.01  # share of the searched items whose images may be unreadable

_Z = 1.96  # of a two-sided 95 % interval
_CHUNK = 1_024  # items looked at, or compared with all others, at a time


@dataclass(frozen=True)
class Paired:
    """A measure of both versions on the same items.

    Attributes:
        active, candidate: means.
        low, high: 95 % interval of the mean of candidate less active, item by item.
    """

    active: float
    candidate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What comparing a candidate with the active version showed.

    Attributes:
        active: the active version's number.
        model: its model.
        compared: how many items were.
        overlap_at_10: share of the ten nearest, among items of both versions, that both found.
        rank_correlation: Spearman's, of an item's similarities to all others compared; the mean.
        contrast: see the module.
        recall_at_1: see the module; None without two labelled items of one class.
        labelled: how many labelled items both versions hold.
    """

    active: int
    model: str
    compared: int
    overlap_at_10: float
    rank_correlation: float
    contrast: Paired
    recall_at_1: Paired | None
    labelled: int


def compare(candidate: Version, active: Version, *, classes: Mapping[str, str]) -> Comparison | None:
    """Compare two versions of an index.

    Args:
        candidate: the one that was just built.
        active: the one that is searched.
        classes: item to class; items that either does not hold are left out.

    Returns:
        None where fewer than 30 items are in both with the same image.
    """
    rows, others = _shared(candidate, active)
    if len(rows) < FEWEST:
        return None
    mine, theirs = candidate.embeddings(rows), active.embeddings(others)
    labelled, hits = _labelled_hits(candidate, active, classes) if classes else (0, None)
    return Comparison(
        active=active.manifest.version,
        model=active.manifest.model,
        compared=len(rows),
        overlap_at_10=_overlap(candidate, active, rows[:QUERIES], others[:QUERIES]),
        rank_correlation=rank_correlation(mine, theirs),
        contrast=_paired(contrasts(theirs), contrasts(mine)),
        recall_at_1=paired_hits(*hits) if hits else None,
        labelled=labelled,
    )


def objections(
    recall_at_10: float,
    model: str,
    comparison: Comparison | None,
    *,
    min_recall: float,
    lost: int,
    searched: int,
    must_improve: bool = False,
) -> list[str]:
    """What speaks against making a candidate the active version, each a sentence; none if nothing does.

    - Its recall@10 is below `min_recall`.
    - More than 1 % of the items searched now would be lost, because their images can't be read.
    - Its model is another one, and its quality is down: with labels, R@1 is lower beyond chance (the whole 95 %
      interval of the difference is below 0); without, contrast is more than 5 % lower beyond chance. Under one model
      the embeddings are the same numbers, and recall says all that can differ.

    - With `must_improve`, its R@1 is not above the active version's, where there are labels.

    Args:
        recall_at_10: the candidate's.
        model: the candidate's.
        comparison: with the active version.
        min_recall: in [0, 1].
        lost: items of the active version that the candidate can't hold, because their images can't be read.
        searched: how many items the active version holds.
        must_improve: its model learned from labels, to be better by others.
    """
    found = []
    if recall_at_10 < min_recall:
        found.append(f"recall@10 is {recall_at_10:.4f}, below {min_recall} (--min-recall)")
    found += too_many_lost(lost, searched)
    if comparison is not None and model != comparison.model:
        found += list(_quality_down(comparison)) or list(_not_better(comparison) if must_improve else ())
    return found


def too_many_lost(lost: int, searched: int) -> list[str]:
    """What speaks against losing so many of the searched items: nothing up to 1 % of them."""
    if lost <= MAX_LOST * searched:
        return []
    remedy = "bring these back, import them from where they are now (--images, if they were not imported), or delete"
    return [f"{lost:,} of {searched:,} items would be lost, because their images can't be read: {remedy} the items"]


def contrasts(embeddings: Embeddings) -> Floats:
    """How far the nearest ten of each item stand out from the rest.

    (mean similarity of the 10 nearest - mean of all others) / standard deviation of all others: in units of their
    spread, so that sharpening all similarities alike does not change it much.

    Args:
        embeddings: (N, D) float32, unit length, N from 3.

    Returns:
        (N,) float64; 0 where all others are equally near.
    """
    others = _others(embeddings)
    count = min(NEIGHBOURS, others.shape[1])
    nearest = np.partition(others, -count, axis=1)[:, -count:].mean(axis=1)
    spread = others.std(axis=1, ddof=1)
    flat = spread <= 1e-6
    return np.where(flat, 0.0, (nearest - others.mean(axis=1)) / np.where(flat, 1.0, spread))


def rank_correlation(mine: Embeddings, theirs: Embeddings) -> float:
    """Spearman's correlation of each item's similarities to all others under two models; the mean over the items.

    Args:
        mine: (N, D) float32, unit length, N from 3.
        theirs: (N, D') float32, unit length, of the same items.

    Returns:
        In [-1, 1]; 1 where both order every item's neighbours alike. An item whose similarities are all equal under a
        model counts 0.
    """
    first, second = (_centred_ranks(_others(embeddings)) for embeddings in (mine, theirs))
    norms = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    products = (first * second).sum(axis=1)
    return float(np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0).mean())


def nearest_hits(embeddings: Embeddings, classes: npt.NDArray[np.int64]) -> Floats:
    """Whether the nearest other item has an item's class, (Q,) of 0 and 1: of those whose class another item has.

    Args:
        embeddings: (N, D) float32, unit length.
        classes: (N,) numbers from 0.
    """
    queries = np.flatnonzero(np.bincount(classes)[classes] > 1)
    hits = np.empty(len(queries))
    for start in range(0, len(queries), _CHUNK):
        rows = queries[start : start + _CHUNK]
        similarity = embeddings[rows] @ embeddings.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        hits[start : start + _CHUNK] = classes[similarity.argmax(axis=1)] == classes[rows]
    return hits


def paired_hits(active: Floats, candidate: Floats) -> Paired:
    """The share of hits of both versions, and the interval of its difference, which holds for a few items too.

    That of means is too narrow where few items differ: four hits lost and none gained would be beyond chance. One is
    added to either, as by Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data", and the variance is that of equally good versions, which is the larger.

    Args:
        active: (N,) of 0 and 1.
        candidate: (N,) of the same items.
    """
    count = len(active) + 2
    lost, gained = (int((active > candidate).sum()) + 1) / count, (int((candidate > active).sum()) + 1) / count
    half = _Z * math.sqrt((lost + gained) / count)
    low, high = max(-1.0, gained - lost - half), min(1.0, gained - lost + half)
    return Paired(float(active.mean()), float(candidate.mean()), low, high)


def labelled_rows(version: Version, classes: Mapping[str, str]) -> tuple[Rows, npt.NDArray[np.int64]]:
    """The rows of the labelled items that a version holds, and their classes as numbers, each (N,)."""
    rows = version.rows_of(list(classes))
    names = [classes[item] for item in rows]
    return np.array(list(rows.values()), np.int64), np.unique(names, return_inverse=True)[1].astype(np.int64)


def sampled_rows(version: Version) -> Rows:
    """The rows that a version is judged on by itself, up to `SAMPLE`."""
    return shuffled_rows(version.count)[:SAMPLE]


def _quality_down(comparison: Comparison) -> Iterator[str]:
    labelled, contrast = comparison.recall_at_1, comparison.contrast
    if labelled is not None:
        if labelled.high < 0:
            yield (
                f"R@1 on {comparison.labelled:,} labelled items is {labelled.candidate:.4f}, down from "
                f"{labelled.active:.4f} (95 % interval of the difference {labelled.low:+.4f} to {labelled.high:+.4f})"
            )
    elif contrast.high < -MAX_CONTRAST_LOSS * contrast.active:
        yield (
            f"neighbours stand out less: contrast is {contrast.candidate:.3f}, down from {contrast.active:.3f} on "
            f"{comparison.compared:,} items, by more than {MAX_CONTRAST_LOSS:.0%}; with --labels R@1 decides instead"
        )


def _not_better(comparison: Comparison) -> Iterator[str]:
    labelled = comparison.recall_at_1
    if labelled is not None and labelled.candidate <= labelled.active:
        yield (
            f"learning did not help: R@1 on {comparison.labelled:,} labelled items that were not learned from is "
            f"{labelled.candidate:.4f}, not above {labelled.active:.4f}"
        )


def _shared(candidate: Version, active: Version) -> tuple[Rows, Rows]:
    """Up to `SAMPLE` rows of the candidate whose item and image are in the active version too, and the rows there."""
    shuffled = shuffled_rows(candidate.count)
    rows, others = list[int](), list[int]()
    for start in range(0, len(shuffled), _CHUNK):
        chunk = shuffled[start : start + _CHUNK].tolist()
        items = candidate.items(chunk)
        here, there, known = candidate.images_of(items), active.images_of(items), active.rows_of(items)
        for row, item in zip(chunk, items, strict=True):
            if item in known and here[item].sha256 == there[item].sha256:
                rows.append(row)
                others.append(known[item])
        if len(rows) >= SAMPLE:
            break
    return np.array(rows[:SAMPLE], np.int64), np.array(others[:SAMPLE], np.int64)


def _overlap(candidate: Version, active: Version, rows: Rows, others: Rows) -> float:
    mine = _neighbours(candidate, rows, active)
    theirs = _neighbours(active, others, candidate)
    shares = []
    for first, second in zip(mine, theirs, strict=True):
        count = min(len(first), len(second), NEIGHBOURS)
        if count:
            shares.append(len({*first[:count]} & {*second[:count]}) / count)
    return float(np.mean(shares)) if shares else 0.0


def _neighbours(version: Version, rows: Rows, other: Version) -> list[list[str]]:
    """The nearest items of each row, as searches find them, that another version holds too."""
    _, found = version.search(version.embeddings(rows), FETCHED + 1)
    lists = []
    for row, neighbours in zip(rows, found, strict=True):
        items = version.items([neighbour for neighbour in neighbours if neighbour != row])
        known = other.rows_of(items)
        lists.append([item for item in items if item in known])
    return lists


def _labelled_hits(
    candidate: Version, active: Version, classes: Mapping[str, str]
) -> tuple[int, tuple[Floats, Floats] | None]:
    mine, theirs = candidate.rows_of(list(classes)), active.rows_of(list(classes))
    both = [item for item in mine if item in theirs]
    numbers = np.unique([classes[item] for item in both], return_inverse=True)[1].astype(np.int64)
    before, after = (
        nearest_hits(opened.embeddings(np.array([rows[item] for item in both], np.int64)), numbers)
        for opened, rows in ((active, theirs), (candidate, mine))
    )
    return len(both), (before, after) if len(before) else None


def _paired(active: Floats, candidate: Floats) -> Paired:
    difference = candidate - active
    half = _Z * float(difference.std(ddof=1)) / np.sqrt(len(difference))
    mean = float(difference.mean())
    return Paired(float(active.mean()), float(candidate.mean()), float(mean - half), float(mean + half))


def _others(embeddings: Embeddings) -> Floats:
    """The similarities of each item to all others, (N, N - 1)."""
    count = len(embeddings)
    similarity = np.asarray(embeddings @ embeddings.T, np.float64)
    return np.asarray(similarity[~np.eye(count, dtype=bool)].reshape(count, count - 1), np.float64)


def _centred_ranks(values: Floats) -> Floats:
    """The ranks of each row's values less their mean; equal values share the mean of their ranks."""
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    ranks: Floats = np.empty(values.shape)
    for row, line in enumerate(ordered):
        starts = np.flatnonzero(np.append(True, line[1:] != line[:-1]))
        ends = np.append(starts[1:], len(line))
        ranks[row, order[row]] = np.repeat((starts + ends - 1) / 2, ends - starts)
    ranks -= (values.shape[1] - 1) / 2
    return ranks

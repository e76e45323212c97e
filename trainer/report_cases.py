"""What a report finds out about its images: neighbours before and after training, and which of them to show."""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.parts.neighbours import most_similar

NEIGHBOURS = 8  # shown of each query
_CHUNK = 128  # queries at a time: few MiB of similarities
_QUERIES = 2_000  # at most: enough for shares to a point, and seconds on a CPU whatever the size of the gallery


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Images that a report shows, and where the two encoders put them.

    Attributes:
        pixels: (N, S, S, 3) uint8.
        aspect: (N,) float32, width over height that each is shown at.
        items: the N item ids.
        classes: (N,) int64; None where the images have no labels.
        class_names: of the classes, by number.
        is_query: (N,) bool, which images are searched among the others; None where each is, among all others.
        before: (N, C) float32, unit length, by what the run started from: a backbone, or a model.
        trained: (N, D) float32, unit length, by the model.
    """

    pixels: Tensor
    aspect: Tensor
    items: tuple[str, ...]
    classes: Tensor | None
    class_names: tuple[str, ...]
    is_query: Tensor | None
    before: Tensor
    trained: Tensor


@dataclass(frozen=True)
class Found:
    """Neighbours of some queries by one encoder.

    Attributes:
        queries: (Q,) int64 rows.
        rows: (Q, k) int64, nearest first, never the query itself.
        similarity: (Q, k) float32.
    """

    queries: Tensor
    rows: Tensor
    similarity: Tensor

    def correct(self, classes: Tensor) -> Tensor:
        """(Q, k) bool: which neighbours are of their query's class."""
        return classes[self.rows] == classes[self.queries, None]


@dataclass(frozen=True)
class Comparison:
    """The same queries searched with both encoders.

    Attributes:
        queries: (Q,) int64 rows: all that can be answered, or 2,000 of them drawn with a fixed seed.
        answerable: how many can be: those with another image, of their class where there are labels.
        before, trained: what the two found.
    """

    queries: Tensor
    answerable: int
    before: Found
    trained: Found


@dataclass(frozen=True, kw_only=True)
class Change:
    """How nearest neighbours changed between right and wrong, in queries.

    Attributes:
        kept: right before and after.
        mended: wrong before, right after.
        broken: right before, wrong after.
        missed: wrong both times.
        margin: half of the 95 % interval of the change of R@1, by the sign of the changed pairs.
    """

    kept: int
    mended: int
    broken: int
    missed: int
    margin: float


@torch.no_grad()
def compare(shown: Shown) -> Comparison:
    """Search the images among themselves with both encoders."""
    queries, gallery = _sides(shown)
    answerable = len(queries)
    if answerable > _QUERIES:
        drawn = torch.randperm(answerable, generator=torch.Generator().manual_seed(0))[:_QUERIES]
        queries = queries[drawn.sort().values]
    found = (_search(embeddings, queries, gallery) for embeddings in (shown.before, shown.trained))
    return Comparison(queries, answerable, *found)


def _sides(shown: Shown) -> tuple[Tensor, Tensor]:
    """Rows of the queries that can be answered, and of the gallery."""
    everyone = torch.arange(len(shown.items))
    queries, gallery = everyone, everyone
    if shown.is_query is not None:
        queries, gallery = everyone[shown.is_query], everyone[~shown.is_query]
    if shown.classes is not None:
        itself = 1 if shown.is_query is None else 0
        right = torch.bincount(shown.classes[gallery], minlength=len(shown.class_names))
        queries = queries[right[shown.classes[queries]] > itself]
    return queries, gallery


def _search(embeddings: Tensor, queries: Tensor, gallery: Tensor) -> Found:
    leave_one_out = len(gallery) == len(embeddings)
    among = embeddings if leave_one_out else embeddings[gallery]
    k = min(NEIGHBOURS, len(embeddings) - 1, len(gallery))
    parts = [
        most_similar(embeddings[part], among, k, own=part if leave_one_out else torch.full_like(part, -1))
        for part in torch.split(queries, _CHUNK)
    ]
    similarity, rows = (torch.cat(column) for column in zip(*parts, strict=True))
    return Found(queries, gallery[rows], similarity)


def changed(comparison: Comparison, classes: Tensor) -> Change:
    """How the nearest neighbours changed."""
    before, after = (found.correct(classes)[:, 0] for found in (comparison.before, comparison.trained))
    mended, broken = int((~before & after).sum()), int((before & ~after).sum())
    return Change(
        kept=int((before & after).sum()),
        mended=mended,
        broken=broken,
        missed=int((~before & ~after).sum()),
        # Paired: only queries that changed carry information (McNemar, Psychometrika 1947).
        margin=1.96 * math.sqrt((mended + broken) / len(before) / comparison.answerable),
    )


def overlap(comparison: Comparison) -> float:
    """The mean share of the neighbours before training that the model finds too."""
    both = comparison.before.rows[:, :, None] == comparison.trained.rows[:, None, :]
    return both.any(2).float().mean().item()


def mended(comparison: Comparison, classes: Tensor, count: int) -> list[int]:
    """Places of queries that training put right, those with the most neighbours of their class first."""
    correct = comparison.trained.correct(classes)
    right = correct[:, 0] & ~comparison.before.correct(classes)[:, 0]
    score = correct.sum(1) + comparison.trained.similarity[:, 0] / 2  # similarity only orders what is else equal
    return _of_many_classes(score, right, classes[comparison.queries], count)


def mistaken(comparison: Comparison, classes: Tensor, count: int) -> list[int]:
    """Places of queries whose nearest neighbour is of another class, the surest mistakes first."""
    wrong = ~comparison.trained.correct(classes)[:, 0]
    return _of_many_classes(comparison.trained.similarity[:, 0], wrong, classes[comparison.queries], count)


def drawn(comparison: Comparison, count: int) -> list[int]:
    """Places of queries drawn with a fixed seed: what is typical."""
    order = torch.randperm(len(comparison.queries), generator=torch.Generator().manual_seed(1))
    return [int(place) for place in order[:count]]


def _of_many_classes(score: Tensor, wanted: Tensor, classes: Tensor, count: int) -> list[int]:
    """The wanted places by falling score, one of each class before a second of any."""
    taken: Counter[int] = Counter()
    turns: list[tuple[int, int, int]] = []
    order = score.argsort(descending=True, stable=True)
    for place in order[wanted[order]].tolist():
        turns.append((taken[int(classes[place])], len(turns), place))
        taken[int(classes[place])] += 1
    return [place for _, _, place in sorted(turns)[:count]]


@dataclass(frozen=True)
class Confusion:
    """How often queries of a class had a nearest neighbour of another.

    Attributes:
        query, neighbour: rows of the most similar such pair.
    """

    of_class: int
    taken_for: int
    queries: int
    query: int
    neighbour: int


def confusions(comparison: Comparison, classes: Tensor, count: int) -> list[Confusion]:
    """The most frequent confusions of the trained model, in falling order."""
    order = comparison.trained.similarity[:, 0].argsort(descending=True, stable=True)
    queries, nearest = comparison.queries[order], comparison.trained.rows[order, 0]
    wrong = classes[queries] != classes[nearest]
    times: Counter[tuple[int, int]] = Counter()
    surest: dict[tuple[int, int], tuple[int, int]] = {}
    for query, neighbour in zip(queries[wrong].tolist(), nearest[wrong].tolist(), strict=True):
        pair = int(classes[query]), int(classes[neighbour])
        times[pair] += 1
        surest.setdefault(pair, (query, neighbour))
    return [Confusion(*pair, queries, *surest[pair]) for pair, queries in times.most_common(count)]

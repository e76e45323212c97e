"""Retrieval metrics of embeddings with known classes, as the metric-learning field computes them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.parts.information import mutual_information
from trainer.parts.kmeans import kmeans
from trainer.parts.neighbours import most_similar, queries_at_once

RECALL_AT = (1, 2, 4, 8)
_VOTERS, _TEMPERATURE = 20, 0.07
_CLUSTER_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How well neighbours share a class; shares in [0, 1].

    Attributes:
        recall_at: k to the share of queries with a same-class image among the k nearest (R@k); 1 is always there.
        map_at_r: mean average precision at R, where R is the number of images that are right for the query
            (Musgrave et al., A Metric Learning Reality Check, ECCV 2020, section 3.2).
        r_precision: share of same-class images among the R nearest.
        knn_accuracy: share of queries whose class wins the vote of the 20 nearest, each weighing
            exp(similarity / 0.07) (Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
            Discrimination, CVPR 2018, section 3.4; 20 as in Caron et al., DINO, ICCV 2021).
        nmi, ami: normalised and adjusted mutual information of the classes and a k-means of all embeddings into as
            many clusters (arithmetic means; seed 0); None where it was not asked for. NMI is high for many small
            clusters whatever they are; AMI is corrected for chance, and can be negative.
        queries: how many images were queries; one that has nothing right to find can't be one.
    """

    recall_at: Mapping[int, float]
    map_at_r: float
    r_precision: float
    knn_accuracy: float
    nmi: float | None
    ami: float | None
    queries: int

    @property
    def recall_at_1(self) -> float:
        """Share of queries whose nearest image is of their class."""
        return self.recall_at[1]

    def to_dict(self) -> dict[str, float]:
        """The metrics that there are, by name: recall_at_1 and so on for each k."""
        named = {f"recall_at_{k}": share for k, share in self.recall_at.items()}
        rest = {name: value for name, value in vars(self).items() if name != "recall_at" and value is not None}
        return named | rest


@torch.no_grad()
def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    *,
    is_query: Tensor | None = None,
    recall_at: Sequence[int] = RECALL_AT,
    clusters: bool = True,
) -> Metrics:
    """All metrics of a set of embeddings.

    Without `is_query` each image is a query against all others: it is removed from its own neighbours by its row, not
    by dropping the first neighbour, which with duplicates is not always the query itself. With it, queries are
    searched among the rest, the gallery. Among equal similarities the lower row is nearer.

    Computed on the device of the embeddings, in tiles: beside one or two copies of them it takes tens of MiB on a CPU
    and about 1 GiB on a GPU, however many there are.

    Args:
        embeddings: (N, D) float32, unit length.
        labels: (N,) int64 classes, from 0.
        is_query: (N,) bool.
        recall_at: each k of R@k, from 1; 1 itself is always added.
        clusters: whether to measure NMI and AMI too, for which a k-means has to run.

    Raises:
        ValueError: an embedding is not finite, or no query has anything right to find.
    """
    _check_finite(embeddings)
    labels = labels.to(embeddings.device)
    if is_query is None:
        search, asked = _leave_one_out(embeddings, labels), f"{len(labels)} images"
    else:
        search, asked = _among_gallery(embeddings, labels, is_query.to(labels.device)), f"{is_query.sum()} queries"
    if not len(search.queries):
        raise ValueError(f"none of the {asked} shares its class with an image it can find; nothing can be retrieved")
    ks = sorted({1, *recall_at})
    sums = torch.zeros(len(ks) + 3, dtype=torch.float64, device=embeddings.device)
    for chunk, depth in _chunks(search, max(*ks, _VOTERS)):
        sums += _judged(embeddings, search, chunk, depth, ks)
    *found, precision, average_precision, voted = (sums / len(search.queries)).tolist()
    nmi, ami = _clustered(embeddings, labels) if clusters else (None, None)
    return Metrics(
        recall_at=dict(zip(ks, found, strict=True)),
        map_at_r=average_precision,
        r_precision=precision,
        knn_accuracy=voted,
        nmi=nmi,
        ami=ami,
        queries=len(search.queries),
    )


class _Search(NamedTuple):
    """Q queries, those with most to find first, and what they are searched among."""

    queries: Tensor  # (Q,) rows of the embeddings
    classes: Tensor  # (Q,)
    relevant: Tensor  # (Q,) how many of the gallery are of the query's class: R
    own: Tensor  # (Q,) the gallery's row that is the query itself; -1 where none is
    gallery: Tensor  # (N, D)
    gallery_classes: Tensor  # (N,)
    findable: int  # how many of the gallery a query can find


def _leave_one_out(embeddings: Tensor, labels: Tensor) -> _Search:
    others = torch.bincount(labels)[labels] - 1
    queries = _with_most_first(others)
    return _Search(queries, labels[queries], others[queries], queries, embeddings, labels, len(labels) - 1)


def _among_gallery(embeddings: Tensor, labels: Tensor, is_query: Tensor) -> _Search:
    gallery, known = embeddings[~is_query], labels[~is_query]
    same = torch.bincount(known, minlength=int(labels.max()) + 1)[labels] * is_query
    queries = _with_most_first(same)
    nowhere = torch.full_like(queries, -1)
    return _Search(queries, labels[queries], same[queries], nowhere, gallery, known, len(known))


def _with_most_first(relevant: Tensor) -> Tensor:
    """Rows that have something to find, by how much: then a large class doesn't deepen the lists of small ones."""
    order = relevant.argsort(descending=True, stable=True)
    return order[: int((relevant > 0).sum())]


def _chunks(search: _Search, least: int) -> Iterator[tuple[slice, int]]:
    """Which queries to rank at a time, and how deep: to the R of the first of them, and at least so deep."""
    start = 0
    while start < len(search.queries):
        depth = min(max(int(search.relevant[start]), least), search.findable)
        stop = start + queries_at_once(depth, search.queries.device)
        yield slice(start, stop), depth
        start = stop


def _judged(embeddings: Tensor, search: _Search, chunk: slice, depth: int, ks: Sequence[int]) -> Tensor:
    """Sums over the queries of a chunk: hits within each k, R-precision, average precision at R, votes won."""
    classes, relevant = search.classes[chunk], search.relevant[chunk].double()
    similarity, rows = most_similar(embeddings[search.queries[chunk]], search.gallery, depth, search.own[chunk])
    found = search.gallery_classes[rows]
    correct = found == classes[:, None]
    # float32 would round MAP@R in the sixth digit.
    rank = torch.arange(1, depth + 1, device=rows.device, dtype=torch.float64)
    within_r = correct * (rank <= relevant[:, None])
    precision_at_rank = within_r.cumsum(dim=1) / rank
    average_precision = (precision_at_rank * within_r).sum(dim=1) / relevant
    voted = _vote(similarity[:, :_VOTERS], found[:, :_VOTERS]) == classes
    hits = [correct[:, :k].any(dim=1) for k in ks]
    of_each = [*hits, within_r.sum(dim=1) / relevant, average_precision, voted]
    return torch.stack([values.sum(dtype=torch.float64) for values in of_each])


def _vote(similarity: Tensor, found: Tensor) -> Tensor:
    """The class (Q,) that the neighbours' classes (Q, k) weigh most for; of equals, that of the nearest."""
    weights = (similarity.double() / _TEMPERATURE).exp()
    for_class_of_each = ((found[:, :, None] == found[:, None, :]) * weights[:, None, :]).sum(dim=2)
    return found.gather(1, for_class_of_each.argmax(dim=1, keepdim=True)).flatten()


def _clustered(embeddings: Tensor, labels: Tensor) -> tuple[float, float]:
    """NMI and AMI of the classes and as many clusters."""
    clusters = kmeans(embeddings, len(torch.unique(labels)), seed=_CLUSTER_SEED)
    return mutual_information(labels, clusters.of_row)


def _check_finite(embeddings: Tensor) -> None:
    bad = (~embeddings.sum(dim=1).isfinite()).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(embeddings)} embeddings are not finite, the first in row {int(bad[0])}; "
            f"the model that made them has diverged"
        )

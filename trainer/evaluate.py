"""Retrieval metrics of embeddings with known classes, as the metric-learning field computes them."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

RECALL_AT = (1, 2, 4, 8)
_CHUNK_BYTES = 2**28  # of similarities at a time: any number of images fits


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How well neighbours share a class; shares in [0, 1], each image a query against all others.

    Attributes:
        recall_at_1, recall_at_2, recall_at_4, recall_at_8: share of queries with a same-class image among the
            k nearest (R@k).
        map_at_r: mean average precision at R, where R is the number of other images of the query's class
            (Musgrave et al., A Metric Learning Reality Check, ECCV 2020, section 3.2).
        r_precision: share of same-class images among the R nearest.
        nmi: normalised mutual information of the classes and a k-means of as many clusters (seed 0).
        queries: how many images were queries; one alone in its class can't be one, and is only a distractor.
    """

    recall_at_1: float
    recall_at_2: float
    recall_at_4: float
    recall_at_8: float
    map_at_r: float
    r_precision: float
    nmi: float
    queries: int

    def to_dict(self) -> dict[str, float]:
        """The metrics by name."""
        return asdict(self)


@torch.no_grad()
def retrieval_metrics(embeddings: Tensor, labels: Tensor) -> Metrics:
    """All metrics of a set of embeddings, leave-one-out.

    A query is removed from its own neighbours by its row, not by dropping the first neighbour: with duplicates the
    first neighbour is not always the query itself.

    Args:
        embeddings: (N, D) float32, unit length, on any device.
        labels: (N,) int64 classes.

    Raises:
        ValueError: no class has two images, so no query has anything to find.
    """
    labels = labels.to(embeddings.device)
    others = torch.bincount(labels)[labels] - 1  # R of each query
    queries = torch.nonzero(others > 0).flatten()
    if not len(queries):
        raise ValueError(f"none of the {len(labels)} images shares its class with another; nothing can be retrieved")
    depth = min(max(int(others.max()), *RECALL_AT), len(labels) - 1)
    chunk = max(1, _CHUNK_BYTES // (4 * len(labels)))
    parts = [_ranked(embeddings, labels, others, rows, depth) for rows in torch.split(queries, chunk)]
    recalls, precision, average_precision = (torch.cat(column) for column in zip(*parts, strict=True))
    found = {f"recall_at_{k}": recalls[:, i].mean().item() for i, k in enumerate(RECALL_AT)}
    return Metrics(
        **found,
        map_at_r=average_precision.mean().item(),
        r_precision=precision.mean().item(),
        nmi=_nmi(embeddings, labels),
        queries=len(queries),
    )


def _ranked(
    embeddings: Tensor, labels: Tensor, others: Tensor, rows: Tensor, depth: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each query row: hits within each k of `RECALL_AT` (Q, 4), R-precision (Q,), average precision at R (Q,)."""
    similarity = embeddings[rows] @ embeddings.T
    similarity[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
    neighbours = similarity.topk(depth, dim=1).indices
    correct = (labels[neighbours] == labels[rows, None]).double()  # float32 would round MAP@R in the sixth digit
    recalls = torch.stack([correct[:, :k].amax(dim=1) for k in RECALL_AT], dim=1)
    wanted = others[rows].double()
    rank = torch.arange(1, depth + 1, device=rows.device, dtype=torch.float64)
    within_r = correct * (rank <= wanted[:, None])
    precision_at_rank = within_r.cumsum(dim=1) / rank
    return recalls, within_r.sum(dim=1) / wanted, (precision_at_rank * within_r).sum(dim=1) / wanted


def _nmi(embeddings: Tensor, labels: Tensor) -> float:
    points, classes = embeddings.cpu().numpy(), labels.cpu().numpy()
    clusters = KMeans(len(np.unique(classes)), n_init=1, random_state=0).fit_predict(points)
    return float(normalized_mutual_info_score(classes, clusters))

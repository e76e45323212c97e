"""Which images of a collection are most worth labelling: dense ones, spread over all, away from each other."""

import torch
from torch import Tensor

from trainer.parts.coverage import in_order
from trainer.parts.kmeans import kmeans
from trainer.parts.neighbours import most_similar, queries_at_once

NEIGHBOURS = 20  # K of the density of an image

_ROWS = 4096  # of distances to the selected rows at a time
_NEAREST = 1e-6  # squared distance that stands for 0: a copy of a selected image, which nothing is gained from
_DENSEST = 1e-6  # mean squared distance that stands for 0, of an image with only copies around it


@torch.no_grad()
def select(
    embeddings: Tensor,
    budget: int,
    *,
    labelled: Tensor | None = None,
    utility: Tensor | None = None,
    spread: float = 0.5,
    alpha: float = 0.5,
    momentum: float = 0.9,
    iterations: int = 10,
    seed: int = 0,
) -> Tensor:
    """Choose the rows to label, one of each of as many clusters: the densest ones that are not near each other.

    Args:
        embeddings: (N, D) float32, unit length.
        budget: how many, from 1 to the number of rows that are not labelled.
        labelled: (L,) int64, different rows that are labelled already; None for none.
        utility: (N,) the density of each row; found where it is None.
        spread: lambda, how much the nearness of other selected rows counts beside density.
        alpha: nearness is 1 / (squared distance) ** alpha.
        momentum: of the nearness over the iterations.
        iterations: how often all are chosen anew.
        seed: of the clusters.

    Returns:
        (budget,) int64, in the order of `in_order`.

    Source:
        Wang, Lian and Yu, Unsupervised Selective Labeling for More Effective Semi-Supervised Learning, ECCV 2022,
        section 3, as the authors' code computes it (TonyLianLong/UnsupervisedSelectiveLabeling). Keyword defaults are
        those for 40 labels of CIFAR-10, but for the K of the density: 20 is their number for ImageNet, where classes
        are as small beside K as they are in most collections; they take 400 for CIFAR-10, of 5,000 images a class.
        Deviations: clusters start from k-means++ instead of random rows; where there are fewer distinct rows than
        the budget, the densest of the rest are added; and labels that are there already, which the paper has none of,
        cover a cluster each: there are so many more, and others are near to them as to selected rows.

    Raises:
        ValueError: the budget is out of its range.
    """
    labelled = given(embeddings, budget, labelled)
    utility = density(embeddings) if utility is None else utility
    cluster = kmeans(embeddings, budget + len(labelled), seed=seed).of_row
    rows = uncovered(cluster, budget, labelled)
    nearness = torch.zeros_like(utility[rows])
    chosen = best_of_each(utility, cluster, rows)
    for _ in range(iterations):
        raw = _nearness(embeddings, cluster, rows, torch.cat([chosen, labelled]), alpha)
        nearness = momentum * nearness + (1 - momentum) * raw
        chosen = best_of_each(utility.index_add(0, rows, nearness, alpha=-spread), cluster, rows)
    return in_order(embeddings, filled(chosen, budget, utility, labelled), labelled)


def given(embeddings: Tensor, budget: int, labelled: Tensor | None) -> Tensor:
    """The labelled rows, (L,) int64; raises ValueError where the budget is not 1 to the number of the others."""
    found = torch.empty(0, dtype=torch.int64) if labelled is None else labelled
    if not 1 <= budget <= len(embeddings) - len(found):
        raise ValueError(
            f"the budget is {budget:,}; it must be 1 to {len(embeddings) - len(found):,}, the number of images"
            f"{' without a label' if len(found) else ''}"
        )
    return found.to(embeddings.device)


@torch.no_grad()
def density(embeddings: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """One over the mean squared distance of each row to its nearest rows, itself included.

    Args:
        embeddings: (N, D) float32, unit length.
        neighbours: how many; at most N are used.

    Returns:
        (N,) float32, above 0.
    """
    k = min(neighbours, len(embeddings))
    nobody = torch.full((len(embeddings),), -1, device=embeddings.device)
    parts = []
    for rows in torch.split(torch.arange(len(embeddings)), queries_at_once(k, embeddings.device)):
        similarity, _ = most_similar(embeddings[rows], embeddings, k, nobody[rows])
        parts.append((2 - 2 * similarity).clamp_min(0).mean(1))
    return 1 / torch.cat(parts).clamp_min(_DENSEST)


def uncovered(cluster: Tensor, budget: int, labelled: Tensor) -> Tensor:
    """The rows of the clusters without a labelled row; of the largest, where there are more clusters than the budget.

    Args:
        cluster: (N,) int64, of each row.
        budget: most clusters.
        labelled: (L,) int64.

    Returns:
        (R,) int64, ascending.
    """
    sizes = torch.bincount(cluster)
    sizes[cluster[labelled]] = 0
    largest = sizes.argsort(descending=True, stable=True)[:budget]
    wanted = torch.zeros_like(sizes, dtype=torch.bool)
    wanted[largest] = sizes[largest] > 0
    return wanted[cluster].nonzero().flatten()


def best_of_each(score: Tensor, cluster: Tensor, rows: Tensor) -> Tensor:
    """The row of the highest score of each cluster that has any of some rows; of equals the lower row.

    Args:
        score: (N,) of each row.
        cluster: (N,) int64, of each row.
        rows: (R,) int64, ascending.
    """
    order = rows[score[rows].argsort(descending=True, stable=True)]
    order = order[cluster[order].argsort(stable=True)]
    ordered = cluster[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


def filled(chosen: Tensor, budget: int, utility: Tensor, labelled: Tensor) -> Tensor:
    """Chosen rows and, where they are fewer than the budget, the densest of the rest that are not labelled."""
    by_density = utility.argsort(descending=True, stable=True)
    rest = by_density[~torch.isin(by_density, torch.cat([chosen, labelled]))]
    return torch.cat([chosen, rest[: budget - len(chosen)]])


def _nearness(embeddings: Tensor, cluster: Tensor, rows: Tensor, chosen: Tensor, alpha: float) -> Tensor:
    """(R,) how near the rows chosen of other clusters are to each of some rows, all together."""
    parts = []
    for some in torch.split(rows, _ROWS):
        squared = (2 - 2 * embeddings[some] @ embeddings[chosen].T).clamp_min(_NEAREST)
        others = cluster[some, None] != cluster[chosen]
        parts.append((squared**-alpha * others).sum(1))
    return torch.cat(parts)

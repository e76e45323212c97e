"""Which images of a collection are most worth labelling: dense ones, spread over all, away from each other."""

import torch
from torch import Tensor

from trainer.parts.kmeans import kmeans
from trainer.parts.neighbours import most_similar, queries_at_once

_ROWS = 4096  # of distances to the selected rows at a time
_NEAREST = 1e-6  # squared distance that stands for 0: a copy of a selected image, which nothing is gained from
_DENSEST = 1e-6  # mean squared distance that stands for 0, of an image with only copies around it


@torch.no_grad()
def select(
    embeddings: Tensor,
    budget: int,
    *,
    neighbours: int = 20,
    spread: float = 0.5,
    alpha: float = 0.5,
    momentum: float = 0.9,
    iterations: int = 10,
    seed: int = 0,
) -> Tensor:
    """Choose the rows to label, one of each of as many clusters: the densest ones that are not near each other.

    Args:
        embeddings: (N, D) float32, unit length.
        budget: how many, from 1 to N.
        neighbours: K, that density is measured by, the row itself included; at most N are used.
        spread: lambda, how much the nearness of other selected rows counts beside density.
        alpha: nearness is 1 / (squared distance) ** alpha.
        momentum: of the nearness over the iterations.
        iterations: how often all are chosen anew.
        seed: of the clusters.

    Returns:
        (budget,) int64, the densest first.

    Source:
        Wang, Lian and Yu, Unsupervised Selective Labeling for More Effective Semi-Supervised Learning, ECCV 2022,
        section 3, as the authors' code computes it (TonyLianLong/UnsupervisedSelectiveLabeling). Keyword defaults are
        those for 40 labels of CIFAR-10, but for `neighbours`: 20 is their number for ImageNet, where classes are as
        small beside K as they are in most collections; they take 400 for the 5,000 images of each CIFAR-10 class.
        Deviations: clusters start from k-means++ instead of random rows, and where there are fewer distinct rows than
        the budget, the densest of the rest are added.

    Raises:
        ValueError: the budget is out of its range.
    """
    if not 1 <= budget <= len(embeddings):
        raise ValueError(f"the budget is {budget:,}; it must be 1 to {len(embeddings):,}, the number of images")
    utility = density(embeddings, neighbours)
    cluster = kmeans(embeddings, budget, seed=seed).of_row
    nearness = torch.zeros_like(utility)
    chosen = _best_of_each(utility, cluster)
    for _ in range(iterations):
        raw = _nearness(embeddings, cluster, chosen, alpha)
        nearness = momentum * nearness + (1 - momentum) * raw
        chosen = _best_of_each(utility - spread * nearness, cluster)
    by_density = utility.argsort(descending=True, stable=True)
    rest = by_density[~torch.isin(by_density, chosen)][: budget - len(chosen)]
    found = torch.cat([chosen, rest])
    return found[utility[found].argsort(descending=True, stable=True)]


@torch.no_grad()
def density(embeddings: Tensor, neighbours: int) -> Tensor:
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


def _best_of_each(score: Tensor, cluster: Tensor) -> Tensor:
    """The row of the highest score of each cluster that has any; of equals the lower row."""
    order = score.argsort(descending=True, stable=True)
    order = order[cluster[order].argsort(stable=True)]
    ordered = cluster[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


def _nearness(embeddings: Tensor, cluster: Tensor, chosen: Tensor, alpha: float) -> Tensor:
    """(N,) how near the rows chosen of other clusters are to each row, all together."""
    parts = []
    for rows in torch.split(torch.arange(len(embeddings)), _ROWS):
        squared = (2 - 2 * embeddings[rows] @ embeddings[chosen].T).clamp_min(_NEAREST)
        others = cluster[rows, None] != cluster[chosen]
        parts.append((squared**-alpha * others).sum(1))
    return torch.cat(parts)

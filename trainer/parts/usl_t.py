"""Which images to label by trained clusters: the trained variant of Unsupervised Selective Labeling."""

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.parts.coverage import in_order
from trainer.parts.neighbours import nearest
from trainer.parts.selection import NEIGHBOURS, best_of_each, density, filled, given, uncovered

_SCALE = 40.0  # of cosines, as logits; not learned, or all rows would end in one cluster
_LOCAL = 0.5  # s, the weight of the local loss
_LR, _DECAY = 1e-3, 1e-4  # of Adam; ten times the authors' rate, for a tenth of their steps
_SIZES = 0.9  # momentum of the clusters' shares of a batch
_LEAST, _MOST = 100 / 2048, 1000 / 2048  # of a batch: where one cluster has less and another more, this is split
_SPLIT_FROM = 0.2  # of the steps: before, shares say little
_NOISE = 1e-7  # that tells the halves of a cluster apart


def select_trained(
    embeddings: Tensor,
    budget: int,
    *,
    labelled: Tensor | None = None,
    utility: Tensor | None = None,
    batch: int = 512,
    steps: int = 600,
    seed: int = 0,
) -> Tensor:
    """Choose the rows to label, the densest of each of as many trained clusters.

    Args:
        embeddings: (N, D) float32, unit length.
        budget: how many, from 1 to the number of rows that are not labelled.
        labelled: (L,) int64, different rows that are labelled already; None for none.
        utility: (N,) the density of each row; found where it is None.
        batch: rows a step; at most N are used.
        steps: of the training.
        seed: of the first centres and the batches.

    Returns:
        (budget,) int64, in the order of `in_order`.

    Source:
        Wang, Lian and Yu, Unsupervised Selective Labeling for More Effective Semi-Supervised Learning, ECCV 2022,
        USL-T, as the authors' code has it for ImageNet (TonyLianLong/UnsupervisedSelectiveLabeling): nothing but
        cosine classifiers of frozen embeddings is trained, with the numbers of the constants above. Deviations: one
        head instead of three, of which the choice reads one and which do not touch each other where nothing below
        them is trained; both losses see the embeddings of the images, not of strongly augmented views; batches are of
        512 rows, not 2,048, and the split of clusters is in shares of them; steps are fewer and longer; there are as
        many clusters as the budget (and one more for each label that is there, see `select`), not 3 % more; where
        fewer have any row, the densest of the rest are added; the order.

    Raises:
        ValueError: the budget is out of its range.
    """
    labelled = given(embeddings, budget, labelled)
    cluster = trained_clusters(embeddings, budget + len(labelled), batch=batch, steps=steps, seed=seed)
    utility = density(embeddings) if utility is None else utility
    chosen = best_of_each(utility, cluster, uncovered(cluster, budget, labelled))
    return in_order(embeddings, filled(chosen, budget, utility, labelled), labelled)


def trained_clusters(embeddings: Tensor, count: int, *, batch: int, steps: int, seed: int) -> Tensor:
    """The cluster of each row, (N,) int64 below `count`; arguments as of `select_trained`."""
    draw = torch.Generator().manual_seed(seed)
    near = nearest(embeddings, NEIGHBOURS).cpu()
    first = torch.randperm(len(embeddings), generator=draw)[:count]
    weight = embeddings[first.to(embeddings.device)].clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=_LR, weight_decay=_DECAY)
    frequency = weight.detach().new_full((count,), 1 / count)
    sizes = torch.zeros_like(frequency)
    for step in range(steps):
        rows = torch.randint(len(embeddings), (min(batch, len(embeddings)),), generator=draw)
        others = near[rows, torch.randint(near.shape[1], (len(rows),), generator=draw)]
        logits = _logits(embeddings[rows.to(embeddings.device)], weight)
        with torch.no_grad():
            beside = _logits(embeddings[others.to(embeddings.device)], weight)
        loss = global_loss(logits) + _LOCAL * local_loss(logits, target(beside, frequency))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        frequency = followed(frequency, beside)
        sizes = _SIZES * sizes + (1 - _SIZES) * _shares(logits.detach())
        if step >= _SPLIT_FROM * steps:
            split(weight, sizes, draw)
    with torch.no_grad():
        parts = torch.split(embeddings, max(1, batch))
        return torch.cat([_logits(part, weight).argmax(1) for part in parts])


def global_loss(logits: Tensor) -> Tensor:
    """Mean cross-entropy of (B, C) logits to the cluster that each row is nearest to.

    Source: Wang et al. 2022, with the threshold 0 of the authors' ImageNet settings: every row counts.
    """
    return F.cross_entropy(logits, logits.detach().argmax(1))


def local_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the predictions of rows from what they should be by a neighbour of each.

    Args:
        logits: (B, C) of the rows.
        wanted: (B, C) of `target`.

    Source: Wang et al. 2022.
    """
    return F.kl_div(logits.log_softmax(1), wanted, reduction="batchmean")


def target(beside: Tensor, frequency: Tensor, *, adjustment: float = 2.5, temperature: float = 0.5) -> Tensor:
    """What a row should predict by a neighbour's logits: adjusted against frequent clusters, then sharpened.

    Without the adjustment all rows end in one cluster.

    Args:
        beside: (B, C) logits of the neighbours.
        frequency: (C,) of each cluster among predictions until now.
        adjustment: alpha.
        temperature: T; below 1 sharpens.

    Returns:
        (B, C), rows add up to 1.
    """
    adjusted = beside - adjustment * frequency.clamp_min(torch.finfo(frequency.dtype).tiny).log()
    return (adjusted / temperature).softmax(1)  # equals softmax to the power 1 / T, over its sum


def followed(frequency: Tensor, beside: Tensor, *, momentum: float = 0.5) -> Tensor:
    """The frequency of clusters after a batch of (B, C) logits, (C,) that add up to 1."""
    found = momentum * frequency + (1 - momentum) * beside.softmax(1).mean(0)
    return found / found.sum()


@torch.no_grad()
def split(weight: Tensor, sizes: Tensor, draw: torch.Generator) -> None:
    """Give half of the largest cluster to the smallest, where that one has too much and this one too little.

    Args:
        weight: (C, D), the centres; changed in place.
        sizes: (C,), the clusters' shares of a batch; changed in place.
        draw: of the noise that tells the halves apart.
    """
    least, most = sizes.argmin(), sizes.argmax()
    if sizes[least] < _LEAST and sizes[most] > _MOST:
        noise = _NOISE * torch.randn(weight.shape[1], generator=draw).to(weight)
        weight[least] = weight[most] + noise
        weight[most] -= noise
        sizes[torch.stack([least, most])] = sizes[most] / 2


def _logits(rows: Tensor, weight: Tensor) -> Tensor:
    """(B, C) scaled cosines of (B, D) unit rows with (C, D) centres."""
    return _SCALE * rows @ F.normalize(weight, dim=1).T


def _shares(logits: Tensor) -> Tensor:
    """(C,), which share of a batch is nearest to each centre."""
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1]) / len(logits)

"""Which images to label by trained clusters: the trained variant of Unsupervised Selective Labeling."""

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.parts.coverage import in_order
from trainer.parts.neighbours import most_similar, queries_at_once
from trainer.parts.selection import NEIGHBOURS, best_of_each, density, filled, given, uncovered

_HEADS = 3  # classifiers that are trained side by side, each with a clustering of its own
_SCALE = 40.0  # of cosines, as logits; not learned, or all rows would end in one cluster
_LOCAL = 0.5  # s, the weight of the local loss
_LR, _DECAY = 1e-4, 1e-4  # of Adam
_SIZES = 0.9  # momentum of the clusters' shares of a batch
_LEAST, _MOST = 100 / 2048, 1000 / 2048  # of a batch: where one cluster has less and another more, this is split
_SPLIT_FROM = 0.2  # of the steps: before, shares say little
_NOISE = 1e-7  # that tells the halves of a cluster apart


def select_trained(
    embeddings: Tensor,
    budget: int,
    *,
    labelled: Tensor | None = None,
    batch: int = 512,
    steps: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Choose the rows to label, the densest of each of as many trained clusters.

    Args:
        embeddings: (N, D) float32, unit length.
        budget: how many, from 1 to the number of rows that are not labelled.
        labelled: (L,) int64, different rows that are labelled already; None for none.
        batch: rows a step; at most N are used.
        steps: of the training.
        seed: of the first centres and the batches.

    Returns:
        (budget,) int64, in the order of `in_order`.

    Source:
        Wang, Lian and Yu, Unsupervised Selective Labeling for More Effective Semi-Supervised Learning, ECCV 2022,
        section 4 (USL-T), as the authors' code has it for ImageNet (TonyLianLong/UnsupervisedSelectiveLabeling):
        nothing but cosine classifiers of frozen embeddings is trained, with the numbers of the constants above.
        Deviations: both losses see the embeddings of the images as they are, not of strongly augmented views; batches
        and steps are fewer (there 2,048 and some 6,000), and the split of clusters is in shares of a batch; there are
        as many clusters as the budget (and one more for each label that is there, see `select`), not 3 % more; where
        fewer have any row, the densest of the rest are added; the order.

    Raises:
        ValueError: the budget is out of its range.
    """
    labelled = given(embeddings, budget, labelled)
    cluster = trained_clusters(embeddings, budget + len(labelled), batch=batch, steps=steps, seed=seed)
    utility = density(embeddings)
    chosen = best_of_each(utility, cluster, uncovered(cluster, budget, labelled))
    return in_order(embeddings, filled(chosen, budget, utility, labelled), labelled)


def trained_clusters(embeddings: Tensor, count: int, *, batch: int, steps: int, seed: int) -> Tensor:
    """The cluster of each row, (N,) int64 below `count`: that of the first of the heads; arguments as above."""
    draw = torch.Generator().manual_seed(seed)
    near = _neighbours(embeddings)
    first = torch.stack([torch.randperm(len(embeddings), generator=draw)[:count] for _ in range(_HEADS)])
    weight = embeddings[first.to(embeddings.device)].clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=_LR, weight_decay=_DECAY)
    frequency = weight.detach().new_full((_HEADS, count), 1 / count)
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
        return torch.cat([_logits(part, weight[:1])[0].argmax(1) for part in parts])


def global_loss(logits: Tensor) -> Tensor:
    """Cross-entropy to the cluster that each row is nearest to, (H, B, C) to a scalar: mean of rows, sum of heads.

    Source: Wang et al. 2022, equation 8, with the threshold 0 of the authors' ImageNet settings: every row counts.
    """
    nearest = logits.detach().argmax(2)
    return F.cross_entropy(logits.flatten(0, 1), nearest.flatten(), reduction="sum") / logits.shape[1]


def local_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of predictions from targets: mean of rows, sum of heads.

    Args:
        logits: (H, B, C) of the rows.
        wanted: (H, B, C) of `target`, of one neighbour of each.

    Source: Wang et al. 2022, equations 9 to 11.
    """
    return F.kl_div(logits.log_softmax(2), wanted, reduction="sum") / logits.shape[1]


def target(beside: Tensor, frequency: Tensor, *, adjustment: float = 2.5, temperature: float = 0.5) -> Tensor:
    """What a row should predict by a neighbour's logits: adjusted against frequent clusters, then sharpened.

    Without the adjustment all rows end in one cluster.

    Args:
        beside: (H, B, C) logits of the neighbours.
        frequency: (H, C) of each cluster among predictions until now.
        adjustment: alpha.
        temperature: T; below 1 sharpens.

    Returns:
        (H, B, C), rows add up to 1.
    """
    adjusted = beside - adjustment * frequency.clamp_min(torch.finfo(frequency.dtype).tiny).log()[:, None]
    return (adjusted / temperature).softmax(2)  # equals softmax to the power 1 / T, over its sum


def followed(frequency: Tensor, beside: Tensor, *, momentum: float = 0.5) -> Tensor:
    """The frequency of clusters after a batch of (H, B, C) logits, (H, C) that add up to 1."""
    found = momentum * frequency + (1 - momentum) * beside.softmax(2).mean(1)
    return found / found.sum(1, keepdim=True)


@torch.no_grad()
def split(weight: Tensor, sizes: Tensor, draw: torch.Generator) -> None:
    """Give half of a head's largest cluster to its smallest, where that one has too much and this one too little.

    Args:
        weight: (H, C, D), the centres; changed in place.
        sizes: (H, C), the clusters' shares of a batch; changed in place.
        draw: of the noise that tells the halves apart.
    """
    for head in range(len(weight)):
        least, most = sizes[head].argmin(), sizes[head].argmax()
        if sizes[head, least] < _LEAST and sizes[head, most] > _MOST:
            noise = _NOISE * torch.randn(weight.shape[2], generator=draw).to(weight)
            weight[head, least] = weight[head, most] + noise
            weight[head, most] -= noise
            sizes[head, [least, most]] = sizes[head, most] / 2


def _logits(rows: Tensor, weight: Tensor) -> Tensor:
    """(H, B, C) scaled cosines of (B, D) unit rows with (H, C, D) centres."""
    return _SCALE * torch.einsum("bd,hcd->hbc", rows, F.normalize(weight, dim=2))


def _shares(logits: Tensor) -> Tensor:
    """(H, C), which share of a batch is nearest to each centre."""
    return F.one_hot(logits.argmax(2), logits.shape[2]).float().mean(1)


def _neighbours(embeddings: Tensor) -> Tensor:
    """(N, k) int64 on the CPU: the nearest rows of each, itself included."""
    k = min(NEIGHBOURS, len(embeddings))
    nobody = torch.full((len(embeddings),), -1, device=embeddings.device)
    everyone = torch.arange(len(embeddings), device=embeddings.device)
    tiles = torch.split(everyone, queries_at_once(k, embeddings.device))
    return torch.cat([most_similar(embeddings[rows], embeddings, k, nobody[rows])[1].cpu() for rows in tiles])

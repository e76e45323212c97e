"""How many labels are wrong, by a metric that did not learn from them, and which ones surely enough to leave out.

A wrong label says no more of its image than a class drawn at random: the classes that are nearer to the image than
its own are then as often many as few. Of right labels hardly any is beaten by a third of all classes: how many labels
are tells how many are wrong (Storey, "A direct approach to false discovery rates", 2002).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_ROWS = 1024  # of the matrix of images and classes at a time
_FEWEST_LABELS, _FEWEST_CLASSES = 20, 5  # below, a hard image can't be told from a wrong label
_BEATEN = 1 / 3  # of all classes: Storey's lambda; the estimate is surer below, and counts fewer right labels above
_HARMLESS = 0.15  # share of random labels up to which none is left out: right ones would be lost for little
_BLIND = 0.75  # from here on the metric may as well know nothing of what is labelled
_SURE = 0.9  # estimated share of random labels among those that are left out
_AT_A_TIME = 1 / 8  # of a class's doubted labels: one by one where they are few, in few rounds where they are many


@dataclass(frozen=True, kw_only=True)
class LabelNoise:
    """What a metric tells of labels.

    Attributes:
        judged: labels of images with another one of their class.
        wrong_share: how many of these are wrong, estimated; None where they are too few, or of too few classes.
        doubted: items whose labels are likely wrong, the surest first; none where few are, or where the metric
            disagrees with so many labels that it may know nothing of what they say.
    """

    judged: int = 0
    wrong_share: float | None = None
    doubted: tuple[str, ...] = ()

    def warnings(self, left_out: Path | None) -> tuple[str, ...]:
        """What to tell of it: a sentence, or none.

        Args:
            left_out: the file that lists the doubted labels; None where they are learned from all the same.
        """
        if self.wrong_share is None or (not self.doubted and self.wrong_share < _HARMLESS):
            return ()
        told = (
            f"about {self.wrong_share:.0%} of the {self.judged:,} labels that can be judged fit their images no "
            f"better than a class drawn at random, by the model that this run starts from"
        )
        if not self.doubted:
            return (f"{told}: they are wrong, or new to it, which it can't tell; all are learned from, look at some",)
        if left_out is None:
            return (f"{told}; the {len(self.doubted):,} likeliest to be wrong are learned from too, as was asked",)
        warning = (
            f"{told}; the {len(self.doubted):,} likeliest to be wrong are left out, their images learned from as "
            f"unlabelled ones: look at these labels ({left_out} lists them, {self.doubted[0]} first) and correct "
            f"them; if they are right, --keep-doubted (of a request, keep_doubted) learns from them too"
        )
        return (warning,)


@torch.no_grad()
def label_noise(embeddings: Tensor, items: Sequence[str], label: Tensor) -> LabelNoise:
    """Estimate how many labels are wrong, and find those that likely are.

    Args:
        embeddings: (N, D) float32, unit length, by a metric that did not learn from the labels.
        items: the N item ids.
        label: (N,) int64, the classes, none unknown. Of pairs, what is the same is a class.

    Source:
        The estimate and the cut are Storey's (2002) of true null hypotheses and of the false discovery rate, with the
        null hypothesis that a label is random. That neighbours in an embedding tell wrong labels from right ones:
        Bahri et al., Deep k-NN for Noisy Labels, ICML 2020; the mean over a class stands here in place of the k
        nearest, as of a few images a class there are no k.
    """
    rank = class_ranks(embeddings, label)
    rows = (rank >= 0).nonzero().flatten()
    classes, judged = _count(label), len(rows)
    if judged < _FEWEST_LABELS or classes < _FEWEST_CLASSES:
        return LabelNoise(judged=judged)
    share = random_share(rank[rows], classes)
    wrong_share = share * (classes - 1) / classes  # a random class is now and then the right one
    if not _HARMLESS <= share <= _BLIND:
        return LabelNoise(judged=judged, wrong_share=wrong_share)
    left_out = surely_wrong(embeddings, label, first_random(rank[rows], classes, share))
    kept = torch.ones(len(label), dtype=torch.bool)
    kept[left_out] = False
    if (torch.bincount(label[kept]) > 1).sum() < 2:  # nothing would be left to learn from
        left_out = []
    doubted = sorted(left_out, key=lambda row: -int(rank[row]))
    return LabelNoise(judged=judged, wrong_share=wrong_share, doubted=tuple(items[row] for row in doubted))


def class_ranks(embeddings: Tensor, label: Tensor) -> Tensor:
    """How many classes are nearer to each image, by the mean similarity of their images, than the rest of its own.

    Args:
        embeddings: (N, D) float32, unit length.
        label: (N,) int64, C different ones.

    Returns:
        (N,) int64 from 0 to C - 1; -1 for an image that has no other of its class.
    """
    _, label, counts = torch.unique(label, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), embeddings.shape[1]).index_add_(0, label, embeddings)
    means = sums / counts[:, None]
    ranks = []
    for rows, own in zip(torch.split(embeddings, _ROWS), torch.split(label, _ROWS), strict=True):
        others = counts[own] - 1
        to_own = (rows * (sums[own] - rows)).sum(1) / others.clamp_min(1)
        to_class = (rows @ means.T).scatter(1, own[:, None], -torch.inf)
        ranks.append((to_class > to_own[:, None]).sum(1).masked_fill(others == 0, -1))
    return torch.cat(ranks)


def surely_wrong(embeddings: Tensor, label: Tensor, rank: int) -> list[int]:
    """The rows whose labels are beaten by so many classes, the surest first and the others judged without them.

    A wrong label casts doubt on the right ones of its class, in a small class on all of them. The last label of a
    class has nothing to be judged by, and stays.

    Args:
        embeddings: (N, D) float32, unit length.
        label: (N,) int64.
        rank: how many classes are enough, at least 1; see `class_ranks`.

    Returns:
        The rows, in the order in which they were found.
    """
    taken: list[int] = []
    rest = torch.arange(len(label))
    while True:
        ranks = class_ranks(embeddings[rest], label[rest])
        surest = _surest(ranks, label[rest], rank)
        if not surest.any():
            return taken
        taken += rest[surest].tolist()
        rest = rest[~surest]


def _surest(ranks: Tensor, label: Tensor, rank: int) -> Tensor:
    """(N,) bool: of the rows of each class that reach a rank, the share of `_AT_A_TIME` that ranks highest."""
    rows = (ranks >= rank).nonzero().flatten()
    rows = rows[ranks[rows].argsort(descending=True, stable=True)]
    rows = rows[label[rows].argsort(stable=True)]  # class by class, each from the highest rank on
    _, own, counts = torch.unique_consecutive(label[rows], return_inverse=True, return_counts=True)
    place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[own]
    surest = torch.zeros(len(label), dtype=torch.bool)
    surest[rows[place < _AT_A_TIME * counts[own]]] = True
    return surest


def _count(label: Tensor) -> int:
    return len(set(label.tolist()))


def random_share(rank: Tensor, classes: int) -> float:
    """Share of labels that look drawn at random: how many are beaten by a third of all classes, against by chance."""
    beaten = (rank > _BEATEN * (classes - 1)).float().mean()
    by_chance = (torch.arange(classes) > _BEATEN * (classes - 1)).float().mean()
    return min(1.0, (beaten / by_chance).item())


def first_random(rank: Tensor, classes: int, share: float) -> int:
    """The lowest rank from which on nine in ten labels are random, by the estimate that `share` of all are."""
    at_or_above = torch.bincount(rank, minlength=classes).flip(0).cumsum(0).flip(0) / len(rank)
    by_chance = torch.arange(classes, 0, -1) / classes
    sure = share * by_chance >= _SURE * at_or_above
    return int(sure.nonzero()[0]) if sure.any() else classes

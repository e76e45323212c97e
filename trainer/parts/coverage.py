"""What chosen images of a collection stand for, and in which order to label them."""

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.parts.neighbours import most_similar, queries_at_once

_SAMPLE = 10_000  # images that the order is found by; with more, memory would grow with the budget times the images
_ROWS = 4096  # of similarities at a time


@dataclass(frozen=True)
class Reasons:
    """Why each of P images was chosen.

    Attributes:
        density_rank: (P,) int64, how many of all images are in a denser place, itself counted: 1 is the densest.
        stands_for: (P,) int64, how many images are more similar to it than to any other chosen or labelled one;
            itself included.
        nearest: (P,) int64, the row most similar to it of those labelled or chosen before it; -1 where there is none.
        similarity: (P,) float32, to that row; NaN where there is none.
    """

    density_rank: Tensor
    stands_for: Tensor
    nearest: Tensor
    similarity: Tensor


@torch.no_grad()
def in_order(embeddings: Tensor, chosen: Tensor, labelled: Tensor) -> Tensor:
    """Chosen rows so that whoever stops labelling early has covered most: each next one adds most to those before it.

    What a row adds is by how much it raises the similarity of all images to their most similar labelled or earlier
    row, together. Most is added by the greedy choice (Nemhauser, Wolsey and Fisher 1978, "An analysis of
    approximations for maximizing submodular set functions"), found lazily (Minoux 1978, "Accelerated greedy
    algorithms"). Of more than 10,000 images, evenly spread ones are looked at.

    Args:
        embeddings: (N, D) float32, unit length.
        chosen: (P,) int64, different rows.
        labelled: (L,) int64.

    Returns:
        (P,) int64.
    """
    seen = embeddings[:: -(-len(embeddings) // _SAMPLE)]
    similarity = embeddings[chosen] @ seen.T
    covered = seen.new_full((len(seen),), -1.0)
    if len(labelled):
        covered = _nearest(seen, embeddings[labelled])[0]

    def gain(place: int) -> float:
        return (similarity[place] - covered).clamp_min(0).sum(dtype=torch.float64).item()

    waiting = [(-gain(place), place) for place in range(len(chosen))]
    heapq.heapify(waiting)
    order: list[int] = []
    while waiting:
        _, place = waiting[0]
        now = (-gain(place), place)  # what it adds only falls while others are taken
        heapq.heapreplace(waiting, now)
        if waiting[0] == now:
            heapq.heappop(waiting)
            order.append(place)
            covered = torch.maximum(covered, similarity[place])
    return chosen[torch.tensor(order, device=chosen.device)]


@torch.no_grad()
def reasons(embeddings: Tensor, chosen: Tensor, labelled: Tensor, density: Tensor) -> Reasons:
    """Why rows were chosen.

    Args:
        embeddings: (N, D) float32, unit length.
        chosen: (P,) int64, in the order that they are suggested in.
        labelled: (L,) int64.
        density: (N,) of each row.
    """
    rank = torch.empty(len(density), dtype=torch.int64, device=density.device)
    rank[density.argsort(descending=True, stable=True)] = torch.arange(1, len(density) + 1, device=density.device)
    _, of = _nearest(embeddings, embeddings[torch.cat([chosen, labelled])])
    of[chosen] = torch.arange(len(chosen), device=of.device)  # also of copies of one image
    of[labelled] = torch.arange(len(chosen), len(chosen) + len(labelled), device=of.device)
    stands_for = torch.bincount(of, minlength=len(chosen))[: len(chosen)]
    nearest, similarity = _nearest_before(embeddings, chosen, labelled)
    return Reasons(rank[chosen], stands_for, nearest, similarity)


def _nearest_before(embeddings: Tensor, chosen: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """The row most similar to each chosen one among those labelled or chosen before, and how similar."""
    others = torch.cat([labelled, chosen])
    rows, similarities = [], []
    for places in torch.split(torch.arange(len(chosen), device=chosen.device), _ROWS):
        similarity = embeddings[chosen[places]] @ embeddings[others].T
        later = torch.arange(-len(labelled), len(chosen), device=places.device) >= places[:, None]
        best, place = similarity.masked_fill_(later, -torch.inf).max(1)
        rows.append(torch.where(best.isinf(), -1, others[place]))
        similarities.append(torch.where(best.isinf(), torch.nan, best))
    return torch.cat(rows), torch.cat(similarities)


def _nearest(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """The similarity of each query to the most similar row of a gallery, (Q,), and which that is."""
    parts = [
        most_similar(some, gallery, 1, torch.full((len(some),), -1, device=queries.device))
        for some in torch.split(queries, queries_at_once(1, queries.device))
    ]
    return torch.cat([similarity[:, 0] for similarity, _ in parts]), torch.cat([row[:, 0] for _, row in parts])

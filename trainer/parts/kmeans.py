"""k-means on the device of its rows, in bounded chunks."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_BYTES = 2**25  # of distances at a time, however many rows and clusters there are
_SEEDED_FROM = 32  # rows a cluster that the start is chosen from: k-means++ reads them all for each cluster
_ITERATIONS = 100
_TOLERANCE = 1e-4  # stop where an iteration lowers the inertia by less than this share


@dataclass(frozen=True)
class Clusters:
    """A clustering of N rows.

    Attributes:
        centres: (k, D) float32.
        of_row: (N,) int64, the cluster of each row; clusters are empty only where there are fewer distinct rows.
        inertia: sum of the squared Euclidean distances of the rows to their centres.
    """

    centres: Tensor
    of_row: Tensor
    inertia: float


@torch.no_grad()
def kmeans(rows: Tensor, k: int, *, seed: int) -> Clusters:
    """Cluster rows by Lloyd's iterations from a k-means++ start.

    The same seed gives the same clusters on a CPU; on a GPU sums are added in any order. Beside the rows it needs a
    copy of them and a few times 32 MiB.

    Args:
        rows: (N, D) float32.
        k: number of clusters, from 1 to N.
        seed: of the start.

    Source:
        Lloyd, Least squares quantization in PCM, 1982; Arthur and Vassilvitskii, k-means++, SODA 2007, with the
        greedy choice among 2 + ln k draws that their conclusion proposes and scikit-learn makes. Deviations: the
        start is chosen from a random sample of 32 rows a cluster where there are more rows, and a cluster that
        loses its last row starts anew at a row that is far from its centre.

    Raises:
        ValueError: k is not between 1 and N.
    """
    if not 1 <= k <= len(rows):
        raise ValueError(f"k is {k}; it must be between 1 and {len(rows)}, the number of rows")
    mean = rows.mean(0)
    rows = rows - mean  # distances stay; |a|² + |b|² - 2ab loses fewer digits
    centres = _start(rows, k, torch.Generator().manual_seed(seed))
    of_row, distances = _assign(rows, centres)
    for _ in range(_ITERATIONS):
        before = _inertia(distances)
        centres = _moved(rows, of_row, distances, centres)
        of_row, distances = _assign(rows, centres)
        if _inertia(distances) >= (1 - _TOLERANCE) * before:
            break
    return Clusters(centres + mean, of_row, _inertia(distances))


def _start(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Some k rows, spread out: each the best of a few drawn by their squared distance to those chosen before."""
    if len(rows) > _SEEDED_FROM * k:
        rows = rows[torch.randperm(len(rows), generator=generator)[: _SEEDED_FROM * k].to(rows.device)]
    draws = torch.rand(k, 2 + int(math.log(k)), generator=generator, dtype=torch.float64).to(rows.device)
    norms = rows.square().sum(1)
    chosen = [(draws[0, 0] * len(rows)).long()]
    nearest = _to_candidates(rows, norms, chosen[0][None])[0]
    for draw in draws[1:]:
        mass = nearest.cumsum(0, dtype=torch.float64)
        drawn = torch.searchsorted(mass, draw * mass[-1], right=True).clamp_max(len(rows) - 1)
        distances = torch.minimum(_to_candidates(rows, norms, drawn), nearest)
        best = distances.sum(1).argmin()
        nearest = distances[best]
        chosen.append(drawn[best])
    return rows[torch.stack(chosen)]


def _to_candidates(rows: Tensor, norms: Tensor, candidates: Tensor) -> Tensor:
    """Squared distances (C, N) of all rows to a few of them."""
    return (norms + norms[candidates, None] - 2 * rows[candidates] @ rows.T).clamp_min_(0)


def _assign(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each row and the squared distance to it."""
    norms = centres.square().sum(1)
    chunk = max(1, _CHUNK_BYTES // (4 * len(centres)))
    # Made first: small results of each chunk, made between its large ones, would keep freed memory from being reused.
    of_row = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    distances = torch.empty(len(rows), dtype=rows.dtype, device=rows.device)
    for first in range(0, len(rows), chunk):
        block, here = rows[first : first + chunk], slice(first, first + chunk)
        nearest = torch.addmm(norms, block, centres.T, alpha=-2).min(1)
        of_row[here] = nearest.indices
        distances[here] = nearest.values + block.square().sum(1)
    return of_row, distances.clamp_min_(0)


def _inertia(distances: Tensor) -> float:
    return distances.sum(dtype=torch.float64).item()


def _moved(rows: Tensor, of_row: Tensor, distances: Tensor, centres: Tensor) -> Tensor:
    """The mean of each cluster's rows; an empty cluster goes to one of the rows farthest from their centres."""
    sizes = torch.bincount(of_row, minlength=len(centres))
    sums = torch.zeros_like(centres).index_add_(0, of_row, rows)
    moved = sums / sizes.clamp_min(1)[:, None]
    empty = torch.nonzero(sizes == 0).flatten()
    moved[empty] = rows[distances.topk(len(empty)).indices]
    return moved

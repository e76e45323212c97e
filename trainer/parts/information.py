"""How much two partitions of the same rows tell of each other."""

import math

import torch
from torch import Tensor

_GRID = 2**21  # terms of the expected information at a time: 16 MiB in float64


def mutual_information(classes: Tensor, clusters: Tensor) -> tuple[float, float]:
    """Normalised and adjusted mutual information of two partitions, by the arithmetic mean of their entropies.

    Both are scikit-learn's. Its expected information, though, sums over all pairs of a class and a cluster: for
    10,000 of each many minutes. Only the sizes matter, and few are distinct.

    Args:
        classes: (N,) int64, any numbers from 0.
        clusters: likewise.

    Returns:
        NMI in [0, 1], and AMI, 0 on average for a partition by chance and 1 for the same partition.

    Source:
        Vinh, Epps and Bailey, Information Theoretic Measures for Clusterings Comparison, JMLR 2010, equation 24a for
        the expected information and AMI_sum of table 2.
    """
    rows, columns, cells = _contingency(classes, clusters)
    a, b = _sums(rows, cells), _sums(columns, cells)
    count = len(classes)
    if len(a) == len(b) and len(a) in (1, count):  # the same, and chance could not do worse
        return 1.0, 1.0
    information = max(0.0, _information(cells, a[rows], b[columns], count).sum().item())
    entropy = (_entropy(a) + _entropy(b)) / 2
    expected = _expected_information(a, b)
    return information / entropy, (information - expected) / (entropy - expected)


def _contingency(classes: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each pair of a class and a cluster that share rows: their numbers, and how many rows."""
    row, column = (torch.unique(part.cpu(), return_inverse=True)[1] for part in (classes, clusters))
    width = int(column.max()) + 1
    pairs, cells = torch.unique(row * width + column, return_counts=True)
    return pairs // width, pairs % width, cells


def _sums(of_cell: Tensor, cells: Tensor) -> Tensor:
    return torch.zeros(int(of_cell.max()) + 1, dtype=torch.int64).index_add_(0, of_cell, cells)


def _information(cells: Tensor, a: Tensor, b: Tensor, count: int) -> Tensor:
    """What a cell of so many rows adds, in nats, where its class has a rows and its cluster b."""
    return cells.double() / count * (cells.double().log() + math.log(count) - (a.double() * b).log())


def _entropy(sizes: Tensor) -> float:
    share = sizes.double() / sizes.sum()
    return -(share * share.log()).sum().item()


def _expected_information(a: Tensor, b: Tensor) -> float:
    """The mean information over all pairs of partitions into parts of these sizes."""
    count = int(a.sum())
    log_factorial = torch.lgamma(torch.arange(1, count + 2, dtype=torch.float64))
    b_sizes, b_times = torch.unique(b, return_counts=True)
    expected = 0.0
    for size, times in zip(*(part.tolist() for part in torch.unique(a, return_counts=True)), strict=True):
        cells = torch.arange(1, size + 1)
        chunk = max(1, _GRID // size)
        for sizes, repeats in zip(b_sizes.split(chunk), b_times.split(chunk), strict=True):
            terms = _chance(cells, size, sizes[:, None], log_factorial)
            terms *= _information(cells, torch.tensor(size), sizes[:, None], count)
            expected += times * (terms.sum(1) * repeats).sum().item()
    return expected


def _chance(cells: Tensor, a: int, b: Tensor, log_factorial: Tensor) -> Tensor:
    """The probability, hypergeometric, of so many shared rows where parts have a and b of all rows: (B, cells)."""
    count = len(log_factorial) - 1
    neither = count - a - b + cells
    possible = (cells <= b) & (neither >= 0)
    log = log_factorial[a] + log_factorial[b] + log_factorial[count - a] + log_factorial[count - b]
    log = log - log_factorial[cells] - log_factorial[a - cells] - log_factorial[count]
    log = log - log_factorial[(b - cells).clamp_min(0)] - log_factorial[neither.clamp_min(0)]
    return torch.where(possible, log.exp(), 0)

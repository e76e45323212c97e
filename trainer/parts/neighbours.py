"""Exact nearest neighbours of a set within itself."""

import torch
from torch import Tensor

_ROWS, _COLUMNS = 4096, 16384  # of one tile of distances: 256 MiB in float32, however many rows there are


@torch.no_grad()
def nearest(rows: Tensor, k: int) -> Tensor:
    """The k nearest rows of each row by Euclidean distance, itself always first.

    Args:
        rows: (N, C) float32.
        k: at least 1; at most N are found.

    Returns:
        (N, min(k, N)) int64, nearest first, on the device of `rows`.
    """
    rows = rows - rows.mean(0)  # distances stay; |a|² + |b|² - 2ab loses fewer digits
    norms = rows.square().sum(1)
    starts = range(0, len(rows), _ROWS)
    return torch.cat([_nearest_of(rows, norms, start, min(k, len(rows))) for start in starts])


def _nearest_of(rows: Tensor, norms: Tensor, start: int, k: int) -> Tensor:
    queries = rows[start : start + _ROWS]
    own = torch.arange(start, start + len(queries), device=rows.device)
    best = torch.empty(len(queries), 0, dtype=rows.dtype, device=rows.device)
    found = torch.empty(len(queries), 0, dtype=torch.int64, device=rows.device)
    for first in range(0, len(rows), _COLUMNS):
        others = torch.arange(first, min(first + _COLUMNS, len(rows)), device=rows.device)
        # |a|² is the same for all columns of a row, so the order does not need it.
        tile = norms[others] - 2 * queries @ rows[others].T
        tile.masked_fill_(own[:, None] == others, -torch.inf)
        best = torch.cat([best, tile], 1)
        found = torch.cat([found, others.expand(len(queries), -1)], 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1, largest=False)
        found = found.gather(1, order)
    return found

"""Distances between the rows of matrices."""

import torch
from torch import Tensor


def squared_distances(rows: Tensor) -> Tensor:
    """Squared Euclidean distances of all pairs of rows: (N, C) to (N, N), never negative, zero on the diagonal."""
    # Distances don't depend on the origin; near it, |a|² + |b|² - 2ab loses the fewest digits.
    rows = rows - rows.mean(0).detach()
    norms = rows.square().sum(1)
    squared = (norms[:, None] + norms[None, :] - 2 * rows @ rows.T).clamp_min(0)
    return squared.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), 0)


def relative_distances(rows: Tensor) -> Tensor:
    """Euclidean distances of all pairs, each row divided by its mean, so that scale means nothing.

    The mean is over all N columns, the zero on the diagonal included, and the gradient flows through it.

    Args:
        rows: (N, C), any scale.

    Returns:
        (N, N), not symmetric, 1 on average; all zero where all rows are equal.

    Source:
        Kim et al., Self-Taught Metric Learning without Labels, CVPR 2022, section 3.3 (relaxed contrastive loss).
    """
    squared = squared_distances(rows)
    # The square root has an infinite slope at 0; below `tiny` the distance counts as 0 and has none.
    tiny = torch.finfo(rows.dtype).tiny
    distances = torch.where(squared > tiny, squared.clamp_min(tiny).sqrt(), 0)
    return distances / distances.mean(1, keepdim=True).clamp_min(tiny)

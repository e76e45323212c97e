"""The multi-similarity loss."""

import torch
from torch import Tensor


def multi_similarity(
    similarity: Tensor,
    same: Tensor,
    different: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    margin: float = 0.1,
) -> Tensor:
    """Pull pairs that show the same thing together and push different ones apart, the hard ones more.

    Of an anchor's pairs only those count that are hard beside the other kind: a different one that is not `margin`
    less similar than its least similar same one, and the other way about. Anchors without both kinds have no loss.

    Args:
        similarity: (N, N) cosines.
        same: (N, N) bool, pairs known to show the same thing; the diagonal is not used.
        different: (N, N) bool, pairs known to show different things.
        alpha: how much the least similar of same pairs count more than the rest.
        beta: how much the most similar of different pairs count more than the rest.
        base: the similarity that same pairs are pulled above and different ones pushed below.
        margin: of what counts as hard.

    Returns:
        Scalar, at least 0: the mean over all N anchors.

    Source:
        Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning, CVPR 2019, equations
        10 to 12; the keyword defaults are section 4's, `base` the authors' code's (MalongTech/research-ms-loss).
    """
    same = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    ruled = similarity.detach()
    least_same = ruled.masked_fill(~same, torch.inf).amin(1, keepdim=True)
    most_different = ruled.masked_fill(~different, -torch.inf).amax(1, keepdim=True)
    pulled = same & (ruled - margin < most_different)
    pushed = different & (ruled + margin > least_same)
    pull = _soft_sum(-alpha * (similarity - base), pulled) / alpha
    push = _soft_sum(beta * (similarity - base), pushed) / beta
    return (pull + push).mean()


def _soft_sum(exponents: Tensor, chosen: Tensor) -> Tensor:
    """log(1 + the sum of exp over the chosen columns) of each row, without overflow: (N, N) to (N,)."""
    zero = torch.zeros_like(exponents[:, :1])
    return torch.cat([zero, exponents.masked_fill(~chosen, -torch.inf)], 1).logsumexp(1)

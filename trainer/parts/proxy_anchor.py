"""The Proxy-Anchor loss."""

import torch
from torch import Tensor


def proxy_anchor(similarity: Tensor, label: Tensor, *, alpha: float = 32.0, margin: float = 0.1) -> Tensor:
    """Pull images to the proxy of their class and push them from the others, the hard ones of each proxy more.

    Args:
        similarity: (N, C) cosines of images to the proxies of the C classes.
        label: (N,) int64, the images' classes; -1 where unknown, which has no loss.
        alpha: how much the hardest images of a proxy count more than the rest.
        margin: same pairs are pulled above it, different ones pushed below its negative.

    Returns:
        Scalar, at least 0; 0 where no image has a label.

    Source:
        Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020, equation 4; the keyword defaults are
        section 4.1's (tjddus9597/Proxy-Anchor-CVPR2020).
    """
    numbers = torch.arange(similarity.shape[1], device=label.device)
    same = label[:, None] == numbers
    different = (label >= 0)[:, None] & ~same
    met = same.any(0)  # proxies without an image of their class in the batch are not pulled: their sum is 0
    pull = _soft_sum(-alpha * (similarity - margin), same).sum() / met.sum().clamp_min(1)
    push = _soft_sum(alpha * (similarity + margin), different).mean()
    return pull + push


def _soft_sum(exponents: Tensor, chosen: Tensor) -> Tensor:
    """log(1 + the sum of exp over the chosen rows) of each column, without overflow: (N, C) to (C,)."""
    zero = torch.zeros_like(exponents[:1])
    return torch.cat([zero, exponents.masked_fill(~chosen, -torch.inf)], 0).logsumexp(0)

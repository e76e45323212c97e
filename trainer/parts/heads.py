"""Linear heads and where they start."""

import torch
from torch import Tensor, nn

_LEAST_SHARE = 1e-3  # of the largest variance, added to each: what hardly varies is noise, which is not blown up


def orthogonal_head(channels: int, dim: int) -> nn.Linear:
    """A linear map from C channels to D, orthogonal weights and zero bias."""
    head = nn.Linear(channels, dim)
    nn.init.orthogonal_(head.weight)
    nn.init.zeros_(head.bias)
    return head


@torch.no_grad()
def set_to_principal_axes(head: nn.Linear, features: Tensor, whitening: float = 0.0) -> None:
    """Set a linear head to the principal axes of features, in place: it then keeps most of their distances.

    The mean is removed through the bias. Where the head has more outputs than there are channels, the axes are
    turned into the larger space at random, which changes no distance.

    Args:
        head: C to D.
        features: as `principal_axes` takes them.
        whitening: as `principal_axes` takes it.
    """
    axes, channels = principal_axes(features, whitening), features.shape[1]
    if head.out_features > channels:
        turn = torch.empty(head.out_features, channels)
        axes = nn.init.orthogonal_(turn).to(axes) @ axes
    weight = axes[: head.out_features]
    head.weight.copy_(weight)
    head.bias.copy_(-weight @ features.mean(0))


@torch.no_grad()
def principal_axes(features: Tensor, whitening: float = 0.0) -> Tensor:
    """The axes along which features vary, most variance first.

    Args:
        features: (N, C) float32, any N from 1; axes beyond their rank are arbitrary and orthogonal.
        whitening: how far the axes' variances are evened out, 0 (not at all) to 1 (all equal, but for those that
            hardly vary): the few directions in which pretrained features vary most tell the least of fine classes.

    Returns:
        (C, C) float32, an axis a row: `(features - mean) @ axes.T` is what a head of C outputs gives.
    """
    mean = features.mean(0)
    channels = features.shape[1]
    covariance = torch.zeros(channels, channels, dtype=torch.float64, device=features.device)
    for block in torch.split(features, 8192):
        centred = (block - mean).double()
        covariance += centred.T @ centred
    variances, axes = torch.linalg.eigh(covariance)
    variances, axes = variances.flip(0).clamp_min(0), axes.flip(1).T  # (C,) and (C, C), most variance first
    if whitening:
        share = variances / variances[0].clamp_min(torch.finfo(variances.dtype).tiny) + _LEAST_SHARE
        axes = axes * share.pow(-whitening / 2)[:, None]
    found: Tensor = axes.to(features.dtype)
    return found

"""Linear heads and where they start."""

import torch
from torch import Tensor, nn


def orthogonal_head(channels: int, dim: int) -> nn.Linear:
    """A linear map from C channels to D, orthogonal weights and zero bias."""
    head = nn.Linear(channels, dim)
    nn.init.orthogonal_(head.weight)
    nn.init.zeros_(head.bias)
    return head


@torch.no_grad()
def set_to_principal_axes(head: nn.Linear, features: Tensor) -> None:
    """Set a linear head to the principal axes of features, in place: it then keeps most of their distances.

    The mean is removed through the bias. Where the head has more outputs than there are channels, the axes are
    turned into the larger space at random, which changes no distance.

    Args:
        head: C to D.
        features: (N, C) float32, any N from 1; axes beyond their rank are arbitrary and orthogonal.
    """
    mean = features.mean(0)
    channels = features.shape[1]
    covariance = torch.zeros(channels, channels, dtype=torch.float64, device=features.device)
    for block in torch.split(features, 8192):
        centred = (block - mean).double()
        covariance += centred.T @ centred
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(1).T.to(features.dtype)  # (C, C), most variance first
    if head.out_features > channels:
        turn = torch.empty(head.out_features, channels)
        axes = nn.init.orthogonal_(turn).to(axes) @ axes
    weight = axes[: head.out_features]
    head.weight.copy_(weight)
    head.bias.copy_(-weight @ mean)

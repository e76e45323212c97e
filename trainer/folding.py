"""Frozen BatchNorm folded into the convolutions before it: the same features and gradients for less time and memory.

Elsewhere this is done once, before inference (`torch.nn.utils.fusion`); here the weights go on learning.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Folding = TypeVar("Folding", bound=nn.Module)

_TOLERANCE = 1e-6  # of the largest feature, in float64


def fold_norms(network: nn.Module, size: int) -> None:
    """Let convolutions do what the frozen BatchNorm does that each alone feeds; what it can't be shown for is left.

    A norm whose statistics and scale are frozen is one factor and one offset a channel, which its convolution's
    weights and bias can have: that is made in each pass, so the weights keep their names and values, and learn as
    they did. On a GPU, where that was not measured, passes are as they were.

    Args:
        network: changed in place; its norms must stay in eval mode and learn nothing.
        size: side of images that it takes, pixels.
    """
    pairs = _pairs(network, torch.zeros(1, 3, size, size))
    if pairs and _are_folded_right(network, pairs, size):
        _fold(network, pairs)


def unfolded(network: Folding) -> Folding:
    """A copy in which norms do their own work again: exporters fold them once for all."""
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if isinstance(vars(module).get("forward"), (_Folded, _AfterNorm)):
            del module.forward
    return plain.train(network.training)  # torchvision's networks are copied without the modes of their parts


@torch.no_grad()
def _pairs(network: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """The names of convolutions and of the norms that take what these return."""
    returned: dict[int, tuple[str, Tensor]] = {}  # with the tensor: the number of one that is gone is given again
    pairs: list[tuple[str, str]] = []

    def keep(name: str, output: Tensor) -> None:
        returned[id(output)] = name, output

    def pair(name: str, taken: Tensor) -> None:
        if id(taken) in returned:
            pairs.append((returned[id(taken)][0], name))

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda *call, name=name: keep(name, call[2])))
        elif isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(lambda *call, name=name: pair(name, call[1][0])))
    network(images)
    for hook in hooks:
        hook.remove()
    return pairs


@torch.no_grad()
def _are_folded_right(network: nn.Module, pairs: list[tuple[str, str]], size: int) -> bool:
    """Whether a copy, its norms moved about, computes the same with them folded and not.

    It doesn't where a convolution's output goes elsewhere too, or is computed in a way of its own. Moved about, as
    norms may do so little as they come that nobody would see it.
    """
    draw = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(network).cpu().double().eval()
    for _, name in pairs:
        norm = trial.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101  # see _pairs
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None  # noqa: S101  # it is affine and has statistics
            tensor.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=draw, dtype=tensor.dtype))
            if tensor is not norm.running_var:
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=draw, dtype=tensor.dtype))
    images = torch.rand(2, 3, size, size, generator=draw, dtype=torch.float64)
    expected = trial(images)
    _fold(trial, pairs)
    return bool((trial(images) - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _fold(network: nn.Module, pairs: list[tuple[str, str]]) -> None:
    for one, other in pairs:
        convolution, norm = network.get_submodule(one), network.get_submodule(other)
        assert isinstance(convolution, nn.Conv2d)  # noqa: S101  # see _pairs
        assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101
        # Attributes of their own, of which copies of the network have copies.
        convolution.forward = _Folded(convolution, norm)  # type: ignore[method-assign, assignment]
        norm.forward = _AfterNorm(norm)  # type: ignore[method-assign, assignment]


class _Folded:
    """The forward pass of a convolution with the norm after it."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d):
        self.convolution, self.norm = convolution, norm

    def __call__(self, images: Tensor) -> Tensor:
        forward = type(self.convolution).forward
        if images.is_cuda:
            return forward(self.convolution, images)
        # As torch.func.functional_call does it, which has no place for the bias of a convolution without one.
        parameters = self.convolution._parameters
        own = dict(parameters)
        parameters.update(_with_norm(self.convolution, self.norm))  # type: ignore[arg-type] # made of parameters
        try:
            return forward(self.convolution, images)
        finally:
            parameters.update(own)


def _with_norm(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """The weights and bias with which the convolution does the norm's work too."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None  # noqa: S101  # see _pairs
    assert variance is not None  # noqa: S101
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    bias = norm.bias - mean * scale
    if convolution.bias is not None:
        bias = bias + convolution.bias * scale
    return {"weight": convolution.weight * scale.view(-1, 1, 1, 1), "bias": bias}


class _AfterNorm:
    """The forward pass of a norm that was folded: timm's have the activation that follows."""

    def __init__(self, norm: nn.BatchNorm2d):
        self.norm = norm

    def __call__(self, features: Tensor) -> Tensor:
        if features.is_cuda:
            return type(self.norm).forward(self.norm, features)
        for name in ("drop", "act"):
            if hasattr(self.norm, name):
                features = getattr(self.norm, name)(features)
        return features

"""AdamP, decided on the device: a step never waits for a GPU."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_FIRST, _SECOND = 0.9, 0.999  # momentum of the gradients' mean and of their mean square
_EPS = 1e-8
_ORTHOGONAL = 0.1  # cosine of a gradient to its weights, times the root of their number, below which it counts as 0
_DECAY_LEFT = 0.1  # of the weight decay, for weights whose scale means nothing


class AdamP(Optimizer):
    """Adam that does not lengthen weights whose length means nothing, as normalisation after them makes it.

    Where the gradient of a weight is nearly orthogonal to it, channel by channel or as a whole, what lies along the
    weight is taken from its step, and most of its decay is left out. Momentum is Nesterov's, as STML's authors have
    it.

    Source:
        Heo et al., AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights, ICLR 2021,
        arXiv 2006.08217, with the constants of the authors' code (clovaai/AdamP). That asks for each weight whether
        it is so before it goes on: some hundred waits for a GPU in each step of a ResNet.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, weight_decay: float):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002  # the loop has none
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moving:
                self._move(moving, group["lr"], group["weight_decay"])

    def _move(self, moving: list[Tensor], lr: float, weight_decay: float) -> None:
        gradients = [parameter.grad for parameter in moving if parameter.grad is not None]
        steps, moves = self._adam(moving, gradients)
        for parameter, gradient, move, step in zip(moving, gradients, moves, steps, strict=True):
            if parameter.ndim > 1:
                along, decay_left = _projection(parameter, gradient, move)
                move.addcmul_(parameter, along, value=-1)
                parameter.mul_(1 - lr * weight_decay * decay_left)
            else:
                parameter.mul_(1 - lr * weight_decay)
            parameter.add_(move, alpha=-lr / (1 - _FIRST**step))

    def _adam(self, moving: list[Tensor], gradients: list[Tensor]) -> tuple[list[int], list[Tensor]]:
        """The number of this step of each parameter, and where Adam would move it, but for the rate."""
        states = [self._state_of(parameter) for parameter in moving]
        for state in states:
            state["step"] += 1
        steps = [state["step"] for state in states]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(means, gradients, 1 - _FIRST)
        torch._foreach_mul_(squares, _SECOND)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - _SECOND)
        spreads = torch._foreach_sqrt(squares)
        torch._foreach_div_(spreads, [math.sqrt(1 - _SECOND**step) for step in steps])
        torch._foreach_add_(spreads, _EPS)
        moves = torch._foreach_lerp(gradients, means, _FIRST)  # Nesterov's: a step ahead
        torch._foreach_div_(moves, spreads)
        return steps, list(moves)

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state


def _projection(weight: Tensor, gradient: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """How much of a weight to take from its move, by channel, and the share of the decay that is left.

    Args:
        weight: (C, ...), as the others are.
        gradient: of the weight.
        move: of Adam.
    """
    rest = tuple(range(1, weight.ndim))
    pairs = ((weight, weight), (gradient, gradient), (weight, gradient), (weight, move))
    by_channel = [(one * other).sum(rest, keepdim=True) for one, other in pairs]
    whole = [sums.sum(0, keepdim=True) for sums in by_channel]
    channels_are, along_channels = _along(by_channel, weight[0].numel())
    whole_is, along_whole = _along(whole, weight.numel())
    along = torch.where(channels_are, along_channels, torch.where(whole_is, along_whole, 0))
    return along, weight.new_ones(()).masked_fill(channels_are | whole_is, _DECAY_LEFT)


def _along(sums: list[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Whether gradients are all nearly orthogonal to their weights, and how much of these is in their moves.

    Args:
        sums: of squared weights, squared gradients, weights times gradients and weights times moves.
        count: numbers that each is a sum of.
    """
    weight, gradient, product, moved = sums
    length = weight.sqrt()
    cosine = product.abs() / (length.clamp_min(_EPS) * gradient.sqrt().clamp_min(_EPS))
    return cosine.max() < _ORTHOGONAL / math.sqrt(count), moved / (length + _EPS).square()

"""AdamP against timm's, which is the authors' code."""

import pytest
import torch
from timm.optim.adamp import AdamP as TimmAdamP
from torch import Tensor, nn

from trainer.parts.adamp import AdamP, _projection


def weights() -> list[nn.Parameter]:
    """Of two convolutions, of a linear layer, and a bias."""
    torch.manual_seed(0)
    shapes = ((6, 4, 3, 3), (5, 2, 3, 3), (7, 9), (8,))
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]


def loss(parameters: list[nn.Parameter], step: int) -> Tensor:
    """Of weights whose channels' lengths mean nothing, of one whose own means nothing, and of two where they do."""
    draw = torch.Generator().manual_seed(1 + step)
    aims = [torch.randn(parameter.shape, dtype=torch.float64, generator=draw) for parameter in parameters]
    directions = parameters[0] / parameters[0].flatten(1).norm(dim=1)[:, None, None, None]
    found = [directions, parameters[1] / parameters[1].norm(), *parameters[2:]]
    pairs = list(zip(found, aims, strict=True))
    # The bias has a gradient in every other step.
    return torch.stack([(one - other).square().sum() for one, other in pairs[: 3 + step % 2]]).sum()


def test_weights_are_told_apart_by_whether_their_length_means_something() -> None:
    """By channel and as a whole their own part of the move is found, where it means nothing; elsewhere none is."""
    parameters = weights()
    loss(parameters, 0).backward()  # type: ignore[no-untyped-call]
    found = []
    for parameter in parameters[:3]:
        assert parameter.grad is not None
        along, decay_left = _projection(parameter.detach(), parameter.grad, torch.ones_like(parameter))
        found.append((len(set(along.flatten().tolist())), decay_left.item(), bool(along.any())))
    assert found == [(6, 0.1, True), (1, 0.1, True), (1, 1.0, False)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_the_authors_code(weight_decay: float) -> None:
    """Of all these weights, at two rates, with one that rests now and then."""
    mine, theirs = weights(), weights()
    groups = [[{"params": of[:2], "lr": 0.01}, {"params": of[2:], "lr": 0.1}] for of in (mine, theirs)]
    own = AdamP(groups[0], lr=0.01, weight_decay=weight_decay)
    timms = TimmAdamP(groups[1], lr=0.01, weight_decay=weight_decay, nesterov=True)  # type: ignore[no-untyped-call]
    for step in range(6):
        for optimizer, parameters in ((own, mine), (timms, theirs)):
            optimizer.zero_grad()
            loss(parameters, step).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)

"""What moves the weights: the optimiser and the schedule of its rate; and what is made of them."""

import copy
import math

import torch
from torch import Tensor, nn

from trainer.encoders import Encoder
from trainer.objective import Objective
from trainer.parts.adamp import AdamP
from trainer.parts.ema import MovingAverage
from trainer.recipe import Optimizer


def make_optimizer(objective: Objective, part: Optimizer) -> torch.optim.Optimizer:
    """The optimiser of an objective's parameters, as a recipe names it."""
    groups = objective.param_groups(part.lr, part.head_lr)
    if part.name == "adamp":
        return AdamP(groups, lr=part.lr, weight_decay=part.weight_decay)
    return torch.optim.AdamW(groups, lr=part.lr, weight_decay=part.weight_decay, fused=True)


class Average(nn.Module):
    """The moving average of an encoder's weights and statistics, from those after the first step.

    As `torch.optim.swa_utils.AveragedModel`, whose counter a step on a GPU would wait for.

    Attributes:
        module: the average.
    """

    n_averaged: Tensor

    def __init__(self, encoder: Encoder, decay: float):
        super().__init__()
        self.decay = decay
        self.module = copy.deepcopy(encoder)
        self.register_buffer("n_averaged", torch.tensor(0))
        self._following = MovingAverage((self.module, encoder))

    def update(self) -> None:
        """Move toward the encoder as it is now."""
        self._following.update(self.decay if self.n_averaged else 0)
        self.n_averaged += 1


class Kept:
    """What an encoder knew before it learned on, of which a share is kept in what it has learned since.

    Source:
        Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022 (WiSE-FT): weights between those before and
        after fine-tuning do better on what was not learned from than either. There people choose the share.
    """

    def __init__(self, encoder: Encoder, share: float):
        """Of the encoder as it is now; `share` is in [0, 1], of its weights and of BatchNorm's statistics."""
        self._before = copy.deepcopy(encoder)
        self.share = share

    def within(self, encoder: Encoder) -> Encoder:
        """An encoder between the one before and this one, which stays as it is."""
        between = copy.deepcopy(self._before)
        MovingAverage((between, encoder)).update(self.share)
        return between


def rate_share(name: str, done: float) -> float:
    """The share of its learning rate that a schedule leaves when so much of it is done, 0 to 1."""
    return (1 + math.cos(math.pi * done)) / 2 if name == "cosine" else 1.0


def running_statistics(objective: Objective) -> list[Tensor]:
    """What BatchNorm layers that are not frozen gather as they go.

    In training they normalise by the statistics of a process's own share of the batch, as in DistributedDataParallel.
    """
    norms = [m for m in objective.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    found = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
    return [statistic for statistic in found if statistic is not None]

"""Exponential moving averages of networks."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move a teacher a little toward its student, in place: `momentum * teacher + (1 - momentum) * student`.

    Args:
        teacher: of the same structure as the student; parameters and floating-point buffers (the running mean and
            variance of BatchNorm) are averaged, other buffers copied.
        student: unchanged.
        momentum: in [0, 1]; 0 copies the student.
    """
    averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
    current = student.state_dict()
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            averaged[0].append(value)
            averaged[1].append(current[name])
        else:
            value.copy_(current[name])
    if averaged[0]:
        get_ema_multi_avg_fn(momentum)(*averaged, None)  # type: ignore[no-untyped-call]

"""Exponential moving averages of networks."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """Teachers that follow their students.

    Args:
        pairs: (teacher, student) of the same structure: parameters and floating-point buffers (the running mean and
            variance of BatchNorm) of the teacher are averaged, other buffers copied; students stay unchanged. Modules
            may move to another device, but must not get other submodules.
    """

    def __init__(self, *pairs: tuple[nn.Module, nn.Module]):
        # The dictionaries in which modules hold their tensors: looking through whole networks for them takes a
        # millisecond and more, in each step, which a GPU does not wait for patiently.
        self._held: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]] = []
        for teacher, student in pairs:
            students = dict(student.named_modules())
            for name, module in teacher.named_modules():
                other = students[name]
                self._held += [(module._parameters, other._parameters), (module._buffers, other._buffers)]

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move the teachers a little, in place: `momentum * teacher + (1 - momentum) * student`.

        Args:
            momentum: in [0, 1]; 0 copies the students.
        """
        averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        copied: tuple[list[Tensor], list[Tensor]] = ([], [])
        for teacher, student in self._held:
            for name, value in teacher.items():
                current = student[name]
                if value is not None and current is not None:
                    of_kind = averaged if value.is_floating_point() else copied
                    of_kind[0].append(value)
                    of_kind[1].append(current)
        if averaged[0]:
            get_ema_multi_avg_fn(momentum)(*averaged, None)  # type: ignore[no-untyped-call]
        if copied[0]:
            torch._foreach_copy_(*copied)

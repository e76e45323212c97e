"""The processes that torchrun starts, each with its share of every batch; a process started alone is the whole.

All hold the same weights. Each embeds its share; what compares images with each other gets the embeddings of all
(`gather`), and gradients are averaged: the weights move as those of one process with the whole batch would.

DistributedError   the processes can't work together as they were started; the message says what to change
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from trainer.profiling import part

# While one process decodes or judges, the others wait, for hours where there is much. Waiting longer than need be
# costs nothing: torchrun ends them all when one dies.
_PATIENCE = timedelta(days=7)

T = TypeVar("T")


class DistributedError(RuntimeError):
    """The processes can't work together as they were started."""


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Work together with the other processes of a torchrun: over NCCL with a GPU each, or over gloo on CPUs.

    Args:
        device: what kind to compute on.

    Returns:
        The device of this process; `device` where it was not started by torchrun, or alone.

    Raises:
        DistributedError: there are more processes on this machine than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    own = _own_gpu() if device.type == "cuda" else device
    distributed.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=_PATIENCE)
    yield own
    # Not after an error: the others may be waiting for this process, and would never answer its goodbye.
    distributed.destroy_process_group()


def _own_gpu() -> torch.device:
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        processes = os.environ.get("LOCAL_WORLD_SIZE", number + 1)
        raise DistributedError(
            f"{processes} processes on this machine need as many GPUs, and torch sees {count}; "
            f"use torchrun --nproc-per-node {count}"
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def world_size() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that decodes, judges, writes and tells: the first, or the only one."""
    return rank() == 0


def from_main(make: Callable[[], T]) -> T:
    """What the main process makes, in all; the others make nothing and wait for it."""
    if world_size() == 1:
        return make()
    box: list[Any] = [make() if is_main() else None]
    distributed.broadcast_object_list(box, src=0)
    made: T = box[0]
    return made


def wait_for_main() -> None:
    """Wait until the main process has come to this call too."""
    from_main(lambda: None)


def from_all(value: T) -> list[T]:
    """The values of all processes, in order, in each."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def check_shares(sizes: Callable[[int], set[int]], batch_size: int) -> None:
    """Make sure that all processes can have as many images of each step.

    Args:
        sizes: from a `run.batch_size` to how many images steps have.
        batch_size: the run's.

    Raises:
        DistributedError: a step can't be shared equally; the message has a `run.batch_size` whose steps can.
    """
    uneven = sorted(size for size in sizes(batch_size) if size % world_size())
    if not uneven:
        return
    larger = range(batch_size + 1, batch_size * (1 + world_size()) + 1)
    even = next((size for size in larger if not any(images % world_size() for images in sizes(size))), None)
    remedy = f"set run.batch_size={even}, or start" if even else "start"
    raise DistributedError(
        f"a step has {uneven[0]} images, which {world_size()} processes can't share equally; {remedy} another number "
        f"of processes"
    )


def own_share(rows: Tensor) -> Tensor:
    """This process's part of the rows of a whole batch, of equal size in all where that divides their number."""
    return rows.tensor_split(world_size())[rank()]


def equal_share(count: int) -> Tensor:
    """This process's part of so many rows, (b,) int64, of one size in all, as `gather` needs it.

    The last ones repeat the last row, and are cut off again by `gather(...)[:count]`.
    """
    equal = -(-count // world_size())
    return own_share(torch.arange(equal * world_size()).clamp_max(count - 1))


def gather(rows: Tensor, views: int = 1) -> Tensor:
    """The rows of the whole batch, of every process's rows of its share; gradients flow back to all of them.

    Args:
        rows: (V * b, ...): V views, one after the other, of the b images of this process.
        views: V.

    Returns:
        (V * B, ...), in the order that one process with the whole batch of B images would have them.
    """
    if world_size() == 1:
        return rows
    with part("exchange"):
        gathered: Tensor = _Gather.apply(rows)
    return gathered.view(world_size(), views, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)


class _Gather(torch.autograd.Function):
    """(b, ...) of each process to (processes * b, ...), one process after the other."""

    @staticmethod
    def forward(_: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
        distributed.all_gather(list(gathered.chunk(world_size())), rows.contiguous())
        return gathered

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        # The sum of what each process's loss says about these rows. Averaging the weights' gradients afterwards is
        # then right for every loss: one of the whole batch in all processes, or each one's own part of it.
        gradient = gradient.contiguous().clone()
        distributed.all_reduce(gradient)
        return own_share(gradient)


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their mean over the processes, in place, in one exchange.

    For gradients, this is one exchange after the backward pass where DistributedDataParallel has several during it:
    it lays its exchanges out anew after the first step, so a resumed run would add in another order.
    """
    own = list(tensors)
    if world_size() == 1 or not own:
        return
    with part("exchange"):
        packed = torch.cat([tensor.flatten() for tensor in own])
        distributed.all_reduce(packed)
        _unpack(packed / world_size(), own)


@torch.no_grad()
def copy_main(module: nn.Module) -> None:
    """Give a module the main process's parameters and buffers, in place."""
    if world_size() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    # Not all of a state_dict: what a method adds to it for checkpoints is made there, and is not on the device.
    for tensor in (*module.parameters(), *module.buffers()):
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for tensors in by_type.values():
        packed = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.broadcast(packed, src=0)
        _unpack(packed, tensors)


def _unpack(packed: Tensor, tensors: list[Tensor]) -> None:
    for values, tensor in zip(torch.split(packed, [tensor.numel() for tensor in tensors]), tensors, strict=True):
        tensor.copy_(values.view(tensor.shape))

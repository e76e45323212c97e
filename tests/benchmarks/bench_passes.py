"""The passes of a training step with norms apart, in other precisions and compiled, against them as they are.

Run: python tests/benchmarks/bench_passes.py [images] [size]

The pretrained backbone of the default recipe sees a batch (12 images of 112 pixels, or so many and so large) three
times, as a student forward and backward and as a teacher forward. The ways take turns; on a CPU torch.compile needs a
C++ compiler. Prints what each takes, CPU seconds or, on a GPU, seconds, and how many times as fast as float32 it is;
what compiling took comes before, and what an image holds in memory for the gradients comes last.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.encoders import make_backbone
from trainer.folding import unfolded
from trainer.memory import keep_freed_memory
from trainer.recipe import load

ROUNDS = 5  # the first warms up


def main(count: int, size: int) -> None:
    """Print the seconds of each way, and their ratios."""
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    part = load("stml").encoder
    backbone = make_backbone(part.backbone, part.weights, size=size, freeze_bn=True, unit_length=True)
    backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(count, 3, size, size, device=device).to(memory_format=torch.channels_last)
    apart = unfolded(backbone)
    compiled = torch.compile(apart)
    print(f"{device.type}: compiling takes {seconds(lambda: passes(compiled, images, torch.float32)):.0f} s")
    ways = {
        "float32": lambda: passes(backbone, images, torch.float32),
        "norms apart": lambda: passes(apart, images, torch.float32),
        "bfloat16": lambda: passes(backbone, images, torch.bfloat16),
        "compiled": lambda: passes(compiled, images, torch.float32),
    }
    taken = [{name: seconds(way) for name, way in ways.items()} for _ in range(ROUNDS)][1:]
    found = {name: statistics.median(turn[name] for turn in taken) for name in ways}
    ratios = {name: statistics.median(turn["float32"] / turn[name] for turn in taken) for name in ways}
    for name in ways:
        print(f"{name:11} {found[name]:7.3f} s  {ratios[name]:5.2f} x as fast")
    held = {name: held_mib(network, images) for name, network in (("float32", backbone), ("norms apart", apart))}
    print(*(f"{name}: {mib:.1f} MiB an image" for name, mib in held.items()), sep="\n")
    print(json.dumps({"seconds": found, "ratio": ratios, "held_mib": held}))


def passes(network: Callable[[Tensor], Tensor], images: Tensor, dtype: torch.dtype) -> None:
    """The student's forward and backward pass and the teacher's forward pass."""
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        with torch.no_grad():
            network(images)
        features = network(images)
    features.square().mean().backward()  # type: ignore[no-untyped-call]


def held_mib(network: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """What a forward pass keeps of each image for the backward pass, weights included."""
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images)
    return sum(held.values()) / 2**20 / len(images)


def seconds(way: Callable[[], None]) -> float:
    """What it takes: on a CPU of processor time, as other programs may run beside it."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


if __name__ == "__main__":
    main(*(int(word) for word in (*sys.argv[1:], *("12", "112")[len(sys.argv) - 1 :])))

"""Page faults and CPU time of a training step on a CPU, with freed memory kept and without.

Run: python tests/benchmarks/bench_memory.py
"""

import json
import os
import resource
import statistics
import time
from multiprocessing.connection import Connection

import torch

from tests.benchmarks.turns import start, take_turns
from trainer.encoders import make_backbone
from trainer.memory import keep_freed_memory

BACKBONE, SIZE, IMAGES = "tf_efficientnet_lite0", 112, 64
TURNS = 6  # steps, after two that warm up: from the third on each step is as the others


def main() -> None:
    """Let a process that keeps its memory and one that does not take turns, and print both."""
    found = take_turns({"given back": start(steps, False), "kept": start(steps, True)}, 2 + TURNS)
    figures = {}
    for name, turns in found.items():
        seconds, faults = zip(*turns[2:], strict=True)
        figures[name] = {"cpu_s": statistics.median(seconds), "page_faults": statistics.median(faults)}
        print(f"{name}: {figures[name]['cpu_s']:.2f} CPU s, {figures[name]['page_faults']:,.0f} page faults a step")
    pairs = zip(found["kept"][2:], found["given back"][2:], strict=True)
    ratio = statistics.median(kept[0] / given_back[0] for kept, given_back in pairs)
    print(json.dumps({**figures, "time_ratio": ratio, "cores": os.cpu_count()}))


def steps(keep: bool, turns: Connection) -> None:
    """One forward and backward pass a turn: its CPU seconds, of all threads, and its page faults."""
    if keep:
        keep_freed_memory()
    backbone = make_backbone(BACKBONE, "none", size=SIZE)
    images = torch.rand(IMAGES, 3, SIZE, SIZE)
    for _ in range(2 + TURNS):
        turns.recv()
        started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        backbone(images).square().mean().backward()
        backbone.zero_grad()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        turns.send((time.process_time() - started, faults))


if __name__ == "__main__":
    main()

"""CPU time and memory of judging many embeddings: classes of 5 images as in SOP, and of 60 as in CUB.

Run: python tests/benchmarks/bench_evaluate.py [ROWS = 100000] [QUERIES = 0: each row against all others]

A million rows against a million are 2.6e14 operations, hours on a core: with QUERIES so many rows, drawn at random,
are searched among the rest instead. Each set is judged in a process of its own; the peak is what judging took beside
the embeddings. NMI and AMI need a k-means into as many clusters as there are classes: they are judged for the classes
of 60 where each row is a query.
"""

import json
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.benchmarks.turns import start, take_turns
from trainer.evaluate import retrieval_metrics

DIM, NOISE = 128, 1.6  # in lengths of a centre: neighbours are neither all right nor all wrong
OF_A_CLASS = {"SOP-like": 5, "CUB-like": 60}


def main() -> None:
    """Judge both sets and print CPU seconds, peak and R@1 of each."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    queries = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for name, images in OF_A_CLASS.items():
        (found,) = take_turns({name: start(judge, rows, images, queries)}, 1)[name]
        print(json.dumps({"set": name, "rows": rows, **found}))


def judge(rows: int, images: int, queries: int, turns: Connection) -> None:
    """Judge one set, once."""
    turns.recv()
    embeddings, labels = clustered(rows, images)
    is_query = torch.randperm(rows) < queries if queries else None
    retrieval_metrics(embeddings[:1000], torch.arange(1000) % 10)  # what first use takes is not judging's
    forget_peak()
    before, started = peak_mib(), time.process_time()
    clusters = images == OF_A_CLASS["CUB-like"] and not queries
    found = retrieval_metrics(embeddings, labels, is_query=is_query, clusters=clusters)
    seconds = time.process_time() - started
    own = embeddings.nbytes / 2**20
    memory = {"embeddings_mib": round(own), "peak_above_mib": round(peak_mib() - before)}
    turns.send({"cpu_s": round(seconds, 1), **memory, **found.to_dict()})


def clustered(rows: int, images: int) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) of unit length around the centre of their class, and the classes (N,), in any order."""
    torch.manual_seed(0)
    labels = torch.randperm(rows) // images
    embeddings = torch.randn(rows, DIM).mul_(NOISE)
    embeddings += torch.randn(rows // images + 1, DIM)[labels]
    return F.normalize(embeddings, dim=1, out=embeddings), labels


def forget_peak() -> None:
    """Let the process's peak begin anew at what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The most resident memory of the process since then."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()

"""What picked labels cover: the classes among them, and how many of the other images their nearest pick labels right.

Run: python tests/benchmarks/picks.py IMAGES --labels CSV --store STORE --model MODEL
     [--budgets 100 400] [--seeds 0 1 2] [--methods random k-center usl usl-t]

CSV has the split train, whose images are picked from. Nothing is learned: the model's embeddings stay as they are.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clients.cli.output import progress
from indexer.encoder import Encoder
from indexer.sources import open_collection
from indexer.store import Store
from tests.benchmarks.ladder import commit
from trainer.judging import embed_sources
from trainer.labels import read_labels
from trainer.parts.selection import select
from trainer.parts.usl_t import select_trained

Pick = Callable[[Tensor, int, int], Tensor]  # embeddings (N, D), budget and seed to rows


def main(argv: Sequence[str]) -> None:
    """Embed the images once, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder, or a table with a column path")
    parser.add_argument("--labels", type=Path, required=True, help="a table path,class_id,split")
    parser.add_argument("--store", type=Path, required=True, help="holds MODEL")
    parser.add_argument("--model", required=True, help="that sees the images")
    parser.add_argument("--budgets", type=int, nargs="+", default=[100, 400], metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--methods", nargs="+", choices=PICKS, default=[*PICKS])
    arguments = parser.parse_args(argv)
    embeddings, classes = pool(arguments.images, arguments.labels, Store(arguments.store).model(arguments.model))
    print("| labels | picked by | classes | 1-NN, rest |\n| --- | --- | --- | --- |")
    for budget in arguments.budgets:
        for method in arguments.methods:
            found = [
                covered(embeddings, classes, PICKS[method](embeddings, budget, seed)) for seed in arguments.seeds
            ]
            print(f"| {budget} | {method} | {' | '.join(map(spread, zip(*found, strict=True)))} |", flush=True)
    print(f"\n    python tests/benchmarks/picks.py {shlex.join(argv)}\n\ncommit: {commit()}")


def pool(images: Path, labels: Path, model: Path) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and classes (N,) of the images of the split train."""
    collection = open_collection(images)
    known = read_labels(labels, collection)
    sources = [source for source in collection.sources if known.split_of.get(source.item) == "train"]
    with progress() as report:
        embeddings, items, _ = embed_sources(sources, Encoder.open(model, device="cpu"), report)
    return embeddings, known.classes(items)


def covered(embeddings: Tensor, classes: Tensor, picked: Tensor) -> tuple[float, float]:
    """How many classes are among the picked rows, and the share of the others whose nearest pick has their class."""
    rest = torch.ones(len(classes), dtype=torch.bool)
    rest[picked] = False
    nearest = picked[(embeddings[rest] @ embeddings[picked].T).argmax(1)]
    right = (classes[nearest] == classes[rest]).float().mean().item()
    return float(len(set(classes[picked].tolist()))), 100 * right


def at_random(embeddings: Tensor, budget: int, seed: int) -> Tensor:
    """Any rows."""
    return torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(seed))[:budget]


def k_center(embeddings: Tensor, budget: int, seed: int) -> Tensor:
    """Each the row farthest from those before it (Gonzalez 1985), from a random one on."""
    picked = at_random(embeddings, 1, seed)
    nearest = embeddings @ embeddings[picked[0]]
    while len(picked) < budget:
        picked = torch.cat([picked, nearest.argmin()[None]])
        nearest = torch.maximum(nearest, embeddings @ embeddings[picked[-1]])
    return picked


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


PICKS: dict[str, Pick] = {
    "random": at_random,
    "k-center": k_center,
    "usl": lambda embeddings, budget, seed: select(embeddings, budget, seed=seed),
    "usl-t": lambda embeddings, budget, seed: select_trained(embeddings, budget, seed=seed),
}

if __name__ == "__main__":
    main(sys.argv[1:])

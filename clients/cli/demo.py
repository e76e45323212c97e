"""`kinsight demo`: the whole road once, in one command, with the parts that the other verbs use."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clients.cli.options import PATH, Device, device_option, json_option
from clients.cli.output import Progress, print_json, print_table, progress, warn, warn_skipped

if TYPE_CHECKING:
    from kinsight_client import Client

    from clients.cli.grid import Cell
    from indexer.sources import Source
    from indexer.store import Store
    from trainer.train_report import TrainReport

Scores = Mapping[str, tuple[str, float]]  # key to its name for people and its R@1

INDEX = "demo"
QUERIES = 200  # for recall and latency: p99 is then the second slowest
DRAWN_PER_CLASS, DRAWN_WITHOUT_LABELS, NEIGHBOURS = 2, 10, 8
TIE = 1e-6  # similarities closer than this are equal: float32 products differ by the order of their sums
PIXEL_SIDE = 32  # raw pixels are compared at this size
STOP_TIMEOUT_S = 30.0  # above the server's own limit for draining


@dataclass(frozen=True)
class Pictures:
    """What the demo runs on.

    Attributes:
        images: the collection to learn from.
        gallery: the collection to index and search.
        recipe: name of the recipe that suits it.
        labels: the labels table, where there is one.
        class_of: item of the gallery to class; empty without labels.
    """

    images: Path
    gallery: Path
    recipe: str
    labels: Path | None
    class_of: Mapping[str, str]


@dataclass(frozen=True)
class Searched:
    """What searching over gRPC showed; `served_recall_at_1` only with labels."""

    recall_at_10: float
    latency_p50_ms: float
    latency_p99_ms: float
    served_recall_at_1: float | None


@click.command()
@click.option("--images", type=PATH, help="Your own folder, instead of the digits; without labels there is no R@1.")
@click.option(
    "--out", type=PATH, default="demo", show_default=True, help="Gets the pictures, the store and the grid."
)
@device_option
@json_option
def demo(images: Path | None, out: Path, device: Device, as_json: bool) -> None:
    """Run the whole road, from training to searches over gRPC.

    Without --images on scikit-learn's 1,797 handwritten digits, each put into a small colour picture: learns on the
    digits 0-4 without their labels, and is judged on 5-9, which it never saw. Writes OUT/neighbours.png, queries with
    their neighbours.

    \b
    JSON keys: model, index, version, count, recall_at_10, latency_p50_ms, latency_p99_ms, grid, seconds;
    on the digits also pixels.recall_at_1, frozen.recall_at_1, trained.recall_at_1, served.recall_at_1
    """
    from indexer.build import build
    from indexer.sources import open_collection
    from indexer.store import Store

    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / "store")
    pictures = Pictures(images, images, "stml", None, {}) if images else _digits(out)
    with progress() as report:
        trained = _train(pictures, store, device, report)
    with progress() as report:
        built = build(INDEX, pictures.gallery, model=trained.model.id, store=store, device=device, progress=report)
    warn_skipped(built.skipped)
    sources = {source.item: source for source in open_collection(pictures.gallery).sources}
    left_out = {item for item, _ in built.skipped}
    items = [item for item in pictures.class_of or sources if item not in left_out]
    grid = out / "neighbours.png"
    with _server(store) as address:
        searched = _search(address, pictures, items, sources, grid)
    result = {
        "model": trained.model.id,
        "index": INDEX,
        "version": built.version,
        "count": built.count,
        "recall_at_10": searched.recall_at_10,
        "latency_p50_ms": searched.latency_p50_ms,
        "latency_p99_ms": searched.latency_p99_ms,
        "grid": str(grid),
        "seconds": round(time.monotonic() - began, 1),
    }
    scores = _scores(pictures, sources, trained, searched)
    if as_json:
        print_json(result | {name: {"recall_at_1": score} for name, (_, score) in scores.items()})
    else:
        _print(result, scores)


def _digits(out: Path) -> Pictures:
    from clients.cli.digits import write_digits
    from indexer.sources import read_table

    write_digits(out)
    unseen = out / "unseen.csv"
    table = read_table(unseen, ["path", "class_id"])
    classes = dict(zip(table["path"], table["class_id"], strict=True))
    return Pictures(out / "images", unseen, "digits", out / "labels.csv", classes)


def _train(pictures: Pictures, store: "Store", device: Device, report: Progress) -> "TrainReport":
    from trainer.recipe import load
    from trainer.run import train

    return train(
        pictures.images,
        models=store.models,
        runs=store.runs,
        recipe=load(pictures.recipe),
        labels=pictures.labels,
        device=device,
        progress=report,
        warn=warn,
    )


@contextmanager
def _server(store: "Store") -> Iterator[str]:
    """The address of `kinsight serve` in a process of its own, which ends with the block."""
    command = [
        sys.executable,
        "-P",  # what lies in this folder is not ours, whatever it is called
        "-m",
        "clients.cli",
        "serve",
        "--store",
        str(store.root),
        "--listen",
        "127.0.0.1:0",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  our own command
        assert process.stdout is not None  # noqa: S101  a pipe was asked for
        try:
            line = process.stdout.readline()
            if not line:
                raise click.ClickException(
                    f"the server did not start (exit code {process.wait()}); its reason is above"
                )
            yield str(json.loads(line)["listen"])
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def _search(
    address: str, pictures: Pictures, items: Sequence[str], sources: Mapping[str, "Source"], grid: Path
) -> Searched:
    """Search with images and items over gRPC, and draw some of the answers."""
    from kinsight_client import Client

    from clients.cli.grid import draw_grid

    sample = _spread(items, QUERIES)
    with Client(address) as client:
        p50, p99 = _latency_ms(client, [sources[item] for item in sample])
        recall = sum(_recall_at_10(client, item) for item in sample) / len(sample)
        served = _served_recall_at_1(client, pictures.class_of) if pictures.class_of else None
        draw_grid([_row(client, item, pictures.class_of, sources) for item in _drawn(pictures.class_of, items)], grid)
    return Searched(recall, p50, p99, served)


def _latency_ms(client: "Client", queries: Sequence["Source"]) -> tuple[float, float]:
    """The median and the 99th percentile of one caller's searches by image, in milliseconds."""
    client.search(image=queries[0].read())  # connects
    latencies = []
    for query in queries:
        image = query.read()
        began = time.perf_counter()
        client.search(image=image)
        latencies.append(1000 * (time.perf_counter() - began))
    latencies.sort()
    return latencies[len(latencies) // 2], latencies[int(0.99 * (len(latencies) - 1))]


def _recall_at_10(client: "Client", item: str) -> float:
    """The share of an item's ten nearest by exact search that the index finds, equal similarities being equal."""
    exact = client.search(item=item, exact=True).hits
    found = client.search(item=item).hits
    return sum(hit.similarity >= exact[-1].similarity - TIE for hit in found) / len(exact)


def _served_recall_at_1(client: "Client", class_of: Mapping[str, str]) -> float:
    """The share of items whose nearest other item has their class."""
    correct = 0
    for item, name in class_of.items():
        nearest = next(hit.item for hit in client.search(item=item, top_k=2).hits if hit.item != item)
        correct += class_of[nearest] == name
    return correct / len(class_of)


def _drawn(class_of: Mapping[str, str], items: Sequence[str]) -> list[str]:
    """The items whose neighbours are drawn: the first of each class, or some of all; nobody picked them."""
    if not class_of:
        return _spread(items, DRAWN_WITHOUT_LABELS)
    return [
        item
        for name in sorted(set(class_of.values()))
        for item in [item for item in items if class_of[item] == name][:DRAWN_PER_CLASS]
    ]


def _row(
    client: "Client", item: str, class_of: Mapping[str, str], sources: Mapping[str, "Source"]
) -> tuple["Cell", list["Cell"]]:
    from clients.cli.grid import Cell

    hits = client.search(item=item, top_k=NEIGHBOURS + 1).hits
    cells = [
        Cell(sources[hit.item], f"{hit.similarity:.3f}", class_of[hit.item] == class_of[item] if class_of else None)
        for hit in hits
        if hit.item != item
    ]
    return Cell(sources[item], "query"), cells[:NEIGHBOURS]


def _spread(items: Sequence[str], count: int) -> list[str]:
    """At most so many items, evenly from the sequence."""
    return list(items[:: max(1, -(-len(items) // count))])


def _scores(
    pictures: Pictures, sources: Mapping[str, "Source"], trained: "TrainReport", searched: Searched
) -> Scores:
    if searched.served_recall_at_1 is None or trained.frozen is None or trained.trained is None:
        return {}
    return {
        "pixels": ("raw pixels", _pixels_recall_at_1(pictures.class_of, sources)),
        "frozen": ("untrained encoder", trained.frozen.recall_at_1),
        "trained": ("learned metric", trained.trained.recall_at_1),
        "served": ("learned metric, searched over gRPC", searched.served_recall_at_1),
    }


def _pixels_recall_at_1(class_of: Mapping[str, str], sources: Mapping[str, "Source"]) -> float:
    """R@1 of the pictures themselves, by the cosine of their pixels less their mean."""
    import numpy as np

    from indexer.pixels import PixelSpec, decode

    spec = PixelSpec(size=PIXEL_SIDE)
    pixels = np.stack([decode(sources[item].read(), spec).ravel() for item in class_of]).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    similarity = pixels @ pixels.T
    np.fill_diagonal(similarity, -np.inf)
    classes = np.array(list(class_of.values()))
    return float(np.mean(classes[similarity.argmax(axis=1)] == classes))


def _print(result: Mapping[str, object], scores: Scores) -> None:
    if scores:
        print_table(["R@1 on digits never seen in training", ""], [(name, f"{r:.3f}") for name, r in scores.values()])
    print_table(
        ["index", ""],
        [
            ("items", f"{result['count']:,}"),
            ("recall@10 against exact search", f"{result['recall_at_10']:.3f}"),
            ("search by image over gRPC, p50", f"{result['latency_p50_ms']:.1f} ms"),
            ("search by image over gRPC, p99", f"{result['latency_p99_ms']:.1f} ms"),
        ],
    )
    click.echo(f"queries and their neighbours: {result['grid']}   ({result['seconds']} s)")

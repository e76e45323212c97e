"""What an index costs at 10,000, 100,000 and 1,000,000 rows: to build, to keep, to search and to open again.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_scale.py [rows …]

Rows of 128 dimensions in clusters of 100. Each step runs in a process of its own; times are CPU seconds of all its
threads, as other programs on the machine do not count in them, and wall seconds too where a restart is meant.

- build: training, adding, measuring and saving, against bare FAISS that trains on as many rows with the same factory
  string and adds them all, from the same mapped file; the most memory of its own against what the plan said.
- search: single queries at the operating point that the build chose.
- restart: from a new process to its first answer, every file of the version verified, beside a catalogue in which
  each item has a payload.

Prints one JSON line for each size; a million rows take about 5 CPU minutes and 2 GB of disk.
"""

import dataclasses
import json
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

STARTED = time.perf_counter()  # before what a restart has to load

import faiss  # noqa: E402

from indexer import catalog_rows, manifest, plan  # noqa: E402
from indexer.catalog import CATALOG, Catalog  # noqa: E402
from indexer.catalog_file import CatalogFile  # noqa: E402
from indexer.catalog_rows import LIVE, Row  # noqa: E402
from indexer.codes import Clock, index_rows  # noqa: E402
from indexer.items import ItemWriter  # noqa: E402
from indexer.live import LiveIndex  # noqa: E402
from indexer.manifest import VersionManifest  # noqa: E402
from indexer.records import payload_text  # noqa: E402
from indexer.rows import Embeddings, RowWriter, map_rows, take  # noqa: E402
from indexer.version import ITEMS, ROWS, open_version, version_dir  # noqa: E402

DIM, PER_CLUSTER, SPREAD, QUERIES, TOP_K = 128, 100, 0.6, 2_000, 10
SIZES = (10_000, 100_000, 1_000_000)
CHUNK = 16_384

Figures = dict[str, Any]
Result = TypeVar("Result")


def main(sizes: tuple[int, ...]) -> None:
    """Measure each size and print its line."""
    for count in sizes:
        with tempfile.TemporaryDirectory() as root:
            staging = Path(root) / "staging"
            alone(write_rows, staging, count)
            bare = alone(build_bare, staging, count)
            built = alone(build, staging, count)
            figures = {"rows": count, **bare, **built, "build_ratio": built["build_s"] / bare["bare_s"]}
            print(json.dumps(figures), flush=True)
            figures = {"rows": count, **alone(search, staging.parent, count)}
            print(json.dumps(figures), flush=True)
            alone(write_catalog, staging.parent, count)
            print(json.dumps({"rows": count, **alone(restart, staging.parent)}), flush=True)


def alone(step: Callable[..., Result], *arguments: object) -> Result:
    """The result of a step in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(step, *arguments).result()


def write_rows(staging: Path, count: int) -> None:
    """Write the rows and, after them in a file of their own, the queries, and the items."""
    staging.mkdir()
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((count // PER_CLUSTER, DIM), np.float32)
    with RowWriter(staging / ROWS, DIM) as rows, ItemWriter(staging / ITEMS) as items:
        for first in range(0, count, CHUNK):
            rows.append(around(centres, min(CHUNK, count - first), rng))
        rows.finish()
        for row in range(count):
            items.add(row, f"image {row:09}.jpg", Path(f"/images/{row:09}.jpg"), "0" * 64)
        items.commit()
    np.save(staging.parent / "queries.npy", around(centres, QUERIES, rng))


def around(centres: Embeddings, count: int, rng: np.random.Generator) -> Embeddings:
    """(count, D) rows around the centres, unit length."""
    rows = centres[rng.integers(0, len(centres), count)] + SPREAD * rng.standard_normal((count, DIM), np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def build_bare(staging: Path, count: int) -> Figures:
    """CPU seconds of FAISS alone."""
    chosen, rows = plan.plan(count, DIM), map_rows(staging / ROWS, count, DIM)
    started = time.process_time()
    index = faiss.index_factory(DIM, chosen.factory, faiss.METRIC_INNER_PRODUCT)
    index.train(take(rows, slice(0, chosen.train_rows)))
    trained = time.process_time()
    for first in range(0, count, CHUNK):
        index.add(take(rows, slice(first, first + CHUNK)))
    return {"bare_train_s": trained - started, "bare_s": time.process_time() - started}


def build(staging: Path, count: int) -> Figures:
    """CPU seconds and memory of the index stage of a build; publishes the version."""
    started, clock = time.process_time(), Clock()
    with most_memory() as memory:
        indexed = index_rows(count, DIM, None, "cpu", staging, clock, lambda *_: None)
    build_s = time.process_time() - started
    chosen = indexed.plan
    version = VersionManifest(
        index="scale",
        version=1,
        model="model",
        dim=DIM,
        count=count,
        plan=dataclasses.asdict(chosen),
        skipped=0,
        recall=dataclasses.asdict(indexed.recall),
        build={},
        software={},
    )
    started = time.process_time()
    target = manifest.publish(staging, version_dir(staging.parent, 1), version)
    sizes = {path.name: path.stat().st_size / count for path in target.iterdir()}
    return {
        "factory": chosen.factory,
        "point": [chosen.nprobe, chosen.k_factor],
        "measured": [(point.nprobe, point.k_factor, point.recall_at_10) for point in chosen.measured],
        "recall_at_10": indexed.recall.recall_at_10,
        "build_s": build_s,
        "predicted_s": chosen.build_cpu_s,
        "publish_s": time.process_time() - started,
        "wall_s": clock.seconds,
        "peak_bytes": memory[0],
        "memory_ratio": memory[0] / chosen.peak_build_bytes,
        "serving_bytes_per_item": chosen.serving_bytes / count,
        "disk_bytes_per_item": sizes,
    }


@contextmanager
def most_memory() -> Iterator[list[int]]:
    """The most bytes of its own that the process got during the block; mapped files do not count."""
    before, found, stop = own_bytes(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            found[0] = max(found[0], own_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()


def own_bytes() -> int:
    """Anonymous resident bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def search(index_dir: Path, count: int) -> Figures:
    """Single queries: how many a CPU second, and the 99th percentile."""
    version, queries = open_version(version_dir(index_dir, 1)), np.load(index_dir / "queries.npy")
    took_s = []
    for place in range(len(queries)):
        started = time.thread_time()
        version.search(queries[place : place + 1], TOP_K)
        took_s.append(time.thread_time() - started)
    warm = took_s[QUERIES // 2 :]
    return {"queries_per_cpu_s": 1 / np.mean(warm), "p99_ms": float(np.percentile(warm, 99)) * 1e3}


def write_catalog(index_dir: Path, count: int) -> None:
    """A catalogue of all items, each with a payload."""
    file = CatalogFile(index_dir / CATALOG)
    payload = payload_text({"species": "wren", "year": 2024, "note": "x" * 200})
    with file.write() as connection:
        for row in range(count):
            item, source = f"image {row:09}.jpg", f"/images/{row:09}.jpg".encode()
            catalog_rows.put(connection, Row(item, row + 1, LIVE, 1, 1, payload, source, "0" * 64))
        catalog_rows.count(connection, count)
    file.close()


def restart(index_dir: Path) -> Figures:
    """Seconds from the start of this process to the first answer."""
    imported = time.process_time()
    version = open_version(version_dir(index_dir, 1))
    opened = time.process_time()
    LiveIndex(version, Catalog(index_dir)).snapshot.search(version.embeddings(np.array([0])), TOP_K)
    cpu_s, wall_s = time.process_time(), time.perf_counter() - STARTED
    return {
        "restart_cpu_s": cpu_s,
        "import_cpu_s": imported,
        "open_cpu_s": opened - imported,
        "catalog_and_answer_cpu_s": cpu_s - opened,
        "restart_wall_s": wall_s,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or SIZES)

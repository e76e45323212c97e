"""What the figures in indexer/plan.py, and those of the rotation in indexer/ivfpq.py, were measured with.

Run: python tests/benchmarks/bench_plan.py
"""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from indexer import evaluate, ivfpq
from indexer.ivfpq import SMALL_QUERIES, Index
from indexer.plan import FLAT_BELOW, MIN_PER_LIST, TRAIN_PER_LIST, Plan, plan
from indexer.rows import Embeddings

COUNT, DIM, QUERIES, TOP_K = 100_000, 128, 1_000, 10
POINTS = ((16, 10), (32, 20), (64, 40), (128, 100), (128, 200))  # nprobe and k_factor, in the order of their cost
DECAY = 0.8  # the standard deviation along the i-th axis is proportional to 1 / i^0.8

Figures = dict[str, str | int | float]


def main() -> None:
    """Print each table as JSON lines."""
    for measured in (flat_or_ivfpq, operating_points, training_rows, training_rounds, rotations, row_types):
        for figures in measured():
            print(json.dumps({"table": measured.__name__, **figures}), flush=True)


def flat_or_ivfpq() -> Iterator[Figures]:
    """Single queries a second of one thread, at, above and far above `FLAT_BELOW` rows."""
    nprobe, k_factor = POINTS[1]
    for dim in (128, 512):
        for count in (FLAT_BELOW, 2 * FLAT_BELOW, 4 * FLAT_BELOW):
            rows = unit(np.random.default_rng(0).standard_normal((count, dim)))
            index = make_index(rows, ivf_plan(dim, nlist=64, train_rows=min(count, 64 * 64)))
            single = np.split(rows[:300], 300)
            flat = queries_per_s(partial(index.search_exact, k=TOP_K), single)
            ivfpq = queries_per_s(partial(index.search, k=TOP_K, nprobe=nprobe, k_factor=k_factor), single)
            yield {"count": count, "dim": dim, "flat_per_s": round(flat), "ivfpq_per_s": round(ivfpq)}


def operating_points() -> Iterator[Figures]:
    """Recall@10 and queries a second of one thread, in batches of 16, at each point that a build measures."""
    rows, queries = decaying()
    chosen = plan(COUNT, DIM)
    index, held = make_index(rows, chosen), np.arange(COUNT - QUERIES, COUNT)
    batches = np.array_split(queries, len(queries) // SMALL_QUERIES + 1)
    for point in evaluate.measure(index, rows[held], held, chosen):
        search = partial(index.search, k=TOP_K, nprobe=point.nprobe, k_factor=point.k_factor)
        recall = recall_at_10(index, queries, point.nprobe, point.k_factor)
        yield {
            "nprobe": point.nprobe,
            "k_factor": point.k_factor,
            "recall_at_10": recall,
            "queries_per_s": round(queries_per_s(search, batches)),
        }


def training_rows() -> Iterator[Figures]:
    """Recall@10 at the first point of `POINTS`, by training rows per list."""
    rows, queries = decaying()
    nlist = plan(COUNT, DIM).nlist
    for per_list in (MIN_PER_LIST, TRAIN_PER_LIST, 96):
        index = make_index(rows, ivf_plan(DIM, nlist=nlist, train_rows=per_list * nlist))
        yield {"train_per_list": per_list, "recall_at_10": recall_at_10(index, queries, *POINTS[0])}


def training_rounds() -> Iterator[Figures]:
    """Recall@10 at the first three points of `POINTS`, and CPU seconds of training, by rounds of the k-means."""
    rows, queries = decaying()
    chosen = plan(COUNT, DIM)
    exact = faiss.IndexFlatIP(DIM)
    exact.add(rows)
    for rounds in (10, 6, 4):
        started = time.process_time()
        codes = ivfpq.train(chosen, rows[: chosen.train_rows], use_gpu=False, rounds=rounds)
        train_s = time.process_time() - started
        ivfpq.add(codes, rows, lambda done: None)
        recalls = [recall_at_10(Index(exact, codes), queries, *point) for point in POINTS[:3]]
        yield {"rounds": rounds, "train_cpu_s": round(train_s, 2), "recalls_at_10": str(recalls)}


def rotations() -> Iterator[Figures]:
    """Recall@10 at the third point of `POINTS`, with and without the rotation."""
    rows, queries = decaying()
    chosen = plan(COUNT, DIM)
    for name, rotation in {"none": identity(DIM), "balancing": None}.items():
        index = make_index(rows, chosen, rotation)
        yield {"rotation": name, "recall_at_10": recall_at_10(index, queries, *POINTS[2])}


def row_types() -> Iterator[Figures]:
    """Recall@10 at the last point of `POINTS`, and single queries a second, by the type of the full rows."""
    rows, queries = decaying()
    index = make_index(rows, plan(COUNT, DIM))
    half = faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    half.train(rows)
    half.add(rows)
    truth = index.search_exact(queries, TOP_K)[1]
    for name, refining, bytes_each in (("float32", index, 4 * DIM), ("float16", Index(half, index.codes), 2 * DIM)):
        search = partial(refining.search, k=TOP_K, nprobe=POINTS[-1][0], k_factor=POINTS[-1][1])
        found = search(queries)[1]
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)])
        speed = queries_per_s(search, np.split(queries[:200], 200))
        yield {
            "rows": name,
            "row_bytes": bytes_each,
            "recall_at_10": round(float(recall), 4),
            "queries_per_s": round(speed),
        }


def unit(rows: npt.NDArray[np.float64]) -> Embeddings:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def decaying() -> tuple[Embeddings, Embeddings]:
    """Gaussian rows and queries with few strong axes, the first ones, as where a head starts at principal axes."""
    deviations = np.arange(1, DIM + 1) ** -DECAY
    together = unit(np.random.default_rng(0).standard_normal((COUNT + QUERIES, DIM)) * deviations)
    return together[:COUNT], together[COUNT:]


def ivf_plan(dim: int, *, nlist: int, train_rows: int) -> Plan:
    """A plan that `plan` would not choose."""
    return Plan(
        kind="ivfpq",
        factory=f"IVF{nlist},PQ{dim // 2}x4fs",
        nlist=nlist,
        nprobe=1,
        k_factor=1,
        train_rows=train_rows,
        reason="to compare",
        serving_bytes=0,
        peak_build_bytes=0,
        listing_bytes=0,
        build_cpu_s=0.0,
    )


def make_index(rows: Embeddings, chosen: Plan, rotation: Any = None) -> Index:
    """An index of the rows, as the indexer makes it, or with another rotation than its own."""
    sample = rows[: chosen.train_rows]
    if rotation is None:
        codes = ivfpq.train(chosen, sample, use_gpu=False)
    else:
        lists = faiss.index_factory(rows.shape[1], chosen.factory, faiss.METRIC_INNER_PRODUCT)
        lists.train(rotation.apply(sample))
        codes = faiss.IndexPreTransform(rotation, lists)
    ivfpq.add(codes, rows, lambda done: None)
    exact = faiss.IndexFlatIP(rows.shape[1])
    exact.add(rows)
    return Index(exact, codes)


def identity(dim: int) -> Any:
    """The rotation that turns nothing."""
    rotation = faiss.LinearTransform(dim, dim, False)
    faiss.copy_array_to_vector(np.eye(dim, dtype=np.float32).ravel(), rotation.A)
    rotation.is_trained = True
    return rotation


def queries_per_s(search: Callable[[Embeddings], object], batches: list[Embeddings]) -> float:
    """The best of three rounds, by the process's CPU time: what else the machine does counts little."""
    rounds = []
    for _ in range(3):
        started = time.process_time()
        for batch in batches:
            search(batch)
        rounds.append(time.process_time() - started)
    return sum(map(len, batches)) / min(rounds)


def recall_at_10(index: Index, queries: Embeddings, nprobe: int, k_factor: int) -> float:
    """The share of the true ten nearest rows that are among the ten found."""
    truth, found = index.search_exact(queries, TOP_K)[1], index.search(queries, TOP_K, nprobe, k_factor)[1]
    shares = [len(np.intersect1d(a, b)) / TOP_K for a, b in zip(truth, found, strict=True)]
    return round(float(np.mean(shares)), 3)


if __name__ == "__main__":
    main()

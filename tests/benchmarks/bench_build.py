"""What the index stage of a build costs against bare FAISS doing the same: train on as many rows, add, encode.

Run: python tests/benchmarks/bench_build.py
"""

import json
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from indexer import evaluate, ivfpq
from indexer.plan import TARGET_RECALL, Plan, held_out, plan
from indexer.rows import RowWriter, map_rows, take

COUNT, DIM = 100_000, 128


def _clustered() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1_000, DIM))
    rows = centres[rng.integers(0, 1_000, COUNT)] + 0.5 * rng.standard_normal((COUNT, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def _bare(rows: np.ndarray, chosen: Plan) -> float:
    start = time.process_time()
    index = faiss.index_factory(DIM, chosen.factory, faiss.METRIC_INNER_PRODUCT)
    index.train(rows[: chosen.train_rows])
    index.add(rows)
    return time.process_time() - start


def _ours(rows: np.ndarray, folder: Path) -> tuple[float, float]:
    start = time.process_time()
    with RowWriter(folder / "rows.faiss", DIM) as writer:
        writer.append(rows)
        writer.finish()
    chosen, mapped = plan(COUNT, DIM), map_rows(folder / "rows.faiss", COUNT, DIM)
    held = np.arange(held_out(COUNT))
    sample = take(mapped, slice(len(held), len(held) + chosen.train_rows))
    codes = ivfpq.train(chosen, sample, use_gpu=False)
    ivfpq.add(codes, mapped, lambda done: None)
    index = ivfpq.Index(ivfpq.load(folder / "rows.faiss", mapped=True), codes)
    point = evaluate.choose(evaluate.measure(index, take(mapped, held), held, chosen), TARGET_RECALL)
    ivfpq.save(codes, folder / "index.faiss")
    return time.process_time() - start, point.recall.recall_at_10


def main() -> None:
    """Measure both in turns and print the ratio."""
    rows = _clustered()
    # CPU seconds of all threads, the better of two turns each: other programs on the machine do not decide.
    with tempfile.TemporaryDirectory() as folder:
        turns = [(_bare(rows, plan(COUNT, DIM)), _ours(rows, Path(folder))) for _ in range(2)]
    bare_s, (ours_s, recall) = min(bare for bare, _ in turns), min(ours for _, ours in turns)
    print(
        f"{COUNT:,} x {DIM}: bare FAISS {bare_s:.2f} CPU s; with rows, rotation, recall and save {ours_s:.2f} CPU s"
    )
    print(json.dumps({"bare_s": bare_s, "build_s": ours_s, "ratio": ours_s / bare_s, "recall_at_10": recall}))


if __name__ == "__main__":
    main()

"""From finished rows to an index: train, add, and measure what it finds at each operating point."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexer import evaluate, ivfpq, plan
from indexer.embedding import Progress
from indexer.encoder import Device
from indexer.evaluate import OperatingPoint, Recall
from indexer.ivfpq import Rows
from indexer.plan import TARGET_RECALL, MeasuredPoint, Plan
from indexer.rows import Embeddings, map_rows, take
from indexer.version import CODES, ROWS

SEED = 0  # of the samples that train the index and measure its recall


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as this stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


@dataclass(frozen=True)
class Indexed:
    """How the rows of a version are indexed, and the recall that this has.

    Attributes:
        plan: with the operating point that was chosen.
        index: as searched; the codes of an `ivfpq` one are saved too.
        recall: at that operating point.
        warnings: what did not go as it could have.
    """

    plan: Plan
    index: ivfpq.Index
    recall: Recall
    warnings: tuple[str, ...]


def shuffled_rows(count: int) -> Rows:
    """The rows in the order that is always the same for a count: first those that only measure recall."""
    return np.random.default_rng(SEED).permutation(count)


def index_rows(
    count: int,
    dim: int,
    budget: int | None,
    device: Device,
    staging: Path,
    clock: Clock,
    progress: Progress,
    target_recall: float = TARGET_RECALL,
) -> Indexed:
    """Index the finished `rows.faiss` of a staging directory, for searches of a recall.

    Raises:
        BudgetTooSmall: no plan fits.
        OSError: the disk is full or fails.
    """
    chosen = plan.plan(count, dim, memory_budget_bytes=budget, target_recall=target_recall)
    if chosen.kind == "flat":
        return Indexed(chosen, ivfpq.Index(ivfpq.load(staging / ROWS, mapped=True), None), evaluate.EXACT, ())
    rows = map_rows(staging / ROWS, count, dim)
    shuffled = shuffled_rows(count)
    held = np.sort(shuffled[: plan.held_out(count)])
    sample = take(rows, np.sort(shuffled[len(held) :][: chosen.train_rows]))
    with clock.stage("train"):
        progress("train", 0, 1)
        codes, warnings = _train(chosen, sample, device)
        progress("train", 1, 1)
    with clock.stage("add"):
        ivfpq.add(codes, rows, lambda done: progress("add", done, count))
    with clock.stage("measure"):
        progress("measure", 0, 1)
        index = ivfpq.Index(ivfpq.load(staging / ROWS, mapped=True), codes)
        points = evaluate.measure(index, take(rows, held), held, chosen)
        progress("measure", 1, 1)
    ivfpq.save(codes, staging / CODES)
    point = evaluate.choose(points, target_recall)
    if point.recall.recall_at_10 < target_recall:
        warnings += (_low_recall(point, target_recall),)
    measured = tuple(MeasuredPoint(one.nprobe, one.k_factor, one.recall.recall_at_10) for one in points)
    if chosen.train_rows < plan.TRAIN_PER_LIST * chosen.nlist:
        warnings += (_few_to_train(chosen),)
    settled = dataclasses.replace(chosen, nprobe=point.nprobe, k_factor=point.k_factor, measured=measured)
    return Indexed(settled, index, point.recall, warnings)


def _low_recall(point: OperatingPoint, target_recall: float) -> str:
    return (
        f"recall@10 is {point.recall.recall_at_10:.3f}, below {target_recall}, at the most thorough setting "
        f"tried (nprobe {point.nprobe}, k_factor {point.k_factor}); an exact search finds the rest"
    )


def _few_to_train(chosen: Plan) -> str:
    return (
        f"the {chosen.nlist:,} lists were trained on {chosen.train_rows / chosen.nlist:.0f} rows each, not "
        f"{plan.TRAIN_PER_LIST}: there were no more, or no memory for more; the measured recall is what this gives"
    )


def _train(chosen: Plan, sample: Embeddings, device: Device) -> tuple[Any, tuple[str, ...]]:
    if device == "cpu" or not ivfpq.gpu_count():
        return ivfpq.train(chosen, sample, use_gpu=False), ()
    try:
        return ivfpq.train(chosen, sample, use_gpu=True), ()
    except RuntimeError as error:  # FAISS's only exception: no memory left on the device, a driver that fails
        return ivfpq.train(chosen, sample, use_gpu=False), (
            f"FAISS could not train on the GPU, the CPU did: {error}",
        )

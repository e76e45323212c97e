"""From the size of a collection to how it is indexed, and what that costs in memory, before anything starts.

BudgetTooSmall   no plan fits the memory budget; the message says what would
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

# Below this many rows comparing with every one is as fast as an index, finds everything, and needs no training.
# Single queries per CPU second of one thread, flat / ivfpq (python tests/benchmarks/bench_plan.py):
#     rows       D 128              D 512
#     4,000    25,000 / 18,900    6,100 / 7,500
#     8,000    11,900 / 15,500    3,100 / 7,700
#    16,000     8,600 / 13,200
FLAT_BELOW = 4_000
TARGET_RECALL = 0.99  # recall@10 of searches that name none, in an index that was given none
HELD_OUT = 1_000  # rows that only measure recall; their 95 % interval at recall 0.99 is then 0.012 wide
# Training rows per list, of which FAISS asks for 39 to 256. On 100,000 rows at nprobe 16 and k_factor 10 recall@10
# is 0.746 with 39, 0.782 with 64 and 0.763 with 96 (python tests/benchmarks/bench_plan.py).
TRAIN_PER_LIST = 64
MIN_PER_LIST = 39
# Rounds of the k-means of the lists, which is most of a build; FAISS does 10. On the same rows recall@10 at the first
# three operating points is 0.782, 0.892 and 0.951 with 10, 0.782, 0.893 and 0.951 with 6, and 0.777, 0.892 and 0.951
# with 4 (python tests/benchmarks/bench_plan.py, table `training_rounds`).
TRAIN_ROUNDS = 6

# How thoroughly a search can go: lists that it scans, and candidates for each neighbour that it compares in full
# precision. A build begins with the least of both and goes on with more of whichever finds more, because collections
# differ in what they lack. 100,000 rows of 128 dimensions, few of them strong, need candidates: recall@10 is 0.782
# at (16, 10), 0.907 at (16, 40), 0.977 at (32, 100) and 0.995 at (64, 200), at 18,600 to 2,700 queries per CPU second
# of one thread (python tests/benchmarks/bench_plan.py). Five million in clusters need lists: 0.934 at (16, 10), no
# more at (16, 200), and 0.992 at (256, 10) (python tests/benchmarks/bench_scale.py 5000000).
NPROBES = (16, 32, 64, 128, 256)
K_FACTORS = (10, 20, 40, 100, 200)
ADD_CHUNK = 16_384  # rows encoded at a time

# CPU seconds of one thread (AMD EPYC, AVX-512), fitted to what python tests/benchmarks/bench_scale.py measured.
# Rows of 128 dimensions, predicted / measured beside other programs: 10,000 0.4 / 0.6 s, 100,000 2.8 / 3.6 s,
# 1,000,000 45 / 46 s.
_TRAIN_S, _TRAIN_PRODUCT_S = 0.35, 1.6e-10  # of training, and for each product of a row's value and a centroid's
_ADD_ROW_S, _ADD_PRODUCT_S = 2.3e-6, 3.0e-11
_MEASURE_PRODUCT_S = 3.6e-11  # of held-out rows with all rows

_FLOAT_BYTES, _ID_BYTES = 4, 8
# Of each item that a build lists, the most that was measured: 200 where the catalogue has only an embedding of it,
# 250 where a table names it, 490 where the catalogue has path and hash.
_LISTED_BYTES = 500
_SCAN_BLOCK = 32  # rows; fast-scan pads each list to a multiple
# Training holds the sample, its rotated copy, and k-means' or PQ's copy of it, and room that BLAS and OpenMP keep.
_TRAIN_COPIES = 3
_TRAIN_ROOM_BYTES = 32 * 2**20


class BudgetTooSmall(ValueError):
    """No plan for so many rows of so many dimensions fits the memory budget."""


@dataclass(frozen=True)
class MeasuredPoint:
    """What an operating point found of the true neighbours when the index was built."""

    nprobe: int
    k_factor: int
    recall_at_10: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a collection is indexed.

    Attributes:
        kind: `flat` compares with every row; `ivfpq` scans the codes of the nearest lists and refines from the rows.
        factory: FAISS's factory string; for `ivfpq`, of what comes after the rotation.
        nlist: inverted lists; 0 for flat.
        nprobe: lists that a search scans; 0 for flat.
        k_factor: candidates per neighbour that are compared in full precision; 1 for flat.
        train_rows: rows that train it; 0 for flat.
        reason: why this one, for a person.
        serving_bytes: memory that a search needs at hand: codes, ids and centroids, or all rows for flat. The
            full-precision rows of `ivfpq` are mapped from the disk and not counted.
        peak_build_bytes: memory that building takes above the encoder's own, and above the list of the items.
        listing_bytes: memory of that list, which a build holds from its beginning to its end.
        build_cpu_s: CPU seconds of one thread to train, add and measure; embedding images is not in it. Predicted.
        target_recall: recall@10 that a search has which names none, if any measured operating point has it.
        measured: operating points in the order of their cost, from which a search takes the cheapest that has the
            recall it wants; empty before the build has measured them, and for flat.
    """

    kind: Literal["flat", "ivfpq"]
    factory: str
    nlist: int
    nprobe: int
    k_factor: int
    train_rows: int
    reason: str
    serving_bytes: int
    peak_build_bytes: int
    listing_bytes: int
    build_cpu_s: float
    target_recall: float = TARGET_RECALL
    measured: tuple[MeasuredPoint, ...] = ()


def plan(
    count: int, dim: int, *, memory_budget_bytes: int | None = None, target_recall: float = TARGET_RECALL
) -> Plan:
    """Plan the index of `count` rows of `dim` dimensions.

    Args:
        count: rows, at least 1.
        dim: D.
        memory_budget_bytes: for serving and for building; None for no limit.
        target_recall: of searches that name none, above 0 and at most 1. The build measures what reaches it.

    Raises:
        BudgetTooSmall: nothing fits the budget, seen before anything is decoded.
    """
    if count < 1 or dim < 1:
        raise ValueError(f"count is {count} and dim {dim}; both must be at least 1")
    if not 0 < target_recall <= 1:
        raise ValueError(f"target_recall is {target_recall}; it must be above 0 and at most 1")
    if count < FLAT_BELOW:
        chosen = _flat(count, dim, f"{count:,} rows: below {FLAT_BELOW:,}, comparing with every row is as fast")
    elif dim % 2:
        chosen = _flat(count, dim, f"dimension {dim} is odd, which 2-dimensional product quantisation can't split")
    else:
        chosen = _ivfpq(count, dim, memory_budget_bytes)
    needed = max(chosen.serving_bytes, chosen.peak_build_bytes + chosen.listing_bytes)
    if memory_budget_bytes is not None and needed > memory_budget_bytes:
        raise BudgetTooSmall(
            f"{count:,} rows of dimension {dim} need {needed:,} bytes of memory ({chosen.serving_bytes:,} to serve; "
            f"to build, {chosen.peak_build_bytes:,} and {chosen.listing_bytes:,} for the list of the items, in "
            f"{chosen.build_cpu_s:,.0f} CPU seconds); the budget is {memory_budget_bytes:,}: raise it, index fewer "
            "images, or train a model of a smaller dimension"
        )
    return replace(chosen, target_recall=target_recall)


def more_thorough(nprobe: int, k_factor: int, nlist: int) -> list[tuple[int, int]]:
    """The operating points (nprobe, k_factor) with the next more lists, and with the next more candidates."""
    lists = next((min(more, nlist) for more in NPROBES if more > nprobe), nprobe)
    candidates = next((more for more in K_FACTORS if more > k_factor), k_factor)
    return [point for point in ((lists, k_factor), (nprobe, candidates)) if point != (nprobe, k_factor)]


def held_out(count: int) -> int:
    """How many rows of `count` stay out of the training to measure recall."""
    return min(HELD_OUT, count // 4)


def _flat(count: int, dim: int, reason: str) -> Plan:
    row_bytes = count * dim * _FLOAT_BYTES
    return Plan(
        kind="flat",
        factory="Flat",
        nlist=0,
        nprobe=0,
        k_factor=1,
        train_rows=0,
        reason=reason,
        serving_bytes=row_bytes,
        peak_build_bytes=min(row_bytes, ADD_CHUNK * dim * _FLOAT_BYTES),
        listing_bytes=count * _LISTED_BYTES,
        build_cpu_s=0.0,
    )


def _ivfpq(count: int, dim: int, budget: int | None) -> Plan:
    trainable = count - held_out(count)
    # About 4 √N lists balance the search for the nearest lists against the scan of their codes.
    nlist = 2 ** round(math.log2(4 * math.sqrt(count)))
    while nlist * MIN_PER_LIST > trainable:
        nlist //= 2
    row_bytes = dim * _FLOAT_BYTES
    code_bytes = math.ceil(dim / 4)  # D / 2 codes of 4 bits
    lists_bytes = count * (code_bytes + _ID_BYTES) + nlist * _SCAN_BLOCK * code_bytes
    tables_bytes = (nlist + dim + 16) * row_bytes
    train_rows = min(trainable, TRAIN_PER_LIST * nlist)
    if budget is not None:
        left = budget - count * _LISTED_BYTES - tables_bytes - _TRAIN_ROOM_BYTES
        affordable = left // (row_bytes * _TRAIN_COPIES)
        train_rows = max(nlist * MIN_PER_LIST, min(train_rows, affordable))
    training_bytes = train_rows * row_bytes * _TRAIN_COPIES + _TRAIN_ROOM_BYTES
    adding_bytes = 2 * lists_bytes + 2 * ADD_CHUNK * row_bytes  # a list doubles its room when it is full
    return Plan(
        kind="ivfpq",
        factory=f"IVF{nlist},PQ{dim // 2}x4fs",
        nlist=nlist,
        nprobe=min(NPROBES[0], nlist),
        k_factor=K_FACTORS[0],
        train_rows=train_rows,
        reason=f"{count:,} rows: {nlist:,} lists, {train_rows / nlist:.0f} training rows each, 2 bits a dimension",
        serving_bytes=lists_bytes + tables_bytes,
        peak_build_bytes=tables_bytes + max(training_bytes, adding_bytes),
        listing_bytes=count * _LISTED_BYTES,
        build_cpu_s=_build_cpu_s(count, dim, nlist, train_rows),
    )


def _build_cpu_s(count: int, dim: int, nlist: int, train_rows: int) -> float:
    training_s = _TRAIN_S + nlist * train_rows * dim * _TRAIN_PRODUCT_S
    adding_s = count * (_ADD_ROW_S + nlist * dim * _ADD_PRODUCT_S)
    return training_s + adding_s + held_out(count) * count * dim * _MEASURE_PRODUCT_S

"""FAISS: train, fill, save, load and search the index of a version.

The index is a rotation, inverted lists with 4-bit product-quantiser codes (fast-scan), and a refinement of the
candidates from the full-precision rows, which stay on the disk and are mapped. All similarities are inner products.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from indexer.manifest import CorruptFile
from indexer.plan import ADD_CHUNK, TRAIN_ROUNDS, Plan
from indexer.rows import Embeddings, take

Rows = npt.NDArray[np.int64]
Neighbours = tuple[Embeddings, Rows]

# Neighbours of which a build measures the recall of operating points. For fewer, as many candidates are compared: the
# codes have the single nearest row among their best 10 less often than they have the nearest 10 among their best 100.
MEASURED_K = 10

# Up to here one thread is faster than waking the others, and many callers at once would each wake all of them.
SMALL_QUERIES = 16

_ALL_THREADS = int(faiss.omp_get_max_threads())
_calling = threading.local()
_reading = threading.Lock()


@dataclass(frozen=True)
class Index:
    """What a version searches: the mapped rows and, unless it is flat, the codes; safe for concurrent searches.

    Attributes:
        rows: FAISS flat index of the full-precision rows.
        codes: FAISS index of the codes; None for flat.
    """

    rows: Any
    codes: Any | None

    @cached_property
    def _refined(self) -> Any:
        return faiss.IndexRefine(self.codes, self.rows)

    def search_exact(self, queries: Embeddings, k: int, among: "Among | None" = None) -> Neighbours:
        """Compare with every row.

        Args:
            queries: (Q, D) float32, unit length.
            k: neighbours, at most the count of rows.
            among: rows that may be found, at least k; None for all.

        Returns:
            Similarities (Q, k) float32, nearest first, and rows (Q, k) int64.
        """
        _use_threads(1 if len(queries) <= SMALL_QUERIES else _ALL_THREADS)
        similarities, rows = self.rows.search(queries, k, params=among and among.flat)
        return similarities, rows

    def search_some(self, queries: Embeddings, k: int, rows: Rows) -> Neighbours:
        """Compare with these (c,) rows alone, at least k of them; otherwise as `search_exact`."""
        if not k:  # which FAISS refuses
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        _use_threads(1 if len(queries) <= SMALL_QUERIES else _ALL_THREADS)
        selector: Any = faiss.IDSelectorArray(rows)
        similarities, found = self.rows.search(queries, k, params=faiss.SearchParameters(sel=selector))  # type: ignore[call-arg]
        return similarities, found

    def search(
        self, queries: Embeddings, k: int, nprobe: int, k_factor: int, among: "Among | None" = None
    ) -> Neighbours:
        """Scan the codes of `nprobe` lists and compare the best of their rows, `compared` many, in full precision.

        Arguments and results as in `search_exact`, which answers for a flat index, and for a query whose lists
        hold fewer than k rows.
        """
        if self.codes is None:
            return self.search_exact(queries, k, among)
        k_factor = math.ceil(compared(k, k_factor, self.codes.ntotal) / k)
        # Parameters go with the call: an index that others are searching is never changed.
        parameters = among.refined(nprobe, k_factor) if among else _parameters(nprobe, k_factor)
        _use_threads(1 if len(queries) <= SMALL_QUERIES else _ALL_THREADS)
        similarities, rows = self._refined.search(queries, k, params=parameters)
        short = rows[:, -1] < 0
        if short.any():
            similarities[short], rows[short] = self.search_exact(np.ascontiguousarray(queries[short]), k, among)
        return similarities, rows


def compared(k: int, k_factor: int, rows: int) -> int:
    """How many of so many rows a search for k neighbours compares in full precision.

    FAISS makes room for as many candidates as it is asked for, and sorts all of it: more of them than there are rows
    find nothing, and take most of a search's time and memory.
    """
    return min(max(k, MEASURED_K) * k_factor, rows)


def candidates(codes: Any, queries: Embeddings, count: int, nprobe: int, among: "Among | None") -> Rows:
    """The rows whose codes are nearest.

    Args:
        codes: of a version, or `extended`.
        queries: (Q, D) float32, unit length.
        count: how many rows are wanted.
        nprobe: lists to scan.
        among: rows that may be found; None for all.

    Returns:
        (Q, count) int64, −1 where the lists hold fewer.
    """
    _use_threads(1 if len(queries) <= SMALL_QUERIES else _ALL_THREADS)
    _, rows = codes.search(queries, count, params=among.lists(nprobe) if among else _list_parameters(nprobe))
    return np.asarray(rows)


def compare(flat: Any, more: Embeddings, queries: Embeddings, rows: Rows) -> Embeddings:
    """The similarities of rows to queries.

    Args:
        flat: FAISS flat index of the first rows.
        more: (N, D) float32, the rows that follow them.
        queries: (Q, D) float32.
        rows: (Q, c) int64; −1 for none.

    Returns:
        (Q, c) float32; −inf for row −1.
    """
    similarities, others = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.float32)
    count, width = rows.shape
    mine, theirs = rows.copy(), rows - flat.ntotal  # negative ones are left out
    mine[theirs >= 0] = -1
    flat.compute_distance_subset(
        count, faiss.swig_ptr(queries), width, faiss.swig_ptr(similarities), faiss.swig_ptr(mine)
    )
    faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]
        *map(faiss.swig_ptr, (others, queries, more, theirs)), queries.shape[1], count, width
    )
    return np.maximum(similarities, others, out=similarities)


def extended(codes: Any, rows: Embeddings, *, unhurried: bool = True) -> Any:
    """A copy of codes with (N, D) more rows; the codes themselves stay as others are searching them.

    On one core if `unhurried`: the other ones are for searches.
    """
    _use_threads(1 if unhurried else _ALL_THREADS)
    copy = faiss.clone_index(codes)
    for start in range(0, len(rows), ADD_CHUNK):  # FAISS takes memory for all rows that it is given, once more
        copy.add(rows[start : start + ADD_CHUNK])
    return copy


class Among:
    """The rows that a search may find, in FAISS's form, with the parameters of searches that were made of it.

    It costs fast-scan next to nothing: 0.97 to 0.98 of the queries/s where 95 % of 100,000 rows may be found.
    """

    def __init__(self, keep: npt.NDArray[np.bool_]) -> None:
        """`keep` is (N,), by row."""
        self._selector: Any = faiss.IDSelectorBitmap(np.packbits(keep, bitorder="little"))  # type: ignore[call-arg, arg-type]
        self._refined: dict[tuple[int, int], Any] = {}
        self._lists: dict[int, Any] = {}

    @cached_property
    def flat(self) -> Any:
        """Parameters of a flat index."""
        return faiss.SearchParameters(sel=self._selector)  # type: ignore[call-arg]

    def refined(self, nprobe: int, k_factor: int) -> Any:
        """Parameters of codes with refinement."""
        point = nprobe, k_factor
        if point not in self._refined:
            self._refined[point] = _refined_parameters(*point, sel=self._selector)
        return self._refined[point]

    def lists(self, nprobe: int) -> Any:
        """Parameters of codes alone."""
        if nprobe not in self._lists:
            self._lists[nprobe] = _list_parameters(nprobe, sel=self._selector)
        return self._lists[nprobe]


# Made once and shared, because every object of FAISS that Python makes and drops gives up the interpreter lock
# several times: in a server that costs more than the search itself.
@lru_cache(maxsize=1024)
def _parameters(nprobe: int, k_factor: int) -> Any:
    return _refined_parameters(nprobe, k_factor)


def _refined_parameters(nprobe: int, k_factor: int, **selected: Any) -> Any:
    return faiss.IndexRefineSearchParameters(  # type: ignore[call-arg]
        k_factor=k_factor, base_index_params=_list_parameters(nprobe, **selected)
    )


def _list_parameters(nprobe: int, **selected: Any) -> Any:
    lists = faiss.SearchParametersIVF(nprobe=nprobe, **selected)  # type: ignore[call-arg]
    return faiss.SearchParametersPreTransform(index_params=lists)  # type: ignore[call-arg]


def train(plan: Plan, sample: Embeddings, *, use_gpu: bool, rounds: int = TRAIN_ROUNDS) -> Any:
    """An empty trained index.

    Args:
        plan: of kind `ivfpq`.
        sample: (plan.train_rows, D) float32 rows.
        use_gpu: run the k-means of the lists on the GPUs; raises RuntimeError where FAISS can't.
        rounds: of that k-means.
    """
    _use_threads(_ALL_THREADS)
    dim = sample.shape[1]
    rotation = _balancing_rotation(sample)
    rotated = rotation.apply(sample)
    lists: Any = faiss.index_factory(dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
    lists.cp.niter = rounds
    if use_gpu:
        assigner = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(dim))
        lists.clustering_index = assigner
    lists.train(rotated)
    lists.clustering_index = None
    index = faiss.IndexPreTransform(rotation, lists)
    index.is_trained = True
    return index


def gpu_count() -> int:
    """How many GPUs FAISS sees; 0 with the CPU build."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def add(index: Any, rows: Embeddings, report: Callable[[int], None]) -> None:
    """Add (N, D) rows in their order, a chunk at a time; `report` hears how many are in."""
    _use_threads(_ALL_THREADS)
    for start in range(0, len(rows), ADD_CHUNK):
        index.add(take(rows, slice(start, start + ADD_CHUNK)))
        report(index.ntotal)


def imbalance(codes: Any) -> float:
    """How many codes a search of trained, filled codes scans, over how many it would if all lists were alike."""
    lists: Any = faiss.extract_index_ivf(codes).invlists
    return float(lists.imbalance_factor())


def save(index: Any, path: Path) -> None:
    """Write an index; raises OSError when the disk is full or not writable."""
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # FAISS's only exception; the write's errno is in its text
        raise OSError(f"FAISS can't write {path}: {error}") from error


def load(path: Path, *, mapped: bool) -> Any:
    """Read an index whose bytes are verified already, into memory or mapped; raises CorruptFile."""
    with _reading:  # the limit is global to the process
        # No part of a file can rightly need more than the file's own bytes (and the tables computed from them).
        faiss.set_deserialization_vector_byte_limit(max(path.stat().st_size, 2**20) * 4)
        try:
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        except RuntimeError as error:
            raise CorruptFile(f"{path} is not an index that FAISS {faiss.__version__} reads: {error}") from error


def _balancing_rotation(sample: Embeddings) -> Any:
    """A rotation after which every pair of dimensions, the piece that one 4-bit code covers, carries its fair share.

    Learned embeddings keep most of their variance in few directions; without it those few share a handful of
    codes. Measured at nprobe 64, k_factor 40 on 100,000 × 128 Gaussian rows whose standard deviations fall like
    1 / i^0.8 along their axes: recall@10 0.57 without and 0.95 with it (python tests/benchmarks/bench_plan.py).

    Source: Ge, He, Ke, Sun, "Optimized Product Quantization", CVPR 2013, section 3.2 (parametric solution).
    Deviation: eigenvalues are paired largest with smallest, which for pairs is what their greedy allocation nears.
    """
    dim = sample.shape[1]
    centred = sample - sample.mean(axis=0)
    _, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))  # ascending eigenvalues, in columns
    smallest = np.arange(dim // 2)
    pairs = np.column_stack([dim - 1 - smallest, smallest]).ravel()
    rotation = faiss.LinearTransform(dim, dim, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(vectors[:, pairs].T, dtype=np.float32).ravel(), rotation.A)
    rotation.is_trained = rotation.is_orthonormal = True
    return rotation


def _use_threads(wanted: int) -> None:
    # OpenMP keeps this setting per calling thread, so concurrent searches do not disturb each other. Who finds it as
    # wanted leaves FAISS alone: each call of it gives up the interpreter lock, and has to wait to get it back.
    if getattr(_calling, "openmp_threads", None) != wanted:
        faiss.omp_set_num_threads(wanted)
        _calling.openmp_threads = wanted

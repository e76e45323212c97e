"""A copy of a version on a GPU, which answers searches in the CPU's place once it gave the CPU's answers, sooner.

FAISS takes no fast-scan codes to a GPU. The copy has the full-precision rows instead, in the lists of the codes, and
compares a query with all rows of the nearest lists; the CPU compares those of them whose codes look near. So the GPU
finds what the CPU finds, ties aside, and where the codes mislead the CPU, what is nearer.
"""

import logging
import subprocess
import sys
import threading
import timeit
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from queue import SimpleQueue
from typing import Any

import faiss
import numpy as np

from indexer.ivfpq import MEASURED_K, SMALL_QUERIES, Index, Neighbours
from indexer.plan import ADD_CHUNK
from indexer.rows import Embeddings

MOST = 2_048  # neighbours, and lists, that a search of FAISS's on a GPU may ask for
TIE = 1e-5  # similarities this close are one: a GPU adds float32 products in another order

_TRIAL_TIMEOUT_S = 120.0
_PROOF_QUERIES = 64
# Of the GPU, for searches under way. FAISS takes 1.5 GB for that, which are left to the encoder once all is copied.
_SEARCH_BYTES = 256 * 2**20

_gpu_faiss: Any = faiss  # the CPU's build lacks the names

log = logging.getLogger(__name__)


class GpuRefused(Exception):
    """A GPU is there and can't take a version, or is no better than the CPU; the message says why."""


@dataclass(frozen=True)
class _Job:
    """Queries that wait for the owner; answered with None where the CPU is to search."""

    queries: Embeddings
    k: int
    nprobe: int
    answer: Future[Neighbours | None] = field(default_factory=Future)


_Jobs = SimpleQueue[_Job | None]
_Make = Callable[[Embeddings, int, Callable[[Any], None]], Any]


class GpuCopy:
    """A version's rows on a GPU, or what says that the CPU is to search; safe for concurrent searches.

    FAISS lets one thread use a GPU's index at a time: that is one of its own, which copies, searches, and ends with
    this object. What waits for it meanwhile is searched together. The first error is logged and ends the GPU's part.
    """

    def __init__(
        self,
        name: str,
        index: Index,
        point: tuple[int, int],
        *,
        make: _Make | None = None,
        least_speedup: float = 1.0,
    ) -> None:
        """Begin to copy; until that is done, the CPU searches.

        Args:
            name: of the version, for the log.
            index: with codes.
            point: nprobe and k_factor of searches that name none, at which the GPU has to prove itself.
            make: gives a FAISS index of lists, from centroids (nlist, D), a count of rows and what fills it;
                None for one on the GPU.
            least_speedup: times as fast as a thread of the CPU that it has to be.
        """
        self._jobs: _Jobs = SimpleQueue()
        self._answers = threading.Event()
        weakref.finalize(self, self._jobs.put, None)
        given = name, index, point, make or _on_gpu, least_speedup, self._jobs, self._answers
        threading.Thread(target=_own, args=given, name=f"gpu {name}", daemon=True).start()

    def search(self, queries: Embeddings, k: int, nprobe: int) -> Neighbours | None:
        """Compare with all rows of the nearest lists.

        Args:
            queries: (Q, D) float32, unit length.
            k: neighbours, at least 1.
            nprobe: lists, at most nlist.

        Returns:
            Similarities (Q, k) float32, nearest first, and rows (Q, k) int64, −1 where the lists hold fewer; None
            where the CPU is to search.
        """
        if max(k, nprobe) > MOST or not self._answers.is_set():
            return None
        job = _Job(queries, k, nprobe)
        self._jobs.put(job)
        return job.answer.result()


def _own(
    name: str,
    index: Index,
    point: tuple[int, int],
    make: _Make,
    least_speedup: float,
    jobs: _Jobs,
    answers: threading.Event,
) -> None:
    """The owner: nobody else holds the GPU's index."""
    try:
        copy = _copied(index, make, jobs)
        _prove(copy, index, point, least_speedup)
        log.info("%s: %d rows are on the GPU, which searches from now on", name, copy.ntotal)
        answers.set()
    except Exception as error:  # whatever a GPU or its driver says: the CPU needs neither
        copy = None
        # Its text alone: a log that keeps the error would keep what the error's traceback holds, on the GPU.
        log.warning("%s: the CPU searches, not the GPU: %s", name, str(error))
    while waiting := _taken(jobs):
        try:
            _answer(copy, waiting)
        except Exception as error:
            answers.clear()
            if copy is not None:
                log.error("%s: a search on the GPU failed, and the CPU searches from now on: %s", name, str(error))
            copy = None
            for job in waiting:
                if not job.answer.done():
                    job.answer.set_result(None)


def _taken(jobs: _Jobs) -> list[_Job]:
    """All that waits, once anything does; none at the end."""
    taken = [jobs.get()]
    while not jobs.empty():  # nobody else takes
        taken.append(jobs.get())
    # Nobody searches any more when the end comes: who searches keeps the copy alive.
    return [job for job in taken if job is not None]


def _answer(copy: Any, waiting: Sequence[_Job]) -> None:
    """Answer jobs, in one search for all that scan as many lists."""
    by_nprobe = defaultdict(list)
    for job in waiting:
        by_nprobe[job.nprobe].append(job)
    for nprobe, jobs in by_nprobe.items():
        queries = np.concatenate([job.queries for job in jobs])
        similarities, rows = _search(copy, queries, max(job.k for job in jobs), nprobe)
        end = 0
        for job in jobs:
            start, end = end, end + len(job.queries)
            job.answer.set_result((similarities[start:end, : job.k], rows[start:end, : job.k]))


def _search(copy: Any, queries: Embeddings, k: int, nprobe: int) -> Neighbours:
    similarities, rows = copy.search(queries, k, params=faiss.SearchParametersIVF(nprobe=nprobe))  # type: ignore[call-arg]
    return similarities, rows


def _copied(index: Index, make: _Make, jobs: _Jobs) -> Any:
    """The rows in the very lists that hold their codes."""
    codes: Any = index.codes
    ivf: Any = faiss.extract_index_ivf(codes)
    rotation: Any = faiss.downcast_VectorTransform(codes.chain.at(0))
    turned = faiss.vector_to_array(rotation.A).reshape(index.rows.d, index.rows.d)
    # A rotated row's product with a centroid is the row's with the centroid rotated back.
    centroids = ivf.quantizer.reconstruct_n(0, ivf.nlist) @ turned
    lists = np.empty(index.rows.ntotal, np.int64)
    for number in range(ivf.nlist):
        if count := ivf.invlists.list_size(number):
            lists[faiss.rev_swig_ptr(ivf.invlists.get_ids(number), count)] = number

    def fill(empty: Any) -> None:
        for start in range(0, len(lists), ADD_CHUNK):
            if not jobs.empty():
                raise GpuRefused("the version is not searched any more")
            rows = np.arange(start, min(start + ADD_CHUNK, len(lists)))
            _add(empty, index.rows.reconstruct_n(start, len(rows)), rows, lists[rows])

    return make(centroids, len(lists), fill)


def _add(copy: Any, vectors: Embeddings, rows: Any, lists: Any) -> None:
    copy.add_core(len(rows), faiss.swig_ptr(vectors), faiss.swig_ptr(rows), faiss.swig_ptr(lists), None)


def _prove(copy: Any, index: Index, point: tuple[int, int], least_speedup: float) -> None:
    """Raise GpuRefused unless the copy answers as the CPU does, or better, and as fast."""
    nprobe, _ = point
    queries = index.rows.reconstruct_batch(np.linspace(0, index.rows.ntotal - 1, _PROOF_QUERIES).astype(np.int64))
    known, _ = index.search(queries, MEASURED_K, *point)
    found, rows = _search(copy, queries, MEASURED_K, nprobe)
    vectors = index.rows.reconstruct_batch(np.maximum(rows, 0).ravel()).reshape(*rows.shape, -1)
    wrong = np.abs(found - np.einsum("qd,qkd->qk", queries, vectors)) > TIE
    whole = rows[:, -1] >= 0  # else the CPU found more than there is in the lists
    if (wrong | (found < known - TIE))[whole].any():
        raise GpuRefused(f"of {_PROOF_QUERIES} searches it answers some otherwise than the CPU")
    few = queries[:SMALL_QUERIES]
    on_gpu_s = min(timeit.repeat(lambda: _search(copy, few, MEASURED_K, nprobe), number=1))
    on_cpu_s = min(timeit.repeat(lambda: index.search(few, MEASURED_K, *point), number=1))
    if on_gpu_s * least_speedup > on_cpu_s:
        raise GpuRefused(f"{len(few)} searches take it {on_gpu_s * 1e3:.2f} ms, the CPU {on_cpu_s * 1e3:.2f} ms")


def _on_gpu(centroids: Embeddings, count: int, fill: Callable[[Any], None]) -> Any:
    """A filled index on the first GPU; raises GpuRefused, or FAISS's RuntimeError."""
    if problem := _tried():
        raise GpuRefused(problem)
    return _filled(centroids, count, fill)


@lru_cache(maxsize=1)
def _tried() -> str:
    """What keeps FAISS from searching on the first GPU; empty where nothing does.

    A CUDA error that FAISS does not foresee ends its process, such as a build without kernels for this GPU has.
    """
    trial = [sys.executable, "-c", "from indexer.gpu import try_out; try_out()"]
    try:
        done = subprocess.run(trial, capture_output=True, text=True, timeout=_TRIAL_TIMEOUT_S, check=False)  # noqa: S603  our own
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"a trial of it failed: {error}"
    told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return f"a trial of it failed: {told[-1]}" if done.returncode else ""


def try_out() -> None:
    """Search a few rows on the first GPU; what fails may end the process."""
    vectors, rows = np.eye(64, dtype=np.float32), np.arange(64)
    lists = rows % 4
    copy = _filled(vectors[:4], len(rows), lambda empty: _add(empty, vectors, rows, lists))
    _, found = _search(copy, vectors, 1, 4)
    if (found[:, 0] != rows).any():
        raise GpuRefused("of 64 rows it finds others than those that are asked for")


def _filled(centroids: Embeddings, count: int, fill: Callable[[Any], None]) -> Any:
    nlist, dim = centroids.shape
    resources = _gpu_faiss.StandardGpuResources()
    config = _gpu_faiss.GpuIndexIVFFlatConfig()
    # Where FAISS was built with cuVS, too: cuVS takes no rows whose lists are known.
    config.use_cuvs = config.flatConfig.use_cuvs = False
    quantizer = _gpu_faiss.GpuIndexFlatIP(resources, dim, config.flatConfig)
    quantizer.add(centroids)
    index = _gpu_faiss.GpuIndexIVFFlat(resources, quantizer, dim, nlist, faiss.METRIC_INNER_PRODUCT, config)
    index.reserveMemory(count)
    fill(index)
    index.reclaimMemory()
    resources.setTempMemory(_SEARCH_BYTES)
    return index

"""Plan, rows, index and recall, against exact search and naive loops."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pytest

from indexer import evaluate, ivfpq
from indexer.evaluate import OperatingPoint, Recall
from indexer.ivfpq import MEASURED_K, Index
from indexer.manifest import CorruptFile
from indexer.plan import (
    FLAT_BELOW,
    MIN_PER_LIST,
    NPROBES,
    TARGET_RECALL,
    BudgetTooSmall,
    Plan,
    held_out,
    more_thorough,
    plan,
)
from indexer.rows import RowWriter, map_rows


@pytest.fixture(scope="module")
def searched(hard: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Index]:
    """An index of the hard rows, trained without the first 1,000."""
    folder = tmp_path_factory.mktemp("index")
    chosen = plan(*hard.shape)
    codes = ivfpq.train(chosen, hard[held_out(len(hard)) :][: chosen.train_rows], use_gpu=False)
    ivfpq.add(codes, hard, lambda done: None)
    ivfpq.save(codes, folder / "index.faiss")
    _write(folder / "rows.faiss", hard)
    rows = ivfpq.load(folder / "rows.faiss", mapped=True)
    return chosen, Index(rows, ivfpq.load(folder / "index.faiss", mapped=False))


def _write(path: Path, rows: np.ndarray) -> None:
    with RowWriter(path, rows.shape[1]) as writer:
        for start in range(0, len(rows), 1_000):
            writer.append(rows[start : start + 1_000])
        writer.finish()


def _identity(dim: int) -> faiss.LinearTransform:
    transform = faiss.LinearTransform(dim, dim, False)
    faiss.copy_array_to_vector(np.eye(dim, dtype=np.float32).ravel(), transform.A)
    transform.is_trained = True
    return transform


def test_a_streamed_file_is_the_one_that_faiss_writes(hard: np.ndarray, tmp_path: Path) -> None:
    """Rows written as a stream give byte for byte the file that FAISS writes from memory."""
    _write(tmp_path / "streamed", hard)
    whole = faiss.IndexFlatIP(hard.shape[1])
    whole.add(hard)
    faiss.write_index(whole, str(tmp_path / "whole"))
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "streamed").read_bytes()
    np.testing.assert_array_equal(hard, map_rows(tmp_path / "streamed", *hard.shape))


def test_rows_go_on_after_those_kept(hard: np.ndarray, tmp_path: Path) -> None:
    """A reopened file is cut to the rows that are kept; one that has fewer is refused."""
    _write(tmp_path / "rows", hard[:50])
    with RowWriter(tmp_path / "rows", hard.shape[1], keep=20) as writer:
        writer.append(hard[20:30])
        writer.finish()
    np.testing.assert_array_equal(hard[:30], map_rows(tmp_path / "rows", 30, hard.shape[1]))
    with pytest.raises(OSError, match="fewer than 31 rows"):
        RowWriter(tmp_path / "rows", hard.shape[1], keep=31)


def test_recall_is_measured_and_high_enough(searched: tuple[Plan, Index], hard: np.ndarray) -> None:
    """The chosen operating point finds 99 % of the neighbours of rows that it was not trained on."""
    chosen, index = searched
    held = np.arange(held_out(len(hard)))
    points = evaluate.measure(index, hard[held], held, chosen)
    point = evaluate.choose(points, TARGET_RECALL)
    assert point.recall.low < point.recall.recall_at_10 <= point.recall.high
    assert point.recall.recall_at_10 >= 0.99
    naive = []
    found = index.search(hard[held], 11, point.nprobe, point.k_factor)[1]
    for query in held[:100]:
        exact = [row for row in np.argsort(-(hard @ hard[query])) if row != query][:10]
        naive.append(len(set(exact) & set([row for row in found[query] if row != query][:10])) / 10)
    np.testing.assert_allclose(point.recall.recall_at_10, np.mean(naive), atol=0.02)


def test_the_cheapest_point_with_the_wanted_recall_is_chosen() -> None:
    """The first point that finds 0.99, or what else is wanted, and where none does the most thorough one."""
    points = [OperatingPoint(nprobe, 10, Recall(found, 0.0, 1.0, 100)) for nprobe, found in ((1, 0.5), (2, 0.99))]
    more = [*points, OperatingPoint(4, 10, Recall(0.999, 0.0, 1.0, 100))]
    assert points[1] == evaluate.choose(points, TARGET_RECALL) == evaluate.choose(more, TARGET_RECALL)
    assert points[0] == evaluate.choose(points[:1], TARGET_RECALL) == evaluate.choose(more, 0.5)


def test_points_are_measured_until_nearly_all_is_found(searched: tuple[Plan, Index], hard: np.ndarray) -> None:
    """A set that is hard to search is measured at points of rising recall, beyond the default's."""
    chosen, index = searched
    held = np.arange(held_out(len(hard)))
    points = evaluate.measure(index, hard[held], held, chosen)
    assert points.index(evaluate.choose(points, TARGET_RECALL)) < len(points) - 1
    found = [point.recall.recall_at_10 for point in points]
    assert all(one < other for one, other in pairwise(found))
    assert all(value < evaluate.BEST_RECALL for value in found[:-1])
    more = more_thorough(points[-1].nprobe, points[-1].k_factor, chosen.nlist)
    assert found[-1] >= evaluate.BEST_RECALL or all(_found(index, hard, *point) <= found[-1] for point in more)
    for one, other in pairwise(points):
        assert (other.nprobe, other.k_factor) in more_thorough(one.nprobe, one.k_factor, chosen.nlist)


def test_a_build_takes_more_of_what_a_collection_lacks(searched: tuple[Plan, Index], hard: np.ndarray) -> None:
    """Each point finds as much as the one with more lists and the one with more candidates, whichever is better."""
    chosen, index = searched
    held = np.arange(held_out(len(hard)))
    for one, other in pairwise(evaluate.measure(index, hard[held], held, chosen)):
        more = more_thorough(one.nprobe, one.k_factor, chosen.nlist)
        assert other.recall.recall_at_10 == max(_found(index, hard, *point) for point in more)


def _found(index: Index, rows: np.ndarray, nprobe: int, k_factor: int) -> float:
    """recall@10 of the rows that were held out."""
    held = np.arange(held_out(len(rows)))
    exact = index.search_exact(rows[held], MEASURED_K + 1)
    found = index.search(rows[held], MEASURED_K + 1, nprobe, k_factor)
    return evaluate.recall(exact, found, held).recall_at_10


def test_what_is_more_thorough_ends_at_the_lists_there_are() -> None:
    """More lists up to all of them, more candidates up to 200 for a neighbour; from there nothing."""
    assert more_thorough(16, 10, 4_096) == [(32, 10), (16, 20)]
    assert more_thorough(16, 200, 20) == [(20, 200)]
    assert more_thorough(20, 200, 20) == []
    assert more_thorough(NPROBES[-1], 100, 4_096) == [(NPROBES[-1], 200)]


def test_the_rotation_earns_its_place(searched: tuple[Plan, Index], hard: np.ndarray) -> None:
    """On a falling spectrum the rotated codes find many more neighbours than codes of the same size without it."""
    chosen, index = searched
    plain = faiss.index_factory(hard.shape[1], chosen.factory, faiss.METRIC_INNER_PRODUCT)
    plain.train(hard[1_000:][: chosen.train_rows])
    plain.add(hard)
    held = np.arange(1_000)
    exact = index.search_exact(hard[held], 11)
    with_it, without = (
        evaluate.recall(exact, Index(index.rows, codes).search(hard[held], 11, chosen.nlist, 2), held).recall_at_10
        for codes in (index.codes, faiss.IndexPreTransform(_identity(hard.shape[1]), plain))
    )
    assert with_it > without + 0.1


def test_a_search_always_gives_k_rows(searched: tuple[Plan, Index], hard: np.ndarray) -> None:
    """Where the probed lists hold fewer than k rows, every row asked for still comes, distinct and sorted."""
    similarities, rows = searched[1].search(hard[:20], 1_000, 1, 1)
    assert rows.shape == (20, 1_000)
    assert all(len(set(found)) == 1_000 and min(found) >= 0 for found in rows.tolist())
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_who_wants_fewer_neighbours_misses_no_more(searched: tuple[Plan, Index], hard: np.ndarray) -> None:
    """The first of ten neighbours are found alone too: a build has measured what ten of them find."""
    chosen, index = searched
    ten = index.search(hard[:300], 10, chosen.nlist, chosen.k_factor)[0]
    for k in (1, 2, 3, 5):
        alone = index.search(hard[:300], k, chosen.nlist, chosen.k_factor)[0]
        assert (alone >= ten[:, :k] - evaluate.TIE).all()


def test_no_more_candidates_than_rows_are_held(searched: tuple[Plan, Index], hard: np.ndarray) -> None:
    """Whatever number of candidates is asked for, room is made for the rows that there are, and all are compared."""
    chosen, index = searched
    for k in (1, 7, 1_000, len(hard)):
        similarities, rows = index.search(hard[:3], k, chosen.nlist, 10**12)
        expected, nearest = index.search_exact(hard[:3], k)
        np.testing.assert_allclose(similarities, expected, atol=1e-6)
        assert k < len(hard) or set(rows[0]) == set(nearest[0])


def test_similarities_are_exact(searched: tuple[Plan, Index], hard: np.ndarray) -> None:
    """The similarities that a search returns are the rows' own inner products, not the codes'."""
    similarities, rows = searched[1].search(hard[:50], 10, 16, 10)
    np.testing.assert_allclose(np.einsum("qd,qkd->qk", hard[:50], hard[rows]), similarities, atol=1e-6)


def test_threads_search_at_once(searched: tuple[Plan, Index], hard: np.ndarray) -> None:
    """Searches from many threads with different parameters give what they give one after the other."""
    _, index = searched
    calls = [(hard[i : i + 1 + i % 40], 1 + i % 30, 1 + i % 16, 1 + i % 20) for i in range(200)]
    alone = [index.search(*call)[1] for call in calls]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda call: index.search(*call)[1], calls))
    for expected, actual in zip(alone, together, strict=True):
        np.testing.assert_array_equal(expected, actual)


def test_ties_count_as_found() -> None:
    """Among equal similarities any row counts; the query's own row counts in neither list."""
    held = np.array([0])
    exact = (np.full((1, 11), 0.5, np.float32), np.arange(11)[None])
    others = (np.full((1, 11), 0.5, np.float32), np.arange(50, 61)[None])
    worse = (np.concatenate([np.full((1, 6), 0.5), np.full((1, 5), 0.4)], 1).astype(np.float32), np.arange(11)[None])
    assert evaluate.recall(exact, others, held).recall_at_10 == 1.0
    assert evaluate.recall(exact, worse, held).recall_at_10 == 0.5


def test_the_interval_is_wilsons() -> None:
    """9 of 10 give Wilson's published 95 % interval, 0.596 to 0.982."""
    found = np.ones((10, 11), np.float32)
    found[0] = 0.0
    rows = np.tile(np.arange(100, 111), (10, 1))
    measured = evaluate.recall((np.ones((10, 11), np.float32), rows), (found, rows), np.arange(10))
    np.testing.assert_allclose([0.9, 0.596, 0.982], [measured.recall_at_10, measured.low, measured.high], atol=5e-4)


@pytest.mark.parametrize("count", [FLAT_BELOW, 5_421, 11_788, 100_000, 1_000_000, 50_000_000])
def test_plans_can_be_trained(count: int) -> None:
    """Every plan has between FAISS's 39 and 256 training rows a list, from rows that are there."""
    chosen = plan(count, 128)
    assert MIN_PER_LIST <= chosen.train_rows / chosen.nlist <= 256
    assert chosen.train_rows <= count - held_out(count)


def test_small_or_odd_is_flat() -> None:
    """Few rows, and dimensions that can't be split in pairs, are flat, and the reason says so."""
    assert (plan(FLAT_BELOW - 1, 128).kind, plan(10**6, 127).kind) == ("flat", "flat")
    assert "odd" in plan(10**6, 127).reason


def test_the_predicted_time_grows_as_the_measured_one() -> None:
    """The plan says about the CPU seconds that builds of 10,000 to 1,000,000 rows were measured to take."""
    for count, measured_s in ((10_000, 0.62), (100_000, 3.6), (1_000_000, 45.7)):
        np.testing.assert_allclose(plan(count, 128).build_cpu_s, measured_s, rtol=0.3)
    assert plan(100, 128).build_cpu_s == 0


def test_a_tight_budget_trains_on_less() -> None:
    """A budget below the usual peak shrinks the training sample; one below that is refused."""
    free = plan(100_000, 128)
    usual = free.peak_build_bytes + free.listing_bytes
    assert plan(100_000, 128, memory_budget_bytes=usual).train_rows == free.train_rows
    tight = plan(100_000, 128, memory_budget_bytes=usual - 1)
    assert tight.train_rows < free.train_rows
    assert tight.peak_build_bytes < free.peak_build_bytes
    with pytest.raises(BudgetTooSmall, match="the budget is 1,000,000"):
        plan(100_000, 128, memory_budget_bytes=1_000_000)


def test_the_predicted_size_is_the_files(searched: tuple[Plan, Index], tmp_path: Path) -> None:
    """The bytes that a plan says serving needs are within a quarter of what the index file has."""
    chosen, index = searched
    ivfpq.save(index.codes, tmp_path / "index.faiss")
    assert 0.75 <= (tmp_path / "index.faiss").stat().st_size / chosen.serving_bytes <= 1.0


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    """Bytes that FAISS can't read are a CorruptFile with the path, mapped or not."""
    (tmp_path / "index.faiss").write_bytes(b"IxFI" + bytes(range(200)))
    for mapped in (False, True):
        with pytest.raises(CorruptFile, match=r"index\.faiss"):
            ivfpq.load(tmp_path / "index.faiss", mapped=mapped)


PEAK = """
import sys
from pathlib import Path

import numpy as np
from indexer import ivfpq, plan

chosen = plan.plan(100_000, int(sys.argv[1]))

def peak_kib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

Path("/proc/self/clear_refs").write_text("5")  # the peak that a child starts with is its parent's
before = peak_kib()
sample = np.random.default_rng(0).standard_normal((chosen.train_rows, int(sys.argv[1])), dtype=np.float32)
ivfpq.train(chosen, sample, use_gpu=False)
print((peak_kib() - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_the_predicted_peak_holds(dim: int) -> None:
    """Training takes no more memory than the plan says, and not so little that the plan would refuse for nothing."""
    command = [sys.executable, "-c", PEAK, str(dim)]
    peak_bytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.4 <= peak_bytes / plan(100_000, dim).peak_build_bytes <= 1.0


@pytest.mark.gpu
def test_gpu_and_cpu_train_alike(hard: np.ndarray, searched: tuple[Plan, Index]) -> None:
    """Lists trained on a GPU find as many neighbours as lists trained on the CPU."""
    chosen, index = searched
    codes = ivfpq.train(chosen, hard[1_000:][: chosen.train_rows], use_gpu=True)
    ivfpq.add(codes, hard, lambda done: None)
    held = np.arange(1_000)
    exact = index.search_exact(hard[held], 11)
    on_cpu, on_gpu = (
        evaluate.recall(exact, Index(index.rows, each).search(hard[held], 11, 32, 20), held)
        for each in (index.codes, codes)
    )
    np.testing.assert_allclose(on_cpu.recall_at_10, on_gpu.recall_at_10, atol=0.01)

"""A version's copy on a GPU against the CPU.

Most tests run where there is no GPU: the copy is then another real index of FAISS, on the CPU, in place of the GPU's.
They are about all else: who searches it, what is asked of it, and what becomes of its errors. The tests marked `gpu`
are about the real one; no machine with a GPU has run them yet.
"""

import gc
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from indexer import gpu, live_snapshot
from indexer.adopt import adopt
from indexer.catalog import Catalog
from indexer.gpu import TIE, GpuCopy
from indexer.live import LiveIndex
from indexer.live_snapshot import Snapshot
from indexer.records import Upsert
from indexer.rows import Embeddings
from indexer.store import Store
from indexer.version import Version, open_version
from tests.indexer.conftest import unit
from tests.serving import make_version
from tests.waiting import PROCESS_S, until

MODEL = "model"
ALL = 1_000  # times k: so many candidates that the CPU compares every row of the lists, as a GPU does
POINTS = [(1, 1), (1, 8), (10, 16), (50, 128)]  # k, nprobe
SHORT = (200, 2)  # more than the lists hold


class Device:
    """A real index of lists on the CPU that notes who searches it, and can be held up."""

    def __init__(self, centroids: Embeddings, count: int, fill: Callable[[Any], None]) -> None:
        nlist, dim = centroids.shape
        self.quantizer = faiss.IndexFlatIP(dim)
        self.quantizer.add(centroids)
        self.index: Any = faiss.IndexIVFFlat(self.quantizer, dim, nlist, faiss.METRIC_INNER_PRODUCT)
        fill(self.index)
        assert self.index.ntotal == count
        self.threads: set[str] = set()
        self.searches: list[int] = []  # queries of each
        self.free = threading.Event()
        self.free.set()

    @property
    def ntotal(self) -> int:
        return int(self.index.ntotal)

    def search(self, queries: Embeddings, k: int, params: Any) -> tuple[Embeddings, Any]:
        self.threads.add(threading.current_thread().name)
        self.searches.append(len(queries))
        assert self.free.wait(PROCESS_S)
        found: tuple[Embeddings, Any] = self.index.search(queries, k, params=params)
        return found


@pytest.fixture(scope="module")
def directory(hard: Embeddings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a version of the hard rows."""
    store = Store(tmp_path_factory.mktemp("gpu"))
    return make_version(store, "hard", 1, MODEL, [f"item {row}" for row in range(len(hard))], hard)


@pytest.fixture
def version(directory: Path) -> Version:
    """Searched by the CPU alone, until a test gives it a copy."""
    return open_version(directory)


def copied(version: Version, make: Any = Device, **settings: Any) -> GpuCopy:
    """A copy that answers; with a device for which it does not matter that it is no faster."""
    point = version.manifest.plan["nprobe"], version.manifest.plan["k_factor"]
    copy = GpuCopy("hard version 1", version.index, point, make=make, **{"least_speedup": 0.0, **settings})
    until(lambda: copy.search(version.embeddings(np.array([0])), 1, 1) is not None, PROCESS_S)
    return copy


@pytest.fixture
def device(version: Version) -> Device:
    """Of the version's copy."""
    made: list[Device] = []

    def make(*parts: Any) -> Device:
        made.append(Device(*parts))
        return made[0]

    version.gpu = copied(version, make)
    made[0].searches.clear()
    return made[0]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """Of nothing but changes."""
    empty = Catalog(tmp_path)
    yield empty
    empty.close()


def delete(catalog: Catalog, version: Version, rows: Any) -> None:
    """Delete items of the version."""
    adopt(catalog, version)
    assert {""} == {outcome.reason for outcome in catalog.delete(sorted(set(version.items(rows))))}


def queries(count: int, seed: int = 0) -> Embeddings:
    """(count, 64), none of them a row."""
    return unit(np.random.default_rng(seed).standard_normal((count, 64)) * np.arange(1, 65.0) ** -0.8)


def check(snapshot: Snapshot, wanted: Embeddings, *, k: int, nprobe: int, **more: Any) -> None:
    """With its copy it finds what it finds without, ties aside; where the codes mislead the CPU, what is nearer."""
    copy, snapshot.version.gpu = snapshot.version.gpu, None
    try:
        thorough = snapshot.search(wanted, k, nprobe=nprobe, k_factor=ALL, **more)
        usual, _ = snapshot.search(wanted, k, nprobe=nprobe, **more)
    finally:
        snapshot.version.gpu = copy
    # What is left to the CPU beside a copy is searched as thoroughly; a GPU has no use for it.
    similarities, rows = snapshot.search(wanted, k, nprobe=nprobe, k_factor=ALL, **more)
    np.testing.assert_allclose(similarities, thorough[0], atol=TIE)
    alone = np.abs(np.diff(thorough[0], axis=1)) > TIE  # the same rows, but for those that are tied
    apart = np.pad(alone, ((0, 0), (1, 0)), constant_values=True) & np.pad(alone, ((0, 0), (0, 1)))
    assert (rows == thorough[1])[apart].all()
    assert (similarities >= usual - TIE).all()


def snapshot_of(version: Version, catalog: Catalog) -> Snapshot:
    return LiveIndex(version, catalog).snapshot


@pytest.mark.parametrize(("k", "nprobe"), [*POINTS, SHORT])
def test_it_finds_what_the_cpu_finds(version: Version, device: Device, catalog: Catalog, k: int, nprobe: int) -> None:
    """At any number of neighbours and lists, also where the lists hold fewer rows than are wanted."""
    check(snapshot_of(version, catalog), queries(100), k=k, nprobe=nprobe)
    assert device.searches == [100]


def test_one_thread_searches_for_all(version: Version, device: Device, catalog: Catalog) -> None:
    """However many ask at once, each gets the answers to its own queries."""
    snapshot = snapshot_of(version, catalog)
    asked = list(itertools.product(range(8), POINTS))
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda one: snapshot.search(queries(5, seed=one[0]), one[1][0], nprobe=one[1][1]), asked)
        )
    assert device.threads == {"gpu hard version 1"}
    assert sum(device.searches) == 5 * len(asked)
    version.gpu = None
    for (seed, (k, nprobe)), (similarities, _) in zip(asked, found, strict=True):
        expected, _ = snapshot.search(queries(5, seed=seed), k, nprobe=nprobe, k_factor=ALL)
        np.testing.assert_allclose(similarities, expected, atol=TIE)


def test_what_waits_is_searched_together(version: Version, device: Device, catalog: Catalog) -> None:
    """While it searches, others queue up: those that scan as many lists are one search, whatever k each wants."""
    snapshot = snapshot_of(version, catalog)
    device.free.clear()
    asked = [(queries(4, seed=1), 1, 8), (queries(4, seed=2), 10, 8), (queries(3), 20, 8), (queries(2), 5, 16)]
    with ThreadPoolExecutor(5) as pool:
        pool.submit(snapshot.search, queries(1), 3, nprobe=8)
        until(lambda: device.searches == [1])
        waiting = [pool.submit(snapshot.search, wanted, k, nprobe=nprobe) for wanted, k, nprobe in asked]
        until(lambda: version.gpu is not None and version.gpu._jobs.qsize() == len(asked))
        device.free.set()
        found = [one.result() for one in waiting]
    assert sorted(device.searches[1:]) == [2, 11]
    version.gpu = None
    for (wanted, k, nprobe), (similarities, rows) in zip(asked, found, strict=True):
        expected, _ = snapshot.search(wanted, k, nprobe=nprobe, k_factor=ALL)
        np.testing.assert_allclose(similarities, expected, atol=TIE)
        own = np.einsum("qd,qkd->qk", wanted, version.embeddings(rows.ravel()).reshape(*rows.shape, -1))
        np.testing.assert_allclose(similarities, own, atol=TIE)


def test_changes_are_searched_with_it(version: Version, device: Device, catalog: Catalog) -> None:
    """What was upserted is found and what was deleted is not, and k are found of what is left."""
    snapshot = snapshot_of(version, catalog)
    delete(catalog, version, snapshot.search(queries(3), 40, nprobe=128)[1].ravel()[::2])
    catalog.upsert([Upsert("new", queries(3)[0], MODEL)], dim=64)
    changed = snapshot_of(version, catalog)
    for k, nprobe in POINTS:
        check(changed, queries(20), k=k, nprobe=nprobe)
    assert changed.items(changed.search(queries(3)[:1], 1)[1][0]) == ["new"]
    assert device.searches[1:] != []


def test_k_are_found_where_the_nearest_are_all_deleted(version: Version, device: Device, catalog: Catalog) -> None:
    """The GPU can't pass over rows: where all that it finds is hidden, the CPU searches, for those queries alone."""
    wanted = queries(2)
    near = snapshot_of(version, catalog).search(wanted[:1], 100, nprobe=128)[1][0]
    delete(catalog, version, near)
    catalog.upsert([Upsert(f"new {place}", row, MODEL) for place, row in enumerate(queries(12, seed=9))], dim=64)
    check(snapshot_of(version, catalog), wanted, k=10, nprobe=128)


def test_a_few_deleted_rows_are_no_work_for_the_cpu(
    version: Version, device: Device, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many again as are wanted are fetched."""
    delete(catalog, version, snapshot_of(version, catalog).search(queries(1), 10, nprobe=128)[1][0])
    changed = snapshot_of(version, catalog)
    expected, _ = changed.search(queries(1), 10, exact=True)
    monkeypatch.setattr(Snapshot, "_search_codes", None)
    similarities, _ = changed.search(queries(1), 10, nprobe=128)
    np.testing.assert_allclose(similarities, expected, atol=TIE)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.95])
def test_filtered_searches_are_the_cpu_s(
    version: Version, device: Device, catalog: Catalog, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask never comes near a GPU, whose indexes pass over selectors: with a copy and without, to the bit."""
    monkeypatch.setattr(live_snapshot, "FEW_ROWS", 50)
    snapshot = snapshot_of(version, catalog)
    mask = np.random.default_rng(0).random(snapshot.rows) < share
    with_copy = snapshot.search(queries(20), 10, mask=mask)
    assert device.searches == []
    version.gpu = None
    for here, there in zip(with_copy, snapshot.search(queries(20), 10, mask=mask), strict=True):
        np.testing.assert_array_equal(here, there)


def test_exact_searches_are_the_cpu_s(version: Version, device: Device, catalog: Catalog) -> None:
    """They compare with every row."""
    snapshot = snapshot_of(version, catalog)
    snapshot.search(queries(2), 10, exact=True)
    assert device.searches == []


def test_more_than_a_gpu_gives_is_the_cpu_s(version: Version, device: Device, catalog: Catalog) -> None:
    """FAISS takes 2,048 neighbours there, hidden ones included."""
    snapshot = snapshot_of(version, catalog)
    check(snapshot, queries(2), k=2_049, nprobe=128)
    assert device.searches == []
    check(snapshot, queries(2), k=2_048, nprobe=128)
    assert device.searches == [2]


def test_much_that_changed_since_is_the_cpu_s(
    version: Version, device: Device, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a GPU all upserted rows are compared one by one, which soon takes longer than the CPU's codes do."""
    monkeypatch.setattr(live_snapshot, "FEW_ROWS", 3)
    catalog.upsert([Upsert(f"new {place}", row, MODEL) for place, row in enumerate(queries(4))], dim=64)
    check(snapshot_of(version, catalog), queries(4), k=5, nprobe=128)
    assert device.searches == []


def test_an_error_in_a_search_is_logged_once_and_the_cpu_answers(
    version: Version, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    """Those who asked get their answer all the same, and so does who comes after; the GPU's memory is free again."""
    broken = threading.Event()
    held: list[weakref.ref[Device]] = []

    class Failing(Device):
        def search(self, queries: Embeddings, k: int, params: Any) -> tuple[Embeddings, Any]:
            held[:] = [weakref.ref(self)]
            if broken.is_set():
                raise RuntimeError("CUDA error 700")
            return super().search(queries, k, params)

    version.gpu = copied(version, Failing)
    snapshot = snapshot_of(version, catalog)
    broken.set()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: snapshot.search(queries(5), 10), range(8)))
    until(lambda: held[0]() is None)
    assert version.gpu.search(queries(1), 1, 1) is None
    assert not version.gpu._answers.is_set()  # nobody waits for its thread any more
    version.gpu = None
    expected = snapshot.search(queries(5), 10)
    for each in found:
        np.testing.assert_array_equal(each[0], expected[0])
        np.testing.assert_array_equal(each[1], expected[1])
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == ["hard version 1: a search on the GPU failed, and the CPU searches from now on: CUDA error 700"]


def refused(version: Version, caplog: pytest.LogCaptureFixture, make: Any, **settings: Any) -> str:
    """What is told of a copy that came to nothing."""
    point = version.manifest.plan["nprobe"], version.manifest.plan["k_factor"]
    copy = GpuCopy("hard version 1", version.index, point, make=make, **settings)
    until(lambda: any("the CPU searches" in record.getMessage() for record in caplog.records), PROCESS_S)
    assert copy.search(queries(1), 1, 1) is None
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return told


def test_a_gpu_that_is_full_is_told(version: Version, caplog: pytest.LogCaptureFixture) -> None:
    """FAISS raises it where rows are added."""

    def full(centroids: Embeddings, count: int, fill: Callable[[Any], None]) -> Any:
        raise RuntimeError("StandardGpuResources: alloc fail")

    told = refused(version, caplog, full, least_speedup=0.0)
    assert told == "hard version 1: the CPU searches, not the GPU: StandardGpuResources: alloc fail"


class Mistaken(Device):
    """One whose similarities, or rows, are not right."""

    wrong_rows = False

    def search(self, queries: Embeddings, k: int, params: Any) -> tuple[Embeddings, Any]:
        similarities, rows = super().search(queries, k, params)
        return (similarities, rows[:, ::-1].copy()) if self.wrong_rows else (similarities - 2e-4, rows)


class Poor(Device):
    """One that scans a single list."""

    def search(self, queries: Embeddings, k: int, params: Any) -> tuple[Embeddings, Any]:
        return super().search(queries, k, faiss.SearchParametersIVF(nprobe=2))  # type: ignore[call-arg]


class Backward(Mistaken):
    """One that mixes up its rows."""

    wrong_rows = True


@pytest.mark.parametrize("kind", [Mistaken, Backward, Poor])
def test_a_gpu_that_answers_otherwise_is_not_asked(
    version: Version, caplog: pytest.LogCaptureFixture, kind: type[Device]
) -> None:
    """It proves itself by the version's own rows before anybody's query goes there."""
    told = refused(version, caplog, kind, least_speedup=0.0)
    assert told.endswith("not the GPU: of 64 searches it answers some otherwise than the CPU")


def test_a_gpu_that_is_slower_is_not_asked(version: Version, caplog: pytest.LogCaptureFixture) -> None:
    """Of few rows the CPU is through before a GPU has begun."""

    class Slow(Device):
        def search(self, queries: Embeddings, k: int, params: Any) -> tuple[Embeddings, Any]:
            time.sleep(0.2)
            return super().search(queries, k, params)

    told = refused(version, caplog, Slow)
    assert "not the GPU: 16 searches take it 2" in told
    assert " ms, the CPU " in told


def gpu_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gpu hard version 1"]


def test_a_version_that_is_let_go_of_takes_its_copy_with_it(directory: Path) -> None:
    """Without a garbage collection: its thread ends, and what the GPU and the CPU hold of it is free again."""
    until(lambda: not gpu_threads())  # of the tests before
    held: list[weakref.ref[Any]] = []

    def make(*parts: Any) -> Device:
        device = Device(*parts)
        held.append(weakref.ref(device))
        return device

    opened = open_version(directory)
    opened.gpu = copied(opened, make)
    held.append(weakref.ref(opened.index))
    assert len(gpu_threads()) == 1
    gc.disable()
    try:
        del opened
        until(lambda: not gpu_threads() and not any(known() for known in held))
    finally:
        gc.enable()


def test_a_version_that_is_let_go_of_is_copied_no_further(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A swap right after another does not wait for gigabytes that nobody will search."""
    until(lambda: not gpu_threads())
    begun, free = threading.Event(), threading.Event()

    def make(centroids: Embeddings, count: int, fill: Callable[[Any], None]) -> Device:
        begun.set()
        assert free.wait(PROCESS_S)
        return Device(centroids, count, fill)

    opened = open_version(directory)
    opened.gpu = GpuCopy("hard version 1", opened.index, (16, 10), make=make)
    assert begun.wait(PROCESS_S)
    del opened
    free.set()
    until(lambda: not gpu_threads())
    assert "not the GPU: the version is not searched any more" in caplog.text


def test_without_a_gpu_nothing_is_begun(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a thread nor a process."""
    monkeypatch.setattr("indexer.ivfpq.gpu_count", lambda: 0)
    before = threading.active_count()
    assert open_version(directory, gpu=True).gpu is None
    assert threading.active_count() == before


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No GPU can be seen, and none was tried yet."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpu._tried.cache_clear()
    yield
    gpu._tried.cache_clear()


@pytest.mark.usefixtures("untried")
def test_a_gpu_is_tried_in_a_process_of_its_own(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """FAISS says that there is one, and there is none that works: the CPU searches."""
    monkeypatch.setattr("indexer.ivfpq.gpu_count", lambda: 1)
    opened = open_version(directory, gpu=True)
    until(lambda: "the CPU searches" in caplog.text, PROCESS_S)
    assert "hard version 1: the CPU searches, not the GPU: a trial of it failed: " in caplog.text
    assert opened.gpu is not None
    assert opened.gpu.search(queries(1), 1, 1) is None


@pytest.mark.usefixtures("untried")
def test_a_gpu_that_ends_the_process_ends_the_trial_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FAISS does where CUDA reports what it does not foresee."""
    aborting = tmp_path / "python"
    aborting.write_text("#!/bin/sh\nkill -ABRT $$\n")
    aborting.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(aborting))
    assert gpu._tried() == "a trial of it failed: exit status -6"


@pytest.fixture
def on_gpu(version: Version) -> Version:
    """The version with its copy on a real GPU, whether that is faster or not."""
    version.gpu = copied(version, None)
    return version


@pytest.mark.gpu
@pytest.mark.parametrize(("k", "nprobe"), [*POINTS, SHORT])
def test_a_real_gpu_finds_what_the_cpu_finds(on_gpu: Version, catalog: Catalog, k: int, nprobe: int) -> None:
    """As above."""
    check(snapshot_of(on_gpu, catalog), queries(100), k=k, nprobe=nprobe)
    delete(catalog, on_gpu, range(0, 3_000, 2))
    catalog.upsert([Upsert("new", queries(1)[0], MODEL)], dim=64)
    check(snapshot_of(on_gpu, catalog), queries(100), k=k, nprobe=nprobe)
    assert on_gpu.gpu is not None
    assert on_gpu.gpu.search(queries(1), 1, 1) is not None  # it has not given up meanwhile


@pytest.mark.gpu
def test_a_real_gpu_answers_many_threads(on_gpu: Version, catalog: Catalog) -> None:
    """As above."""
    snapshot = snapshot_of(on_gpu, catalog)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: snapshot.search(queries(3, seed=seed), 10, nprobe=16), range(200)))
    assert on_gpu.gpu is not None
    assert on_gpu.gpu.search(queries(1), 1, 1) is not None
    on_gpu.gpu = None
    for seed, (similarities, _) in enumerate(found):
        expected, _ = snapshot.search(queries(3, seed=seed), 10, nprobe=16, k_factor=ALL)
        np.testing.assert_allclose(similarities, expected, atol=TIE)


@pytest.mark.gpu
def test_filtered_searches_beside_a_real_gpu_are_the_cpu_s(
    on_gpu: Version, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above."""
    monkeypatch.setattr(live_snapshot, "FEW_ROWS", 50)
    snapshot = snapshot_of(on_gpu, catalog)
    mask = np.random.default_rng(0).random(snapshot.rows) < 0.3
    with_copy = snapshot.search(queries(20), 10, mask=mask)
    on_gpu.gpu = None
    for here, there in zip(with_copy, snapshot.search(queries(20), 10, mask=mask), strict=True):
        np.testing.assert_array_equal(here, there)


@pytest.mark.gpu
def test_more_rows_than_a_real_gpu_holds_are_the_cpu_s(version: Version, caplog: pytest.LogCaptureFixture) -> None:
    """Room for 10¹² rows is asked for; what is told is FAISS's own, and the next copy finds the memory free."""

    def make(centroids: Embeddings, count: int, fill: Callable[[Any], None]) -> Any:
        return gpu._on_gpu(centroids, 10**12, fill)

    assert "alloc fail" in refused(version, caplog, make, least_speedup=0.0)
    copied(version, None)

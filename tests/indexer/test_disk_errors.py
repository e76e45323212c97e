"""A disk that fails with EIO at any one write: a clear error, and nothing that was acknowledged is lost."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from indexer.adopt import open_catalog
from indexer.build import build
from indexer.catalog import Catalog
from indexer.live import LiveIndex
from indexer.snapshot import restore, snapshot
from indexer.store import Store
from indexer.version import activate, active_version, open_version, version_dir

pytestmark = pytest.mark.slow  # a process for each write

NAME = "street"
MOST = 8  # writes that are tried, evenly spread where there are more; each takes a process
BEFORE, AFTER = 4, 3  # writes before a build's moving of the pointer, and after it, that are all tried

UPSERT = """
import sys
from pathlib import Path
import numpy as np
from indexer.catalog import Catalog, CatalogError
from indexer.records import Upsert
try:
    catalog = Catalog(Path(sys.argv[1]))
    for number in range(3):
        upserts = [Upsert(f"new {number} {row}", np.eye(32, dtype=np.float32)[row], sys.argv[2]) for row in range(20)]
        print(*(f"{one.item}\\n" for one in catalog.upsert(upserts, dim=32)), sep="", end="", flush=True)
except CatalogError as error:
    sys.exit(f"error: {error}")
"""

SNAPSHOT = """
import sys
from pathlib import Path
from indexer.catalog_file import CatalogError
from indexer.snapshot import SnapshotError, restore, snapshot
from indexer.store import Store
verb, root, directory = sys.argv[1], Store(Path(sys.argv[2])), Path(sys.argv[3])
try:
    if verb == "snapshot":
        snapshot(root, "street", directory, lambda *_: None)
    else:
        restore(root, directory, "again", lambda *_: None)
except (SnapshotError, CatalogError, OSError) as error:
    sys.exit(f"error: {error}")
"""

Ran = tuple[subprocess.CompletedProcess[str], list[str], Store]  # a command, the calls that failed, where it ran


@dataclass(frozen=True)
class Disk:
    """Runs programs whose writes below a directory fail.

    Attributes:
        shim: the library that makes them fail.
        log: where it says which call failed.
    """

    shim: Path
    log: Path

    def run(
        self, under: Path, at: int, *words: str | Path, kill: bool = False
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Run Python with the `at`-th write failing; what came of it, and the failed calls (all seen for 0).

        With `kill` the process is killed before that write instead.
        """
        self.log.unlink(missing_ok=True)
        faults = {"FAULT_UNDER": str(under), "FAULT_AT": str(at), "FAULT_LOG": str(self.log)}
        if kill:
            faults["FAULT_KILL"] = "1"
        ran = subprocess.run(
            [sys.executable, *map(str, words)],
            env={**os.environ, **faults, "LD_PRELOAD": str(self.shim)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return ran, self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """The shim, compiled here."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler (cc), or not Linux: no call can be made to fail")
    made = tmp_path_factory.mktemp("eio")
    source = Path(__file__).with_name("eio.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made / "eio.so", source, "-ldl"], check=True)
    return Disk(made / "eio.so", made / "log")


@pytest.fixture
def index_dir(store: Store, tiny_model: str, photos: Path) -> Path:
    """An index with an active version of 60 photographs."""
    build(NAME, photos, model=tiny_model, store=store, progress=lambda *_: None)
    return store.index(NAME)


def fresh(store: Store) -> Iterator[Store]:
    """Copies of a store as it is now, one after the other, at the same path."""
    copy = Store(store.root.with_name("failing"))
    while True:
        shutil.rmtree(copy.root, ignore_errors=True)
        shutil.copytree(store.root, copy.root)
        yield copy


def spread(count: int) -> list[int]:
    """Up to MOST of the numbers 1 to `count`, the first and the last among them."""
    return sorted({*np.linspace(1, count, min(count, MOST), dtype=int).tolist()})


def around_the_switch(calls: Sequence[str]) -> list[int]:
    """The numbers of some calls of a build: a few of all, and each around the moving of the pointer."""
    moves = next(
        number for number, call in enumerate(calls, 1) if call.startswith("rename") and call.endswith("/active")
    )
    spread_out = np.linspace(1, len(calls), 4, dtype=int).tolist()
    return sorted({*spread_out, *range(moves - BEFORE, moves + AFTER)})


def assert_serves(index_dir: Path, count: int) -> None:
    """Some version is active, opens, and finds each of its items."""
    number = active_version(index_dir)
    assert number is not None
    opened = open_version(version_dir(index_dir, number))
    with closing(Catalog(index_dir)) as catalog:
        snapshot = LiveIndex(opened, catalog).snapshot
        assert snapshot.count == count
        similarities, _ = snapshot.search(snapshot.embeddings(np.flatnonzero(snapshot.live)), 1)
        np.testing.assert_allclose(similarities, 1, atol=1e-5)


def assert_settled(index_dir: Path, count: int) -> None:
    """So many items are found before the catalogue is opened for more than reading, and live in it after that."""
    assert_serves(index_dir, count)
    with closing(open_catalog(index_dir)) as catalog:
        assert catalog.count() == count
    assert_serves(index_dir, count)


def assert_told(ran: subprocess.CompletedProcess[str], failed: Sequence[str]) -> None:
    """The command failed saying that the disk did, without a traceback."""
    assert ran.returncode == 1, (failed, ran.stdout, ran.stderr)
    assert "Traceback" not in ran.stderr, (failed, ran.stderr)
    assert "nput/output error" in ran.stderr or "disk I/O error" in ran.stderr, (failed, ran.stderr)


def test_upserts_on_a_failing_disk_are_refused_or_kept(disk: Disk, store: Store, index_dir: Path) -> None:
    """At whichever write of the catalogue the disk fails: what was acknowledged before is there, nothing by half."""
    model = open_version(version_dir(index_dir, 1)).manifest.model
    stores = fresh(store)
    at = next(stores).index(NAME)
    for number in [0, *spread(len(disk.run(at, 0, "-c", UPSERT, at, model)[1]))]:
        at = next(stores).index(NAME)
        ran, failed = disk.run(at, number, "-c", UPSERT, at, model)
        if number and ran.returncode:
            assert_told(ran, failed)
        acknowledged = set(ran.stdout.splitlines())
        with closing(Catalog(at)) as catalog:
            kept = {item.item for item in catalog.page(limit=1_000) if item.item.startswith("new ")}
        assert acknowledged <= kept
        assert len(kept) % 20 == 0, "a batch is there by half"
        assert_serves(at, 60 + len(kept))


@pytest.fixture
def failing_build(disk: Disk, store: Store, index_dir: Path, photos: Path) -> Callable[..., Ran]:
    """Runs a build of the folder less one image on a fresh copy of the store, with one write failing."""
    model = open_version(version_dir(index_dir, 1)).manifest.model
    (photos / "garden" / "01.jpg").unlink()
    stores = fresh(store)

    def run(at: int, *, kill: bool = False) -> Ran:
        copy = next(stores)
        words: list[str | Path] = [
            "-m",
            "clients.cli",
            "index",
            "build",
            NAME,
            photos,
            "--model",
            model,
            "--store",
            copy.root,
        ]
        return *disk.run(copy.root, at, *words, kill=kill), copy

    return run


def test_a_build_on_a_failing_disk_leaves_the_old_version_unchanged(failing_build: Callable[..., Ran]) -> None:
    """At whichever write: the old version with all its items, and an error; or the new one, which an error tells."""
    calls = failing_build(0)[1]
    for number in around_the_switch(calls):
        ran, failed, copy = failing_build(number)
        if ran.returncode:
            assert_told(ran, failed)
        moved = active_version(copy.index(NAME)) == 2
        told = "version 2 of street is searched now" in ran.stderr or "is done, but its record" in ran.stderr
        assert moved == (not ran.returncode or told), (failed, ran)
        assert_settled(copy.index(NAME), 59 if moved else 60)


def test_a_build_killed_at_any_write_leaves_the_old_version_or_the_new(failing_build: Callable[..., Ran]) -> None:
    """The old version with all its items, or the new one; what the new one lacks is off the catalogue when opened."""
    calls = failing_build(0)[1]
    moved = set[bool]()
    for number in around_the_switch(calls):
        ran, _, copy = failing_build(number, kill=True)
        assert ran.returncode == -signal.SIGKILL
        moved.add(active_version(copy.index(NAME)) == 2)
        assert_settled(copy.index(NAME), 59 if active_version(copy.index(NAME)) == 2 else 60)
    assert moved == {False, True}


def test_an_activation_on_a_failing_disk_moves_the_pointer_or_says_that_it_did_not(
    disk: Disk, store: Store, index_dir: Path, photos: Path
) -> None:
    """At each of its writes: an error, and what is searched is what the error says."""
    model = open_version(version_dir(index_dir, 1)).manifest.model
    build(NAME, photos, model=model, store=store, progress=lambda *_: None)
    activate(index_dir, 1)
    stores = fresh(store)

    def run(at: int) -> Ran:
        copy = next(stores)
        words: list[str | Path] = ["-m", "clients.cli", "index", "activate", NAME, "2", "--store", copy.root]
        return *disk.run(copy.root, at, *words), copy

    calls = run(0)[1]
    # Until the last five, which move the pointer, the catalogue and the note of the switch are made to agree with it.
    assert not any(".active" in call for call in calls[:-5])
    assert [call.split()[0] for call in calls[-5:]] == ["ftruncate64", "write", "fsync", "rename", "fsync"]
    for number in range(1, len(calls) + 1):
        ran, failed, copy = run(number)
        assert_told(ran, failed)
        moved = active_version(copy.index(NAME)) == 2
        assert moved == ("version 2 of street is searched now" in ran.stderr) == (number == len(calls))
        assert_serves(copy.index(NAME), 60)


def test_a_snapshot_on_a_failing_disk_is_whole_or_not_there(
    disk: Disk, store: Store, index_dir: Path, tmp_path: Path
) -> None:
    """At whichever write: an error, and either nothing that looks like a snapshot, or one that restores."""
    target, other = tmp_path / "backup" / "copy", Store(tmp_path / "other")

    def run(at: int) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        for used in (target.parent, other.root):
            shutil.rmtree(used, ignore_errors=True)
        return disk.run(target.parent, at, "-c", SNAPSHOT, "snapshot", store.root, target)

    calls, told = run(0)[1], 0
    assert {call.split()[0] for call in calls} >= {"write", "fsync", "rename"}
    for number in sorted({*spread(len(calls)), len(calls) - 1}):
        ran, failed = run(number)
        if ran.returncode:  # SQLite makes nothing of a directory that can't be synced, which is done again at the end
            assert_told(ran, failed)
            told += 1
        whole = target.exists()
        assert whole == (ran.returncode == 0 or number == len(calls)), failed  # only the last call follows the rename
        if whole:
            restore(other, target, "again", lambda *_: None)
            assert_serves(other.index("again"), 60)
        else:
            assert list(target.parent.iterdir()) == []
    assert told > MOST // 2
    assert_serves(index_dir, 60)


def test_a_restored_index_on_a_failing_disk_is_whole_or_not_there(
    disk: Disk, store: Store, index_dir: Path, tmp_path: Path
) -> None:
    """At whichever write: an error, and no index, or all of it; the same call then makes it whole."""
    snapshot(store, NAME, tmp_path / "copy", lambda *_: None)
    other = Store(tmp_path / "other")

    def run(at: int) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        shutil.rmtree(other.root, ignore_errors=True)
        return disk.run(other.root, at, "-c", SNAPSHOT, "restore", other.root, tmp_path / "copy")

    for number in spread(len(run(0)[1])):
        ran, failed = run(number)
        assert_told(ran, failed)
        assert (other.index("again") / "active").exists() or not other.index("again").exists(), failed
        if not other.index("again").exists():
            restore(other, tmp_path / "copy", "again", lambda *_: None)
        assert_serves(other.index("again"), 60)

"""A disk that fails with EIO at any one write: a clear error, and nothing that was acknowledged is lost."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from indexer.build import build
from indexer.catalog import Catalog
from indexer.live import LiveIndex
from indexer.store import Store
from indexer.version import active_version, open_version, version_dir

pytestmark = pytest.mark.slow  # a process for each write

NAME = "street"
MOST = 24  # writes that are tried, evenly spread where there are more; each takes a process

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


@dataclass(frozen=True)
class Disk:
    """Runs programs whose writes below a directory fail.

    Attributes:
        shim: the library that makes them fail.
        log: where it says which call failed.
    """

    shim: Path
    log: Path

    def run(self, under: Path, at: int, *words: str | Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Run Python with the `at`-th write failing; what came of it, and the failed calls (all seen for 0)."""
        self.log.unlink(missing_ok=True)
        faults = {"FAULT_UNDER": str(under), "FAULT_AT": str(at), "FAULT_LOG": str(self.log)}
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


def assert_serves(index_dir: Path, count: int) -> None:
    """Some version is active, opens, and finds each of its items."""
    number = active_version(index_dir)
    assert number is not None
    opened = open_version(version_dir(index_dir, number))
    with closing(Catalog(index_dir)) as catalog:
        snapshot = LiveIndex(opened, catalog).snapshot
        assert snapshot.count == count
        assert snapshot.search(opened.embeddings(np.arange(8)), 1)[1].shape == (8, 1)


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

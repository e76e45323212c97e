"""Full disks and damaged files: a clear error, nothing acknowledged is lost, and what was searched is searched on."""

import json
import subprocess
import sys
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from indexer import snapshot
from indexer.build import WriteFailed, build
from indexer.catalog import Catalog, CatalogWriteFailed
from indexer.exporting import export_items
from indexer.live import LiveIndex
from indexer.locks import hold
from indexer.plan import plan
from indexer.records import Upsert
from indexer.store import Store
from indexer.version import active_version, list_versions, open_version, version_dir
from tests.conftest import full
from tests.serving import make_version

DIM = 16


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    """(rows, DIM) rows of unit length."""
    drawn = np.random.default_rng(seed).standard_normal((rows, DIM))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def test_upserts_to_a_full_disk_are_refused_and_the_acknowledged_ones_kept(small_disk: Path) -> None:
    """With the disk full an upsert is an error; what was acknowledged is there, and with space again it is taken."""
    store = Store(small_disk / "store")
    make_version(store, "photos", 1, "model", [f"item {n}" for n in range(50)], vectors(50))
    version = open_version(version_dir(store.index("photos"), 1))
    acknowledged = set[str]()
    with closing(Catalog(store.index("photos"))) as catalog:
        live = LiveIndex(version, catalog)

        def upsert_for_ever() -> None:
            for first in count(step=50):
                names = [f"new {n}" for n in range(first, first + 50)]
                rows = vectors(50, first)
                catalog.upsert([Upsert(*each, "model") for each in zip(names, rows, strict=True)], dim=DIM)
                acknowledged.update(names)

        with full(small_disk, 256 * 1024), pytest.raises(CatalogWriteFailed, match="free some space"):
            upsert_for_ever()
        live.refresh()
        assert live.snapshot.count == 50 + len(acknowledged)
        assert live.snapshot.search(vectors(1), 10)[1].shape == (1, 10)
        catalog.upsert([Upsert("later", vectors(1)[0], "model")], dim=DIM)
    with closing(Catalog(store.index("photos"))) as catalog:
        assert {item.item for item in catalog.page(limit=10**6)} == acknowledged | {"later"}


@pytest.mark.parametrize("free_kib", range(0, 224, 16))
def test_a_catalogue_is_made_whole_or_not_at_all_on_a_full_disk(small_disk: Path, free_kib: int) -> None:
    """Wherever the space ends: it was there without its log, which SQLite lets go of silently, and damaged so."""
    index_dir = small_disk / "photos"
    index_dir.mkdir()
    with full(small_disk, free_kib * 1024), suppress(CatalogWriteFailed), closing(Catalog(index_dir)) as catalog:
        assert catalog.sequence() == 0
    assert [path.name for path in index_dir.iterdir() if path.name.startswith(".")] == []
    with closing(Catalog(index_dir)) as catalog:
        assert catalog.sequence() == 0


@pytest.mark.parametrize("free_bytes", [0, 8_192, 40_960])
def test_a_build_on_a_full_disk_leaves_the_old_version(
    small_disk: Path, tiny_model: str, store: Store, photos: Path, free_bytes: int
) -> None:
    """Wherever the space ends, the build is an error; the version before is active, whole, and built upon later."""
    on_disk = Store(small_disk / "store")
    subprocess.run(["cp", "-r", store.root, on_disk.root], check=True)
    build("street", photos, model=tiny_model, store=on_disk, progress=lambda *_: None)
    (photos / "garden" / "01.jpg").unlink()
    with full(small_disk, free_bytes), pytest.raises((WriteFailed, CatalogWriteFailed)):
        build("street", photos, model=tiny_model, store=on_disk, progress=lambda *_: None)
    index_dir = on_disk.index("street")
    assert (list_versions(index_dir), active_version(index_dir)) == ([1], 1)
    assert open_version(version_dir(index_dir, 1)).count == 60
    assert build("street", photos, model=tiny_model, store=on_disk, progress=lambda *_: None).count == 59


def test_a_snapshot_on_a_full_disk_leaves_nothing_that_can_be_restored(
    small_disk: Path, tmp_path: Path, tiny_model: str, store: Store, photos: Path
) -> None:
    """A snapshot that does not fit is an error; what is left of it is refused, and with space it is taken."""
    build("street", photos, model=tiny_model, store=store, progress=lambda *_: None)
    with full(small_disk, 16_384), pytest.raises(OSError, match="No space left on device") as refused:
        snapshot.snapshot(store, "street", small_disk / "copy", lambda *_: None)
    assert str(refused.value.filename).startswith(str(small_disk))  # not the file that is read on another disk
    with pytest.raises(snapshot.SnapshotError):
        snapshot.restore(Store(tmp_path / "other"), small_disk / "copy", None, lambda *_: None)


def test_a_lock_on_a_full_disk_is_named(small_disk: Path) -> None:
    """Whoever takes it is told which file can't be written, not only that one can't."""
    with (
        full(small_disk, 0),
        pytest.raises(OSError, match="No space left on device") as refused,
        hold(small_disk / "lock"),
    ):
        pass
    assert refused.value.filename == str(small_disk / "lock")


OPEN = """
import json, sys
from pathlib import Path
from indexer.manifest import ManifestError
from indexer.version import open_version
path, name, cases = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
whole = (path / name).read_bytes()
for flip, end in cases:
    damaged = bytearray(whole[:end])
    if flip is not None:
        damaged[flip] ^= 1 << flip % 8
    (path / name).write_bytes(damaged)
    try:
        open_version(path)
        print("opened")
    except ManifestError as error:
        print("refused" if name in str(error) else f"not named: {error}")
(path / name).write_bytes(whole)
"""


def test_an_export_to_a_full_disk_names_its_file(small_disk: Path, tmp_path: Path) -> None:
    """An export that finds no space says which file can't be written, not that the store can't."""
    store = Store(tmp_path / "store")
    make_version(store, "photos", 1, "model", [f"item {n}" for n in range(500)], vectors(500))
    with full(small_disk, 8_192), pytest.raises(OSError, match="No space left on device") as refused:
        export_items("photos", small_disk / "out.parquet", store=store, progress=lambda *_: None)
    assert refused.value.filename == str(small_disk / "out.parquet")


@pytest.mark.parametrize("name", ["index.faiss", "rows.faiss", "items.sqlite", "manifest.json"])
def test_a_damaged_file_of_a_version_is_refused_by_name(store: Store, name: str) -> None:
    """One flipped bit, or a lost end, anywhere in any file: refused naming it, and the process goes on."""
    rows = 4_000
    assert plan(rows, DIM).kind == "ivfpq"
    path = make_version(store, "photos", 1, "model", [f"item {n}" for n in range(rows)], vectors(rows))
    size = (path / name).stat().st_size
    offsets = sorted({*range(min(size, 48)), *np.linspace(0, size - 1, 80, dtype=int).tolist(), size - 1})
    cases: list[tuple[int | None, int]] = [(offset, size) for offset in offsets]
    cases += [(None, offset) for offset in offsets[:-1]]  # the last byte of a manifest is a line end: no part of it
    program = [sys.executable, "-c", OPEN, str(path), name, json.dumps(cases)]
    child = subprocess.run(program, check=False, capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, "")
    assert ["refused"] * len(cases) == child.stdout.splitlines()
    assert open_version(path).count == rows

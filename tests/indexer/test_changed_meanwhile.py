"""An item that people change while a version is built: its row is of one state of it, and the search has the last."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from indexer import adopt, version
from indexer.build import BuildReport, build
from indexer.catalog import Catalog
from indexer.exporting import export_items
from indexer.items import UnknownItem
from indexer.live import LiveIndex
from indexer.rebuild import rebuild
from indexer.records import Upsert
from indexer.rows import Embeddings
from indexer.store import Store
from tests.conftest import TINY_DIM

NAME, IMAGE, OTHER = "street", b"an image", b"another image"


def axis(number: int) -> Embeddings:
    """The (D,) unit vector along an axis."""
    return np.asarray(np.eye(TINY_DIM)[number], np.float32)


@pytest.fixture
def rebuilt(store: Store, tiny_model: str, photos: Path) -> Callable[..., BuildReport]:
    """Rebuilds an index of 60 pictures and an item `up`, calling `change` once all items are listed."""
    build(NAME, photos, model=tiny_model, store=store, progress=lambda *_: None)

    def run(before: Upsert, change: Callable[[Catalog], object]) -> BuildReport:
        with closing(Catalog(store.index(NAME))) as catalog:
            catalog.upsert([before], dim=TINY_DIM)

            def progress(stage: str, done: int, total: int) -> None:
                if (stage, done) == ("embed", 0):
                    change(catalog)

            return rebuild(NAME, store=store, progress=progress)

    return run


def test_no_row_has_the_old_image_and_the_new_embedding(
    store: Store, tiny_model: str, rebuilt: Callable[..., BuildReport]
) -> None:
    """What is upserted again with another image is left out of the version, said so, and searched beside it."""
    changed = Upsert("up", axis(1), tiny_model, image=OTHER)
    report = rebuilt(Upsert("up", axis(0), tiny_model, image=IMAGE), lambda it: it.upsert([changed], dim=TINY_DIM))
    assert (report.skipped, report.refused) == ((("up", "changed while the version was built"),), "")
    opened = version.open_version(version.version_dir(store.index(NAME), 2))
    with closing(adopt.open_catalog(store.index(NAME))) as catalog:
        snapshot = LiveIndex(opened, catalog).snapshot
        np.testing.assert_array_equal(snapshot.embedding(snapshot.row_of("up")), axis(1))
        catalog.upsert([Upsert("again", image=IMAGE)], dim=TINY_DIM)
    # Not a picture: had its digest come with an embedding, that would be used here.
    assert "again" in dict(rebuild(NAME, store=store, progress=lambda *_: None).skipped)


def test_an_embedding_that_an_image_replaces_is_said_to_have_changed(
    tiny_model: str, rebuilt: Callable[..., BuildReport]
) -> None:
    """It is not blamed on another model."""
    changed = Upsert("up", axis(1), tiny_model, image=OTHER)
    report = rebuilt(Upsert("up", axis(0), tiny_model), lambda catalog: catalog.upsert([changed], dim=TINY_DIM))
    assert report.skipped == (("up", "changed while the version was built"),)


def test_many_changes_do_not_keep_a_version_from_being_searched(
    store: Store, tiny_model: str, rebuilt: Callable[..., BuildReport]
) -> None:
    """What changed meanwhile is not lost, so that it is no objection, however much of the index it is."""
    names = [f"up {number}" for number in range(20)]

    def upsert_all(catalog: Catalog, image: bytes) -> None:
        upserts = [Upsert(name, axis(0), tiny_model, image=image + name.encode()) for name in names]
        assert {one.reason for one in catalog.upsert(upserts, dim=TINY_DIM)} == {""}

    with closing(Catalog(store.index(NAME))) as catalog:
        upsert_all(catalog, IMAGE)
        rebuild(NAME, store=store, progress=lambda *_: None)
        upsert_all(catalog, OTHER)  # of which no version has an embedding
    report = rebuilt(Upsert("up", axis(0), tiny_model), lambda catalog: upsert_all(catalog, b"a third image"))
    assert (len(report.skipped), report.refused, report.activated) == (20, "", True)


def test_an_embedding_that_is_deleted_meanwhile_is_not_blamed_on_a_model(
    tiny_model: str, rebuilt: Callable[..., BuildReport]
) -> None:
    """The report says that the item changed."""
    report = rebuilt(Upsert("up", axis(0), tiny_model), lambda catalog: catalog.delete(["up"]))
    assert report.skipped == (("up", "changed while the version was built"),)


def test_an_embedding_of_the_model_before_leaves_no_old_image_to_be_found(
    store: Store, tiny_model: str, make_model: Callable[..., str], photos: Path, tmp_path: Path
) -> None:
    """What an item was upserted with while another model embedded its old image is not undone by the swap."""
    build(NAME, photos, model=tiny_model, store=store, progress=lambda *_: None)
    other, item, table = make_model(store, seed=1), "street/00.png", tmp_path / "items.parquet"

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("embed", total):
            catalog.upsert([Upsert(item, axis(0), tiny_model)], dim=TINY_DIM)

    with closing(adopt.open_catalog(store.index(NAME))) as catalog:
        assert rebuild(NAME, store=store, model=other, progress=progress).activated
        opened = version.open_version(version.version_dir(store.index(NAME), 2))
        assert item in opened.rows_of([item])
        with pytest.raises(UnknownItem):
            LiveIndex(opened, catalog).snapshot.row_of(item)
    export_items(NAME, table, store=store, progress=lambda *_: None)
    exported = {row["item"]: row["embedding"] for row in pq.read_table(table).to_pylist()}
    assert [name for name, embedding in exported.items() if embedding is None] == [item]


def test_a_version_of_another_model_leaves_no_old_image_to_be_found(
    store: Store, tiny_model: str, make_model: Callable[..., str], photos: Path, tmp_path: Path
) -> None:
    """What another image was upserted for since is not found by the old one, nor exported with it."""
    build(NAME, photos, model=tiny_model, store=store, progress=lambda *_: None)
    other, item, table = make_model(store, seed=1), "street/00.png", tmp_path / "items.parquet"
    rebuild(NAME, store=store, model=other, progress=lambda *_: None)
    with closing(adopt.open_catalog(store.index(NAME))) as catalog:
        catalog.upsert([Upsert(item, axis(0), other, image=IMAGE)], dim=TINY_DIM)
        adopt.rollback(store, NAME)
        opened = version.open_version(version.version_dir(store.index(NAME), 1))
        live = LiveIndex(opened, catalog)
        assert item in opened.rows_of([item])
        with pytest.raises(UnknownItem):
            live.snapshot.row_of(item)
        catalog.upsert([Upsert(item, payload={"number": 1})], dim=TINY_DIM)
        live.refresh()
        assert live.snapshot.count == 59
        export_items(NAME, table, store=store, progress=lambda *_: None)
        assert catalog.embed(catalog.get(item), tiny_model, axis(1))
        live.refresh()
        np.testing.assert_array_equal(live.snapshot.embedding(live.snapshot.row_of(item)), axis(1))
    exported = {row["item"]: row["embedding"] for row in pq.read_table(table).to_pylist()}
    assert [name for name, embedding in exported.items() if embedding is None] == [item]


def test_an_imported_image_that_was_overwritten_stays_found(
    store: Store, tiny_model: str, make_model: Callable[..., str], photos: Path, tmp_path: Path
) -> None:
    """Another model embeds what lies at its path by then, which is searched and exported, also with a new payload."""
    build(NAME, photos, model=tiny_model, store=store, progress=lambda *_: None)
    item, table = "street/00.png", tmp_path / "items.parquet"
    with closing(adopt.open_catalog(store.index(NAME))) as catalog:
        catalog.upsert([Upsert(item, axis(0), tiny_model, source=photos / item, sha256="0" * 64)], dim=TINY_DIM)
        rebuild(NAME, store=store, model=make_model(store, seed=1), progress=lambda *_: None)
        catalog.upsert([Upsert(item, payload={"number": 1})], dim=TINY_DIM)
        opened = version.open_version(version.version_dir(store.index(NAME), 2))
        assert LiveIndex(opened, catalog).snapshot.count == 60
    export_items(NAME, table, store=store, progress=lambda *_: None)
    exported = pq.read_table(table)["embedding"]
    assert (len(exported), exported.null_count) == (60, 0)


def test_an_export_is_of_one_version(
    store: Store, tiny_model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another one takes over while it is verified: no item is without its embedding."""
    folder, table = tmp_path / "other", tmp_path / "items.parquet"
    shutil.copytree(photos, folder / "copies")
    build(NAME, photos, model=tiny_model, store=store, progress=lambda *_: None)
    build(NAME, folder, model=tiny_model, store=store, activate=False, progress=lambda *_: None)
    opens = version.open_version

    def open_slowly(directory: Path, *, verify: bool = True) -> version.Version:
        opened = opens(directory, verify=verify)
        monkeypatch.undo()
        adopt.activate(store, NAME, 2)
        return opened

    monkeypatch.setattr(version, "open_version", open_slowly)
    export_items(NAME, table, store=store, progress=lambda *_: None)
    exported = pq.read_table(table)
    assert (len(exported), exported["embedding"].null_count) == (60, 0)
    assert all(item.startswith("copies/") for item in exported["item"].to_pylist())

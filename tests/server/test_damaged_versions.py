"""Damage of the version that is searched, before a server opens it and after: the one before it serves meanwhile."""

import logging
import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from kinsight.v1.index_service_pb2 import GetIndexRequest, ListIndexesRequest
from kinsight.v1.search_service_pb2 import Embedding, SearchRequest

from indexer import catalog_file
from indexer.acknowledged import note_of
from indexer.catalog import CATALOG, Catalog, CatalogCorrupt
from indexer.manifest import CorruptFile, amend_model
from indexer.records import Upsert
from indexer.version import VersionError, activate, open_version
from server.indexes import Indexes
from tests.serving import CURVE, Gallery, Stubs, make_gallery, make_model, make_version, photo, serving
from tests.waiting import PROCESS_S, until

FILES = ("rows.faiss", "items.sqlite", "manifest.json")


@pytest.fixture
def two(tmp_path: Path) -> Gallery:
    """A store whose index has version 1 of six photographs, and after it version 2, active, of the first three."""
    gallery = make_gallery(tmp_path / "store", count=6)
    make_version(gallery.store, "photos", 2, gallery.model, gallery.items[:3], gallery.embeddings[:3])
    return gallery


def _version(gallery: Gallery, number: int) -> Path:
    return gallery.store.index("photos") / "versions" / str(number)


def _opened(gallery: Gallery) -> Indexes:
    indexes = Indexes(gallery.store)
    indexes.refresh()
    return indexes


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("name", FILES)
def test_a_version_that_is_damaged_at_the_start_gives_way_to_the_one_before(
    two: Gallery, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With what was upserted since; the log and whoever asks for the index hear why, until it is mended."""
    indexes = _opened(two)
    indexes.get("").catalog.upsert([Upsert("new", two.embeddings[5], two.model)], dim=two.embeddings.shape[1])
    indexes.close()
    damaged = _version(two, 2) / name
    whole = shutil.copy(damaged, two.store.root / "whole")
    _flip(damaged)
    with caplog.at_level(logging.ERROR), serving(two.store) as served, Stubs(served.target) as stubs:
        query = Embedding(values=two.embeddings[5].tolist(), model=two.model)
        answer = stubs.search.Search(SearchRequest(embedding=query, top_k=10))
        assert (answer.version, {hit.item for hit in answer.hits}) == (1, {*two.items, "new"})
        index = stubs.indexes.GetIndex(GetIndexRequest())
        assert (index.active_version, index.etag) == (1, "2-1")
        assert str(damaged) in index.problem
        Path(whole).replace(damaged)
        served.running.indexes.serve("photos")
        (index,) = stubs.indexes.ListIndexes(ListIndexesRequest()).indexes
        assert (index.active_version, index.problem) == (2, "")
    (record,) = caplog.records
    start = "index photos: the activated version 2 can't be opened; version 1 is served, which was active before: "
    assert record.message.startswith(f"{start}{damaged}")


def test_a_version_whose_model_or_directory_is_lost_gives_way_too(two: Gallery, tmp_path: Path) -> None:
    """The one before is of another model, and opened by that."""
    other = make_model(two.store, seed=1)
    make_version(two.store, "photos", 3, other, two.items[:3], two.embeddings[:3])
    lost = two.store.model(other)
    for gone in (lost, _version(two, 3)):
        gone.rename(tmp_path / "away")
        index = _opened(two).get("photos")
        assert (index.number, index.model) == (2, two.model)
        (tmp_path / "away").rename(gone)


@pytest.mark.usefixtures("one_at_a_time")
def test_what_takes_the_place_of_a_damaged_version_is_kept_up_to_date(two: Gallery) -> None:
    """Its model was calibrated in vain, and items that it had yet to embed were never found, until a mend."""
    other = make_model(two.store, seed=1)
    make_version(two.store, "photos", 3, other, two.items[:3], two.embeddings[:3])
    indexes = _opened(two)
    upserts = [Upsert(item, two.embeddings[0], other, image=photo(7)) for item in "abc"]
    indexes.get("").catalog.upsert(upserts, dim=two.embeddings.shape[1])
    indexes.close()
    _flip(_version(two, 3) / "rows.faiss")
    indexes = _opened(two)
    assert (indexes.get("").number, indexes.get("").calibration) == (2, None)
    amend_model(two.store.model(two.model), CURVE.fields())
    for _ in range(4):
        indexes.refresh()
    assert indexes.get("").calibration == CURVE
    assert indexes.get("").snapshot.count == 6


def test_where_the_one_before_is_damaged_too_nothing_is_served(two: Gallery) -> None:
    """What is told is what is wrong with the active one."""
    for number in (1, 2):
        _flip(_version(two, number) / "rows.faiss")
    with pytest.raises(CorruptFile, match=r"versions/2/rows\.faiss"):
        _opened(two).get("photos")


def test_a_pointer_that_is_gone_is_no_new_index(two: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused by name at the start, and told of at once where the index is served."""
    indexes = _opened(two)
    pointer = two.store.index("photos") / "active"
    pointer.unlink()
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            indexes.refresh()
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        f"the activated version can't be opened; version 2 is served on: {pointer} is gone; activate a version again"
    ]
    with pytest.raises(VersionError, match=f"{pointer} is gone"):
        _opened(two).get("photos")


def test_an_index_that_was_never_activated_is_not_missed(two: Gallery) -> None:
    """Its first version waits for being activated, and the other index is still the one meant without a name."""
    make_version(two.store, "new", 1, two.model, two.items, two.embeddings, activated=False)
    indexes = _opened(two)
    assert indexes.get("").name == "photos"
    assert not note_of(two.store.index("new") / CATALOG).exists()
    activate(two.store.index("new"), 1)
    indexes.refresh()
    assert indexes.get("new").number == 1


@pytest.mark.parametrize("name", FILES[:2])
def test_a_version_that_is_overwritten_while_it_is_served_gives_way(
    two: Gallery, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Mapped rows would be compared as they are by now, and a file that was cut would end the process."""
    indexes = _opened(two)
    path = _version(two, 2) / name
    os.truncate(path, 10)
    with caplog.at_level(logging.ERROR):
        indexes.refresh()
    assert (indexes.get("").number, indexes.get("").snapshot.count) == (1, 6)
    assert [str(path) in record.message for record in caplog.records] == [True, True]
    os.truncate(_version(two, 1) / name, 10)
    indexes.refresh()
    with pytest.raises(CorruptFile, match=f"versions/2/{name} has 10 bytes"):
        indexes.get("")


def test_a_version_that_was_only_touched_or_replaced_is_served_on(two: Gallery) -> None:
    """What was touched is opened anew; a copy that was put in the place of a file is read by who opens it next."""
    indexes = _opened(two)
    first, rows = indexes.get(""), _version(two, 2) / "rows.faiss"
    os.utime(rows, (0, 0))  # now may be when it was made, by the clock of some file systems
    indexes.refresh()
    second = indexes.get("")
    assert (second.number, second is first) == (2, False)
    shutil.copy(rows, rows.with_name("copy"))
    rows.with_name("copy").replace(rows)
    indexes.refresh()
    assert indexes.get("") is second


def test_items_that_can_not_be_read_any_more_are_refused_by_name(two: Gallery) -> None:
    """As long as nobody has noticed yet that their file was overwritten."""
    version = open_version(_version(two, 2))
    path = _version(two, 2) / "items.sqlite"
    os.truncate(path, 10)
    with pytest.raises(CorruptFile, match=f"{path} was damaged since it was opened"):
        list(version.read_items())


def test_rows_of_a_flat_index_are_not_those_of_its_file(two: Gallery) -> None:
    """Which may be cut under a search."""
    version = _opened(two).get("").version
    rows = _version(two, 2) / "rows.faiss"
    rows.write_bytes(bytes(rows.stat().st_size))
    np.testing.assert_array_equal(version.search(two.embeddings[:3], 1)[1], [[0], [1], [2]])


def test_a_large_catalogue_is_checked_while_it_is_served(
    two: Gallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite would look up an item in a damaged index of it, and not find it; nothing would be said."""
    _opened(two).close()  # before it counts as large: a check that goes on would keep the log
    monkeypatch.setattr(catalog_file, "CHECK_BYTES", 0)
    path = two.store.index("photos") / CATALOG
    whole = path.read_bytes()
    key = two.items[1].encode()
    ends = [match.end() - 1 for match in re.finditer(re.escape(key), whole)]
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_items_1'"
        ).fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    (place,) = [end for end in ends if end // page_bytes == page - 1]
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with closing(Catalog(path.parent)) as catalog:
        assert catalog.known(two.items[:3]).keys() == {two.items[0], two.items[2]}
    indexes = _opened(two)

    def is_refused() -> bool:
        indexes.refresh()
        try:
            indexes.get("photos")
        except CatalogCorrupt as error:
            return str(path) in str(error)
        return False

    with caplog.at_level(logging.ERROR):
        until(is_refused, PROCESS_S)
        indexes.refresh()
    assert not indexes.ready
    path.with_name("copy").write_bytes(whole)
    path.with_name("copy").replace(path)
    indexes.serve("photos")
    assert indexes.get("photos").catalog.get(two.items[1])

"""Collections that builds found, in the catalogue: the same as the version, and what users changed is theirs."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from indexer import catalog_file, mirroring
from indexer.catalog import Catalog
from indexer.catalog_file import CatalogError, CatalogFile
from indexer.locks import turn
from indexer.records import Upsert
from tests.indexer.collected import mirror

DIM = 8


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """An empty catalogue."""
    with closing(Catalog(tmp_path)) as catalog:
        yield catalog


def put(catalog: Catalog, *items: str) -> None:
    catalog.upsert([Upsert(item, image=item.encode()) for item in items], dim=DIM)


def told(catalog: Catalog, after: int = 0) -> dict[str, bool]:
    """Which items `changes` tells, and whether they are live."""
    return {change.item: change.live for change in catalog.changes(after, "m")}


def test_a_mirrored_collection_leaves_users_changes_alone(catalog: Catalog) -> None:
    """Upserted items keep their content, deleted ones stay deleted; the rest follows the collection."""
    assert mirror(catalog, "a", "b", "c", "d") == 4
    put(catalog, "a", "mine")
    catalog.delete(["b"])
    before = catalog.sequence()
    assert mirror(catalog, "a", "b", "c", "e") == 2
    assert {item.item: item.mirrored for item in catalog.page()} == {"a": False, "c": True, "e": True, "mine": False}
    assert {"b"} == catalog.deleted()
    assert told(catalog, before) == {}


def test_mirroring_the_same_again_changes_nothing(catalog: Catalog) -> None:
    """Unchanged items keep their sequence, and the payload that they have got meanwhile."""
    mirror(catalog, "a", "b")
    catalog.upsert([Upsert("a", payload={"n": 1})], dim=DIM)
    assert mirror(catalog, "a", "b") == 0
    assert mirror(catalog, "a", sha256="1", complete=False) == 1
    assert (catalog.get("a").payload, catalog.get("a").mirrored) == ({"n": 1}, True)
    assert catalog.count() == 2


def test_only_a_mirrored_item_that_returns_is_a_change(catalog: Catalog) -> None:
    """Items that a build found are in its version, and those that left are in the one before, searched until then."""
    mirror(catalog, "a", "b")
    mirror(catalog, "a", "b", sha256="1")
    assert told(catalog) == {}
    mirror(catalog, "b", sha256="1")
    assert told(catalog) == {}
    mirror(catalog, "a", sha256="1", complete=False)
    assert told(catalog) == {"a": True}


def test_what_a_version_could_not_read_stays_as_it_is_known(catalog: Catalog) -> None:
    """It is in the collection still; what is not in it at all is gone."""
    mirror(catalog, "a", "b", "c")
    assert mirror(catalog, "a", unread=["b"]) == 1
    assert [item.item for item in catalog.page()] == ["a", "b"]


def test_more_than_a_chunk_is_numbered_in_one_go(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every change has a number of its own, also where chunks hold what users took over."""
    monkeypatch.setattr(mirroring, "_CHUNK", 3)
    names = [f"{number:02}" for number in range(10)]
    assert mirror(catalog, *names) == 10
    put(catalog, *names[2:4])
    assert mirror(catalog, *names, sha256="1") == 8
    assert [item.sequence for item in catalog.page()] == [13, 14, 11, 12, *range(15, 21)]
    assert mirror(catalog, "00", sha256="1") == 7
    assert told(catalog, 20) == {}
    assert catalog.sequence() == 27


def test_others_write_while_files_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going through a million items takes long; what users took over meanwhile stays theirs."""
    monkeypatch.setattr(catalog_file, "BUSY_TIMEOUT_S", 0.1)
    compared = CatalogFile.compared
    with closing(Catalog(tmp_path)) as one, closing(Catalog(tmp_path)) as other:
        mirror(one, "leaves", "left alone")

        @contextmanager
        def written_meanwhile(file: CatalogFile, version: Path, notes: Mapping[str, str]) -> Iterator[None]:
            with compared(file, version, notes):
                put(other, "b", "left alone")
                yield

        with monkeypatch.context() as patched:
            patched.setattr(CatalogFile, "compared", written_meanwhile)
            assert mirror(one, "a", "b") == 2
        assert {item.item: item.mirrored for item in one.page()} == {"a": True, "b": False, "left alone": False}
        assert mirror(one, "c", still=lambda: False) is None
        assert mirror(one, "a") == 0


def test_who_mirrors_waits_for_who_is_at_it(catalog: Catalog) -> None:
    """What two find to differ at the same time, one after the other would not."""
    with turn(catalog.path.with_name(mirroring.TURN)):
        waiting = threading.Thread(target=mirror, args=(catalog, "a"))
        waiting.start()
        waiting.join(0.1)
        assert catalog.count() == 0
    waiting.join()
    assert catalog.count() == 1


def test_a_version_whose_items_can_not_be_read_takes_nothing(catalog: Catalog) -> None:
    """And leaves nothing behind that would keep the next one from being taken in."""
    broken = catalog.path.with_name("broken.sqlite")
    broken.write_bytes(b"not a database" * 100)
    with pytest.raises(CatalogError):
        catalog.mirror(broken, complete=True)
    assert (catalog.sequence(), mirror(catalog, "a")) == (0, 1)

"""Importing a collection into an index: what is found afterwards, whatever became of the index or of the files."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from indexer import adopt, version
from indexer.catalog import Catalog
from indexer.importing import import_items
from indexer.live import LiveIndex
from indexer.live_snapshot import Snapshot
from indexer.rebuild import rebuild
from indexer.records import Upsert
from indexer.store import Store
from tests.serving import photo

NAME = "street"
NEW = [f"new-{number}.png" for number in range(5)]


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A folder of 5 other pictures."""
    folder = tmp_path / "more"
    folder.mkdir()
    for number, item in enumerate(NEW):
        (folder / item).write_bytes(photo(number))
    return folder


def snapshot_of(index_dir: Path) -> Snapshot:
    number = version.active_version(index_dir)
    assert number is not None
    with closing(adopt.open_catalog(index_dir)) as catalog:
        return LiveIndex(version.open_version(version.version_dir(index_dir, number)), catalog).snapshot


def test_images_that_moved_are_found_where_they_are(
    store: Store, make_model: Callable[..., str], index: Path, more: Path, tmp_path: Path
) -> None:
    """Importing them from there lets another model read them; once more, and nothing changes."""
    import_items(NAME, more, store=store, progress=quiet)
    moved = tmp_path / "moved"
    shutil.move(more, moved)
    with closing(Catalog(index)) as catalog:
        before = catalog.sequence()
        assert import_items(NAME, moved, store=store, progress=quiet).imported == 5
        assert {catalog.get(item).source for item in NEW} == {moved / item for item in NEW}
        assert import_items(NAME, moved, store=store, progress=quiet).unchanged == 5
        assert catalog.sequence() == before + 5
    report = rebuild(NAME, store=store, model=make_model(store, seed=1), progress=quiet)
    assert (report.count, report.skipped) == (65, ())


def test_images_of_a_version_that_was_rolled_back_are_searched_again(store: Store, index: Path, more: Path) -> None:
    """They left the index with that version, so they are not unchanged."""
    rebuild(NAME, more, store=store, progress=quiet)
    assert adopt.rollback(store, NAME) == 1
    assert import_items(NAME, more, store=store, progress=quiet).imported == 5
    snapshot = snapshot_of(index)
    assert snapshot.count == 65
    assert [snapshot.row_of(item) for item in NEW]
    assert import_items(NAME, more, store=store, progress=quiet).unchanged == 5


def test_another_model_that_is_activated_meanwhile_finds_what_is_imported(
    store: Store, make_model: Callable[..., str], index: Path, more: Path
) -> None:
    """What was embedded by the model before is embedded again, so that the new one's searches find it."""
    other = make_model(store, seed=1)

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("import", 0):
            assert rebuild(NAME, store=store, model=other, progress=quiet).activated

    assert import_items(NAME, more, store=store, progress=progress).imported == 5
    snapshot = snapshot_of(index)
    assert (snapshot.version.manifest.model, snapshot.count) == (other, 65)
    assert [snapshot.row_of(item) for item in NEW]


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_people_change_while_images_are_imported_stays_so(
    store: Store, index: Path, more: Path, interrupted: bool
) -> None:
    """Before the import comes to the items, and after it when it goes on where it was interrupted; it says so."""
    unit = np.eye(1, version.open_version(version.version_dir(index, 1)).manifest.dim, dtype=np.float32)[0]
    deleted, upserted, *others = NEW
    ran = import_items(NAME, more, store=store, progress=quiet) if interrupted else None
    with closing(Catalog(index)) as catalog:
        began = 0 if ran else catalog.sequence()
        if not ran:
            catalog.upsert([Upsert(deleted, unit, "other")], dim=len(unit))

        def progress(stage: str, done: int, total: int) -> None:
            if (stage, done) == ("import", 0):
                catalog.delete([deleted])
                catalog.upsert([Upsert(upserted, unit, "other", payload={"by": "a user"})], dim=len(unit))

        def since(sequence: int) -> int:
            assert sequence >= began
            return began

        report = import_items(NAME, more, store=store, since=since, progress=progress)
        assert (report.imported, report.unchanged) == ((0, 3) if ran else (3, 0))
        assert [(item, "since the import began" in why) for item, why in report.failures] == [
            (deleted, True),
            (upserted, True),
        ]
        assert {item.item for item in catalog.page(limit=1_000)} >= {upserted, *others}
        assert catalog.known([deleted]) == {}
        assert catalog.get(upserted).payload == {"by": "a user"}
    again = import_items(NAME, more, store=store, progress=quiet)
    assert (again.imported, again.unchanged) == (2, 3)


def test_every_row_that_is_not_taken_is_listed(store: Store, index: Path, tmp_path: Path) -> None:
    """Bad images, bad payloads, rows without a path, with a cell too many, and that name an image again."""
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(photo(number) if number else b"none")
    table = tmp_path / "table.csv"
    rows = [
        "path,payload",
        "0.png,",
        "1.png,[1]",
        '2.png,"{""a"": 1}"',
        ",",
        '2.png,"{""a"": 2}"',
        ',"{}"',
        "3.png,",
        "4.png,{},",
    ]
    table.write_text("\n".join([*rows, "gone.png,", ""]))
    listed: list[tuple[str, str]] = []

    report = import_items(
        NAME, table, store=store, left_out=lambda item, reason: listed.append((item, reason)), progress=quiet
    )

    assert (report.imported, report.failed, listed) == (2, 6, report.failures)
    assert sorted(item for item, _ in listed) == ["0.png", "1.png", "2.png", "gone.png", "line 7", "line 9"]
    with closing(Catalog(index)) as catalog:
        assert catalog.get("2.png").payload == {"a": 1}

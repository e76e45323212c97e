"""Indexes: what is served when the store changes."""

import gc
import logging
import shutil
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from indexer import gpu
from indexer.manifest import CorruptFile
from indexer.plan import FLAT_BELOW
from indexer.records import Upsert
from indexer.store import Store
from indexer.version import activate
from server import descriptions
from server import indexes as module
from server.errors import IndexNotFound, NoIndex
from server.indexes import Indexes
from tests.serving import Gallery, make_gallery, make_model, make_version, photo
from tests.waiting import PROCESS_S, until


@pytest.fixture
def own(tmp_path: Path) -> Gallery:
    """A store that a test may change."""
    return make_gallery(tmp_path / "own", count=6)


def _next_version(own: Gallery, number: int, *, activated: bool = True) -> Path:
    return make_version(
        own.store, "photos", number, own.model, own.items[:3], own.embeddings[:3], activated=activated
    )


def test_an_activated_version_is_swapped_in_and_the_old_one_searches_on(own: Gallery) -> None:
    """Whoever began on version 1 ends on it."""
    indexes = Indexes(own.store)
    indexes.refresh()
    before = indexes.get("photos")
    _next_version(own, 2)
    indexes.refresh()
    after = indexes.get("photos")
    assert (before.number, after.number) == (1, 2)
    _, rows = before.version.search(own.embeddings[5:6], 1)
    assert [own.items[5]] == before.items.of(rows[0])
    assert before.encoder is after.encoder


def test_an_index_is_described_as_of_one_version(own: Gallery) -> None:
    """While another process has activated a version: number, model and items are all of the one that is searched."""
    indexes = Indexes(own.store)
    indexes.refresh()
    other = make_model(own.store, seed=1)
    make_version(own.store, "photos", 2, other, own.items[:3], own.embeddings[:3])

    def told() -> tuple[int, str, int, str]:
        index = descriptions.index(own.store, indexes, "photos")
        return index.active_version, index.model, index.items, index.etag

    assert told() == (1, own.model, 6, "2-1")
    indexes.refresh()
    assert told() == (2, other, 3, "2-1")


def test_a_version_that_was_swapped_out_is_let_go_of_at_once(own: Gallery) -> None:
    """Its memory does not wait for the garbage collector, which seldom looks at old objects."""
    indexes = Indexes(own.store)
    indexes.refresh()
    index = indexes.get("photos")
    index.snapshot.search(own.embeddings[:1], 3)
    old = weakref.ref(index.version)
    gc.disable()
    try:
        _next_version(own, 2)
        indexes.refresh()
        del index
        assert old() is None
    finally:
        gc.enable()


def test_a_version_is_searched_where_there_is_a_gpu_that_does_not_work(
    own: Gallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server asks for a copy on the GPU that FAISS sees, says what came of it, and the CPU searches."""
    monkeypatch.setattr("indexer.ivfpq.gpu_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpu._tried.cache_clear()
    drawn = np.random.default_rng(0).standard_normal((FLAT_BELOW, own.embeddings.shape[1]))
    rows = np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)
    make_version(own.store, "photos", 2, own.model, [f"item {row}" for row in range(len(rows))], rows)
    indexes = Indexes(own.store)
    indexes.refresh()
    until(lambda: "photos version 2: the CPU searches, not the GPU: a trial of it failed" in caplog.text, PROCESS_S)
    _, found = indexes.get("photos").snapshot.search(rows[5:6], 1)
    assert found.tolist() == [[5]]


def test_the_files_of_an_index_that_left_the_store_are_closed_at_once(own: Gallery) -> None:
    """Who removes an index wants its space, and open files keep theirs; other versions' files go in the same way."""
    indexes = Indexes(own.store)
    indexes.refresh()
    indexes.get("photos").snapshot.items([0])
    gc.disable()
    try:
        _next_version(own, 2)
        indexes.refresh()
        assert not _open_below(own.store.index("photos") / "versions" / "1")
        assert _open_below(own.store.index("photos"))
        shutil.rmtree(own.store.index("photos"))
        indexes.refresh()
        assert not _open_below(own.store.index("photos"))
    finally:
        gc.enable()


def _open_below(directory: Path) -> list[str]:
    """The open files of this process in a directory, removed ones too."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # of the listing itself
            found.append(str(descriptor.readlink()))
    return [path for path in found if path.startswith(f"{directory}/")]


def test_a_version_that_is_not_activated_is_not_served(own: Gallery) -> None:
    """Publishing changes nothing for searches."""
    indexes = Indexes(own.store)
    _next_version(own, 2, activated=False)
    indexes.refresh()
    assert indexes.get("").number == 1


def test_going_back_to_an_earlier_version_is_an_activation_too(own: Gallery) -> None:
    """A rollback is served like any other."""
    indexes = Indexes(own.store)
    _next_version(own, 2)
    indexes.refresh()
    activate(own.store.index("photos"), 1)
    indexes.refresh()
    assert indexes.get("").number == 1


def test_a_corrupt_activation_is_logged_once_and_the_old_version_serves_on(
    own: Gallery, caplog: pytest.LogCaptureFixture
) -> None:
    """Bad files never take down what works."""
    indexes = Indexes(own.store)
    indexes.refresh()
    rows = _next_version(own, 2) / "rows.faiss"
    rows.write_bytes(rows.read_bytes()[:-4])
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            indexes.refresh()
    assert indexes.get("photos").number == 1
    (record,) = caplog.records
    start = f"index photos: the activated version 2 can't be opened; version 1 is served on: {rows} has "
    assert record.message.startswith(start)
    assert "Traceback" not in caplog.text


def test_an_index_that_left_the_store_is_told_of_once(own: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    """Searches find nothing from then on, and the log says since when."""
    indexes = Indexes(own.store)
    indexes.refresh()
    own.store.root.rename(own.store.root.with_name("moved"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            indexes.refresh()
    assert not indexes.ready
    assert [record.message for record in caplog.records] == [
        "index photos is not in the store any more; nothing is served of it"
    ]


def test_a_corrupt_version_is_tried_again_after_a_while(own: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restored files come back without a restart."""
    indexes = Indexes(own.store)
    rows = _next_version(own, 2) / "rows.faiss"
    data = rows.read_bytes()
    rows.write_bytes(data[:-4])
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    indexes.refresh()
    assert not indexes.ready
    rows.write_bytes(data)
    indexes.refresh()
    assert indexes.get("photos").number == 2


def test_a_version_that_was_mended_is_opened_when_it_is_asked_for(own: Gallery) -> None:
    """As who activates it does: they need not wait until it is tried again by itself."""
    rows = _next_version(own, 2) / "rows.faiss"
    data = rows.read_bytes()
    rows.write_bytes(data[:-4])
    indexes = Indexes(own.store)
    indexes.refresh()
    with pytest.raises(CorruptFile):
        indexes.serve("photos")
    rows.write_bytes(data)
    indexes.serve("photos")
    assert indexes.get("photos").number == 2


def test_one_corrupt_index_does_not_keep_the_others_from_serving(own: Gallery) -> None:
    """Each index stands for itself."""
    broken = make_version(own.store, "broken", 1, own.model, own.items, own.embeddings)
    (broken / "items.sqlite").unlink()
    indexes = Indexes(own.store)
    indexes.refresh()
    assert indexes.get("photos").number == 1
    with pytest.raises(Exception, match=r"items\.sqlite"):
        indexes.get("broken")


def test_an_empty_store_has_no_index_until_one_appears(tmp_path: Path) -> None:
    """A server may start before its first index is built."""
    indexes = Indexes(Store(tmp_path / "own"))
    indexes.refresh()
    with pytest.raises(NoIndex):
        indexes.get("")
    make_gallery(tmp_path / "own", count=3)
    indexes.refresh()
    assert (indexes.ready, indexes.get("").name) == (True, "photos")


def test_without_a_name_the_only_index_is_meant(own: Gallery) -> None:
    """With two, one must be named; both may share a model, and then share its encoder."""
    make_version(own.store, "more", 1, own.model, own.items, own.embeddings)
    indexes = Indexes(own.store)
    indexes.refresh()
    assert indexes.get("more").encoder is indexes.get("photos").encoder
    with pytest.raises(IndexNotFound, match="several indexes are served: name one; there are: more, photos"):
        indexes.get("")


def test_a_copy_under_a_name_that_no_index_can_have_is_none(own: Gallery) -> None:
    """The index is still the only one, and the one that is meant without a name."""
    shutil.copytree(own.store.index("photos"), own.store.indexes / "photos.old")
    indexes = Indexes(own.store)
    indexes.refresh()
    assert own.store.index_names() == indexes.names() == ["photos"]
    assert indexes.get("").name == "photos"


def test_only_the_wanted_index_is_opened(own: Gallery) -> None:
    """And it is the default."""
    make_version(own.store, "more", 1, own.model, own.items, own.embeddings)
    indexes = Indexes(own.store, "more")
    indexes.refresh()
    assert indexes.get("").name == "more"
    with pytest.raises(IndexNotFound):
        indexes.get("photos")


def test_a_version_of_another_model_brings_its_encoder(own: Gallery) -> None:
    """Index and encoder change in the same breath, and the old encoder is let go."""
    indexes = Indexes(own.store)
    indexes.refresh()
    other = make_model(own.store, seed=1)
    make_version(own.store, "photos", 2, other, own.items, np.roll(own.embeddings, 1, axis=1))
    indexes.refresh()
    assert (other, other) == (indexes.get("").model, indexes.get("").encoder.model)
    assert [other] == list(indexes._encoders)


@pytest.mark.usefixtures("one_at_a_time")
def test_what_is_activated_is_swapped_in_while_many_items_are_embedded_anew(own: Gallery) -> None:
    """A refresh embeds as many as it has time for; one that can't be decoded does not keep the others from it."""
    other = make_model(own.store, seed=1)
    indexes = Indexes(own.store)
    indexes.refresh()
    catalog = indexes.get("photos").catalog
    images = {"a": photo(7), "b": b"no image", "c": photo(8), "d": photo(9)}
    catalog.upsert(
        [Upsert(item, own.embeddings[0], own.model, image=data) for item, data in images.items()],
        dim=own.embeddings.shape[1],
    )
    make_version(own.store, "photos", 2, other, own.items[:3], own.embeddings[:3])
    found = []
    for _ in range(4):
        indexes.refresh()
        assert (indexes.get("photos").number, indexes.get("photos").model) == (2, other)
        found.append(indexes.get("photos").snapshot.count - 3)
    assert found == [0, 1, 1, 2]
    activate(own.store.index("photos"), 1)
    indexes.refresh()
    assert indexes.get("photos").number == 1
    activate(own.store.index("photos"), 2)
    for _ in range(8):
        indexes.refresh()
    assert indexes.get("photos").snapshot.count == 3 + 3

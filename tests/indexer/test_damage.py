"""What of a store is damaged, whether anybody reads it or not."""

import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from indexer import adopt
from indexer.damage import damages
from indexer.records import Upsert
from indexer.store import Store


@pytest.fixture
def whole(store: Store, built: Path, tiny_model: str) -> Store:
    """A store with a model, a version, and a catalogue with an item of each kind."""
    vector = np.eye(1, 32, dtype=np.float32)[0]
    with closing(adopt.open_catalog(store.index("street"))) as catalog:
        upsert = Upsert("up", vector, tiny_model, image=b"an image" * 9, payload={"colour": "red"})
        catalog.upsert([upsert], dim=32, request_id="a request")
        catalog.delete(["garden/01.jpg"])
    return store


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_whole_store_has_no_damages(whole: Store, tmp_path: Path) -> None:
    """Nor has one without anything, in which nothing is made."""
    assert [*damages(whole)] == []
    assert [*damages(Store(tmp_path / "none"))] == []
    assert not (tmp_path / "none").exists()


def test_every_damaged_file_is_named(whole: Store) -> None:
    """All of them at once, not the first only."""
    rows, graph, pointer, catalog = (
        next(whole.root.rglob(name)) for name in ("rows.faiss", "model.onnx", "active", "catalog.sqlite")
    )
    for path in (rows, graph, pointer):
        _flip(path, path.stat().st_size // 2)
    catalog.unlink()
    told = [str(error) for error in damages(whole)]
    assert len(told) == 4
    for path, one in zip((graph, pointer, rows, catalog), told, strict=True):
        assert str(path) in one


@pytest.mark.parametrize("content", ["an image", "a request", "red", "garden/01.jpg"])
def test_every_row_of_a_catalogue_is_read(whole: Store, content: str) -> None:
    """Also of what is deleted, and what is kept for a request that may be repeated."""
    path = whole.index("street") / "catalog.sqlite"
    data = path.read_bytes()
    for place in (match.start() for match in re.finditer(content.encode(), data)):
        _flip(path, place)
        (error,) = damages(whole)
        assert str(path) in str(error)
        path.write_bytes(data)

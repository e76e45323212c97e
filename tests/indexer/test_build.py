"""The build as a whole: pictures in, a searchable version out, and every way in which it can go wrong."""

from pathlib import Path

import numpy as np

from indexer import version
from indexer.build import build
from indexer.encoder import Encoder
from indexer.pixels import decode
from indexer.store import Store


def _quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def test_an_indexed_photograph_finds_itself_first(store: Store, tiny_model: str, photos: Path) -> None:
    """Searching by the bytes of each indexed picture returns that picture first, with similarity 1."""
    report = build("street", photos, model=tiny_model, store=store, progress=_quiet)
    assert (report.count, report.skipped, version.active_version(store.index("street"))) == (60, (), 1)
    opened = version.open_version(version.version_dir(store.index("street"), 1))
    encoder = Encoder.open(store.model(tiny_model))
    for row in range(opened.count):
        picture = decode(opened.source_path(row).read_bytes(), encoder.pixels)
        similarities, rows = opened.search(encoder.embed(picture[None]), 5)
        assert [row] == rows[0, :1].tolist()
        np.testing.assert_allclose(1.0, similarities[0, 0], atol=1e-5)
        assert row == opened.row_of(opened.items([row])[0])

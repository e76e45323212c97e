"""Exporting an index to a file."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from indexer.exporting import ExportError, export_items
from tests.serving import build_photos


def test_two_exports_do_not_write_one_file(tmp_path: Path) -> None:
    """The second is refused while the first is writing and afterwards, and what a killed one left is no hindrance."""
    store, path = build_photos(tmp_path, 4), tmp_path / "items.parquet"
    (tmp_path / ".items.parquet.partial").write_bytes(b"left")

    def progress(stage: str, done: int, total: int) -> None:
        with pytest.raises(ExportError, match="another export is writing"):
            export_items("photos", path, store=store, progress=lambda *_: None)

    assert export_items("photos", path, store=store, progress=progress).items == 4
    with pytest.raises(ExportError, match="is there already"):
        export_items("photos", path, store=store, progress=progress)
    assert pq.read_table(path).num_rows == 4
    path.with_name("link").symlink_to("nowhere")
    with pytest.raises(ExportError, match="is there already"):
        export_items("photos", path.with_name("link"), store=store, progress=lambda *_: None)
    assert not [*tmp_path.glob(".items*")]

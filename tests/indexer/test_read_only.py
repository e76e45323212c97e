"""Catalogues where nobody can write: what was settled is read, and what can't be says what to do."""

import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from indexer.catalog import Catalog, CatalogWriteFailed
from indexer.records import Upsert


def test_changes_that_are_only_in_the_log_are_named_where_they_can_not_be_read(small_disk: Path) -> None:
    """SQLite needs its index of the log for them, which a copy may lack; where that is written anew, all is there."""
    own = small_disk / "own"
    with closing(Catalog(own)) as catalog:
        catalog.upsert([Upsert("new", image=b"new")], dim=8)
        shutil.copytree(own, small_disk / "killed")  # as it lies there while it is written
        shutil.copytree(own, small_disk / "copied", ignore=shutil.ignore_patterns("*-shm"))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for folder in ("own", "killed"):
        with closing(Catalog(small_disk / folder)) as catalog:
            assert catalog.get("new").sequence == 1
    with pytest.raises(CatalogWriteFailed) as refused:
        Catalog(small_disk / "copied")
    assert str(refused.value) == (
        f"{small_disk}/copied/catalog.sqlite-wal holds changes that can't be read where nobody can write: open the "
        "index once where it can be written (`kinsight index stats copied`), or serve a copy that can be"
    )
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    with closing(Catalog(small_disk / "copied")) as catalog:
        assert catalog.get("new").sequence == 1

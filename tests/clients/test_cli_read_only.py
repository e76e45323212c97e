"""The verbs that only read a store, where nobody can write a record of them."""

import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from clients.cli.command import kinsight
from indexer.store import Store
from indexer.version import active_version
from tests.serving import build_photos


@pytest.fixture
def read_only(small_disk: Path) -> Store:
    """A store with an index of 24 photographs, on a disk that nobody can write to."""
    store = build_photos(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    return store


def run(store: Store, *words: object) -> Result:
    return CliRunner().invoke(kinsight, [*map(str, words), "--store", str(store.root)])


def test_what_only_reads_goes_on_without_a_record(read_only: Store, tmp_path: Path) -> None:
    """It does all that it does elsewhere, and says that `kinsight operations` won't know of it."""
    (model,) = read_only.model_ids()
    images, snapshot, table = read_only.root.parent / "images", tmp_path / "snapshot", tmp_path / "items.parquet"
    verbs: list[tuple[object, ...]] = [
        ("suggest", images, "--model", model, "--budget", 3),
        ("index", "evaluate", "photos"),
        ("index", "snapshot", "photos", snapshot),
        ("items", "export", "photos", table),
    ]
    for verb in verbs:
        done = run(read_only, *verb)
        assert done.exit_code == 0, done.stderr
        told = f"warning: this is not recorded among the operations: {read_only.operations}: Read-only file system\n"
        assert told in done.stderr
    assert pq.read_table(table).num_rows == 24
    elsewhere = Store(tmp_path / "elsewhere")
    assert run(elsewhere, "index", "restore", snapshot).exit_code == 0
    assert active_version(elsewhere.index("photos")) == 1


def test_what_writes_is_refused_before_any_work(read_only: Store) -> None:
    """By the name of the store's folder."""
    done = run(read_only, "rebuild", "photos")
    assert done.exit_code == 1
    assert done.stderr == f"error: {read_only.operations}: Read-only file system\n"

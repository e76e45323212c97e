"""Write the items of an index with their embeddings and payloads to one Parquet file.

ExportError   the file is there already, or being written
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from indexer import adopt, manifest, version
from indexer.catalog import Catalog
from indexer.embedding import Progress
from indexer.embedding_table import EMBEDDING, ITEM, MODEL, PAYLOAD
from indexer.known import embeddings_of
from indexer.rebuild import active_number
from indexer.records import Content
from indexer.store import Store
from indexer.version import Version

_CHUNK = 1_000  # items of a row group


class ExportError(FileExistsError):
    """There is something already where the file was to be written, or about to be."""


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: of the file.
        items: how many it holds.
        bytes: of the file.
        model: that made the embeddings.
        sequence: of the last change that it holds.
    """

    path: str
    items: int
    bytes: int
    model: str
    sequence: int


def export_items(name: str, path: Path, *, store: Store, progress: Progress) -> ExportReport:
    """Write every live item, as of one moment; the file appears whole or not at all.

    Columns: `item`, text; `embedding`, list of float32, null where the active version's model has not embedded the
    item; `payload`, JSON text, null for none; `model`, the id of the one that made the embedding. An import
    of the file into an index of this model takes them as they are.

    Args:
        name: of the index.
        path: of the file.
        store: that holds the index.
        progress: hears the stage `export`.

    Raises:
        NoActiveVersion: nothing says which embeddings are wanted.
        ExportError: there is something at the path, or another export is writing it.
        ManifestError, CatalogError: the index is damaged.
        OSError: the file can't be written.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into; make it first")
    with _sole_writer(path) as partial:
        with _of_one_moment(store, name) as (opened, catalog):
            sequence, total = catalog.sequence(), catalog.count()
            contents = catalog.contents(opened.manifest.model)
            done = 0
            with _naming(path), _Writer(partial) as writer:
                while chunk := list(islice(contents, _CHUNK)):
                    writer.write(chunk, opened)
                    done += len(chunk)
                    progress("export", done, total)
        manifest.sync(partial)
        partial.rename(path)
        manifest.sync(path.parent)
    return ExportReport(str(path), done, path.stat().st_size, opened.manifest.model, sequence)


@contextmanager
def _of_one_moment(store: Store, name: str) -> Iterator[tuple[Version, Catalog]]:
    """The active version of an index, and its catalogue as of a moment in which that was active."""
    while True:
        number = active_number(store, name)
        opened = version.open_version(version.version_dir(store.index(name), number))
        with closing(adopt.open_catalog(store.index(name))) as catalog, catalog.frozen():
            catalog.sequence()  # the first read is the moment
            if active_number(store, name) == number:  # else another took over while it was verified
                yield opened, catalog
                return


@contextmanager
def _sole_writer(path: Path) -> Iterator[Path]:
    """Where to write what is to be renamed to `path`, while no other export does; gone afterwards.

    Raises:
        ExportError: there is something at the path, or another export is writing it.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("ab") as file:  # what a killed export left is taken over
        if not _is_ours(file.fileno(), partial):
            raise ExportError(f"another export is writing {path}; name another file, or wait for it")
        try:
            if os.path.lexists(path):  # also a link that leads nowhere, which the file would take the place of
                raise ExportError(f"{path} is there already; name another file")
            yield partial
        finally:
            partial.unlink(missing_ok=True)


def _is_ours(descriptor: int, partial: Path) -> bool:
    """Lock an open file; False where another process has it, or has renamed or removed it since it was opened."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_ino == partial.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file that Arrow can't write in its errors, which name none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


class _Writer:
    """A Parquet file of items that is being written."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow = pyarrow
        fields = {
            ITEM: pyarrow.string(),
            EMBEDDING: pyarrow.list_(pyarrow.float32()),
            PAYLOAD: pyarrow.string(),
            MODEL: pyarrow.string(),
        }
        self._schema = pyarrow.schema(fields)
        self._file = pyarrow.parquet.ParquetWriter(path, self._schema)

    def write(self, contents: Sequence[Content], opened: Version) -> None:
        """Add items, with the version's embeddings of those that the catalogue has none of."""
        known = embeddings_of(contents, opened)
        items, model = [one.item.item for one in contents], opened.manifest.model
        columns = {
            ITEM: items,
            EMBEDDING: [known.get(item) for item in items],
            PAYLOAD: [None if one.item.payload is None else json.dumps(one.item.payload) for one in contents],
            MODEL: [model if item in known else None for item in items],
        }
        self._file.write_table(self._arrow.table(columns, schema=self._schema))

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

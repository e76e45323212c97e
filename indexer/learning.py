"""What an index learns from when it is rebuilt with learning: every image it has, old and new, in one table.

    .learning/images.csv   paths, absolute
    .learning/labels.csv   the few labels to learn from, if there are any, by the same paths
    .learning/kept/        images that only the catalogue has, and links to those whose paths no table can hold
    .learning/lesson.json  written last; says which run learns, and what came out

It stays until the rebuild is done, so that an interrupted one goes on with the same run on the same images.
"""

import csv
import dataclasses
import json
import secrets
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from indexer import adopt, manifest
from indexer.catalog import Catalog, UnknownContent
from indexer.entries import Entry, list_entries
from indexer.labels import read_few, write_few
from indexer.sources import Collection
from indexer.tables import unreadable

_LESSON, _IMAGES, _LABELS, _KEPT = "lesson.json", "images.csv", "labels.csv", "kept"
_NOTED = ("start", "collection", "run", "model", "taught", "settings")


@dataclass(frozen=True)
class Lesson:
    """What is to be learned, and how far that got.

    Attributes:
        directory: of the lesson.
        start: id of the model that learning starts from.
        collection: path of the new images; empty for none.
        run: name of the training run.
        model: id of the model that was learned; empty before.
        taught: SHA-256 of the table of few labels; empty where it learns without labels.
        settings: what was said of how to learn.
    """

    directory: Path
    start: str
    collection: str
    run: str
    model: str = ""
    taught: str = ""
    settings: str = ""

    @property
    def index(self) -> str:
        """The name of the index that learns."""
        return self.directory.parent.name

    @property
    def images(self) -> Path:
        """The table of images."""
        return self.directory / _IMAGES

    @property
    def labels(self) -> Path | None:
        """The table of labels to learn from; None where it learns without."""
        return self.directory / _LABELS if self.taught else None

    def learned(self, model: str) -> None:
        """Note what came out; raises OSError."""
        _write(dataclasses.replace(self, model=model))


def lesson(
    index_dir: Path,
    start: str,
    collection: Collection | None,
    *,
    few_labels: Path | None = None,
    settings: str = "",
) -> Lesson:
    """The lesson of an index: the one that an interrupted rebuild left, or a new one.

    Args:
        index_dir: of the index, held for building.
        start: id of the model to start from; a lesson that began from another is dropped.
        collection: new images; None for none. A lesson of others is dropped.
        few_labels: table of classes or pairs to learn from; a lesson of another one is dropped.
        settings: how to learn; a lesson that began with others is dropped, as its run goes on as it began.

    Raises:
        SourceError: the table can't be read or lacks a column.
        LabelsError: it labels none of the images.
        CatalogError: the catalogue is damaged.
        OSError: the disk is full or fails.
    """
    directory = index_dir.absolute() / ".learning"  # a table's relative paths would be meant from its own folder
    root = str(collection.root) if collection else ""
    taught = _digest(few_labels) if few_labels else ""
    found = _read(directory)
    asked = (start, root, taught, settings)
    if found is not None and (found.start, found.collection, found.taught, found.settings) == asked:
        return found
    manifest.discard(directory)
    with closing(adopt.open_catalog(index_dir)) as catalog:
        listing = list_entries(collection.sources if collection else (), catalog, mirror=False)
        paths = {entry.item: entry.source.path if entry.source else None for entry in listing.entries}
        if few_labels:
            read_few(few_labels, paths)  # what is wrong with it is said of the table itself, not of the copy below
        (directory / _KEPT).mkdir(parents=True)
        places = _write_images(directory, listing.entries, catalog)
    if few_labels:
        write_few(few_labels, directory / _LABELS, paths, places)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run = f"{stamp}-{index_dir.name}-{secrets.token_hex(2)}"
    begun = Lesson(directory, start, root, run, taught=taught, settings=settings)
    _write(begun)
    return begun


def forget_lesson(index_dir: Path) -> None:
    """Remove the lesson of an index, if there is one."""
    manifest.discard(index_dir / ".learning")


def _digest(few_labels: Path) -> str:
    try:
        return manifest.record(few_labels).sha256
    except OSError as error:
        raise unreadable(few_labels, error) from error


def _write_images(directory: Path, entries: Iterable[Entry], catalog: Catalog) -> dict[str, Path]:
    """Write the table of images; returns item to path."""
    places: dict[str, Path] = {}
    with (directory / _IMAGES).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path"])
        for number, entry in enumerate(entries):
            path = _path_of(entry, directory / _KEPT / str(number), catalog)
            if path is not None:
                table.writerow([path])
                places[entry.item] = path
    return places


def _path_of(entry: Entry, kept: Path, catalog: Catalog) -> Path | None:
    """Where the image of an entry lies; None where it has none. What no table can hold is put at `kept`."""
    if entry.source is not None:
        path = entry.source.path
        if path.as_posix().isprintable():  # also no bytes that are not UTF-8: those read as surrogates
            return path
        kept.symlink_to(path)
        return kept
    try:
        kept.write_bytes(catalog.image(entry.sha256))
    except UnknownContent:  # an item that is only an embedding, or was deleted this moment
        return None
    return kept


def _read(directory: Path) -> Lesson | None:
    try:
        fields = json.loads((directory / _LESSON).read_bytes())
        return Lesson(directory, **{name: str(fields[name]) for name in _NOTED})
    except (OSError, ValueError, KeyError, TypeError):  # none, or one that was never finished: it begins anew
        return None


def _write(written: Lesson) -> None:
    fields = {name: value for name, value in vars(written).items() if name != "directory"}
    manifest.write_atomically(written.directory / _LESSON, json.dumps(fields).encode() + b"\n")

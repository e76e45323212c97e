"""Images by the path that a version or a catalogue recorded: a file, or a name below the path of an archive."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from indexer.parquet import ParquetSource, list_parquet
from indexer.pixels import UndecodableImage
from indexer.source import FileSource, Source, SourceError, file_state, item_of
from indexer.tars import is_tar, list_tar

_ARCHIVES = 4  # whose lists are kept: items of one archive mostly follow each other
_listing = threading.Lock()  # else each thread that decodes makes a list of its own of the same million images


@dataclass(frozen=True, slots=True)
class RecordedSource(Source):
    """An image where it was when it was indexed, or where a table says that it lies in an archive."""

    def read(self) -> bytes:
        """The bytes of the image; raises PixelsError where they are no longer there."""
        return locate(self.path).read()

    def state(self) -> str:
        """Size and time of change of the file or archive."""
        return file_state(str(_archive_of(self.path) or self.path))


def recorded(item: str, path: Path) -> RecordedSource:
    """The source of an item at the absolute path that was recorded for it."""
    return RecordedSource(item, "", str(path))


def locate(path: Path) -> Source:
    """The source at a recorded path, of whatever kind; raises UndecodableImage where its archive lacks it."""
    archive = _archive_of(path)
    if archive is None:
        return FileSource(item_of(str(path)), "", str(path))
    try:
        found = _found(archive, path.relative_to(archive.parent).as_posix())
    except SourceError as error:
        raise UndecodableImage(str(error)) from error
    if found is None:
        raise UndecodableImage(f"{archive} does not hold {path.relative_to(archive)} any more")
    return found


def reading_order() -> Callable[[Source], tuple[str, int]]:
    """A key to sort by: images in Parquet tables as they lie there, as going back in one means to read it again."""
    table_of = cache(lambda folder: _archive_of(Path(folder, "image")))

    def place(source: Source) -> tuple[str, int]:
        if ".parquet/" not in source.relative.lower():
            return "", 0
        path = os.path.join(source.root, source.relative)  # noqa: PTH118  a Path costs ten times as much
        table = table_of(os.path.dirname(path))  # noqa: PTH120
        if table is None or is_tar(table.name):
            return "", 0
        try:
            found = _found(table, path[len(str(table.parent)) :].lstrip("/"))
        except SourceError:  # which who reads it is told
            found = None
        return str(table), found.row if isinstance(found, ParquetSource) else 0

    return place


def is_in_archive(path: str) -> bool:
    """Whether a path looks as if it led into an archive; asks no disk."""
    text = path.lower()
    return ".tar/" in text or ".parquet/" in text


def _archive_of(path: Path) -> Path | None:
    if not is_in_archive(str(path)):  # a million paths: asking the system for each costs a minute
        return None
    names = (parent for parent in path.parents if is_tar(parent.name) or parent.suffix.lower() == ".parquet")
    return next((parent for parent in names if parent.is_file()), None)


def _found(archive: Path, relative: str) -> Source | None:
    """The image at a path below an archive's folder; raises SourceError where the archive can't be read."""
    with _listing:
        return _listed(archive, file_state(str(archive))).get(relative)


@lru_cache(maxsize=_ARCHIVES)
def _listed(archive: Path, state: str) -> dict[str, Source]:  # noqa: ARG001  a changed archive is listed anew
    listing = list_tar(archive, archive.parent) if is_tar(archive.name) else list_parquet(archive, archive.parent)
    return {source.relative: source for source in listing.sources}

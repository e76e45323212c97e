"""Images by the path that a version or a catalogue recorded: a file, or a name below the path of an archive."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from indexer.parquet import list_parquet
from indexer.pixels import UndecodableImage
from indexer.source import FileSource, Source, SourceError, file_state, item_of
from indexer.tars import is_tar, list_tar

_ARCHIVES = 4  # whose lists are kept: items of one archive mostly follow each other


@dataclass(frozen=True, slots=True)
class RecordedSource(Source):
    """An image where it was when it was indexed; `relative` is the absolute path."""

    def read(self) -> bytes:
        """The bytes of the image; raises PixelsError where they are no longer there."""
        return locate(self.path).read()

    def state(self) -> str:
        """Size and time of change of the file or archive."""
        return file_state(str(_archive_of(self.path) or self.path))


def recorded(item: str, path: Path) -> RecordedSource:
    """The source of an item at the path that was recorded for it."""
    return RecordedSource(item, "", str(path))


def locate(path: Path) -> Source:
    """The source at a recorded path, of whatever kind; raises UndecodableImage where its archive lacks it."""
    archive = _archive_of(path)
    if archive is None:
        return FileSource(item_of(str(path)), "", str(path))
    try:
        found = _listed(archive, file_state(str(archive))).get(str(path))
    except SourceError as error:
        raise UndecodableImage(str(error)) from error
    if found is None:
        raise UndecodableImage(f"{archive} does not hold {path.relative_to(archive)} any more")
    return found


def is_in_archive(path: str) -> bool:
    """Whether a path looks as if it led into an archive; asks no disk."""
    text = path.lower()
    return ".tar/" in text or ".parquet/" in text


def _archive_of(path: Path) -> Path | None:
    if not is_in_archive(str(path)):  # a million paths: asking the system for each costs a minute
        return None
    names = (parent for parent in path.parents if is_tar(parent.name) or parent.suffix.lower() == ".parquet")
    return next((parent for parent in names if parent.is_file()), None)


@lru_cache(maxsize=_ARCHIVES)
def _listed(archive: Path, state: str) -> dict[str, Source]:  # noqa: ARG001  a changed archive is listed anew
    listing = list_tar(archive, archive.parent) if is_tar(archive.name) else list_parquet(archive, archive.parent)
    return {str(source.path): source for source in listing.sources}

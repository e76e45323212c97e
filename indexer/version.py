"""Immutable index versions: open one and search it; list them; say which is active.

VersionError            the versions of an index are not as they must be
└── NoSuchVersion       there is no version of that number
UnknownItem             (of `indexer.items`) a version has no such item
ManifestError           (of `indexer.manifest`) a version's directory or file is damaged
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from indexer import ivfpq, manifest, pointing
from indexer.gpu import GpuCopy
from indexer.items import Image, ItemTable, UnknownItem
from indexer.ivfpq import Index, Neighbours, Rows
from indexer.manifest import MANIFEST, CorruptFile, VersionManifest
from indexer.rows import Embeddings

CODES, ROWS, ITEMS = "index.faiss", "rows.faiss", "items.sqlite"
ACTIVE = "active"
Stamp = tuple[tuple[int, int], tuple[int, int]]
_CONDEMNED = ".removed-"  # and the number of a version that is being removed

__all__ = [
    "NoSuchVersion",
    "UnknownItem",
    "Version",
    "VersionError",
    "activate",
    "active_version",
    "delete_version",
    "list_versions",
    "next_number",
    "open_version",
    "previous_version",
    "version_dir",
]


class VersionError(Exception):
    """The versions of an index are not as they must be; the message says which and why."""


class NoSuchVersion(VersionError):
    """An index has no version of that number."""


class Version:
    """An opened version; immutable, and safe for searches from several threads at once.

    Searches of up to 16 queries run on the calling thread alone; larger ones use FAISS's OpenMP threads.

    Attributes:
        manifest: of the version.
        directory: that it was opened from.
        gpu: a copy of it there; None where there is none.
    """

    def __init__(
        self,
        directory: Path,
        version: VersionManifest,
        index: Index,
        items: ItemTable,
        stamps: Mapping[str, Stamp | None] | None = None,
        gpu: GpuCopy | None = None,
    ) -> None:
        self.manifest = version
        self.directory = directory
        self.gpu = gpu
        self._index = index
        self._items = items
        self._stamps = stamps or {}

    @property
    def index(self) -> Index:
        """What is searched, for who searches it in another way (`indexer.live_snapshot`)."""
        return self._index

    @property
    def count(self) -> int:
        """How many items are searched."""
        return self.manifest.count

    def search(
        self, embeddings: Embeddings, top_k: int, *, nprobe: int | None = None, exact: bool = False
    ) -> Neighbours:
        """Find the nearest items of each query.

        Args:
            embeddings: (Q, D) float32, unit length, made by this version's model.
            top_k: neighbours wanted, at least 1.
            nprobe: lists to scan, 1 to nlist; None for the measured value. A flat index scans every row anyway.
            exact: compare with every row.

        Returns:
            Similarities (Q, k) float32 in [-1, 1], nearest first, and rows (Q, k) int64, where k is `top_k` or, if
            that is less, the item count.

        Raises:
            ValueError: an argument is not as said above.
        """
        self.check_search(embeddings, top_k, nprobe)
        k = min(top_k, self.count)
        queries = np.require(embeddings, np.float32, ["C", "A"])
        if exact:
            similarities, rows = self._index.search_exact(queries, k)
        else:
            plan = self.manifest.plan
            similarities, rows = self._index.search(queries, k, nprobe or plan["nprobe"], plan["k_factor"])
        # Products of float32 unit vectors exceed 1 by some 1e-7.
        np.minimum(similarities, 1.0, out=similarities)
        return np.maximum(similarities, -1.0, out=similarities), rows

    def items(self, rows: Iterable[int]) -> list[str]:
        """The item ids of rows, in their order; raises IndexError for a row that is not there."""
        return self._items.items(rows)

    def items_between(self, first: int, end: int) -> list[str]:
        """The item ids of rows `first` to `end` (exclusive), as far as there are any: faster than `items`."""
        return self._items.between(first, end)

    def row_of(self, item: str) -> int:
        """The row of an item; raises UnknownItem."""
        return self._items.row_of(item)

    def rows_of(self, items: Sequence[str]) -> dict[str, int]:
        """The rows of those items that this version has."""
        return self._items.rows_of(items)

    def images_of(self, items: Sequence[str]) -> dict[str, Image]:
        """The images of those items that this version has."""
        return self._items.images_of(items)

    def holds(self, item: str, sha256: str) -> bool:
        """Whether this version has an item of this id with the image of this digest."""
        return self._items.holds(item, sha256)

    def embedding(self, row: int) -> Embeddings:
        """The embedding of a row, (D,) float32, unit length; raises IndexError."""
        if not 0 <= row < self.count:
            raise IndexError(f"row {row} is not one of 0 to {self.count - 1}")
        return np.asarray(self._index.rows.reconstruct(int(row)))

    def embeddings(self, rows: Rows) -> Embeddings:
        """A copy of the embeddings of (N,) rows, (N, D) float32, unit length; raises IndexError."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.count:
            raise IndexError(f"rows {rows.min()} to {rows.max()} are not of 0 to {self.count - 1}")
        return np.asarray(self._index.rows.reconstruct_batch(np.ascontiguousarray(rows, np.int64)))

    def source_path(self, row: int) -> Path | None:
        """Where the image of a row was when it was indexed: a file, or an archive's path and the name in there.

        None where it was upserted; raises IndexError where there is no such row.
        """
        return self._items.path_of(row)

    def read_items(self) -> Iterator[tuple[int, str, Path | None, str]]:
        """Row, item, source path and SHA-256 of every item, by row; the path as of `source_path`."""
        return self._items.read_all()

    def digests(self) -> Iterator[str]:
        """The SHA-256 of every row's image, by row; empty where an item has none."""
        return self._items.digests()

    def skipped(self) -> list[tuple[str, str]]:
        """The images left out of this version: item and reason."""
        return self._items.skipped()

    def overwritten(self) -> Path | None:
        """A file that is read while this is open, and that somebody wrote into; None as a rule.

        One that was removed, or has another one in its place, is read as it was.
        """
        for name, stamp in self._stamps.items():
            now = _stamp(self.directory / name)
            if now and stamp and now[0] == stamp[0] and now != stamp:
                return self.directory / name
        return None

    def check_search(self, embeddings: Embeddings, top_k: int, nprobe: int | None) -> None:
        """Raise ValueError where the arguments of a search are not as `search` says."""
        if embeddings.dtype != np.float32 or embeddings.ndim != 2 or embeddings.shape[1] != self.manifest.dim:
            raise ValueError(
                f"embeddings are {embeddings.dtype} {embeddings.shape}; expected float32 (Q, {self.manifest.dim})"
            )
        if not np.isfinite(embeddings).all():
            raise ValueError("embeddings have values that are not finite")
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1")
        nlist = self.manifest.plan["nlist"]
        if nprobe is not None and (nprobe < 1 or (nlist and nprobe > nlist)):
            raise ValueError(f"nprobe is {nprobe}; it must be 1 to {nlist or 'any number (this index is flat)'}")


def open_version(directory: Path, *, verify: bool = True, gpu: bool = False) -> Version:
    """Open a version directory.

    Args:
        directory: of the version.
        verify: check every file's SHA-256 first; False where it was just checked.
        gpu: search it on a GPU, where FAISS sees one and it has codes, as soon as it was copied there.

    Raises:
        ManifestError: the directory is not a version, or a file of it is missing or changed. With `verify`, found
            before FAISS or SQLite reads the file.
    """
    version = manifest.read_version(directory)
    stamps = {name: _stamp(directory / name) for name in (ROWS, ITEMS)}
    if verify:
        manifest.verify(directory, version)
    codes = ivfpq.load(directory / CODES, mapped=False) if version.plan["kind"] == "ivfpq" else None
    # The rows of a flat index are in the memory that its plan counts, where no later damage of the file reaches them.
    index = Index(ivfpq.load(directory / ROWS, mapped=codes is not None), codes)
    items = ItemTable(directory / ITEMS)
    _check_sizes(directory, version, index, items)
    copy = _copied_to_gpu(version, index) if gpu and codes is not None and ivfpq.gpu_count() else None
    return Version(directory, version, index, items, stamps, copy)


def next_number(index_dir: Path) -> int:
    """The number of the version that is built next: one that neither a directory nor the pointer has, nor ever had.

    Servers take a number that they serve already for the version that they know, also where its directory is lost;
    and an etag that was read before must not fit another version.
    """
    directories = (int(name) for name in manifest.listed(index_dir / "versions") if name.isdecimal())
    return max((*directories, *pointed(index_dir)), default=0) + 1


def list_versions(index_dir: Path) -> list[int]:
    """The numbers of an index's versions, ascending; empty where there is no index.

    Raises:
        OSError: its directory can't be read.
    """
    versions = index_dir / "versions"
    return sorted(
        int(name) for name in manifest.listed(versions) if name.isdecimal() and (versions / name / MANIFEST).exists()
    )


def version_dir(index_dir: Path, version: int) -> Path:
    """The directory of a version, whether it exists or not."""
    return index_dir / "versions" / str(version)


def existing_dir(index_dir: Path, version: int) -> Path:
    """The directory of a version; raises NoSuchVersion."""
    return version_dir(index_dir, _existing(index_dir, version))


def active_version(index_dir: Path) -> int | None:
    """The number of the version that is searched, or None where none was ever activated.

    Raises:
        VersionError: the pointer is damaged.
        NoSuchVersion: it points to a version that is not there.
    """
    numbers = _pointed(index_dir)
    if not numbers:
        return None
    try:
        return _existing(index_dir, numbers[0])
    except NoSuchVersion as error:
        raise NoSuchVersion(
            f"{error}; it is the active one: restore its directory, activate another, or rebuild the index by "
            f"`kinsight rebuild {index_dir.name} --model ID`"
        ) from None


def previous_version(index_dir: Path) -> int | None:
    """The number of the version that was active before the one that is, or None where none was or it is removed.

    Raises:
        VersionError: the pointer is damaged.
    """
    _, *before = _pointed(index_dir) or (0,)
    return before[0] if before and before[0] in list_versions(index_dir) else None


def activate(index_dir: Path, version: int) -> None:
    """Make a version the one that is searched, atomically; the one until now is what a rollback goes back to.

    Raises:
        VersionError: the index has no such version.
        OSError: the pointer can't be written; the old one stays, unless the message says that it moved.
    """
    _existing(index_dir, version)
    old = pointed(index_dir)
    new = (version, *(number for number in old if number != version))[:2]
    try:
        pointing.write(index_dir / ACTIVE, new)
    except OSError as error:
        if pointed(index_dir) == old:
            raise
        # Renamed, but its directory can't be synced.
        raise OSError(
            f"version {version} of {index_dir.name} is searched now, but after a power failure the one before may "
            f"be: {index_dir}: {error.strerror}; check the disk and activate it again"
        ) from error


def delete_version(index_dir: Path, version: int) -> None:
    """Remove a version's directory; searches that go on in other processes end on it undisturbed.

    Raises:
        VersionError: it is the active one, or there is no such version.
        OSError: it can't be removed.
    """
    if _existing(index_dir, version) in _pointed(index_dir)[:1]:
        raise VersionError(f"version {version} of {index_dir.name} is active; activate another one first")
    directory = version_dir(index_dir, version)
    # Away in one step: what was removed by half must not be taken for a damaged version.
    condemned = index_dir / f"{_CONDEMNED}{version}"
    for left in index_dir.glob(f"{_CONDEMNED}*"):  # by a removal that was killed
        manifest.discard(left)
    directory.rename(condemned)
    manifest.sync(directory.parent)
    manifest.discard(condemned)
    if next_number(index_dir) <= version:
        directory.mkdir()  # empty, it keeps the number from being given to another version
        manifest.sync(directory.parent)


def pointer(index_dir: Path) -> tuple[int, int]:
    """The active version and the one before, of one moment, 0 for none; raises VersionError where damaged."""
    active, previous, *_ = *_pointed(index_dir), 0, 0
    return active, previous


def pointed(index_dir: Path) -> tuple[int, ...]:
    """What the pointer says: the active version and the one before, as far as there are any; none where damaged."""
    try:
        return _pointed(index_dir)
    except VersionError:
        return ()


def _pointed(index_dir: Path) -> tuple[int, ...]:
    try:
        return pointing.read(index_dir / ACTIVE)
    except pointing.PointerDamaged as error:
        raise VersionError(f"{error}; activate a version again") from error


def _existing(index_dir: Path, version: int) -> int:
    known = list_versions(index_dir)
    if version not in known:
        raise NoSuchVersion(f"{index_dir} has no version {version}; it has: {', '.join(map(str, known)) or 'none'}")
    return version


def _stamp(path: Path) -> Stamp | None:
    """What differs once somebody wrote into a file, after what tells it from others; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino), (found.st_size, found.st_mtime_ns)


def _copied_to_gpu(version: VersionManifest, index: Index) -> GpuCopy:
    point = version.plan["nprobe"], version.plan["k_factor"]
    return GpuCopy(f"{version.index} version {version.version}", index, point)


def _check_sizes(directory: Path, version: VersionManifest, index: Index, items: ItemTable) -> None:
    expected = (version.count, version.dim)
    for name, part in ((ROWS, index.rows), (CODES, index.codes)):
        if part is not None and (part.ntotal, part.d) != expected:
            raise CorruptFile(
                f"{directory / name} holds {(part.ntotal, part.d)} rows × dim; the manifest says {expected}"
            )
    if items.count() != version.count:
        raise CorruptFile(f"{directory / ITEMS} holds {items.count():,} items; the manifest says {version.count:,}")

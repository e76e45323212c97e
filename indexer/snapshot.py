"""A copy of an index that can be restored anywhere: its catalogue, its active version and that version's model.

    snapshot.json      the receipt, written last: every other file with size and SHA-256
    catalog.sqlite     as of one moment
    version/, model/   the directories of the active version and of its model

Files that never change are hard links where the file system allows, so a snapshot beside its store costs little; copy
it to another disk to be safe from the loss of this one.

SnapshotError
├── NotEmpty        the directory, or the index, is there already, or being written
├── NotThere        there is nothing where the snapshot should be
├── NotASnapshot    there is something else
├── NewerSnapshot   it is of a format that this Kinsight does not know yet
└── DamagedSnapshot a file of a snapshot is missing or changed
"""

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath

from indexer import adopt, manifest, version
from indexer.catalog import CATALOG, Catalog
from indexer.catalog_file import connect
from indexer.embedding import Progress
from indexer.locks import Held, hold_once, turn
from indexer.manifest import FileRecord
from indexer.rebuild import active_number
from indexer.store import Store

RECEIPT = "snapshot.json"
FORMAT = 1
_VERSION, _MODEL = "version", "model"
_REMEDY = "take the snapshot from a copy"
_RESTORING = ".restoring"  # of a store; held by who restores into it


class SnapshotError(Exception):
    """An index can't be copied or restored; the message says why."""


class NotEmpty(SnapshotError):
    """What a snapshot or a restored index would be written to holds something already."""


class NotThere(SnapshotError):
    """There is nothing at the path that a snapshot is to be read from."""


class NotASnapshot(SnapshotError):
    """What is to be restored is a file, or a directory that no snapshot was written to."""


class NewerSnapshot(SnapshotError):
    """A newer Kinsight wrote the snapshot, in a format that this one does not know."""


class DamagedSnapshot(SnapshotError):
    """A directory is not a whole snapshot."""


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot holds.

    Attributes:
        index: name that it had.
        version: number of its active version.
        model: id.
        items: live ones in the catalogue.
        sequence: every change up to this one is in it.
        bytes: of all files.
        created: time in UTC, ISO 8601.
    """

    index: str
    version: int
    model: str
    items: int
    sequence: int
    bytes: int
    created: str


def snapshot(store: Store, name: str, directory: Path, progress: Progress) -> Snapshot:
    """Copy an index into a directory, which appears whole or not at all; searches and upserts go on meanwhile.

    Args:
        store: that holds the index.
        name: of the index.
        directory: must not exist, or be empty.
        progress: hears the stages `verify` and `copy`.

    Raises:
        NotEmpty: the directory holds something, or another process is writing it.
        NoActiveVersion: there is nothing to copy.
        ManifestError, CatalogError: the index or its model is damaged.
        OSError: a file can't be read or written.
    """
    index_dir = store.index(name)
    check = partial(_check_empty, directory)
    check()
    number = active_number(store, name)
    version_dir = version.version_dir(index_dir, number)
    opened = manifest.read_version(version_dir)
    model_dir = store.model(opened.model)
    progress("verify", 0, 2)
    manifest.verify(version_dir, opened)
    progress("verify", 1, 2)
    manifest.verify(model_dir, manifest.read_model(model_dir))
    progress("verify", 2, 2)
    with _sole_writer(directory), _whole(directory.absolute(), check) as staging:
        _link_all(version_dir, staging / _VERSION, progress)
        _link_all(model_dir, staging / _MODEL, progress)
        # After the version was chosen: the catalogue may be ahead of its version, never behind.
        with closing(adopt.open_catalog(index_dir)) as catalog:
            items, sequence = catalog.count(), catalog.sequence()
        _copy_catalog(index_dir / CATALOG, staging / CATALOG)
        files = {path.relative_to(staging).as_posix(): manifest.record(path) for path in _files(staging)}
        size = sum(file.bytes for file in files.values())
        now = datetime.now(UTC).isoformat(timespec="seconds")
        taken = Snapshot(name, number, opened.model, items, sequence, size, now)
        _write_receipt(staging, taken, files)
    return taken


def restore(store: Store, directory: Path, name: str | None, progress: Progress) -> Snapshot:
    """Make an index of a snapshot, and register its model; nothing is written before every file was verified.

    Args:
        store: gets them.
        directory: of the snapshot.
        name: of the new index; None for the one that it had.
        progress: hears the stages `verify` and `copy`.

    Returns:
        What was restored.

    Raises:
        NotThere, NotASnapshot: naming the directory.
        DamagedSnapshot: naming the file.
        NotEmpty: the store has something under that name.
        CatalogError, OSError: a file can't be written.
    """
    taken, files = _read_receipt(directory)
    index_dir = store.index(name or taken.index)
    check = partial(_check_unknown, store, index_dir)
    check()
    for done, (relative, expected) in enumerate(files.items()):
        progress("verify", done, len(files))
        _verify(directory / relative, expected)
    progress("verify", len(files), len(files))
    store.root.mkdir(parents=True, exist_ok=True)
    with turn(store.root / _RESTORING):  # others may bring the same model, or the same name
        check()
        _restore_model(directory / _MODEL, store.models / taken.model, progress)
        with _whole(index_dir, check, store.root) as staging:
            growing = staging / ".staging"
            _link_all(directory / _VERSION, growing, progress)
            opened = manifest.read_version(growing)
            (growing / manifest.MANIFEST).unlink()
            published = version.version_dir(staging, taken.version)
            manifest.publish(growing, published, replace(opened, index=index_dir.name))
            _copy(directory / CATALOG, staging / CATALOG)
            with closing(Catalog(staging)) as catalog:  # which may be of a moment after another version took over
                if unfinished := adopt.switch(staging, catalog, taken.version):
                    raise OSError(errno.EIO, f"{unfinished[0]}; check the disk, and restore again", str(index_dir))
    return replace(taken, index=index_dir.name)


def _check_empty(directory: Path) -> None:
    if directory.is_symlink():  # nothing can be renamed to it, wherever it leads
        raise NotEmpty(f"{directory} is a symbolic link to {directory.readlink()}; give another directory")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise NotEmpty(f"{directory} is there already and not empty; give another directory, or remove it")


def _check_unknown(store: Store, index_dir: Path) -> None:
    if version.list_versions(index_dir) or (index_dir / CATALOG).exists():
        raise NotEmpty(f"index {index_dir.name!r} is in {store.root} already; restore under another name (--name)")


@contextmanager
def _sole_writer(directory: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_once(directory.absolute().with_name(f".{directory.name}.lock")))
        except Held as error:
            raise NotEmpty(f"process {error.pid} is writing {directory}; give another directory") from error
        yield


@contextmanager
def _whole(target: Path, check: Callable[[], None], beside: Path | None = None) -> Iterator[Path]:
    """A directory that becomes `target` when the block is left, and is removed where it fails.

    What somebody else wrote to the target meanwhile is not replaced: `check` raises then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = (beside or target.parent) / f".{target.name}.partial"
    manifest.discard(staging)
    staging.mkdir()
    try:
        yield staging
        manifest.sync(staging)
        check()
        if target.exists():  # it holds nothing that counts
            shutil.rmtree(target)
        staging.rename(target)
        manifest.sync(target.parent)
    except BaseException:
        manifest.discard(staging)
        raise


def _restore_model(source: Path, target: Path, progress: Progress) -> None:
    if target.exists():  # one id, one content: models never change
        manifest.verify(target, manifest.read_model(target))
        return
    with _whole(target, lambda: None) as staging:
        _link_all(source, staging, progress)


def _link_all(source: Path, target: Path, progress: Progress) -> None:
    target.mkdir(exist_ok=True)
    files = sorted(source.iterdir())
    for done, path in enumerate(files, start=1):
        try:
            os.link(path, target / path.name)
        except OSError as error:  # another file system, or one without links
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            _copy(path, target / path.name)
        progress("copy", done, len(files))
    manifest.sync(target)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        if error.filename2 is None:  # one of the two can't be opened, and is named
            raise
        # Both are named, the source first: what is full or fails is rather the disk that is written to.
        raise OSError(error.errno, f"{source} can't be copied: {error.strerror}", str(target)) from error
    manifest.sync(target)


def _copy_catalog(source: Path, target: Path) -> None:
    try:
        with closing(connect(source)) as reading, closing(sqlite3.connect(target)) as writing:
            reading.backup(writing)
    except sqlite3.Error as error:
        full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        code, remedy = (errno.ENOSPC, "free some space") if full else (errno.EIO, "check both disks")
        raise OSError(code, f"{source} can't be copied: {error}; {remedy}", str(target)) from error
    manifest.sync(target)


def _write_receipt(staging: Path, taken: Snapshot, files: Mapping[str, FileRecord]) -> None:
    records = {name: asdict(file) for name, file in files.items()}
    fields = {"format": FORMAT, **asdict(taken), "files": records}
    sealed = {**fields, manifest.SEAL: manifest.seal(fields)}
    manifest.write_atomically(staging / RECEIPT, json.dumps(sealed, indent=1).encode() + b"\n")


def _read_receipt(directory: Path) -> tuple[Snapshot, dict[str, FileRecord]]:
    path = directory / RECEIPT
    try:
        fields = json.loads(path.read_bytes())
        its_seal = fields.pop(manifest.SEAL, None)  # which receipts of older releases lack
        if its_seal is not None and its_seal != manifest.seal(fields):
            raise DamagedSnapshot(f"{path} was changed: it does not match its own SHA-256; {_REMEDY}")
        found = fields.pop("format")
        if isinstance(found, int) and found > FORMAT:
            raise NewerSnapshot(
                f"{path} has format {found}, of a newer Kinsight; this one reads format {FORMAT}: restore it with "
                f"the one that wrote it, or update this one"
            )
        if found != FORMAT:
            raise DamagedSnapshot(f"{path} has format {found}; this Kinsight reads format {FORMAT}; {_REMEDY}")
        files = {str(name): FileRecord(**record) for name, record in fields.pop("files").items()}
        taken = Snapshot(**fields)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _without_receipt(directory) from error
    except OSError as error:
        raise DamagedSnapshot(f"{path} can't be read: {error.strerror}; {_REMEDY}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedSnapshot(f"{path} is not the receipt of a snapshot: {error}; {_REMEDY}") from error
    _check_names(directory, files)
    return taken, files


def _without_receipt(directory: Path) -> SnapshotError:
    """What is wrong with a directory that has no receipt."""
    remedy = "name a folder that `kinsight index snapshot` made"
    if not directory.exists():
        return NotThere(f"there is no {directory} to restore; {remedy}")
    if not directory.is_dir():
        return NotASnapshot(f"{directory} is a file, and a snapshot is a folder; {remedy}")
    # Receipts are written last: a copy that ended early may lack it, beside what nothing else has together.
    if (directory / CATALOG).exists() and any((directory / part).is_dir() for part in (_VERSION, _MODEL)):
        return DamagedSnapshot(f"{directory / RECEIPT} is missing; {_REMEDY}")
    return NotASnapshot(f"{directory} is no snapshot: it has no {RECEIPT}; {remedy}")


def _check_names(directory: Path, files: Mapping[str, FileRecord]) -> None:
    """All that is restored is named, and nothing named lies elsewhere."""
    unnamed = {path.relative_to(directory).as_posix() for path in _files(directory)} - {*files, RECEIPT}
    if unnamed:
        raise DamagedSnapshot(f"{directory / min(unnamed)} is not one of the snapshot's files; remove it")
    for name in files:
        parts = PurePosixPath(name).parts
        if name != CATALOG and (len(parts) != 2 or parts[0] not in (_VERSION, _MODEL) or parts[1] == ".."):
            raise DamagedSnapshot(f"{directory / RECEIPT} names {name!r}, which is no file of a snapshot")
    if CATALOG not in files:
        raise DamagedSnapshot(f"{directory / RECEIPT} names no {CATALOG}")


def _verify(path: Path, expected: FileRecord) -> None:
    try:
        found = manifest.record(path)
    except OSError as error:
        raise DamagedSnapshot(f"{path} can't be read: {error.strerror}; {_REMEDY}") from error
    if found != expected:
        raise DamagedSnapshot(
            f"{path} was changed: {found.bytes:,} bytes, SHA-256 {found.sha256[:12]}…; the receipt says "
            f"{expected.bytes:,}, {expected.sha256[:12]}…; {_REMEDY}"
        )


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())

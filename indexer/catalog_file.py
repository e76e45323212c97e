"""The SQLite file of a catalogue: created whole, checked when opened, written in durable transactions.

CatalogError
├── CatalogCorrupt       the file is damaged, truncated or not a catalogue; the message names it
├── CatalogWriteFailed   the disk is full, failing or not writable; nothing of the transaction is acknowledged
└── CatalogBusy          another process kept writing for longer than is waited
"""

import os
import shutil
import sqlite3
import threading
import weakref
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from indexer import acknowledged, manifest
from indexer.acknowledged import NoteDamaged, note_of

FORMAT = 1  # PRAGMA user_version; raised when a reader of the old one could misunderstand the new one
BUSY_TIMEOUT_S = 30.0
CHECK_BYTES = (
    16 * 2**20
)  # an integrity check reads all of a file: some 0.1 s for this many, and larger ones go without

_SCHEMA = """
CREATE TABLE items (
    item TEXT NOT NULL PRIMARY KEY,
    sequence INTEGER NOT NULL,  -- of its last change
    state TEXT NOT NULL,        -- live, deleted (by a user), gone (from the collection that builds mirror)
    mirrored INTEGER NOT NULL,  -- 1: a build found it in its collection; 0: it was upserted
    quiet INTEGER NOT NULL,     -- 1: no open index needs to hear of the last change
    payload TEXT,               -- a JSON object
    source BLOB,                -- path of the image where it is not kept here; bytes, as not every path is UTF-8
    sha256 TEXT,                -- of the image
    seal INTEGER NOT NULL       -- CRC-32 of the other columns, as SQLite itself does not notice a flipped bit
);
CREATE INDEX changed ON items (sequence) WHERE quiet = 0;
CREATE INDEX uploaded ON items (sha256) WHERE source IS NULL AND sha256 IS NOT NULL;
CREATE TABLE embeddings (
    item TEXT NOT NULL, model TEXT NOT NULL, vector BLOB NOT NULL, seal INTEGER NOT NULL, PRIMARY KEY (item, model)
);
CREATE TABLE images (sha256 TEXT NOT NULL PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE requests (
    request_id TEXT NOT NULL PRIMARY KEY, digest TEXT NOT NULL, outcomes TEXT NOT NULL, at_s REAL NOT NULL,
    seal INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX requested ON requests (at_s);
CREATE TABLE counter (sequence INTEGER NOT NULL, seal INTEGER NOT NULL);
"""
_REMEDY = "restore it from a snapshot, or move it away and build the index again: upserts in it are lost then"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)
_UNWRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
_WAITING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class CatalogError(Exception):
    """A catalogue can't do what was asked; the message says why."""


class CatalogCorrupt(CatalogError):
    """The catalogue's file is damaged, truncated or not a catalogue."""


class CatalogWriteFailed(CatalogError):
    """The disk is full, failing or not writable; nothing of the transaction is acknowledged, nor in the catalogue.

    Unless the message says that the changes are in it: then only the note of them failed.
    """


class CatalogBusy(CatalogError):
    """Another process kept writing for longer than is waited; nothing of the transaction is in the catalogue."""


class CatalogFile:
    """An open catalogue file: any thread may read; one at a time, of all processes, writes."""

    def __init__(self, path: Path) -> None:
        """Open the file, and create it where there is none.

        Raises:
            CatalogError: it is damaged, lacks changes that were acknowledged, or can't be created.
        """
        self.path = path
        self._reading, self._writing = threading.Lock(), threading.RLock()
        with self._opened(), self.translated():
            noted = acknowledged.noted(path)  # before the catalogue, which others may be going on with
            if not path.exists():
                if noted:
                    raise self._behind("it is gone", noted)
                _create(path)
            if path.stat().st_size == 0:  # SQLite would take it for a new one
                raise self.corrupt("it is empty")
            self._check_log()
            self._reader, self._writer = connect(path), connect(path)
            for connection in (self._reader, self._writer):
                # A connection is in a cycle with its own statements: without this, the space of a catalogue that was
                # removed would be free only after some late garbage collection.
                weakref.finalize(self, connection.close)
            self._identity = path.stat()
            try:
                self._check()
                if (last := self.counted(self._reader)) < noted:
                    raise self._behind(f"it ends at change {last:,}", noted)
            except BaseException:  # held open by the error's traceback, it would meddle with a copy put in its place
                self.close()
                raise

    def read(self, query: str, *values: object) -> list[Any]:
        """All rows of a query, as of the last commit."""
        with self.translated(), self._reading:
            return self._reader.execute(query, values).fetchall()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """What is read in the block is of one moment; nobody else may read with this object meanwhile."""
        with self.translated():
            self._reader.execute("BEGIN")
            try:
                yield
            finally:
                self._reader.execute("ROLLBACK")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction, on the disk when the block is left; inside another one of this thread, a part of that.

        Raises:
            CatalogError: nothing of it is in the catalogue.
        """
        with self._writing:
            if self._writer.in_transaction:
                yield self._writer
                return
            with self.translated():
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                    last = self.counted(self._writer)
                    self._writer.execute("COMMIT")
                except BaseException:
                    if self._writer.in_transaction:  # on some errors SQLite has rolled back by itself
                        self._writer.execute("ROLLBACK")
                    raise
                self._check_there()
                self._note(last)

    @contextmanager
    def compared(self, version: Path, notes: Mapping[str, str]) -> Iterator[None]:
        """Temporary tables for the block, made before it; other processes may write the catalogue all the while.

        Args:
            version: another SQLite file, which never changes: `version` in the queries, as the catalogue is `main`.
            notes: the name of each table, and the query that it holds the rows of.
        """
        with self._writing, self.translated():
            try:
                self._writer.execute("ATTACH ? AS version", (f"{version.resolve().as_uri()}?mode=ro&immutable=1",))
                try:
                    for name, query in notes.items():
                        self._writer.execute(f"CREATE TEMP TABLE {name} AS {query}")
                finally:
                    self._writer.execute("DETACH version")
                yield
            finally:
                for name in notes:
                    self._writer.execute(f"DROP TABLE IF EXISTS temp.{name}")

    @contextmanager
    def translated(self) -> Iterator[None]:
        """SQLite's errors of the block, as errors of this module."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._ours(error) from error
        except UnicodeDecodeError as error:  # Python's, of SQLite's own message, which quotes a damaged schema
            raise self.corrupt("its schema is not text") from error
        except NoteDamaged as error:
            raise self.corrupt(f"{error}, so that nobody knows whether changes are missing") from error

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """The system's errors of the block, as errors of this module."""
        try:
            yield
        except OSError as error:
            raise CatalogWriteFailed(f"{self.path} can't be opened: {error.strerror}") from error

    def corrupt(self, reason: str) -> CatalogCorrupt:
        """The error of a damaged file."""
        return CatalogCorrupt(f"{self.path} is damaged: {reason}; {_REMEDY}")

    def unsealed(self, what: str) -> CatalogCorrupt:
        """The error of a row whose seal is not that of its other columns."""
        return self.corrupt(f"{what} does not match its checksum")

    def counted(self, connection: sqlite3.Connection) -> int:
        """The number of the last change, as a connection to this file sees it; raises CatalogCorrupt."""
        found = connection.execute("SELECT sequence, seal FROM counter").fetchall()
        if len(found) != 1:
            raise self.corrupt(f"it has {len(found)} counters")
        sequence, its_seal = found[0]
        if its_seal != seal(sequence):
            raise self.unsealed("the counter")
        return int(sequence)

    def sequence(self) -> int:
        """The number of the last change; raises CatalogError."""
        with self.translated(), self._reading:
            return self.counted(self._reader)

    def close(self) -> None:
        """Give the file back; nothing can be read or written any more."""
        with self._reading, self._writing:
            self._reader.close()
            self._writer.close()

    def _check_there(self) -> None:
        """Raise CatalogWriteFailed where what was just written is in a file that nobody will open again."""
        try:
            there = os.path.samestat(self._identity, self.path.stat())
        except FileNotFoundError:
            there = False
        except OSError:  # the note, which lies beside it, meets that too, and says what it is
            return
        if there:
            return
        # Nor may the note of one that took its place say that this was acknowledged.
        raise CatalogWriteFailed(
            f"{self.path} was removed, or another one put in its place, since it was opened; the changes are lost: "
            "send them again"
        )

    def _note(self, last: int) -> None:
        try:
            acknowledged.note(self.path, last)
        except OSError as error:
            raise CatalogWriteFailed(
                f"{note_of(self.path)} can't be written: {error.strerror}; the changes are in the catalogue, but not "
                "acknowledged: check the disk and its permissions, and send them again"
            ) from error

    def _behind(self, what: str, noted: int) -> CatalogCorrupt:
        """The error where acknowledged changes are missing."""
        note, kept = note_of(self.path), self._keep_log()
        known = f" (what is left of them may be in {kept})" if kept else ""
        return self.corrupt(
            f"{what}, but changes up to {noted:,} were acknowledged{known}; to go on without, remove {note}"
        )

    def _check_log(self) -> None:
        """Raise CatalogWriteFailed where changes are in the log alone, and it can't be read for want of its index."""
        log, index = _beside(self.path, "-wal"), _beside(self.path, "-shm")
        if is_read_only(log.parent) and not _is_settled(self.path) and not index.exists():
            raise CatalogWriteFailed(
                f"{log} holds changes that can't be read where nobody can write: open the index once where it can be "
                f"written (`kinsight index stats {log.parent.name}`), or serve a copy that can be"
            )

    def _keep_log(self) -> Path | None:
        """A copy of the log, which SQLite removes with the last connection, whatever it could not read of it."""
        log = _beside(self.path, "-wal")
        kept = log.with_name(f"{log.name}-damaged")
        if kept.exists():  # since the first time, when it was whole
            return kept
        if is_read_only(log.parent) or not log.exists() or not log.stat().st_size:
            return None
        shutil.copyfile(log, kept)
        return kept

    def _check(self) -> None:
        (found,) = self._reader.execute("PRAGMA user_version").fetchone()
        if found != FORMAT:
            raise self.corrupt(f"it has format {found}; this Kinsight reads format {FORMAT}")
        if _schema(self._reader) != _expected_schema():
            raise self.corrupt("its tables are not those of a catalogue")
        if not self.is_large():
            self._compare_pages(self._reader)

    def is_large(self) -> bool:
        """Whether opening it left its pages unread, for `check_pages` to read."""
        return self.path.stat().st_size > CHECK_BYTES

    def check_pages(self) -> None:
        """Read all pages, and compare the indexes with what they are of; others may read and write meanwhile.

        Raises:
            CatalogCorrupt: they don't agree: what is looked up could be missed.
        """
        with self.translated(), closing(connect(self.path)) as connection:
            self._compare_pages(connection)

    def _compare_pages(self, connection: sqlite3.Connection) -> None:
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise self.corrupt(verdict)

    def _ours(self, error: sqlite3.Error) -> CatalogError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        if code == sqlite3.SQLITE_IOERR_SHORT_READ:
            return self.corrupt("it ends too early")
        if code & 0xFF in _UNWRITABLE:
            full = code & 0xFF == sqlite3.SQLITE_FULL
            remedy = "free some space" if full else "check the disk and its permissions"
            return CatalogWriteFailed(f"{self.path} can't be written: {error}; {remedy} and try again")
        if code & 0xFF in _WAITING:
            return CatalogBusy(
                f"{self.path} was being written by another process for {BUSY_TIMEOUT_S:.0f} s; try again"
            )
        return self.corrupt(str(error))


def is_read_only(directory: Path) -> bool:
    """Whether a directory lies on a file system that is mounted read-only."""
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def seal(*values: object) -> int:
    """The checksum of a row's columns: text, bytes, numbers or None."""
    return zlib.crc32(b"".join([value if type(value) is bytes else repr(value).encode() for value in values]))


def _create(path: Path) -> None:
    """Make an empty catalogue under another name first: no other process ever sees it half made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    connection = sqlite3.connect(temporary, isolation_level=None)
    try:
        # All is in the file itself before it keeps a log: one cut off by a full disk is lost by `close`, silently.
        connection.executescript(f"PRAGMA journal_mode=MEMORY; BEGIN; PRAGMA user_version={FORMAT}; {_SCHEMA}")
        connection.execute("INSERT INTO counter VALUES (0, ?)", (seal(0),))
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        manifest.sync(temporary)
        try:
            path.hardlink_to(temporary)
        except FileExistsError:  # another process was faster
            return
        manifest.sync(path.parent)
    finally:
        connection.close()
        for made in (temporary, *(temporary.with_name(f"{temporary.name}-{of}") for of in ("wal", "shm"))):
            made.unlink(missing_ok=True)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file of a catalogue, also where nobody can write; raises sqlite3.Error."""
    # Without a mode SQLite would create a file that was removed this moment.
    uri = f"{path.resolve().as_uri()}?mode=rw"
    if is_read_only(path.parent):  # nobody can write there, so that it needs no locks
        uri = f"{path.resolve().as_uri()}?{'immutable=1' if _is_settled(path) else 'mode=ro'}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous=FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_settled(path: Path) -> bool:
    """Whether the log holds nothing that the catalogue's own file lacks."""
    log = _beside(path, "-wal")
    return not log.exists() or log.stat().st_size == 0


def _beside(path: Path, ending: str) -> Path:
    """One of the files that SQLite keeps beside its own."""
    return path.with_name(f"{path.name}{ending}")


def _schema(connection: sqlite3.Connection) -> list[Any]:
    return connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").fetchall()


def _expected_schema() -> list[Any]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(_SCHEMA)
        return _schema(connection)
    finally:
        connection.close()

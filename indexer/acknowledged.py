"""Up to which change a catalogue acknowledged, noted beside it, so that no acknowledged change is lost unnoticed.

What was committed last is in SQLite's write-ahead log. Where that is damaged, cut or gone, SQLite reads what comes
before the damage and forgets the rest without a word, because an ordinary power cut during a commit looks the same.
This note tells them apart: it is written once a commit is on the disk, so a sound catalogue is never behind it.

It is not synced, which would double what each commit waits for. After a power cut it may be older than the catalogue
by what the system had not written back, as a rule some seconds; loss of those last changes alone can't be told.

NoteDamaged   the note is not one
"""

import fcntl
import os
import threading
import zlib
from contextlib import suppress
from pathlib import Path

from indexer import manifest

_DIGITS, _CHECK_DIGITS = 20, 8
_SIZE = _DIGITS + 1 + _CHECK_DIGITS + 1  # far below a disk's sector, which is written whole or not at all


class NoteDamaged(ValueError):
    """The note does not match its checksum; the message names it."""


def note_of(catalog: Path) -> Path:
    """Where the note of a catalogue is; among the files that SQLite keeps beside it."""
    return catalog.with_name(f"{catalog.name}-acknowledged")


def noted(catalog: Path) -> int:
    """The last change that the note says was acknowledged; 0 without a note.

    Raises:
        NoteDamaged: it was changed or cut.
        OSError: it can't be read.
    """
    try:
        return _read(note_of(catalog), note_of(catalog).read_bytes())
    except FileNotFoundError:
        return 0


def note(catalog: Path, sequence: int) -> None:
    """Note that changes up to this one are on the disk, and may be acknowledged; a note never goes back.

    Raises:
        NoteDamaged: it was changed or cut since it was written.
        OSError: it can't be written.
    """
    path = note_of(catalog)
    if not path.exists():
        _begin(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # processes note in another order than they committed
        if sequence > _read(path, os.pread(descriptor, _SIZE + 1, 0)):
            os.pwrite(descriptor, _line(sequence), 0)
    finally:
        os.close(descriptor)


def _begin(path: Path) -> None:
    """Make a note of change 0, whole from the first moment, unless another process or thread is faster."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(_line(0))
        manifest.sync(temporary)
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
        manifest.sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _line(sequence: int) -> bytes:
    digits = f"{sequence:0{_DIGITS}d}".encode()
    return digits + f" {zlib.crc32(digits):0{_CHECK_DIGITS}x}\n".encode()


def _read(path: Path, line: bytes) -> int:
    digits = line[:_DIGITS]
    if not digits.isdigit() or line != _line(int(digits)):
        raise NoteDamaged(f"{path} does not match its checksum")
    return int(digits)

"""The pointer of an index: which version is searched, and which was before, in a file that is written in one step.

    2
    1
    crc32 1a2b3c4d

A number with one bit flipped is another number, perhaps that of a version that nobody activated: hence the checksum.

PointerDamaged   the pointer is not one
"""

import re
import zlib
from pathlib import Path

from indexer import manifest

_LINES = re.compile(rb"((?:\d+\n){1,2})(crc32 [0-9a-f]{8}\n)?")


class PointerDamaged(ValueError):
    """The pointer can't be read, or was changed; the message names it."""


def read(path: Path) -> tuple[int, ...]:
    """The numbers that a pointer says, one or two; none where there is no pointer.

    Raises:
        PointerDamaged: it was changed or cut, or can't be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise PointerDamaged(f"{path} can't be read: {error}") from error
    found = _LINES.fullmatch(data)
    # Pointers of older releases have no checksum. One that lost its checksum is whole up to there.
    if found is None or found[2] not in (None, _checksum(found[1])):
        shown = data.decode("ascii", "backslashreplace")
        raise PointerDamaged(f"{path} says {' '.join(shown.split())[:40]!r}, which is not what was written")
    return tuple(map(int, found[1].split()))


def write(path: Path, numbers: tuple[int, ...]) -> None:
    """Replace a pointer in one step; raises OSError, as of `manifest.write_atomically`."""
    lines = "".join(f"{number}\n" for number in numbers).encode()
    manifest.write_atomically(path, lines + _checksum(lines))


def _checksum(lines: bytes) -> bytes:
    return b"crc32 %08x\n" % zlib.crc32(lines)

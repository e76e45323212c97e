"""One image of a collection: its item id, and how its bytes are read.

SourceError   a collection can't be read; one bad image in it is never an error, it is reported
"""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from indexer import pixels

# Named like photographs, though no decoder here takes them: listed, so that they are reported instead of ignored.
_UNSUPPORTED_EXTENSIONS = frozenset({".jxl", ".jp2", ".cr2", ".nef", ".arw", ".dng"})
_LISTED_EXTENSIONS = pixels.EXTENSIONS | pixels.HEIC_EXTENSIONS | _UNSUPPORTED_EXTENSIONS
UNREADABLE = "unreadable"  # the state of a file that is not there
_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("%")}


class SourceError(ValueError):
    """A collection of images can't be read; the message names the path and the remedy."""


@dataclass(frozen=True, slots=True)
class Source(ABC):
    """One image of a collection. A million are held at once: slots, and no `Path` until one is asked for.

    Attributes:
        item: its id, unique in the collection: the path below the collection's root, `/` between parts, with `%`,
            control characters and bytes that are not UTF-8 percent-encoded.
        root: of its collection; one string for all of them.
        relative: its path below the root, or an absolute one; the very string `item` where that needs no escapes.
    """

    item: str
    root: str
    relative: str

    @property
    def path(self) -> Path:
        """Where it is: its file, or the archive that holds it and its name in there as one path."""
        return Path(self.root, self.relative)

    @abstractmethod
    def read(self) -> bytes:
        """The bytes of the image file; raises PixelsError where they can't be had or are too many."""

    @abstractmethod
    def state(self) -> str:
        """What differs once the bytes have changed: sizes and times, nothing that needs reading them."""


@dataclass(frozen=True, slots=True)
class FileSource(Source):
    """An image in a file of its own."""

    def read(self) -> bytes:
        """The bytes of the file; raises PixelsError."""
        return pixels.read(self.path)

    def state(self) -> str:
        """Size and time of change."""
        return file_state(os.path.join(self.root, self.relative))  # noqa: PTH118  a Path costs more than the stat


@dataclass(frozen=True)
class Listing:
    """What one archive holds.

    Attributes:
        sources: its images, in their order there.
        ignored: how many of its members are not named like images.
        warnings: what of it can't be used, and why.
    """

    sources: list[Source]
    ignored: int = 0
    warnings: tuple[str, ...] = ()


def file_state(file: str) -> str:
    """Size and time of change of a file, as text; `UNREADABLE` where the system does not tell."""
    try:
        status = os.stat(file)  # noqa: PTH116  a Path costs more than the stat
    except OSError:
        return UNREADABLE
    return f"{status.st_size} {status.st_mtime_ns}"


def is_listed(name: str) -> bool:
    """Whether a file of this name belongs to a collection: not hidden, and named like an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in _LISTED_EXTENSIONS  # noqa: PTH122


def item_of(relative: str) -> str:
    """The item id of an image at a path below its collection's root."""
    if relative.isascii() and relative.isprintable() and "%" not in relative:
        return relative
    raw = os.fsencode(relative)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in raw)
    # Control characters (C0, DEL, C1) would break lines and terminals wherever an id is printed.
    return "".join(
        "".join(f"%{byte:02X}" for byte in char.encode())
        if char == "%" or ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or char in "\u2028\u2029"
        else char
        for char in text
    )


def shown(path: Path) -> str:
    """A path for a message, on one line."""
    return ascii(str(path)) if not str(path).isprintable() else str(path)

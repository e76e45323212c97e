"""Images in tar archives (WebDataset shards): found by one pass over the headers, read in place, never unpacked."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from indexer.pixels import MAX_BYTES, ImageTooLarge, UndecodableImage
from indexer.source import Listing, Source, file_state, is_listed, item_of, shown

TAR_NAMES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # all but the first to be refused by name

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}  # by the first two bytes
_BLOCK = tarfile.BLOCKSIZE
_PADDING = 2**20  # zeros after the end mark that writers add to fill a record; what lies further is not looked at


@dataclass(frozen=True, slots=True)
class TarSource(Source):
    """An image in a tar archive, `size` bytes from `offset` on; one string `archive` for all of its images."""

    archive: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes of the member; raises PixelsError where they are too many, cut off or unreadable."""
        if self.size > MAX_BYTES:
            raise ImageTooLarge(f"{self.size:,} bytes; at most {MAX_BYTES:,}: scale the image down or recompress it")
        try:
            # Opened for each image, as a file in a folder is: a thousand shards would use up the open files.
            with Path(self.archive).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), self.size, self.offset)
        except OSError as error:
            raise UndecodableImage(f"can't be read: {error.strerror or error}") from error
        if len(data) < self.size:
            raise UndecodableImage(f"cut off: {len(data):,} of its {self.size:,} bytes are in the archive")
        return data

    def state(self) -> str:
        """Where it lies, and size and time of change of the archive."""
        return f"{self.offset} {self.size} {file_state(self.archive)}"


class _Damaged(Exception):
    """The archive ends here, though it should not."""


def is_tar(name: str) -> bool:
    """Whether a file of this name is a tar archive, compressed or not."""
    return not name.startswith(".") and name.lower().endswith(TAR_NAMES)


def list_tar(archive: Path, root: Path) -> Listing:
    """The images in a tar archive: its regular members named like images, at `<archive's path>/<member's name>`.

    Of members of one name the last counts, as when unpacking. Where the archive is damaged or cut off, the images
    before that place are listed, and a warning says what is lost.
    """
    prefix = archive.relative_to(root).as_posix()
    found: dict[str, TarSource] = {}
    ignored = 0
    linked, warnings = [], []
    try:
        for member in _members(archive):
            name = os.path.normpath(member.name).lstrip("/")
            if not is_listed(name.rpartition("/")[2]):
                ignored += not member.isdir()
            elif not member.isreg() or member.issparse():
                linked.append(name)
            else:
                relative = f"{prefix}/{name}"
                place = (str(archive), member.offset_data, member.size)
                found[relative] = TarSource(item_of(relative), str(root), relative, *place)
    except _Damaged as error:
        warnings.append(f"{shown(archive)} {error}; used are the images up to there: {len(found):,}")
    if linked:
        warnings.append(
            f"{shown(archive)}: {len(linked):,} images are links or sparse files, which are not followed, "
            f"for example {linked[0]!a}; write them as plain files"
        )
    return Listing(list(found.values()), ignored, tuple(warnings))


def _members(archive: Path) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, from its headers; raises _Damaged where these stop before its end mark."""
    end, last = 0, ""
    try:
        with archive.open("rb") as file:
            for member, behind in _headers(file):
                yield member
                end, last = behind, member.name
            _check_end(file, end, last)
    except OSError as error:
        raise _Damaged(f"can't be read: {error.strerror or error}") from error


def _headers(file: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Each member with the byte behind it, as far as the headers are whole."""
    end = 0
    # tarfile reads the numbers and names of a damaged header unchecked and follows it as far as it leads; what the
    # caller finds at `end` tells the damage from the regular end.
    with suppress(tarfile.TarError, ValueError, OverflowError, RecursionError), tarfile.TarFile(fileobj=file) as tar:
        while True:
            file.seek(end)
            # Not `tar.next()`, which keeps each header, a kilobyte, and stops without a word at a damaged one.
            member = tarfile.TarInfo.fromtarfile(tar)
            if tar.offset <= end:
                return  # a forged size that leads back
            end = tar.offset
            yield member, end


def _check_end(file: BinaryIO, end: int, last: str) -> None:
    """Raise _Damaged unless the end mark, a block of zeros, follows the last member at byte `end`."""
    after = f"after {last!a}" if last else "at its beginning"
    size = file.seek(0, os.SEEK_END)
    if size <= end:
        raise _Damaged(f"is cut off {after}: it ends at byte {size:,} without an end mark")
    file.seek(end)
    block = file.read(_BLOCK)
    if any(block):
        if not end and block[:2] in _COMPRESSED:
            raise _Damaged(
                f"is compressed ({_COMPRESSED[block[:2]]}), so it can't be read in place; decompress it once"
            )
        raise _Damaged(f"is damaged {after}: byte {end:,} of {size:,} begins no member")
    if any(file.read(_PADDING)):
        raise _Damaged(f"goes on behind its end mark {after}, as concatenated archives do; keep each in its own file")

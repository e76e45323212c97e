"""Which paths of this machine requests may name."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import InvalidPath, PathExists, PathNotAllowed, PathNotFound


@dataclass(frozen=True)
class Folders:
    """The folders that requests may read from and write to; none unless whoever starts the server says so."""

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()

    def to_read(self, path: str) -> Path:
        """A path that is to be read.

        Raises:
            InvalidPath, PathNotAllowed: see `_inside`.
            PathNotFound: there is nothing.
        """
        found = self.readable(path)
        check_there(found)
        return found

    def readable(self, path: str) -> Path:
        """A path that may be read, whether there is something by now or not.

        Raises:
            InvalidPath, PathNotAllowed: see `_inside`.
        """
        return _inside(path, self.read, "--allow-read")

    def to_write(self, path: str) -> Path:
        """A path that is to be made, whether there is something by now or not.

        Raises:
            InvalidPath, PathNotAllowed: see `_inside`.
        """
        return _inside(path, self.write, "--allow-write")


def check_there(path: Path) -> None:
    """Raise PathNotFound where there is nothing at a path that is to be read."""
    if "{" not in path.name:  # a brace pattern stands for several
        try:
            path.stat()
        except OSError as error:  # also where the name is longer than the disk takes, or a folder is closed to it
            raise PathNotFound(f"the server's machine has no {path} to read: {error.strerror}") from error


def check_free(path: Path) -> None:
    """Raise PathExists where there is something at a path that is to be made."""
    if os.path.lexists(path):
        raise PathExists(f"{path} is there already; name another one")


def check_parquet(path: Path) -> None:
    """Raise InvalidPath where the name of a Parquet file that is to be made says that it is another kind of file."""
    if path.suffix.lower() not in ("", ".parquet"):
        raise InvalidPath(f"{path} is not how a Parquet file is named; say {path.with_suffix('.parquet')}")


def _inside(path: str, folders: Sequence[Path], option: str) -> Path:
    """A path in one of some folders, symbolic links followed.

    Raises:
        InvalidPath: it is not absolute.
        PathNotAllowed: it is in none of them.
    """
    if "\0" in path or not Path(path).is_absolute():
        raise InvalidPath(f"{path!r} is not an absolute path; name one on the server's machine")
    # As it is used from here on: with a link before "..", another file would be looked up than the one that is used.
    wanted = Path(os.path.normpath(path))
    resolved = Path(os.path.realpath(wanted))  # `resolve` fails where links lead in a circle
    if not any(resolved.is_relative_to(folder.resolve()) for folder in folders):
        allowed = ", ".join(map(str, folders)) or "none"
        raise PathNotAllowed(f"{path} is in no folder that this server may use for this (serve {option}): {allowed}")
    return wanted

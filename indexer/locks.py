"""Lock files that one process at a time holds, and that the system takes from it however it ends."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_GLANCE_S = 0.2  # how long a look by `is_held` may stand in the way of taking the lock
_PAUSE_S = 0.01


class Held(Exception):
    """Another process holds the lock.

    Attributes:
        pid: its number as text, or `unknown`.
    """

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(f"process {pid} holds {path}")
        self.pid = pid


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold a lock file, made where it does not exist, with this process's number in it; raises Held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+") as file:
            if not _taken(file.fileno()):
                file.seek(0)
                raise Held(path, file.read().strip() or "unknown")
            if not _is_there(file.fileno(), path):  # who held it has removed it since it was opened
                continue
            _sign(file.fileno(), path)
            yield
            return


@contextmanager
def hold_once(path: Path) -> Iterator[None]:
    """As `hold`, of a file that is gone afterwards: for folders that are not ours to leave one in."""
    with hold(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until nobody else is in a block of this file, which is made where it does not exist; raises OSError."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def opened_alone(path: Path) -> Iterator[BinaryIO]:
    """Open a file to append to it, made where it does not exist, once nobody else has it open so; raises OSError.

    Whoever has it may rename or remove it: the next one then makes another.
    """
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_there(file.fileno(), path):
                yield file
                return


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file now."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def interrupt(pid: int, path: Path) -> bool:
    """Interrupt the process that holds a lock file, as Ctrl-C would; whether one of that number here does hold it.

    Where containers share a file system, the number that one of their processes goes by in there is another one's, or
    nobody's, in here.
    """
    if not _has_open(pid, path):
        return False
    try:
        os.kill(pid, signal.SIGINT)
    except ProcessLookupError:
        return False
    return True


def _has_open(pid: int, path: Path) -> bool:
    try:
        descriptors = [*Path(f"/proc/{pid}/fd").iterdir()]
    except PermissionError:  # another user's; who signals it is told so
        return True
    except OSError:
        return not Path("/proc/self/fd").exists()  # without any such folder, as on macOS, nothing can be told
    for descriptor in descriptors:
        with suppress(OSError):  # it was closed this moment
            if descriptor.samefile(path):
                return True
    return False


def _sign(descriptor: int, path: Path) -> None:
    """Put this process's number in a lock file, which is removed where that fails; raises OSError, which names it."""
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except OSError as error:
        error.filename = str(path)  # a write that fails names no file
        path.unlink(missing_ok=True)
        raise


def _is_there(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _taken(descriptor: int) -> bool:
    """Take the lock; a moment of patience, because whoever asks `is_held` holds it for as long as it looks."""
    deadline = time.monotonic() + _GLANCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE_S)
        else:
            return True

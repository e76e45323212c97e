"""Turns that the processes of one server take, and the threads of each."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until nobody else is in a block of this file, which is made where it does not exist; raises OSError."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""The directory in which a version grows: resumable after a crash, and one builder at a time.

StagingError
└── BuildInProgress   another process is building this index
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from indexer import manifest
from indexer.sources import Source

_PREFIX = ".staging-"
# What an interrupted build goes on from; anything else that it left would be published as a part of the version.
_RESUMED = ("rows.faiss", "items.sqlite", "items.sqlite-journal")


class StagingError(Exception):
    """A staging directory can't be used."""


class BuildInProgress(StagingError):
    """Another process is building this index."""


@contextmanager
def sole_builder(index_dir: Path) -> Iterator[None]:
    """Hold an index for building; the system lets go of it when this process ends, however it ends.

    Raises:
        BuildInProgress: naming the process that holds it.
    """
    index_dir.mkdir(parents=True, exist_ok=True)
    with (index_dir / ".builder").open("a+") as holder:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder.seek(0)
            raise BuildInProgress(
                f"process {holder.read().strip() or 'unknown'} is building {index_dir.name} already; "
                "wait for it or end it"
            ) from error
        holder.truncate(0)
        holder.write(f"{os.getpid()}\n")
        holder.flush()
        yield


def staging_dir(index_dir: Path, model: str, sources: Sequence[Source]) -> Path:
    """Where a version of these sources by this model grows; leftovers of other builds are removed.

    The name is a digest of the model's id and of each source's item, path, size and time of change: the same
    command finds the rows that an interrupted run left, and a changed collection starts anew.
    """
    digest = hashlib.sha256(model.encode())
    for source in sources:
        digest.update(b"\0".join((source.item.encode(), os.fsencode(source.path), source.state().encode(), b"")))
    wanted = index_dir / f"{_PREFIX}{digest.hexdigest()[: manifest.ID_LENGTH]}"
    for leftover in index_dir.glob(f"{_PREFIX}*"):
        if leftover != wanted:
            manifest.discard(leftover)
    wanted.mkdir(exist_ok=True)
    for path in wanted.iterdir():
        if path.name not in _RESUMED:
            path.unlink()
    return wanted

"""The directory in which a version grows: resumable after a crash, and one builder at a time.

StagingError
├── BuildInProgress      another process is building this index
└── LearningInProgress   another process is learning in this store
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from indexer import manifest
from indexer.entries import Entry
from indexer.locks import Held, hold

_PREFIX = ".staging-"
# What an interrupted build goes on from; anything else that it left would be published as a part of the version.
_RESUMED = ("rows.faiss", "items.sqlite", "items.sqlite-journal")


class StagingError(Exception):
    """A staging directory can't be used."""


class BuildInProgress(StagingError):
    """Another process is building this index."""


class LearningInProgress(StagingError):
    """Another process is learning in this store."""


@contextmanager
def sole_builder(index_dir: Path) -> Iterator[None]:
    """Hold an index for building; the system lets go of it when this process ends, however it ends.

    Raises:
        BuildInProgress: naming the process that holds it.
    """
    with _held(index_dir / ".builder", BuildInProgress, f"is building {index_dir.name}"):
        yield


@contextmanager
def sole_learner(store: Path) -> Iterator[None]:
    """Hold a store for learning: two trainings at once would only slow each other down.

    Raises:
        LearningInProgress: naming the process that holds it.
    """
    with _held(store / ".learner", LearningInProgress, f"is learning in {store}"):
        yield


def staging_dir(index_dir: Path, model: str, entries: Sequence[Entry]) -> Path:
    """Where a version of these entries by this model grows; leftovers of builds with other models are removed.

    The name holds a digest of what each entry is made from: the same command finds the rows that an interrupted run
    left, as long as neither collection nor catalogue have changed; `unfinished` finds the others.
    """
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(entry.state())
    wanted = index_dir / f"{_PREFIX}{model}-{digest.hexdigest()[: manifest.ID_LENGTH]}"
    for leftover in index_dir.glob(f"{_PREFIX}*"):
        if not leftover.name.startswith(f"{_PREFIX}{model}-"):
            manifest.discard(leftover)
    wanted.mkdir(exist_ok=True)
    for path in wanted.iterdir():
        if path.name not in _RESUMED:
            path.unlink()
    return wanted


def unfinished(index_dir: Path, model: str, staging: Path) -> list[Path]:
    """The directories of interrupted builds by a model, besides the one that goes on."""
    return [leftover for leftover in sorted(index_dir.glob(f"{_PREFIX}{model}-*")) if leftover != staging]


def forget_unfinished(index_dir: Path) -> None:
    """Remove what interrupted builds left, once a version is published."""
    for leftover in index_dir.glob(f"{_PREFIX}*"):
        manifest.discard(leftover)


@contextmanager
def _held(path: Path, refusal: type[StagingError], does: str) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(path))
        except Held as error:
            raise refusal(f"process {error.pid} {does} already; wait for it or end it") from error
        yield

"""The indexes that a server searches: the active version of each, swapped as soon as another is activated."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from indexer.encoder import Encoder
from indexer.store import Store
from indexer.version import Version, active_version, open_version
from server.errors import IndexNotFound, NoIndex, foreseen
from server.item_ids import ItemIds

RETRY_S = 30.0  # until a version that could not be opened is tried again: opening reads every byte of it

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ActiveIndex:
    """One opened version with the encoder of its model; never changes, so a search ends on what it began with."""

    name: str
    number: int
    version: Version
    items: ItemIds
    encoder: Encoder

    @property
    def model(self) -> str:
        """The id of the model that made the embeddings."""
        return self.version.manifest.model


@dataclass(frozen=True)
class Failure:
    """A version that could not be opened, or an index whose `active` can't be read (number None)."""

    number: int | None
    error: Exception
    retry_at_s: float  # on time.monotonic()


class Indexes:
    """The active version of every index of a store, or of one.

    `refresh` reads disks and blocks; `get` only looks up and is called on the event loop. What they share is one
    reference to an immutable mapping, replaced in one assignment.
    """

    def __init__(self, store: Store, only: str | None = None) -> None:
        """Nothing is open before the first `refresh`.

        Args:
            store: where the indexes are.
            only: serve just this index; all of them when None.
        """
        self._store = store
        self._only = only
        self._active: Mapping[str, ActiveIndex] = MappingProxyType({})
        self._failures: Mapping[str, Failure] = {}
        self._encoders: dict[str, Encoder] = {}  # by model id: two indexes of one model share it

    @property
    def ready(self) -> bool:
        """Whether there is anything to search."""
        return bool(self._active)

    def get(self, name: str) -> ActiveIndex:
        """The index of this name; the only one there is when the name is empty.

        Raises:
            NoIndex: the store has no index yet.
            IndexNotFound: no index has that name, or none was named and there are several.
            ManifestError, ProbeMismatch: the index is there, but its version or model can't be opened.
        """
        active, failures = self._active, self._failures
        known = sorted({*active, *failures})
        if not name and len(known) == 1:
            name = known[0]
        if name in active:
            return active[name]
        if name in failures:
            # without the traceback, which would grow with every request that raises this one object
            raise failures[name].error.with_traceback(None)
        if not known:
            raise NoIndex("the server has no index yet; build one with `kinsight index build`")
        problem = f"no index {name!r} is served" if name else "several indexes are served: name one"
        raise IndexNotFound(f"{problem}; there are: {', '.join(known)}", indexes=",".join(known))

    def refresh(self) -> None:
        """Open what was activated since the last time, and let go of what left the store."""
        active, failures = dict[str, ActiveIndex](), dict[str, Failure]()
        for name in self._names():
            index, failure = self._current(name)
            if index is not None:
                active[name] = index
            if failure is not None:
                failures[name] = failure
        self._active, self._failures = MappingProxyType(active), failures
        in_use = {index.model for index in active.values()}
        self._encoders = {model: encoder for model, encoder in self._encoders.items() if model in in_use}

    def _names(self) -> list[str]:
        names = self._store.index_names()
        return names if self._only is None else [name for name in names if name == self._only]

    def _current(self, name: str) -> tuple[ActiveIndex | None, Failure | None]:
        """What is served of an index from now on, and why it is not the version that `active` names, if so."""
        index, failure, number = self._active.get(name), self._failures.get(name), None
        try:
            number = active_version(self._store.index(name))
            if number is None or (index is not None and index.number == number):
                return index, None
            if failure is not None and failure.number == number and time.monotonic() < failure.retry_at_s:
                return index, failure
            return self._open(name, number), None
        except Exception as error:  # whatever is wrong with one version, everything else is served on
            if failure is None or str(failure.error) != str(error):
                kept = f"version {index.number} is served on" if index is not None else "nothing is served of it"
                stack = None if foreseen(error) else error
                told = (name, number, kept, error)
                log.error("index %s: the activated version %s can't be opened; %s: %s", *told, exc_info=stack)
            return index, Failure(number, error, time.monotonic() + RETRY_S)

    def _open(self, name: str, number: int) -> ActiveIndex:
        version = open_version(self._store.index(name) / "versions" / str(number))
        opened = ActiveIndex(name, number, version, ItemIds(version), self._encoder(version.manifest.model))
        log.info("index %s: version %d with %d items, model %s", name, number, version.count, opened.model)
        return opened

    def _encoder(self, model: str) -> Encoder:
        if model not in self._encoders:
            self._encoders[model] = Encoder.open(self._store.model(model))
        return self._encoders[model]

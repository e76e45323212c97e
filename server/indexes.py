"""The indexes that a server searches: the active version of each, swapped as soon as another is activated.

A version is searched with what its catalogue says changed since, also by other processes, and never without it: what
was committed before a swap is in what is swapped in.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType

from indexer.adopt import activated
from indexer.calibration import Calibration
from indexer.catalog import Catalog
from indexer.embedding import embed_item, embed_pending
from indexer.encoder import Encoder
from indexer.live import LiveIndex
from indexer.live_snapshot import Snapshot
from indexer.manifest import CorruptFile
from indexer.store import Store
from indexer.version import Version, open_version, previous_version
from server.answers import foreseen, status_of
from server.catalogs import Catalogs
from server.curves import Curves
from server.errors import IndexNotFound, NoIndex
from server.item_ids import ItemIds
from server.news import Inbox, News

RETRY_S = 30.0  # until a version that could not be opened is tried again: opening reads every byte of it
SETTLE_S = 5.0  # in which every process of a server has swapped to a version that was activated
CATCH_UP = 1_000  # items embedded by a new model before it is swapped in; more of them are found some time after
CATCH_UP_S = 2.0  # of embedding those in a refresh, which what is activated meanwhile waits for

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ActiveIndex:
    """One opened version with the encoder of its model; another one after a swap, so a search ends on what it began.

    Attributes:
        name: of the index.
        number: of the version.
        live: the version, with what changed since.
        catalog: of the index.
        items: ids of the version's own rows.
        encoder: of the version's model.
        inbox: for news of other processes of this server.
        calibration: of the version's model, as the last refresh found it; None where it has none.
    """

    name: str
    number: int
    live: LiveIndex
    catalog: Catalog
    items: ItemIds
    encoder: Encoder
    inbox: Inbox
    calibration: Calibration | None

    @property
    def version(self) -> Version:
        """The version, without what changed since."""
        return self.live.version

    @property
    def snapshot(self) -> Snapshot:
        """What is searched now."""
        return self.live.snapshot

    def latest(self) -> Snapshot:
        """What is searched now, with all that other processes have acknowledged; may read the disk."""
        self.inbox.read(self.live.refresh)
        return self.live.snapshot

    @property
    def model(self) -> str:
        """The id of the model that made the embeddings."""
        return self.version.manifest.model


@dataclass(frozen=True)
class Behind:
    """How far the items of an index are embedded that its model may lack.

    Attributes:
        until_s: when no more of them may come, on time.monotonic().
        after: the sequence of the last one that was looked at.
    """

    until_s: float
    after: int


@dataclass(frozen=True)
class Failure:
    """A version that could not be opened, or an index whose `active` can't be read (number None)."""

    number: int | None
    error: Exception
    retry_at_s: float  # on time.monotonic()


class Indexes:
    """The active version of every index of a store, or of one.

    `refresh` reads disks and blocks; `get` only looks up and is called on the event loop. What they share is one
    reference to an immutable mapping, replaced in one assignment. Who writes to a catalogue does it `unswapped`.
    """

    def __init__(self, store: Store, only: str | None = None, news: News | None = None) -> None:
        """Nothing is open before the first `refresh`.

        Args:
            store: where the indexes are.
            only: serve just this index; all of them when None.
            news: of other processes of this server, where there are any.
        """
        self.news = news or News.alone()
        self._store = store
        self._only = only
        self._active: Mapping[str, ActiveIndex] = MappingProxyType({})
        self._failures: Mapping[str, Failure] = {}
        self._encoders: dict[str, Encoder] = {}  # by model id: two indexes of one model share it
        self._curves = Curves(store)
        self._catalogs = Catalogs(store)
        self._behind: dict[str, Behind] = {}  # indexes whose model may not have embedded all that was upserted
        self._refreshing = threading.Lock()  # one thread at a time opens and swaps
        self._swapping = threading.Lock()  # held also by who commits: neither happens within the other

    @property
    def ready(self) -> bool:
        """Whether there is anything to search."""
        return bool(self._active)

    def get(self, name: str) -> ActiveIndex:
        """The index of this name; the only one there is when the name is empty.

        Raises:
            NoIndex: the store has no index yet.
            IndexNotFound: no index has that name, or none was named and there are several.
            ManifestError, EncoderError: the index is there, but its version or model can't be opened.
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
        raise _not_found(name, known)

    def served(self, name: str) -> ActiveIndex | None:
        """The index of exactly this name, if a version of it is open."""
        return self._active.get(name)

    def problem(self, name: str) -> str:
        """What keeps the activated version of an index from being searched; empty where it is."""
        failure = self._failures.get(name)
        return "" if failure is None else str(status_of(failure.error).message)

    def resolve(self, name: str) -> str:
        """The name of an index of the store, served or not; the only one there is where none is given.

        Raises:
            NoIndex, IndexNotFound: as of `get`.
        """
        names = self.names()
        if not name and len(names) == 1:
            return names[0]
        if name not in names:
            raise _not_found(name, names)
        return name

    def serve(self, name: str) -> None:
        """Open the version of an index that is active by now; raises what keeps it from being opened."""
        with self._refreshing:
            if name in self._failures:  # it may have been mended
                self._failures = {**self._failures, name: replace(self._failures[name], retry_at_s=0.0)}
            self._refresh()
        if name in self._failures:
            raise self._failures[name].error.with_traceback(None)

    @contextmanager
    def unswapped(self, name: str) -> Iterator[ActiveIndex]:
        """The index of this name, which stays the one that is searched during the block; errors as of `get`.

        What the block commits and takes into `live` is in whatever is searched from then on.
        """
        with self._swapping:
            yield self.get(name)

    def refresh(self) -> None:
        """Open what was activated since the last time, take in what others committed, let go of what left."""
        with self._refreshing:
            self._refresh()

    def close(self) -> None:
        """Give the catalogues back; call after the last request."""
        with self._refreshing, self._swapping:
            self._active = MappingProxyType({})
            self._catalogs.close()

    def _refresh(self) -> None:
        names = self.names()
        for name in names:
            failure = self._follow(name)
            self._failures = {key: known for key, known in self._failures.items() if key != name}
            if failure is not None:
                self._failures = {**self._failures, name: failure}
        self._forget({*self._active, *self._failures} - {*names})
        in_use = {index.model for index in self._active.values()}
        self._encoders = {model: encoder for model, encoder in self._encoders.items() if model in in_use}
        self._curves.keep(in_use)

    def _forget(self, names: set[str]) -> None:
        for name in sorted(names):
            log.warning("index %s is not in the store any more; nothing is served of it", name)
        with self._swapping:
            self._active = MappingProxyType({key: one for key, one in self._active.items() if key not in names})
        self._failures = {key: known for key, known in self._failures.items() if key not in names}
        self._behind = {key: known for key, known in self._behind.items() if key not in names}
        self._catalogs.forget(names)

    def names(self) -> list[str]:
        """The names of all indexes that may be served, with a version or more; reads the disk."""
        names = self._store.index_names()
        return names if self._only is None else [name for name in names if name == self._only]

    def _follow(self, name: str) -> Failure | None:
        """Serve what is to be served of an index now; what is wrong, if that can't be."""
        index, failure, number = self._active.get(name), self._failures.get(name), None
        is_due = failure is None or time.monotonic() >= failure.retry_at_s
        try:
            if index is not None and (damage := self._damage(index)) is not None:
                self._let_go(index, damage)
                index, is_due = None, True
            number = activated(self._store.index(name))
            if index is not None:
                index.live.refresh()
            is_served = (
                index is not None and index.number == number and self._catalogs.is_current(name, index.catalog)
            )
            is_waiting = not is_served and failure is not None and failure.number == number and not is_due
            if number is None or is_served or is_waiting:
                self._catch_up_behind(index)
                self._recalibrate(index)
                return failure if is_waiting else None
            self._swap_in(self._open(name, number))
            return None
        except Exception as error:  # whatever is wrong with one version, everything else is served on
            kept = "nothing is served of it" if index is None else f"version {index.number} is served on"
            if index is None and is_due and (before := self._go_back(name, number)) is not None:
                kept = f"version {before} is served, which was active before"
            if failure is None or str(failure.error) != str(error):
                stack = None if foreseen(error) else error
                what = "the activated version" if number is None else f"the activated version {number}"
                log.error("index %s: %s can't be opened; %s: %s", name, what, kept, error, exc_info=stack)
            retry_at_s = failure.retry_at_s if failure is not None and not is_due else time.monotonic() + RETRY_S
            return Failure(number, error, retry_at_s)

    def _damage(self, index: ActiveIndex) -> Exception | None:
        """What was found wrong since with what is served: it could answer wrongly, or end the process."""
        if (file := index.version.overwritten()) is not None:
            return CorruptFile(f"{file} was written into while it was served; what it holds now is being verified")
        return self._catalogs.damage(index.name)

    def _let_go(self, index: ActiveIndex, damage: Exception) -> None:
        log.error("index %s: %s", index.name, damage)
        self._failures = {**self._failures, index.name: Failure(None, damage, 0.0)}
        with self._swapping:
            self._active = MappingProxyType({key: one for key, one in self._active.items() if one is not index})

    def _go_back(self, name: str, damaged: int | None) -> int | None:
        """Serve the version that was active before one that can't be opened; its number, None where that can't be."""
        try:
            before = previous_version(self._store.index(name))
            if before is None or before == damaged:
                return None
            self._swap_in(self._open(name, before))
        except Exception as error:  # who asks is told why the version that is active can't be opened
            log.warning("index %s: nor can the version be opened that was active before: %s", name, error)
            return None
        return before

    def _open(self, name: str, number: int) -> ActiveIndex:
        version = open_version(self._store.index(name) / "versions" / str(number), gpu=True)
        encoder, catalog = self._encoder(version.manifest.model), self._catalogs.of(name)
        live = LiveIndex(version, catalog, unhurried=bool(self._active))
        curve = self._curves.of(encoder.model)
        opened = ActiveIndex(name, number, live, catalog, ItemIds(version), encoder, Inbox(self.news), curve)
        log.info("index %s: version %d with %d items, model %s", name, number, opened.snapshot.count, opened.model)
        return opened

    def _swap_in(self, opened: ActiveIndex) -> None:
        changed = opened.catalog.pending(opened.model, opened.version.manifest.sequence)
        pending = len(list(islice(changed, CATCH_UP + 1)))
        if 0 < pending <= CATCH_UP:
            _catch_up(opened)
        with self._swapping:
            if 0 < pending <= CATCH_UP:
                _catch_up(opened)  # what was upserted meanwhile
            opened.live.refresh()
            self._active = MappingProxyType({**self._active, opened.name: opened})
        if pending > CATCH_UP:
            log.warning("index %s: items of other models are being embedded by %s", opened.name, opened.model)
        if pending > CATCH_UP or self.news.several:
            # Another process may go on for a moment to take in what the model before this one embedded.
            until_s = time.monotonic() + (SETTLE_S if self.news.several else 0)
            self._behind[opened.name] = Behind(until_s, opened.version.manifest.sequence)

    def _catch_up_behind(self, index: ActiveIndex | None) -> None:
        if index is None or index.name not in self._behind:
            return
        behind = self._behind[index.name]
        last = _catch_up_some(index, behind.after)
        index.live.refresh()
        self.news.tell()
        if last is not None:
            self._behind[index.name] = replace(behind, after=last)
        elif time.monotonic() >= behind.until_s:
            del self._behind[index.name]

    def _recalibrate(self, index: ActiveIndex | None) -> None:
        if index is None or (curve := self._curves.of(index.model)) is index.calibration:
            return
        with self._swapping:
            self._active = MappingProxyType({**self._active, index.name: replace(index, calibration=curve)})
        log.info("index %s: model %s was calibrated", index.name, index.model)

    def _encoder(self, model: str) -> Encoder:
        if model not in self._encoders:
            self._encoders[model] = Encoder.open(self._store.model(model))
        return self._encoders[model]


def _not_found(name: str, known: Sequence[str]) -> Exception:
    if not known:
        return NoIndex("the server has no index yet; build one with `kinsight index build`")
    problem = f"no index {name!r} is served" if name else "several indexes are served: name one"
    return IndexNotFound(f"{problem}; there are: {', '.join(known)}", indexes=",".join(known))


def _catch_up(index: ActiveIndex) -> None:
    """Embed what was upserted under another model."""
    embed_pending(index.catalog, index.encoder, index.version.manifest.sequence, lambda *_: None)


def _catch_up_some(index: ActiveIndex, after: int) -> int | None:
    """As `_catch_up`, of what was changed after a sequence, for so long; the last that was come to, None for none."""
    give_up_s, last = time.monotonic() + CATCH_UP_S, None
    for item in index.catalog.pending(index.model, after):
        embed_item(index.catalog, index.encoder, item)
        last = item.sequence
        if time.monotonic() >= give_up_s:
            break
    return last

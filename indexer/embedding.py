"""The rows of a version: embeddings that are known already, and those of images that are read, decoded and embedded.

Every image of a collection is read and hashed; only those that no version of the model holds are decoded.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer import pixels
from indexer.catalog import Catalog, UnknownContent
from indexer.duplicates import Duplicates
from indexer.encoder import Encoder
from indexer.entries import Entry
from indexer.items import ItemWriter
from indexer.known import KnownRows
from indexer.pixels import Pixels, PixelsError
from indexer.recorded import recorded
from indexer.records import Item
from indexer.rows import Embeddings, RowWriter
from indexer.version import ITEMS, ROWS

Progress = Callable[[str, int, int], None]  # report(stage, done, total)

BATCH = 64  # images an inference: larger ones gained nothing on a CPU, and fit any GPU at 518 pixels
CHANGED = "changed while the version was built"  # why an item was left out that is searched beside the version
SAVE_EVERY_S = 5.0  # what a crash, or Ctrl-C, can cost: on a busy CPU a thousand rows are more than half a minute


@dataclass(frozen=True)
class Embedded:
    """What became of the entries of a build.

    Attributes:
        count: rows.
        resumed: of them, made by an earlier process of this build.
        reused: of them, taken from another version or from the catalogue.
        decoded: images that were decoded and embedded by this process.
        skipped: (item, reason) of each entry that has no row.
        duplicates: items with equal images.
    """

    count: int
    resumed: int
    reused: int
    decoded: int
    skipped: tuple[tuple[str, str], ...]
    duplicates: Duplicates


@dataclass(frozen=True)
class Made:
    """What one entry gives: an embedding that is known, or pixels to embed, or the reason why neither."""

    entry: Entry
    sha256: str
    embedding: Embeddings | None = None
    pixels: Pixels | None = None
    error: str = ""


class Maker:
    """Makes entries into embeddings or pixels; called from several threads."""

    def __init__(self, encoder: Encoder, known: KnownRows, catalog: Catalog) -> None:
        self._encoder = encoder
        self._known = known
        self._catalog = catalog

    def at_once(self, entry: Entry) -> Made | None:
        """What needs no image to be read; None where one has to be."""
        given = None if entry.source else self._given(entry)
        row = given if given is not None else self._known.find(entry.sha256)
        if row is None and entry.source:
            row = self._given(entry)  # an imported item's is here until a version has it
        return None if row is None else Made(entry, entry.sha256, row)

    def read(self, entry: Entry) -> Made:
        """Read and hash the image of an entry, and decode it if its embedding is not known."""
        sha256 = ""
        try:
            data = entry.source.read() if entry.source else self._kept(entry)
            sha256 = hashlib.sha256(data).hexdigest()
            row = self._known.find(sha256)
            if row is not None:
                return Made(entry, sha256, row)
            return Made(entry, sha256, pixels=pixels.decode(data, self._encoder.pixels))
        except PixelsError as error:
            return Made(entry, sha256, error=str(error))

    def _given(self, entry: Entry) -> Embeddings | None:
        """The embedding that the catalogue has of an item that it listed, by the image that it had then."""
        if not entry.sequence:
            return None
        return self._catalog.embedding(entry.item, self._encoder.model, entry.sha256 or None)

    def _kept(self, entry: Entry) -> bytes:
        if not entry.sha256:
            now = self._catalog.known([entry.item]).get(entry.item)
            if now is None or now.sequence != entry.sequence:
                raise PixelsError(CHANGED)
            raise PixelsError(
                f"only an embedding of another model was given, not one of {self._encoder.model}; "
                "upsert its image, or an embedding of this model"
            )
        try:
            return self._catalog.image(entry.sha256)
        except UnknownContent as error:  # changed or deleted since the build began
            raise PixelsError(CHANGED) from error


def embed_entries(
    entries: Sequence[Entry], encoder: Encoder, maker: Maker, staging: Path, progress: Progress
) -> Embedded:
    """Write `rows.faiss` and `items.sqlite` of a version, going on after what an interrupted build left there.

    Raises:
        OSError, sqlite3.Error: the disk is full or fails.
        EncoderError: the model's graph failed.
        CatalogError: the catalogue is damaged.
    """
    reused = decoded = 0
    with ItemWriter(staging / ITEMS) as items:
        resumed = items.count()
        done = resumed + len(items.skipped())
        saved_at = time.monotonic()
        with RowWriter(staging / ROWS, encoder.dim, keep=resumed) as rows:
            progress("embed", done, len(entries))
            for batch in _batches(_make_all(entries[done:], maker)):
                images = _append(batch, encoder, rows, items)
                decoded += images
                reused += sum(made.embedding is not None for made in batch)
                done += len(batch)
                if time.monotonic() - saved_at >= SAVE_EVERY_S:
                    _save(rows, items)
                    saved_at = time.monotonic()
                progress("embed", done, len(entries))
            _save(rows, items)
            rows.finish()
        return Embedded(rows.count, resumed, reused, decoded, items.skipped(), items.duplicates())


def embed_pending(catalog: Catalog, encoder: Encoder, after: int, progress: Progress) -> int:
    """Embed what was upserted under another model, so that it is found beside a version of this one.

    Items whose image can't be read or decoded any more stay as they are: not searchable under this model.

    Args:
        catalog: of the index.
        encoder: of the version.
        after: the version's sequence.
        progress: hears the stage `catch up`.

    Returns:
        How many items were embedded.
    """
    pending = list(catalog.pending(encoder.model, after))
    embedded = 0
    for done, item in enumerate(pending, start=1):
        embedded += embed_item(catalog, encoder, item)
        progress("catch up", done, len(pending))
    return embedded


def embed_item(catalog: Catalog, encoder: Encoder, item: Item) -> bool:
    """Embed one item as `embed_pending` does; whether it was."""
    try:
        data = recorded(item.item, item.source).read() if item.source else catalog.image(item.sha256 or "")
        image = pixels.decode(data, encoder.pixels)
    except (PixelsError, UnknownContent):
        return False
    return catalog.embed(item, encoder.model, encoder.embed(image[None])[0])


def _make_all(entries: Sequence[Entry], maker: Maker) -> Iterator[Made]:
    """What each entry gives, in order; images are read on a pool of threads, a bounded number ahead."""
    count = len(os.sched_getaffinity(0))
    ahead = 4 * count + 32  # enough to bridge one batch of inference without holding the collection in memory
    with ThreadPoolExecutor(count, thread_name_prefix="decode") as pool:
        waiting: deque[Made | Future[Made]] = deque()
        try:
            for entry in entries:
                waiting.append(maker.at_once(entry) or pool.submit(maker.read, entry))
                if len(waiting) >= ahead:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        finally:
            for made in waiting:
                if isinstance(made, Future):
                    made.cancel()


def _result(made: Made | Future[Made]) -> Made:
    return made.result() if isinstance(made, Future) else made


def _batches(making: Iterator[Made]) -> Iterator[list[Made]]:
    batch = []
    for made in making:
        batch.append(made)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _append(batch: list[Made], encoder: Encoder, rows: RowWriter, items: ItemWriter) -> int:
    """Add a batch to the files; returns how many images were embedded."""
    images = [made.pixels for made in batch if made.pixels is not None]
    embedded = iter(encoder.embed(np.stack(images)) if images else ())
    row = rows.count
    for made in batch:
        if made.error:
            items.skip(made.entry.item, made.error)
            continue
        rows.append((made.embedding if made.embedding is not None else next(embedded))[None])
        items.add(row, made.entry.item, made.entry.source.path if made.entry.source else None, made.sha256)
        row += 1
    return len(images)


def _save(rows: RowWriter, items: ItemWriter) -> None:
    # In this order: an item that is on the disk always has its row there too.
    rows.sync()
    items.commit()

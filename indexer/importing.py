"""Put every image of a collection into the catalogue of an index, which is searched all the while.

Embeddings that are known already come from a table of their own: `indexer.importing_embeddings`.

What is on the disk after each batch stays: the same import goes on after it, as images that the catalogue has already
are read and hashed, but neither decoded nor embedded again. What people changed or deleted since the import began is
newer than it and stays so, whenever the import comes to it.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from indexer import adopt, pixels
from indexer.catalog import Catalog, UnknownContent
from indexer.embedding import BATCH, Progress, embed_pending
from indexer.embedding_table import is_embedding_table
from indexer.encoder import Device, Encoder
from indexer.import_report import CHANGED, ImportReport
from indexer.importing_embeddings import import_embeddings
from indexer.incoming import open_incoming
from indexer.known import KnownRows
from indexer.pixels import Pixels, PixelsError
from indexer.rebuild import active_manifest, model_of
from indexer.records import InvalidPayload, Item, Upsert, read_payload
from indexer.rows import Embeddings
from indexer.sources import Wanted
from indexer.store import Store


def import_items(
    name: str,
    images: Path,
    *,
    store: Store,
    device: Device = "auto",
    since: Callable[[int], int] = lambda sequence: sequence,
    left_out: Callable[[str, str], None] = lambda *_: None,
    progress: Progress,
) -> ImportReport:
    """Upsert the images of a collection under the active version's model; each batch is durable when it is done.

    Args:
        name: of the index.
        images: a collection, see `indexer.sources.open_collection`; payloads come from a table's column. Or a table
            of embeddings, see `indexer.embedding_table`: no image is read then.
        store: that holds the index.
        device: for the encoder.
        since: told the last change of the catalogue, says after which one the import began: an earlier one where it
            goes on with what was interrupted.
        left_out: told each item that could not be used and why, however many they are.
        progress: hears the stage `import`, and `catch up` where another model was activated meanwhile.

    Raises:
        NoActiveVersion: the index has none, so nothing says which model embeds.
        SourceError: the collection can't be read, or holds no image; ModelMismatch where its embeddings are all of
            another model.
        CatalogError: the catalogue is damaged or can't be written.
        EncoderError: the model can't be opened, or its graph failed.
    """
    if is_embedding_table(images):
        return import_embeddings(name, images, store=store, since=since, left_out=left_out, progress=progress)
    model = store.model(model_of(store, name))
    incoming = open_incoming(images.absolute())
    encoder, index_dir = Encoder.open(model, device=device), store.index(name)
    known, warnings = KnownRows.of(index_dir, encoder.model, encoder.dim, ())
    report = ImportReport(warnings=[*incoming.warnings, *warnings])
    with closing(adopt.open_catalog(index_dir)) as catalog:
        importer = _Importer(encoder, known, catalog, since(catalog.sequence()), left_out)
        done = 0
        progress("import", 0, incoming.total)
        for batch in _read_ahead(incoming.wanted, importer):
            importer.take(batch, report)
            done += len(batch)
            progress("import", done, incoming.total)
        _catch_up(name, encoder.model, catalog, store, device, progress)
    return report


def _catch_up(name: str, model: str, catalog: Catalog, store: Store, device: Device, progress: Progress) -> None:
    """Embed again what this import embedded by a model that was replaced meanwhile, and is not searched so."""
    while (active := active_manifest(store, name)).model != model:
        model = active.model
        embed_pending(catalog, Encoder.open(store.model(model), device=device), active.sequence, progress)


@dataclass(frozen=True)
class _Read:
    """What one image gives: an upsert, perhaps in want of the embedding of its pixels; unchanged without one."""

    item: str
    upsert: Upsert | None = None
    pixels: Pixels | None = None
    error: str = ""


@dataclass(frozen=True)
class _Importer:
    """Makes images into upserts."""

    encoder: Encoder
    rows: KnownRows
    catalog: Catalog
    since: int
    left_out: Callable[[str, str], None]

    def read(self, wanted: Wanted) -> _Read:
        """Read and hash an image, and decode it if its embedding is not known; called from several threads."""
        item, source = wanted.item, wanted.source
        if source is None or wanted.error:
            return _Read(item, error=wanted.error)
        try:
            payload = read_payload(wanted.payload) if wanted.payload else None
            data = source.read()
            sha256 = hashlib.sha256(data).hexdigest()
            known, embedding = self._known(item, sha256), self._embedding(item, sha256)
            if known is not None and known.source in (None, source.path):
                changed = payload is not None and payload != known.payload
                return _Read(item, Upsert(item, payload=payload) if changed else None)
            image = pixels.decode(data, self.encoder.pixels) if embedding is None else None
        except (PixelsError, InvalidPayload) as error:
            return _Read(item, error=str(error))
        model = self.encoder.model
        return _Read(item, Upsert(item, embedding, model, source=source.path, sha256=sha256, payload=payload), image)

    def take(self, batch: Sequence[_Read], report: ImportReport) -> None:
        """Embed what was decoded, and upsert a batch."""
        images = [read.pixels for read in batch if read.pixels is not None]
        embedded = iter(self.encoder.embed(np.stack(images)) if images else ())
        upserts = []
        for read in batch:
            if read.error:
                self.leave_out(report, read.item, read.error)
            elif read.upsert is None:
                report.unchanged += 1
            else:
                new = read.pixels is not None
                upserts.append(read.upsert._replace(embedding=next(embedded)) if new else read.upsert)
        if upserts:
            self._upsert(upserts, report)

    def _upsert(self, upserts: Sequence[Upsert], report: ImportReport) -> None:
        with self.catalog.transaction():  # so that nobody changes an item between the look and the upsert
            changed = self.catalog.changed([one.item for one in upserts], self.since)
            newer = {one.item for one in upserts if one.item in changed and not _is_of(changed[one.item], one)}
            outcomes = self.catalog.upsert([one for one in upserts if one.item not in newer], dim=self.encoder.dim)
        for outcome in outcomes:
            if outcome.reason:
                self.leave_out(report, outcome.item, outcome.message)
            else:
                report.imported += 1
        for item in sorted(newer):
            self.leave_out(report, item, CHANGED)

    def leave_out(self, report: ImportReport, item: str, reason: str) -> None:
        """Count and tell what could not be used."""
        report.fail(item, reason)
        self.left_out(item, reason)

    def _known(self, item: str, sha256: str) -> Item | None:
        """The item, if it is in the catalogue with this very image, and this model finds it by that."""
        try:
            known = self.catalog.get(item)
        except UnknownContent:
            return None
        if known.sha256 != sha256:
            return None
        if self.rows.searched(item, sha256) or self.catalog.embedding(item, self.encoder.model, sha256) is not None:
            return known
        return None  # that could not be read when the version was built, say

    def _embedding(self, item: str, sha256: str) -> Embeddings | None:
        """The embedding that this model has made of an image."""
        known = self.rows.find(sha256)
        return self.catalog.embedding(item, self.encoder.model, sha256) if known is None else known


def _is_of(source: Path | None, upsert: Upsert) -> bool:
    """Whether an item with this source is what the import itself wrote before it was interrupted."""
    return upsert.source is not None and upsert.source == source


def _read_ahead(wanted: Iterator[Wanted], importer: _Importer) -> Iterator[list[_Read]]:
    """What the images give, in batches; one is read while the one before it is embedded."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decode") as pool:
        ahead: list[Future[_Read]] = []
        while coming := [pool.submit(importer.read, one) for one in islice(wanted, BATCH)]:
            if ahead:
                yield [one.result() for one in ahead]
            ahead = coming
        yield [one.result() for one in ahead]

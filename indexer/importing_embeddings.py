"""Put the embeddings of a table into the catalogue of an index, which is searched all the while.

What is on the disk after each transaction stays: the same import goes on after it, as rows that the catalogue has
already are only compared with it.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from indexer import adopt, version
from indexer.catalog import Catalog
from indexer.embedding import Progress
from indexer.embedding_table import EmbeddingTable, Given, ModelMismatch
from indexer.import_report import CHANGED, ImportReport
from indexer.known import embeddings_of
from indexer.rebuild import active_manifest, model_of
from indexer.records import Content, Upsert
from indexer.rows import Embeddings
from indexer.store import Store
from indexer.version import Version

_ROWS = 1_000  # of a transaction, for which other writers wait


def import_embeddings(
    name: str,
    table: Path,
    *,
    store: Store,
    since: Callable[[int], int],
    left_out: Callable[[str, str], None],
    progress: Progress,
) -> ImportReport:
    """Upsert the rows of a table of embeddings, see `indexer.embedding_table`; each transaction is durable.

    Args:
        name: of the index.
        table: a Parquet file.
        store: that holds the index.
        since: as of `indexer.importing.import_items`.
        left_out: told each item, or row, that could not be used and why, however many they are.
        progress: hears the stage `import`.

    Raises:
        NoActiveVersion: the index has none, so nothing says which model's embeddings are wanted.
        ModelMismatch: no row is of the active version's model, or another model was activated meanwhile.
        SourceError: the table can't be read.
        ManifestError: the active version is damaged.
        CatalogError: the catalogue is damaged or can't be written.
    """
    active = active_manifest(store, name)
    given, index_dir = EmbeddingTable(table, active.model), store.index(name)
    report = ImportReport()
    with closing(adopt.open_catalog(index_dir)) as catalog:
        opened = version.open_version(version.version_dir(index_dir, active.version))
        importer = _Importer(catalog, opened, since(catalog.sequence()), left_out, report)
        done = 0
        progress("import", 0, given.rows)
        for batch in given.read(active.dim, _ROWS):
            _check_model(store, name, active.model)
            importer.take(batch)
            done += len(batch)
            progress("import", done, given.rows)
    return report


def _check_model(store: Store, name: str, model: str) -> None:
    if (now := model_of(store, name)) != model:
        raise ModelMismatch(
            f"another model was activated meanwhile: index {name} holds embeddings of model {now!r} now, not of "
            f"{model!r}; what was imported before is found once a version of that is active again"
        )


@dataclass(frozen=True)
class _Importer:
    """Takes rows into a catalogue."""

    catalog: Catalog
    opened: Version
    since: int
    left_out: Callable[[str, str], None]
    report: ImportReport

    def take(self, batch: Sequence[Given]) -> None:
        """Upsert what is new or changed of some rows, in one transaction."""
        usable = {one.upsert.item: one.upsert for one in batch if one.upsert is not None}
        with self.catalog.transaction():  # so that nobody changes an item between the look and the upsert
            upserts, newer = self._changes(usable)
            outcomes = self.catalog.upsert(upserts, dim=self.opened.manifest.dim)
        self.report.unchanged += len(usable) - len(upserts) - len(newer)
        self.report.imported += sum(not outcome.reason for outcome in outcomes)
        refused = {outcome.item: outcome.message for outcome in outcomes if outcome.reason}
        reasons = refused | dict.fromkeys(newer, CHANGED)
        for one in batch:
            if reason := one.error or reasons.get(one.name):
                self.report.fail(one.name, f"row {one.row}: {reason}")
                self.left_out(one.name, f"row {one.row}: {reason}")

    def _changes(self, usable: dict[str, Upsert]) -> tuple[list[Upsert], list[str]]:
        """What differs from the catalogue; and the items that do, but were changed since the import began."""
        model = self.opened.manifest.model
        same = self.catalog.holding([*usable.values()], model)  # an import that is gone on with meets these alone
        left = {item: upsert for item, upsert in usable.items() if item not in same}
        there = self.catalog.contents_of([*left], model)
        held = embeddings_of([*there.values()], self.opened)
        changed = self.catalog.changed([*left], self.since)
        upserts, newer = [], []
        for item, upsert in left.items():
            change = _change(upsert, there.get(item), held.get(item))
            if change is not None and item in changed:
                newer.append(item)
            elif change is not None:
                upserts.append(change)
        return upserts, newer


def _change(upsert: Upsert, there: Content | None, held: Embeddings | None) -> Upsert | None:
    """What an upsert changes, if anything; an item keeps its image where only the payload differs."""
    if there is None or held is None or upsert.embedding is None or held.tobytes() != upsert.embedding.tobytes():
        return upsert
    if upsert.payload is None or upsert.payload == there.item.payload:
        return None
    return Upsert(upsert.item, payload=upsert.payload)

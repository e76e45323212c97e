"""What an index is at this moment: what can be found, what it takes, and what a rebuild would fold in."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from indexer import adopt, ivfpq, version
from indexer.catalog import CATALOG, Catalog
from indexer.live import LiveIndex
from indexer.live_snapshot import Snapshot
from indexer.version import Version


@dataclass(frozen=True, kw_only=True)
class Stats:
    """The figures of an index.

    Attributes:
        index: its name.
        version: number of the active version.
        model: its model.
        items: how many a search can find.
        delta_items: how many of them are searched beside the version.
        hidden_items: how many of the version are deleted or replaced.
        pending_items: live ones that can't be found, for want of an embedding of this model.
        sequence: of the last change.
        recall_at_10: of the version, measured when it was built.
        list_imbalance: how unevenly its lists are filled: 1 for evenly, 2 where a search scans twice as many codes as
            it would then; 0 without lists.
        serving_bytes: memory that the version was planned to take.
        disk_bytes: by part: `catalog`, and `version/N` for each version.
    """

    index: str
    version: int
    model: str
    items: int
    delta_items: int
    hidden_items: int
    pending_items: int
    sequence: int
    recall_at_10: float
    list_imbalance: float
    serving_bytes: int
    disk_bytes: dict[str, int]


def read_stats(index_dir: Path, number: int) -> Stats:
    """The figures of an index and its active version, from the disk.

    Raises:
        ManifestError, CatalogError: something of it is damaged.
    """
    opened = version.open_version(version.version_dir(index_dir, number))
    with closing(adopt.open_catalog(index_dir)) as catalog:
        return stats(index_dir, LiveIndex(opened, catalog).snapshot, catalog)


def stats(index_dir: Path, snapshot: Snapshot, catalog: Catalog) -> Stats:
    """The figures of an index that is open."""
    opened = snapshot.version
    return Stats(
        index=index_dir.name,
        version=opened.manifest.version,
        model=opened.manifest.model,
        items=snapshot.count,
        delta_items=snapshot.count - (opened.count - snapshot.hidden),
        hidden_items=snapshot.hidden,
        pending_items=max(0, catalog.count() - snapshot.count),
        sequence=catalog.sequence(),
        recall_at_10=float(opened.manifest.recall.get("recall_at_10", 0.0)),
        list_imbalance=list_imbalance(opened),
        serving_bytes=int(opened.manifest.plan["serving_bytes"]),
        disk_bytes=disk_bytes(index_dir),
    )


def list_imbalance(opened: Version) -> float:
    """How unevenly the lists of a version are filled, see `Stats`."""
    return 0.0 if opened.index.codes is None else ivfpq.imbalance(opened.index.codes)


def disk_bytes(index_dir: Path) -> dict[str, int]:
    """Bytes on the disk by part, see `Stats`."""
    # SQLite's log of what is not in the file yet is a part of the catalogue.
    parts = {"catalog": sum(path.stat().st_size for path in index_dir.glob(f"{CATALOG}*"))}
    for number in version.list_versions(index_dir):
        files = version.version_dir(index_dir, number).iterdir()
        parts[f"version/{number}"] = sum(path.stat().st_size for path in files)
    return parts

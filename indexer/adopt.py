"""What makes a version the truth: the catalogue learns of all that it holds, and then it is searched.

The catalogue is written first. Killed in between, the version is not active, and what the catalogue knows of it does
not show: new items of a collection are in no version that is searched.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from indexer import version
from indexer.catalog import Catalog
from indexer.records import Mirrored
from indexer.version import Version


def open_catalog(index_dir: Path) -> Catalog:
    """Open the catalogue of an index; one that was never written to learns of what the active version holds.

    That is how indexes made before there were catalogues get theirs.

    Raises:
        CatalogError: it is damaged, or can't be created.
        VersionError, ManifestError: it is new, and the active version is damaged.
    """
    catalog = Catalog(index_dir)
    if catalog.sequence() == 0:
        active = version.active_version(index_dir)
        if active is not None:
            adopt(catalog, version.open_version(version.version_dir(index_dir, active)), complete=False)
    return catalog


def adopt(catalog: Catalog, adopted: Version, *, complete: bool) -> None:
    """Make the catalogue know the items that a version has from a collection.

    What users upserted or deleted stays theirs.

    Args:
        catalog: of the version's index.
        adopted: the version.
        complete: whether the collection's other items are gone.
    """
    catalog.mirror(_collected(adopted), complete=complete)


def activate(index_dir: Path, number: int) -> None:
    """Make any version of an index active, also one that was refused, or built without being activated.

    Raises:
        NoSuchVersion: there is none of this number.
        ManifestError: it is damaged.
        CatalogError: the catalogue is damaged or can't be written.
        OSError: the pointer can't be written; the old one stays.
    """
    wanted = version.open_version(version.existing_dir(index_dir, number))
    if wanted.manifest.refused or number > max(version.pointed(index_dir), default=0):  # it was never active
        with closing(open_catalog(index_dir)) as catalog:
            adopt(catalog, wanted, complete=False)
    version.activate(index_dir, number)


def _collected(adopted: Version) -> Iterator[Mirrored]:
    for _, item, path, sha256 in adopted.read_items():
        if path is not None:
            yield Mirrored(item, path, sha256)

"""What of a store is damaged, also where nobody reads it: a server reads files as a whole only when it opens them."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from indexer import adopt, manifest, version
from indexer.acknowledged import note_of
from indexer.catalog import CATALOG, Catalog, CatalogError
from indexer.manifest import ManifestError
from indexer.store import Store
from indexer.version import VersionError


def damages(store: Store) -> Iterator[Exception]:
    """Read every byte of the models, versions and catalogues of a store; what is wrong with them, one by one.

    A server may have the store open, and write to it.
    """
    for identity in store.model_ids():
        yield from _found(_check_model, store.models / identity)
    for name in store.index_names():
        index_dir = store.index(name)
        yield from _found(adopt.activated, index_dir)
        for number in version.list_versions(index_dir):
            yield from _found(_check_version, version.version_dir(index_dir, number))
        yield from _found(_check_catalog, index_dir)


def _found(check: Callable[[Path], object], directory: Path) -> Iterator[Exception]:
    try:
        check(directory)
    except (ManifestError, VersionError, CatalogError, OSError) as error:
        yield error


def _check_model(directory: Path) -> None:
    manifest.verify(directory, manifest.read_model(directory))


def _check_version(directory: Path) -> None:
    manifest.verify(directory, manifest.read_version(directory))


def _check_catalog(index_dir: Path) -> None:
    path = index_dir / CATALOG
    if path.exists() or note_of(path).exists():  # else there is none yet, and none is to be made
        with closing(Catalog(index_dir)) as catalog:
            catalog.check_pages()
            catalog.check_rows()

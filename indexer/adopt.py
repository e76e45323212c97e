"""What makes a version the truth: the catalogue learns of all that it holds, it is searched, and what left is let go.

In this order, so that the old version is searched unchanged until the pointer moves, wherever a build ends. New items
of a collection don't show before: they are in no version that is searched. Items that left it would be hidden from
the old version, so they go only afterwards. That they are to go is in a file beside the pointer, written before that
moves: where the process ends in between, who opens the catalogue next lets them go.
"""

from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from indexer import manifest, version
from indexer.catalog import Catalog, CatalogBusy, CatalogWriteFailed
from indexer.records import Mirrored
from indexer.store import Store
from indexer.version import Version

# The number of the version that lets go of what it does not have of earlier collections, once it is active.
_LETTING_GO = ".letting-go"
# Followed by the number of a version whose items the catalogue was never told of, as it was not activated when built.
_UNKNOWN = ".unknown-"


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
            adopt(catalog, version.open_version(version.version_dir(index_dir, active)))
    # What is to go is not in the active version: from a full or read-only disk that is searched all the same.
    with suppress(CatalogWriteFailed, CatalogBusy, OSError):
        let_go(index_dir, catalog)
    return catalog


def adopt(catalog: Catalog, adopted: Version) -> None:
    """Make the catalogue know the items that a version has from a collection; users' changes stay theirs."""
    catalog.mirror(_collected(adopted), complete=False)


def announce(index_dir: Path, number: int) -> None:
    """Note that a version is about to be published that the catalogue does not know; raises OSError."""
    manifest.write_atomically(index_dir / f"{_UNKNOWN}{number}", b"")


def take_in(index_dir: Path, catalog: Catalog, announced: Version) -> None:
    """Adopt a version that was announced."""
    adopt(catalog, announced)
    (index_dir / f"{_UNKNOWN}{announced.manifest.version}").unlink(missing_ok=True)


def switch(index_dir: Path, catalog: Catalog, number: int, *, mirror: bool) -> tuple[str, ...]:
    """Make a version active that the catalogue knows all of.

    Args:
        index_dir: of the index.
        catalog: of it.
        number: of the version.
        mirror: items of earlier collections that it does not have are gone then.

    Returns:
        Warnings: what will be made up for when the catalogue is opened next.

    Raises:
        OSError: as of `indexer.version.activate`.
    """
    if mirror:
        manifest.write_atomically(index_dir / _LETTING_GO, f"{number}\n".encode())
    version.activate(index_dir, number)
    try:
        let_go(index_dir, catalog)
    except (CatalogWriteFailed, CatalogBusy, OSError) as error:
        return (f"version {number} is searched, but what left the collection is not off the catalogue yet: {error}",)
    return ()


def let_go(index_dir: Path, catalog: Catalog) -> None:
    """Let go of what the active version does not have of earlier collections, if its build has not got to that.

    Raises:
        CatalogError, OSError: it is still to be done.
        ManifestError: the active version is damaged.
    """
    active = next(iter(version.pointed(index_dir)), None)
    if active is None or _to_let_go(index_dir) != str(active):
        return
    searched = version.open_version(version.version_dir(index_dir, active), verify=False)
    catalog.mirror(_collected(searched), complete=True)
    forget(index_dir)


def forget(index_dir: Path) -> None:
    """Don't let go of anything for a version that its build never activated; for who builds this index alone."""
    (index_dir / _LETTING_GO).unlink(missing_ok=True)


def activate(store: Store, name: str, number: int) -> None:
    """Make any version of an index active, also one that was refused, or built without being activated.

    What it has of a collection is searched again, also what a later build let go of; what users deleted is not.

    Raises:
        NoSuchVersion: there is none of this number.
        NotFound: its model was removed; servers could not open it, and would serve nothing after a restart.
        ManifestError: it or its model is damaged.
        CatalogError: the catalogue is damaged or can't be written.
        OSError: the pointer can't be written; the old one stays.
    """
    index_dir = store.index(name)
    wanted = version.open_version(version.existing_dir(index_dir, number))
    model_dir = store.model(wanted.manifest.model)
    manifest.verify(model_dir, manifest.read_model(model_dir))
    with closing(open_catalog(index_dir)) as catalog:
        if _was_never_active(index_dir, wanted):
            take_in(index_dir, catalog, wanted)
        else:
            _bring_back(catalog, wanted)
    version.activate(index_dir, number)


def rollback(store: Store, name: str) -> int:
    """Make the version that was active before the present one active again; a second time, the present one.

    Returns:
        Its number.

    Raises:
        NoSuchVersion: there was none, or it is removed.
        VersionError: the pointer is damaged.
        NotFound, ManifestError, CatalogError, OSError: as of `activate`.
    """
    index_dir = store.index(name)
    number = version.previous_version(index_dir)
    if number is None:
        known = ", ".join(map(str, version.list_versions(index_dir))) or "none"
        raise version.NoSuchVersion(f"{index_dir} has no version that was active before; activate one of: {known}")
    activate(store, name, number)
    return number


def _was_never_active(index_dir: Path, wanted: Version) -> bool:
    number = wanted.manifest.version
    announced = (index_dir / f"{_UNKNOWN}{number}").exists()
    # The others tell of most versions that were built before there were announcements.
    return announced or bool(wanted.manifest.refused) or number > max(version.pointed(index_dir), default=0)


def _bring_back(catalog: Catalog, wanted: Version) -> None:
    """Make the catalogue know again what it has let go of since a version that it knew whole."""
    left = {change.item for change in catalog.changes(wanted.manifest.sequence, "") if not change.live}
    left -= catalog.deleted()
    if left:
        catalog.mirror((entry for entry in _collected(wanted) if entry.item in left), complete=False)


def _to_let_go(index_dir: Path) -> str:
    try:
        return (index_dir / _LETTING_GO).read_text("ascii", "replace").strip()
    except FileNotFoundError:
        return ""


def _collected(adopted: Version) -> Iterator[Mirrored]:
    for _, item, path, sha256 in adopted.read_items():
        if path is not None:
            yield Mirrored(item, path, sha256)

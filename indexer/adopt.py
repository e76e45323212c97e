"""What makes a version the truth: the catalogue learns of all that it holds, it is searched, and what left is let go.

In this order, so that the old version is searched unchanged until the pointer moves, wherever a build ends. New items
of a collection don't show before: they are in no version that is searched. Items that left it go only afterwards, and
who has the old version open is not told: it answers whole. That they are to go is in a file, written before the
catalogue learns of anything. Where the process ends after the pointer has moved, who opens the catalogue next lets
them go; where it ends before, the next build lets go of what the catalogue had learned: otherwise that build would
take in what was never searched.

So the catalogue has of collections what the active version has, also after a rollback, and besides what that could
not read.
"""

from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from indexer import manifest, version
from indexer.acknowledged import note_of
from indexer.calibrate import no_calibration
from indexer.catalog import CATALOG, Catalog, CatalogBusy, CatalogWriteFailed
from indexer.entries import warn_of_unfindable
from indexer.manifest import ManifestError
from indexer.store import Store
from indexer.version import Version, VersionError

# The number of the version that the catalogue learns of, and that lets go of what it lacks once it is active.
_SWITCHING = ".switching-to"


def open_catalog(index_dir: Path) -> Catalog:
    """Open the catalogue of an index; one that was never written to learns of what the active version holds.

    That is how indexes made before there were catalogues get theirs.

    Raises:
        CatalogError: it is damaged, or can't be created.
        VersionError, ManifestError: it is new, or has yet to let go of what the active version lacks, and that
            version is damaged.
        OSError: it is new, and nobody can write beside it.
    """
    catalog = Catalog(index_dir)
    if catalog.sequence() == 0:
        active = version.active_version(index_dir)
        if active is not None:
            adopt(catalog, version.open_version(version.version_dir(index_dir, active)))
    # What is to go is not in the active version: from a full or read-only disk that is searched all the same.
    with suppress(CatalogWriteFailed, CatalogBusy, OSError):
        if (noted := _switching_to(index_dir)) in map(str, version.pointed(index_dir)[:1]):
            _agree(index_dir, catalog, noted)
    return catalog


def activated(index_dir: Path) -> int | None:
    """The number of the version that is to be searched, or None where none was ever activated.

    Raises:
        VersionError: as of `indexer.version.active_version`, or the pointer is gone.
    """
    number = version.active_version(index_dir)
    # What was acknowledged was searched: this is no new index that waits for its first version.
    if number is None and note_of(index_dir / CATALOG).exists():
        raise VersionError(f"{index_dir / version.ACTIVE} is gone; activate a version again")
    return number


def adopt(catalog: Catalog, adopted: Version) -> None:
    """Make the catalogue know the items that a version has from a collection; users' changes stay theirs.

    Raises:
        CatalogError, OSError: it knows none of them that it did not know before.
    """
    catalog.mirror(adopted.directory / version.ITEMS, complete=False)


def take_in(index_dir: Path, catalog: Catalog, wanted: Version) -> None:
    """Adopt a version, to switch to it; errors as of `adopt`."""
    _begin(index_dir, wanted.manifest.version)
    adopt(catalog, wanted)


def switch(index_dir: Path, catalog: Catalog, number: int) -> tuple[str, ...]:
    """Make a version active that the catalogue knows all of; what it lacks of earlier collections is gone then.

    Returns:
        Warnings: what will be made up for when the catalogue is opened next.

    Raises:
        OSError: as of `indexer.version.activate`.
        CatalogCorrupt, ManifestError: it is searched, but the catalogue or the version is damaged.
    """
    _begin(index_dir, number)
    version.activate(index_dir, number)
    try:
        _agree(index_dir, catalog, str(number))
    except (CatalogWriteFailed, CatalogBusy, OSError) as error:
        return (f"version {number} is searched, but what left the collection is not off the catalogue yet: {error}",)
    return ()


def settle(index_dir: Path, catalog: Catalog) -> None:
    """Let go of what the catalogue learned of a version that was not activated; for who builds this index alone.

    Raises:
        CatalogError, OSError: it is still to be done.
        ManifestError: the active version is damaged.
    """
    if noted := _switching_to(index_dir):
        _agree(index_dir, catalog, noted)


def activate(store: Store, name: str, number: int, *, warn: Callable[[str], None] = lambda _: None) -> None:
    """Make any version of an index active, also one that was refused, or built without being activated.

    What it has of a collection is searched again, also what a later build let go of; what users deleted is not. What
    other versions have of collections is let go: the next build does not take it in.

    Args:
        store: that holds the index.
        name: of the index.
        number: of the version.
        warn: told, before it is searched, how many items its model can't find, and where searches by probability end;
            after that, what will be made up for.

    Raises:
        NoSuchVersion: there is none of this number.
        NotFound: its model was removed; servers could not open it, and would serve nothing after a restart.
        ManifestError: it or its model is damaged.
        CatalogError: the catalogue is damaged or can't be written.
        OSError: the note, or the pointer, can't be written; the old one stays.
    """
    index_dir = store.index(name)
    wanted = version.open_version(version.existing_dir(index_dir, number))
    model_dir = store.model(wanted.manifest.model)
    manifest.verify(model_dir, manifest.read_model(model_dir))
    # Not as it is opened otherwise, by which it would learn of the version until now first: that may be damaged.
    with closing(Catalog(index_dir)) as catalog:
        take_in(index_dir, catalog, wanted)
        warn_of_unfindable(catalog, wanted.manifest.model, warn)
        for warning in _of_calibration(store, index_dir, wanted):
            warn(warning)
        for warning in switch(index_dir, catalog, number):
            warn(warning)


def rollback(store: Store, name: str, *, warn: Callable[[str], None] = lambda _: None) -> int:
    """Make the version that was active before the present one active again; a second time, the present one.

    Args:
        store: that holds the index.
        name: of the index.
        warn: as of `activate`.

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
    activate(store, name, number, warn=warn)
    return number


def _of_calibration(store: Store, index_dir: Path, wanted: Version) -> tuple[str, ...]:
    for active in version.pointed(index_dir)[:1]:
        with suppress(ManifestError):  # nobody misses what a damaged version had
            before = manifest.read_version(version.version_dir(index_dir, active)).model
            return no_calibration(store, before, wanted.manifest.model, wanted.manifest.version)
    return ()


def _begin(index_dir: Path, number: int) -> None:
    manifest.write_atomically(index_dir / _SWITCHING, f"{number}\n".encode())


def _agree(index_dir: Path, catalog: Catalog, noted: str) -> None:
    """Make the catalogue know of collections what the active version has, and what that could not read.

    Then what was `noted` is done; what somebody else has begun meanwhile is not.
    """
    while active := version.pointed(index_dir)[:1]:

        def is_searched(known: tuple[int, ...] = active) -> bool:
            return version.pointed(index_dir)[:1] == known

        searched = version.version_dir(index_dir, *active)
        # One that was damaged since would put its damage into the catalogue, and let go of what it seems to lack.
        items = manifest.verified(searched, manifest.read_version(searched), version.ITEMS)
        # Who activates another version meanwhile comes after this, and is right.
        if catalog.mirror(items, complete=True, still=is_searched) is not None:
            break
    if _switching_to(index_dir) == noted:
        (index_dir / _SWITCHING).unlink(missing_ok=True)


def _switching_to(index_dir: Path) -> str:
    try:
        return (index_dir / _SWITCHING).read_text("ascii", "replace").strip()
    except FileNotFoundError:
        return ""

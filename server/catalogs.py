"""The catalogues that a server has open: large ones are answered from at once, and checked meanwhile."""

import logging
import threading
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from indexer.adopt import open_catalog
from indexer.catalog import Catalog, CatalogCorrupt, CatalogError
from indexer.store import Store

log = logging.getLogger(__name__)


@dataclass
class _Opened:
    """An open catalogue.

    Attributes:
        catalog: of an index.
        inode: of its file: another one means that the index was removed and made anew.
        damage: what a check of all its pages has found.
    """

    catalog: Catalog
    inode: int
    damage: CatalogCorrupt | None = None


class Catalogs:
    """The catalogue of each index, opened once, and again where another file has taken its place.

    One thread at a time may open and forget.
    """

    def __init__(self, store: Store) -> None:
        """Nothing is open yet."""
        self._store = store
        self._opened: dict[str, _Opened] = {}

    def of(self, name: str) -> Catalog:
        """The catalogue of an index.

        Raises:
            CatalogError, VersionError, ManifestError, OSError: as of `open_catalog`, or a check has found damage.
        """
        opened = self._opened.get(name)
        if opened is None or opened.inode != _inode(opened.catalog.path):
            catalog = open_catalog(self._store.index(name))
            opened = self._opened[name] = _Opened(catalog, _inode(catalog.path))
            if catalog.is_large():
                threading.Thread(target=_check, args=(opened,), daemon=True).start()
        if opened.damage is not None:
            raise opened.damage.with_traceback(None)
        return opened.catalog

    def damage(self, name: str) -> CatalogCorrupt | None:
        """What a check has found in the catalogue of an index that is open."""
        return self._opened[name].damage

    def is_current(self, name: str, catalog: Catalog) -> bool:
        """Whether this is still the catalogue of an index; raises OSError where there is none any more."""
        return self._opened[name].catalog is catalog and self._opened[name].inode == _inode(catalog.path)

    def forget(self, names: Container[str]) -> None:
        """Let go of those of some indexes; they are not closed, as searches that are in progress may still read."""
        self._opened = {key: one for key, one in self._opened.items() if key not in names}

    def close(self) -> None:
        """Give all files back."""
        for opened in self._opened.values():
            opened.catalog.close()


def _check(opened: _Opened) -> None:
    """Note what is wrong with a catalogue; it reads all of the file, which a restart does not wait for."""
    try:
        opened.catalog.check_pages()
    except CatalogCorrupt as error:
        opened.damage = error
    except (CatalogError, OSError) as error:
        log.warning("%s could not be checked: %s", opened.catalog.path, error)


def _inode(path: Path) -> int:
    return path.stat().st_ino

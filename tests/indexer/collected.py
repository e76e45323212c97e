"""Collections as versions hold them, for catalogues to mirror."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from indexer.catalog import Catalog
from indexer.items import ItemWriter
from indexer.version import ITEMS


def mirror(
    catalog: Catalog,
    *items: str,
    sha256: str = "0",
    complete: bool = True,
    unread: Sequence[str] = (),
    still: Callable[[], bool] = lambda: True,
) -> int | None:
    """What `Catalog.mirror` says to a version of these items, their images all of one digest."""
    with TemporaryDirectory() as folder:
        with ItemWriter(Path(folder) / ITEMS) as table:
            for row, item in enumerate(items):
                table.add(row, item, Path("/photos") / item, sha256 * 64)
            for item in unread:
                table.skip(item, "unreadable")
            table.commit()
        return catalog.mirror(Path(folder) / ITEMS, complete=complete, still=still)

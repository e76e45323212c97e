"""What a version is to be built from, as the catalogue lists it."""

import tracemalloc
from contextlib import closing
from pathlib import Path

from indexer.catalog import Catalog
from indexer.entries import list_entries
from indexer.records import Upsert


def test_listing_items_holds_none_of_their_payloads(tmp_path: Path) -> None:
    """A million items of 4 kB each would fill the memory of the rebuild that lists them."""
    count, payload = 4_000, {"note": "x" * 4_000}
    with closing(Catalog(tmp_path)) as catalog:
        catalog.upsert(
            [Upsert(f"{n}", source=Path(f"/{n}.png"), sha256="0", payload=payload) for n in range(count)], dim=2
        )
        tracemalloc.start()
        try:
            listing = list_entries((), catalog, mirror=False)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(listing.entries) == count
    assert peak < count * 2_500  # a quarter of them is read at a time

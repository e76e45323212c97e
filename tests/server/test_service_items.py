"""ItemService over a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.struct_pb2 import Struct  # type: ignore[import-untyped]
from kinsight.v1.item_service_pb2 import ItemUpsert

from tests.serving import Gallery, Stubs, make_gallery, photo, serving


@pytest.fixture
def own(tmp_path: Path) -> Gallery:
    """A store that a test may change."""
    return make_gallery(tmp_path / "own", count=6)


@pytest.fixture
def stubs(own: Gallery) -> Iterator[Stubs]:
    with serving(own.store) as served, Stubs(served.target) as stubs:
        yield stubs


def test_an_upserted_image_is_found_by_the_next_search(stubs: Stubs) -> None:
    """First among the hits of itself."""
    for seed in range(100, 110):
        (result,) = stubs.upsert(ItemUpsert(item=f"new/{seed}", image=photo(seed)))
        assert (result.item, result.status.code) == (f"new/{seed}", 0)
        assert f"new/{seed}" == stubs.found(image=photo(seed))[0]


def test_a_deleted_item_is_not_found_again_not_after_a_restart_either(own: Gallery) -> None:
    """Of the version and of what was upserted since."""
    with serving(own.store) as served, Stubs(served.target) as stubs:
        stubs.upsert(ItemUpsert(item="new", image=photo(100)))
        results = stubs.delete("new", own.items[2])
        assert [result.status.code for result in results] == [0, 0]
        assert {"new", own.items[2]}.isdisjoint(stubs.found(image=photo(2), top_k=100))
    with serving(own.store) as served, Stubs(served.target) as stubs:
        assert {"new", own.items[2]}.isdisjoint(stubs.found(image=photo(2), top_k=100))


def test_hits_can_be_filtered_grouped_and_thinned(stubs: Stubs) -> None:
    """All at once, with payloads on demand."""
    for seed in range(100, 108):
        payload = Struct()
        payload.update({"product": f"p{seed % 4}", "year": 2000 + seed % 4})
        stubs.upsert(ItemUpsert(item=f"new/{seed}", image=photo(seed), payload=payload))
    found = stubs.found(image=photo(100), filter="year >= 2002", top_k=100)
    assert {"new/102", "new/103", "new/106", "new/107"} == {*found}
    found = stubs.found(image=photo(102), filter="year >= 2002", group_by="product", top_k=100)
    assert found[0] == "new/102"
    assert len(found) == 2

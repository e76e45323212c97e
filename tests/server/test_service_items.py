"""ItemService over a real server."""

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf.struct_pb2 import Struct  # type: ignore[import-untyped]
from kinsight.v1.index_service_pb2 import GetIndexRequest, RollbackIndexRequest
from kinsight.v1.item_service_pb2 import (
    BatchDeleteItemsRequest,
    BatchUpsertItemsRequest,
    ExportItemsRequest,
    ExportItemsResponse,
    GetItemRequest,
    ImportItemsRequest,
    ImportItemsResponse,
    ItemUpsert,
    ListItemsRequest,
)
from kinsight.v1.search_service_pb2 import BatchSearchRequest, Embedding, SearchRequest

from server import service_items
from server.folders import Folders
from tests.conftest import nested
from tests.serving import Gallery, Stubs, make_gallery, make_model, make_version, photo, reason_of, serving


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


def _payload(**fields: object) -> Struct:
    payload = Struct()
    payload.update(fields)
    return payload


def _reason(call: Any, request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=30)
    return reason_of(caught.value)


def test_each_item_of_a_batch_has_its_own_status(stubs: Stubs, own: Gallery) -> None:
    """What is wrong with some keeps none of the others out."""
    values = own.embeddings[0].tolist()
    batch = [
        (ItemUpsert(item="good", image=photo(100)), ("OK", "")),
        (ItemUpsert(item="no image", image=b"text"), ("INVALID_ARGUMENT", "IMAGE_DECODE_FAILED")),
        (ItemUpsert(item="twice", image=photo(101)), ("INVALID_ARGUMENT", "DUPLICATE_ITEM")),
        (ItemUpsert(item="twice", image=photo(102)), ("INVALID_ARGUMENT", "DUPLICATE_ITEM")),
        (ItemUpsert(item="", image=photo(103)), ("INVALID_ARGUMENT", "INVALID_ITEM")),
        (ItemUpsert(item="x" * 1025, image=photo(103)), ("INVALID_ARGUMENT", "INVALID_ITEM")),
        (ItemUpsert(item="line\nbreak", image=photo(103)), ("INVALID_ARGUMENT", "INVALID_ITEM")),
        (ItemUpsert(item="nobody", payload=_payload(a=1)), ("NOT_FOUND", "ITEM_NOT_FOUND")),
        (
            ItemUpsert(item="nan", image=photo(104), payload=_payload(a=float("nan"))),
            ("INVALID_ARGUMENT", "INVALID_PAYLOAD"),
        ),
        (
            ItemUpsert(item="large", image=photo(104), payload=_payload(a="x" * 65_536)),
            ("INVALID_ARGUMENT", "PAYLOAD_TOO_LARGE"),
        ),
        (
            ItemUpsert(item="other", embedding=Embedding(model="m", values=values)),
            ("FAILED_PRECONDITION", "MODEL_MISMATCH"),
        ),
        (
            ItemUpsert(item="short", embedding=Embedding(model=own.model, values=[1.0])),
            ("INVALID_ARGUMENT", "DIMENSION_MISMATCH"),
        ),
        (ItemUpsert(item="also good", embedding=Embedding(model=own.model, values=values)), ("OK", "")),
    ]
    results = stubs.upsert(*(item for item, _ in batch))
    assert [reason_of(result.status) for result in results] == [expected for _, expected in batch]
    assert [result.item for result in results if result.sequence] == ["good", "also good"]
    assert "model 'm'" in results[10].status.message
    assert own.model in results[10].status.message
    assert {"good", "also good"} < {*stubs.found(item="good", top_k=100)}


def test_a_repeated_request_changes_nothing_and_is_answered_alike(stubs: Stubs) -> None:
    """Also about what could not be taken; with other items its id is refused."""
    items = [ItemUpsert(item="a", image=photo(100)), ItemUpsert(item="b", image=b"text")]
    first = stubs.upsert(*items, request_id="one")
    stubs.delete("a")
    assert stubs.upsert(*items, request_id="one") == first
    assert "a" not in stubs.found(image=photo(100), top_k=100)
    reused = BatchUpsertItemsRequest(items=items[:1], request_id="one")
    assert _reason(stubs.items.BatchUpsertItems, reused) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    for request_id in ("x" * 65, "tab\t", "grün"):
        request = BatchUpsertItemsRequest(items=items, request_id=request_id)
        expected = ("INVALID_ARGUMENT", "INVALID_REQUEST_ID")
        assert _reason(stubs.items.BatchUpsertItems, request) == expected


def test_what_is_upserted_is_hashed_beside_the_event_loop(own: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches don't wait for it."""
    hashing, looping = list[threading.Thread](), list[threading.Thread]()
    digest = service_items._digest

    def observed(items: Sequence[ItemUpsert]) -> str:
        hashing.append(threading.current_thread())
        return digest(items)

    monkeypatch.setattr(service_items, "_digest", observed)
    with serving(own.store) as served, Stubs(served.target) as stubs:
        stubs.upsert(ItemUpsert(item="a", image=photo(1)), request_id="one")
        served.call(lambda: looping.append(threading.current_thread()))
    assert len(hashing) == 1
    assert looping[0] not in hashing


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_holds_1_to_1000_items(count: int, stubs: Stubs) -> None:
    """Of upserts and of deletions."""
    expected = ("INVALID_ARGUMENT", "BATCH_SIZE_OUT_OF_RANGE")
    upsert = BatchUpsertItemsRequest(items=[ItemUpsert(item=f"{number}") for number in range(count)])
    assert _reason(stubs.items.BatchUpsertItems, upsert) == expected
    delete = BatchDeleteItemsRequest(items=[f"{number}" for number in range(count)])
    assert _reason(stubs.items.BatchDeleteItems, delete) == expected


def test_an_unknown_kind_of_waiting_is_refused(stubs: Stubs) -> None:
    """Of a newer client, say: that it was met as another kind nobody would have heard. Nothing is upserted."""
    item = ItemUpsert(item="new", image=photo(100))
    with pytest.raises(grpc.RpcError, match=r"wait_for is 7; it must be one of .*, WAIT_FOR_SEARCHABLE") as caught:
        stubs.upsert(item, wait_for=7)
    assert reason_of(caught.value) == ("INVALID_ARGUMENT", "WAIT_FOR_UNKNOWN")
    assert _reason(stubs.items.GetItem, GetItemRequest(item="new"))[0] == "NOT_FOUND"


def test_deleting_is_idempotent_and_knows_what_never_was(stubs: Stubs, own: Gallery) -> None:
    """A deleted item comes back when it is upserted again."""
    results = stubs.delete(own.items[0], "nobody", own.items[0])
    assert [reason_of(one.status)[0] for one in results] == ["OK", "NOT_FOUND", "OK"]
    assert [one.sequence > 0 for one in results] == [True, False, False]
    stubs.upsert(ItemUpsert(item=own.items[0], image=photo(0)))
    assert stubs.found(image=photo(0))[0] == own.items[0]


def test_a_payload_alone_can_be_changed(stubs: Stubs, own: Gallery) -> None:
    """Unset keeps it, empty removes it; the image stays."""
    read = GetItemRequest(item=own.items[1])
    stubs.upsert(ItemUpsert(item=own.items[1], payload=_payload(a=1, b=[None, {"c": True}])))
    assert stubs.items.GetItem(read).payload == _payload(a=1, b=[None, {"c": True}])
    assert stubs.found(image=photo(1), filter="a = 1") == [own.items[1]]
    stubs.upsert(ItemUpsert(item=own.items[1], image=photo(1)))
    assert stubs.items.GetItem(read).payload == _payload(a=1, b=[None, {"c": True}])
    stubs.upsert(ItemUpsert(item=own.items[1], payload=Struct()))
    assert stubs.items.GetItem(read).payload == Struct()
    assert stubs.found(image=photo(1))[0] == own.items[1]


def test_an_item_is_read_with_what_is_known_of_it(stubs: Stubs, own: Gallery) -> None:
    """Its last change, its image's digest, and whether it is found."""
    (result,) = stubs.upsert(ItemUpsert(item="new", image=photo(100), payload=_payload(a=1)))
    item = stubs.items.GetItem(GetItemRequest(item="new"))
    digest = hashlib.sha256(photo(100)).hexdigest()
    assert (item.sequence, item.sha256, item.searchable) == (result.sequence, digest, True)
    assert _reason(stubs.items.GetItem, GetItemRequest(item="nobody")) == ("NOT_FOUND", "ITEM_NOT_FOUND")
    stubs.delete("new")
    assert _reason(stubs.items.GetItem, GetItemRequest(item="new")) == ("NOT_FOUND", "ITEM_NOT_FOUND")


def test_items_are_listed_in_pages_that_keep_to_their_arguments(stubs: Stubs, own: Gallery) -> None:
    """Every item once, by id; a token with another filter is refused."""
    for number in range(6):
        stubs.upsert(ItemUpsert(item=own.items[number], payload=_payload(even=number % 2 == 0)))
    listed, token = [], ""
    while True:
        page = stubs.items.ListItems(ListItemsRequest(page_size=4, page_token=token))
        listed += [item.item for item in page.items]
        token = page.next_page_token
        if not token:
            break
        kept = token
    assert listed == sorted(own.items)
    even = stubs.items.ListItems(ListItemsRequest(filter="even = true"))
    assert [item.item for item in even.items] == [own.items[number] for number in (0, 2, 4)]
    for request, reason in (
        (ListItemsRequest(page_token=kept, filter="even = true"), "INVALID_PAGE_TOKEN"),
        (ListItemsRequest(page_token="nonsense"), "INVALID_PAGE_TOKEN"),
        (ListItemsRequest(page_token=kept[:-4]), "INVALID_PAGE_TOKEN"),  # which a line that was cut makes of it
        (ListItemsRequest(page_size=-1), "PAGE_SIZE_OUT_OF_RANGE"),
        (ListItemsRequest(filter="even ="), "FILTER_SYNTAX"),
        (ListItemsRequest(filter="odd = true"), "FILTER_UNKNOWN_FIELD"),
        (ListItemsRequest(filter='even = "true"'), "FILTER_TYPE_MISMATCH"),
    ):
        assert _reason(stubs.items.ListItems, request) == ("INVALID_ARGUMENT", reason)


def test_hits_carry_payloads_on_demand(stubs: Stubs) -> None:
    """And only then."""
    stubs.upsert(ItemUpsert(item="new", image=photo(100), payload=_payload(a=1)))
    for wanted in (False, True):
        hits = stubs.search.Search(SearchRequest(image=photo(100), include_payload=wanted)).hits
        assert [hit.HasField("payload") for hit in hits] == [wanted] + [False] * 6
    assert hits[0].payload == _payload(a=1)


def test_the_deepest_payload_comes_with_every_answer(own: Gallery, tmp_path: Path) -> None:
    """A deeper one is refused where it is imported: no list that it is in, and no search, would find a reader."""
    rows = ["path,payload"]
    for depth in (30, 31):
        (tmp_path / f"{depth}.png").write_bytes(photo(100))
        quoted = json.dumps(nested(depth)).replace('"', '""')
        rows.append(f'{depth}.png,"{quoted}"')
    (tmp_path / "table.csv").write_text("\n".join(rows))
    with serving(own.store, folders=Folders((tmp_path,))) as served, Stubs(served.target) as stubs:
        told = ImportItemsResponse()
        done = stubs.ended(stubs.items.ImportItems(ImportItemsRequest(path=str(tmp_path / "table.csv"))))
        assert done.response.Unpack(told)
        assert [(one.item, "more than 30 deep" in one.reason) for one in told.failures] == [("31.png", True)]
        expected = _payload(**nested(30))
        assert stubs.items.GetItem(GetItemRequest(item="30.png")).payload == expected
        assert stubs.items.ListItems(ListItemsRequest()).items[0].payload == expected
        search = SearchRequest(image=photo(100), include_payload=True)
        assert stubs.search.Search(search).hits[0].payload == expected
        (result,) = stubs.search.BatchSearch(BatchSearchRequest(requests=[search])).results
        assert result.response.hits[0].payload == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"filter": "a ="}, "FILTER_SYNTAX"),
        ({"filter": "nothing = 1"}, "FILTER_UNKNOWN_FIELD"),
        ({"filter": "item = 7"}, "FILTER_TYPE_MISMATCH"),
        ({"group_by": "nothing"}, "INVALID_GROUP_BY"),
        ({"group_by": "a ="}, "INVALID_GROUP_BY"),
        ({"min_similarity": 1.5}, "MIN_SIMILARITY_OUT_OF_RANGE"),
        ({"min_similarity": float("nan")}, "MIN_SIMILARITY_OUT_OF_RANGE"),
        ({"near_duplicate_threshold": 0}, "THRESHOLD_OUT_OF_RANGE"),
        ({"diversity": -0.1}, "DIVERSITY_OUT_OF_RANGE"),
        ({"params": {"target_recall": 0}}, "TARGET_RECALL_OUT_OF_RANGE"),
        ({"params": {"target_recall": 0.9, "exact": True}}, "PARAMS_CONFLICT"),
        ({"params": {"target_recall": 0.9, "nprobe": 1}}, "PARAMS_CONFLICT"),
    ],
)
def test_a_condition_that_can_not_be_met_is_refused(fields: dict[str, Any], reason: str, stubs: Stubs) -> None:
    """By its reason, and with the field at fault."""
    request = SearchRequest(image=photo(0), **fields)
    assert _reason(stubs.search.Search, request) == ("INVALID_ARGUMENT", reason)


def test_a_mistake_in_group_by_is_told_as_one_there(stubs: Stubs) -> None:
    """With the column in it, and not as one of the filter, which may be right."""
    request = SearchRequest(image=photo(0), filter="item:*", group_by="a =")
    with pytest.raises(grpc.RpcError) as caught:
        stubs.search.Search(request, timeout=30)
    assert caught.value.details() == "group_by, column 3: expected the end after the field a; got ="


def test_near_duplicates_and_distant_items_are_left_out(stubs: Stubs, own: Gallery) -> None:
    """A copy of an image is one hit; what is less similar than wanted none."""
    stubs.upsert(ItemUpsert(item="copy", image=photo(0)))
    assert {"copy", own.items[0]} == {*stubs.found(image=photo(0), top_k=2)}
    found = stubs.found(image=photo(0), near_duplicate_threshold=0.9999, top_k=100)
    assert len({"copy", own.items[0]} & {*found}) == 1
    assert {"copy", own.items[0]} == {*stubs.found(image=photo(0), min_similarity=0.9999, top_k=100)}


def test_images_are_imported_and_items_exported(own: Gallery, tmp_path: Path) -> None:
    """A table with payloads; bad rows are told, the others are found, and a second time nothing is embedded."""
    rows = ["path,payload"]
    for seed in range(100, 104):
        (tmp_path / f"{seed}.png").write_bytes(photo(seed))
        rows.append(f'{seed}.png,"{{""number"": {seed}}}"')
    (tmp_path / "bad.png").write_bytes(b"text")
    rows += ["bad.png,", "100.jpg,", 'list.png,"[1]"', "text.png,wren"]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    request = ImportItemsRequest(path=str(tmp_path / "table.csv"))
    folders = Folders((tmp_path,), (tmp_path,))
    with serving(own.store, folders=folders) as served, Stubs(served.target) as stubs:
        for imported, unchanged in ((4, 0), (0, 4)):
            told = ImportItemsResponse()
            assert stubs.ended(stubs.items.ImportItems(request)).response.Unpack(told)
            assert (told.imported, told.unchanged, told.failed) == (imported, unchanged, 4)
        reasons = {failure.item: failure.reason for failure in told.failures}
        assert reasons.keys() == {"bad.png", "100.jpg", "list.png", "text.png"}
        assert reasons["list.png"] == "the payload is not a JSON object: [1]"
        assert reasons["text.png"] == "the payload is not a JSON object: wren"
        assert stubs.found(image=photo(102), filter="number = 102") == ["102.png"]
        export = ExportItemsRequest(path=str(tmp_path / "items.parquet"))
        written = ExportItemsResponse()
        assert stubs.ended(stubs.items.ExportItems(export)).response.Unpack(written)
        assert _reason(stubs.items.ExportItems, export) == ("ALREADY_EXISTS", "PATH_EXISTS")
        text = ExportItemsRequest(path=str(tmp_path / "items.csv"))
        assert _reason(stubs.items.ExportItems, text) == ("INVALID_ARGUMENT", "INVALID_PATH")
    table = pq.read_table(tmp_path / "items.parquet").to_pylist()
    assert (written.items, written.model) == (10, own.model)
    assert [row["item"] for row in table] == sorted([*own.items, *(f"{seed}.png" for seed in range(100, 104))])
    by_item = {row["item"]: row for row in table}
    assert by_item["102.png"]["payload"] == '{"number": 102}'
    np.testing.assert_allclose(by_item[own.items[3]]["embedding"], own.embeddings[3], atol=1e-6)


def test_embeddings_are_imported_and_those_of_another_model_refused(own: Gallery, tmp_path: Path) -> None:
    """They are found; the refusal names the model whose embeddings are taken."""
    near = (own.embeddings[:3] + own.embeddings[3:6]) / 2
    columns = {"item": ["a", "b", "c"], "embedding": [*near.tolist()], "model": [own.model] * 3}
    pq.write_table(pa.table(columns), tmp_path / "ours.parquet")
    pq.write_table(pa.table(columns | {"model": ["another"] * 3}), tmp_path / "theirs.parquet")
    with serving(own.store, folders=Folders((tmp_path,))) as served, Stubs(served.target) as stubs:
        told = ImportItemsResponse()
        request = ImportItemsRequest(path=str(tmp_path / "ours.parquet"))
        assert stubs.ended(stubs.items.ImportItems(request)).response.Unpack(told)
        assert (told.imported, told.failed) == (3, 0)
        assert stubs.found(item="b", top_k=9)
        request.path = str(tmp_path / "theirs.parquet")
        refused = stubs.ended(stubs.items.ImportItems(request)).error
        assert reason_of(refused) == ("FAILED_PRECONDITION", "MODEL_MISMATCH")
        assert own.model in refused.message


def test_what_is_deleted_after_an_import_was_asked_for_stays_so(own: Gallery, tmp_path: Path) -> None:
    """Whether the import has come to it by then or not."""
    folder = tmp_path / "new"
    folder.mkdir()
    for item in ("deleted.png", "left.png"):
        (folder / item).write_bytes(photo(len(item)))
    with serving(own.store, folders=Folders((folder,))) as served, Stubs(served.target) as stubs:
        stubs.upsert(ItemUpsert(item="deleted.png", image=photo(1)))
        begun = stubs.items.ImportItems(ImportItemsRequest(path=str(folder)))
        assert [result.status.code for result in stubs.delete("deleted.png")] == [0]
        assert not stubs.ended(begun).HasField("error")
        found = stubs.found(image=photo(1), top_k=1000)
        assert ("left.png" in found, "deleted.png" in found) == (True, False)


def test_embeddings_of_the_model_before_are_refused_naming_the_new_one(stubs: Stubs, own: Gallery) -> None:
    """After a swap in the middle of their work, clients are told which model's embeddings are taken."""
    request = ItemUpsert(item="a", embedding=Embedding(model=own.model, values=own.embeddings[0].tolist()))
    first = stubs.upsert(request, request_id="one")
    assert first[0].status.code == 0
    other = make_model(own.store, seed=1)
    make_version(own.store, "photos", 2, other, own.items, np.roll(own.embeddings, 1, axis=1))
    while stubs.indexes.GetIndex(GetIndexRequest()).model != other:
        time.sleep(0.05)
    (result,) = stubs.upsert(request)
    assert reason_of(result.status) == ("FAILED_PRECONDITION", "MODEL_MISMATCH")
    assert other in result.status.message
    # What was taken before was taken, whoever asks again now; and so with what was refused.
    assert stubs.upsert(request, request_id="one") == first
    of_other = ItemUpsert(item="b", embedding=Embedding(model=other, values=own.embeddings[0].tolist()))
    stubs.indexes.RollbackIndex(RollbackIndexRequest())
    assert reason_of(stubs.upsert(of_other, request_id="two")[0].status)[1] == "MODEL_MISMATCH"
    stubs.indexes.RollbackIndex(RollbackIndexRequest())
    assert reason_of(stubs.upsert(of_other, request_id="two")[0].status)[1] == "REFUSED_BEFORE"


def test_a_full_disk_is_told_and_nothing_is_acknowledged(own: Gallery) -> None:
    """What was there is searched on, and once there is room again upserts are taken."""
    with serving(own.store) as served, Stubs(served.target) as stubs:
        writer = served.running.indexes.get("photos").catalog._file._writer
        (pages,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {pages}")  # SQLite takes the disk for full from there on
        items = [ItemUpsert(item=f"{number}", image=photo(number)) for number in range(100, 140)]
        full = ("RESOURCE_EXHAUSTED", "CATALOG_NOT_WRITABLE")
        assert _reason(stubs.items.BatchUpsertItems, BatchUpsertItemsRequest(items=items)) == full
        assert {*stubs.found(image=photo(100), top_k=100)} == {*own.items}
        writer.execute("PRAGMA max_page_count = 1000000")
        assert {result.status.code for result in stubs.upsert(*items)} == {0}


def test_another_writer_that_does_not_end_is_told(own: Gallery) -> None:
    """And the client may try again."""
    with serving(own.store) as served, Stubs(served.target) as stubs:
        catalog = served.running.indexes.get("photos").catalog
        catalog._file._writer.execute("PRAGMA busy_timeout = 10")
        request = BatchDeleteItemsRequest(items=own.items[:1])
        with closing(sqlite3.connect(catalog.path)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert _reason(stubs.items.BatchDeleteItems, request) == ("UNAVAILABLE", "CATALOG_BUSY")
        assert stubs.items.BatchDeleteItems(request).results[0].status.code == 0

"""client.items against real servers; one suite for both clients."""

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kinsight_client
import numpy as np
import pytest
from kinsight_client import Embedding, Upsert, items
from kinsight_client.items import MAX_IMAGES, MAX_ITEMS

from server import app
from tests.clients.both import BOTH, KINDS
from tests.conftest import nested
from tests.serving import build_photos, free_port, photo, serving


@pytest.fixture(params=BOTH, ids=["sync", "asyncio"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Of a server on an index of 24 photographs that may be changed."""
    store = build_photos(tmp_path)
    with serving(store) as served, request.param(served.target) as connected:
        yield connected


def found(client: Any, **query: Any) -> list[str]:
    return [hit.item for hit in client.search(**query).hits]


def embeddings(client: Any, count: int) -> list[Embedding]:
    """Unit-length embeddings of the index's model, no two alike."""
    known = client.embed(photo(0))
    values = np.random.default_rng(0).standard_normal((count, len(known.values))).astype(np.float32)
    return [Embedding(known.model, row) for row in values / np.linalg.norm(values, axis=1, keepdims=True)]


@KINDS
def test_large_payloads_go_in_as_many_batches_as_they_need(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is taken by the server, and all of them together are more than a message may have."""
    monkeypatch.setattr(app, "MAX_MESSAGE_BYTES", app.MAX_MESSAGE_BYTES // 16)
    monkeypatch.setattr(items, "MAX_BYTES", items.MAX_BYTES // 16)
    with serving(build_photos(tmp_path)) as served, kind(served.target) as client:
        upserts = [
            Upsert(f"p{row}", embedding=one, payload={"text": "x" * 60_000})
            for row, one in enumerate(embeddings(client, 40))
        ]
        assert {result.error for result in client.items.upsert_many(upserts)} == {None}


def test_an_upserted_image_is_found_until_it_is_deleted(client: Any, tmp_path: Path) -> None:
    """By bytes and by path, and what the index keeps of it can be read."""
    (tmp_path / "new.png").write_bytes(photo(101))
    first = client.items.upsert("bytes", image=photo(100), payload={"year": 2021})
    second = client.items.upsert("path", image=tmp_path / "new.png")
    assert (first.item, first.error, second.sequence - first.sequence) == ("bytes", None, 1)
    assert [found(client, image=photo(seed), top_k=1)[0] for seed in (100, 101)] == ["bytes", "path"]
    kept = client.items.get("bytes")
    assert ({"year": 2021}, first.sequence, True, 64) == (
        kept.payload,
        kept.sequence,
        kept.searchable,
        len(kept.sha256),
    )
    assert first.sequence < client.items.delete("bytes").sequence
    assert client.items.delete("bytes").sequence == 0
    assert "bytes" not in found(client, image=photo(100), top_k=100)
    with pytest.raises(kinsight_client.NotFound) as caught:
        client.items.get("bytes")
    assert caught.value.reason == "ITEM_NOT_FOUND"


def test_a_payload_changes_alone_and_comes_back_as_it_went(client: Any) -> None:
    """Integers, nesting, null and an empty object included; the item stays searchable."""
    payload = {"n": 3, "x": 0.5, "big": 2**53, "tags": ["a", {"b": None}], "ok": True, "Größe": "m"}
    client.items.upsert("new", image=photo(100), payload={"old": 1})
    client.items.upsert("new", payload=payload)
    (hit,) = client.search(image=photo(100), top_k=1, include_payload=True).hits
    assert ("new", json.dumps(payload)) == (hit.item, json.dumps({name: hit.payload[name] for name in payload}))
    client.items.upsert("new", payload={})
    assert client.items.get("new").payload is None


def test_more_items_than_a_batch_takes_are_upserted_and_deleted_in_order(client: Any) -> None:
    """Of an id that comes twice, the last one stays; results are in the order of the items."""
    made = embeddings(client, MAX_ITEMS + 500)
    upserts = [Upsert(f"e{row:05}", embedding=embedding, payload={"row": row}) for row, embedding in enumerate(made)]
    again = Upsert("e00000", embedding=made[1], payload={"row": -1})
    results = client.items.upsert_many(iter([*upserts, again]), searchable=False)
    assert [*(upsert.item for upsert in upserts), "e00000"] == [result.item for result in results]
    assert [None] * len(results) == [result.error for result in results]
    listed = {item.item: item for item in client.items.list() if item.item.startswith("e")}
    assert len(upserts) == len(listed)
    assert (listed["e00000"].payload, listed["e01400"].payload) == ({"row": -1}, {"row": 1400})
    deleted = client.items.delete_many(item for item in [*listed, "nobody"])
    assert [*listed, "nobody"] == [result.item for result in deleted]
    assert [result.error.reason for result in deleted if result.error] == ["ITEM_NOT_FOUND"]
    assert len(list(client.items.list())) == 24


def test_a_bad_item_leaves_the_others_of_its_batch_in(client: Any) -> None:
    """Each with its own error, as a call of its own would raise it."""
    upserts = [Upsert(f"p{seed}", image=photo(seed)) for seed in range(MAX_IMAGES + 3)]
    upserts[5] = Upsert("text", image=b"not an image")
    upserts[7] = Upsert("large", image=photo(7), payload={"text": "x" * 70_000})
    upserts[9] = Upsert("nobody", payload={"a": 1})
    results = client.items.upsert_many(upserts)
    failed = {result.item: result.error for result in results if result.error}
    assert {item: error.reason for item, error in failed.items()} == {
        "text": "IMAGE_DECODE_FAILED",
        "large": "PAYLOAD_TOO_LARGE",
        "nobody": "ITEM_NOT_FOUND",
    }
    assert isinstance(failed["nobody"], kinsight_client.NotFound)
    assert len(upserts) - 3 == sum(item.item.startswith("p") for item in client.items.list())
    with pytest.raises(kinsight_client.InvalidArgument, match="IMAGE_DECODE_FAILED"):
        client.items.upsert("text", image=b"not an image")


def test_an_item_whose_image_can_not_be_read_is_refused_alone(client: Any, tmp_path: Path) -> None:
    """Its error stands in its place, the others are upserted, in as many batches; a single `upsert` raises."""
    gone, path = tmp_path / "gone.png", tmp_path / "there.png"
    path.write_bytes(photo(100))
    upserts = [Upsert(f"p{row:03}", image=path) for row in range(MAX_IMAGES + 3)]
    upserts[0] = Upsert("none", image=gone, payload={"a": 1})
    upserts[50] = Upsert("folder", image=tmp_path)
    upserts[60] = Upsert("no name", image=Path("a\0b"))
    upserts[-2] = Upsert("p001", image=gone)  # readable before: that one stays
    upserts[-1] = Upsert("none", image=photo(101))  # unreadable before: this one is taken
    results = client.items.upsert_many(upserts)
    assert [result.item for result in results] == [upsert.item for upsert in upserts]
    failed = {row: result.error for row, result in enumerate(results) if result.error}
    assert {type(error) for error in failed.values()} == {kinsight_client.UnreadableImage}
    assert {row: type(error.__cause__) for row, error in failed.items()} == {
        0: FileNotFoundError,
        50: IsADirectoryError,
        60: OSError,
        MAX_IMAGES + 1: FileNotFoundError,
    }
    assert str(failed[0]) == f"INVALID_ARGUMENT: '{gone}' can't be read: No such file or directory"
    taken = {upsert.item for row, upsert in enumerate(upserts) if row not in failed}
    assert taken == {item.item for item in client.items.list() if item.item[:1] in "pfn"}
    assert client.items.get("none").payload is None
    with pytest.raises(FileNotFoundError):
        client.items.upsert("none", image=gone)


@KINDS
def test_items_none_of_which_can_be_read_are_no_call(kind: Any, tmp_path: Path) -> None:
    """A batch of no item would be refused, or find no server, and so hide the reasons."""
    with kind(f"127.0.0.1:{free_port()}") as client:
        results = client.items.upsert_many(Upsert(item, image=tmp_path / item) for item in ("a", "b"))
        assert client.items.upsert_many([]) == []
    assert [(one.item, one.sequence, type(one.error)) for one in results] == [
        ("a", 0, kinsight_client.UnreadableImage),
        ("b", 0, kinsight_client.UnreadableImage),
    ]


def test_the_same_request_id_does_nothing_twice(client: Any) -> None:
    """Its first answer is given again; other items under it are refused."""
    upserts = [Upsert("a", image=photo(100)), Upsert("b", image=photo(101))]
    first = client.items.upsert_many(upserts, request_id="today")
    assert first == client.items.upsert_many(upserts, request_id="today")
    with pytest.raises(kinsight_client.InvalidArgument):
        client.items.upsert_many(upserts[:1], request_id="today")


def test_filters_groups_and_the_like_choose_among_the_hits(client: Any) -> None:
    """As the server's own tests have it; here, that each argument arrives."""
    for seed in range(100, 108):
        client.items.upsert(f"new/{seed}", image=photo(seed), payload={"product": f"p{seed % 4}", "year": seed})
    client.items.upsert("copy", image=photo(100), payload={"product": "p9", "year": 1})
    assert {"new/106", "new/107"} == {*found(client, image=photo(100), filter="year >= 106", top_k=50)}
    assert [item.item for item in client.items.list(filter="year >= 106")] == ["new/106", "new/107"]
    assert len(found(client, image=photo(100), filter="product:*", group_by="product", top_k=50)) == 5
    assert {"copy", "new/100"} == {*found(client, image=photo(100), min_similarity=0.9999, top_k=50)}
    alone = found(client, image=photo(100), near_duplicate_threshold=0.9999, top_k=50)
    assert len({"copy", "new/100"} & {*alone}) == 1
    nearest, diverse = found(client, image=photo(100)), found(client, image=photo(100), diversity=0.9)
    assert nearest[0] == diverse[0]
    assert nearest != diverse
    assert nearest == found(client, image=photo(100), target_recall=0.9)
    with pytest.raises(kinsight_client.InvalidArgument, match="column 6"):
        client.search(image=photo(100), filter="year ~ 3")


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"image": b"x", "embedding": Embedding("m", np.ones(2, np.float32))}, TypeError, "one of them"),
        ({"payload": ["a"]}, ValueError, "not a JSON object"),
        ({"payload": {"n": 2**53 + 1}}, ValueError, "write it as text"),
        ({"payload": {"price": float("nan")}}, ValueError, "nan in the payload of item 'a' is no number of JSON"),
        ({"payload": {"n": [float("-inf")]}}, ValueError, "-inf .*; leave it out, or give None"),
        ({"payload": nested(31)}, ValueError, "more than 30 deep"),
        ({"payload": {"at": {1: 2}}}, ValueError, "can't be written as JSON"),
        ({"payload": {"at": [Path("x")]}}, ValueError, "can't be written as JSON"),
    ],
)
def test_a_wrong_upsert_is_found_where_it_is_made(fields: dict[str, Any], error: type[Exception], said: str) -> None:
    """Before anything is sent, and before an integer loses digits on its way."""
    with pytest.raises(error, match=said):
        Upsert("a", **fields)


@pytest.mark.usefixtures("quick_retries")
@KINDS
def test_upserting_where_no_server_is_raises_unavailable(kind: Any) -> None:
    """And does not look like success."""
    with kind(f"127.0.0.1:{free_port()}") as client, pytest.raises(kinsight_client.Unavailable):
        client.items.upsert_many([Upsert("a", image=photo(1))])


@pytest.mark.parametrize("kind", [kinsight_client.Client, kinsight_client.AsyncClient])
def test_help_shows_what_each_method_takes_and_says(kind: Any) -> None:
    """The methods of both clients carry the documentation and the parameters of their calls."""

    async def parts() -> list[type]:  # on a loop, which the asyncio client would otherwise make and leave open
        closed = kind("localhost:1")
        found = [type(part) for part in vars(closed).values() if hasattr(part, "_calls")]
        closing = closed._channel.close()
        if inspect.isawaitable(closing):
            await closing
        return found

    with_parts = [kind, *asyncio.run(parts())]
    methods = [
        method for owner in with_parts for name, method in vars(owner).items() if callable(method) and name[0] != "_"
    ]
    assert len(methods) > 25
    assert [method for method in methods if not method.__doc__] == []
    assert "species" in kind.search.__doc__
    assert "min_similarity" in inspect.signature(kind.search).parameters


@KINDS
@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.search(item=5),
        lambda client: client.search_many(items=["a", 5]),
        lambda client: Upsert(5),  # type: ignore[arg-type]
        lambda client: client.items.upsert(5),
        lambda client: client.items.get(5),
        lambda client: client.items.delete(5),
        lambda client: client.items.delete_many(["a", 5]),
    ],
    ids=["search", "search_many", "Upsert", "upsert", "get", "delete", "delete_many"],
)
def test_an_id_that_is_no_text_is_named(call: Callable[[Any], Any], kind: Any) -> None:
    """Such as the number of a table's row, of which protobuf says that an argument is bad; nobody is called."""
    wrong = pytest.raises(TypeError, match="the id of an item is 5; give it as text, '5'")
    with kind(f"127.0.0.1:{free_port()}") as client, wrong:
        call(client)

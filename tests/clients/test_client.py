"""kinsight_client.Client and AsyncClient against real servers; one suite for both."""

import inspect
import os
import pickle
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import grpc
import kinsight_client
import numpy as np
import pytest
from click.testing import CliRunner
from kinsight.v1.search_service_pb2 import SearchRequest
from kinsight.v1.search_service_pb2_grpc import SearchServiceStub
from kinsight_client import (
    Cancelled,
    Client,
    Embedding,
    Hit,
    InvalidArgument,
    Item,
    ItemResult,
    KinsightError,
    NotFound,
    Operation,
    SearchResult,
    TrainResult,
    UnreadableImage,
    async_client,
    channel,
    sync_client,
)
from kinsight_client.errors import from_rpc

from clients.cli.command import kinsight
from server.admission import Admission, Admitted
from tests.clients.both import BOTH, KINDS
from tests.serving import Gallery, Served, free_port, photo, serving


@pytest.fixture(params=BOTH, ids=["sync", "asyncio"])
def client(request: pytest.FixtureRequest, served: Served) -> Iterator[Any]:
    with request.param(served.target) as connected:
        yield connected


class Counting(Admission):
    """An admission that counts who asks."""

    asked = 0

    def admit(self, request_bytes: int) -> Admitted:
        self.asked += 1
        return super().admit(request_bytes)


def test_a_search_by_bytes_path_embedding_and_item_finds_the_same(
    client: Any, gallery: Gallery, tmp_path: Path
) -> None:
    """Four ways to ask for one photograph."""
    path = tmp_path / "a photo.png"
    path.write_bytes(photo(6))
    answers = [
        client.search(image=photo(6), top_k=5),
        client.search(image=path, top_k=5),
        client.search(embedding=client.embed(path), top_k=5),
        client.search(item=gallery.items[6], top_k=5, exact=True, index="photos", nprobe=3),
    ]
    for answer in answers:
        assert [hit.item for hit in answers[0].hits] == [hit.item for hit in answer.hits]
    assert ("photos", 1, gallery.model) == (answers[0].index, answers[0].version, answers[0].model)
    assert isinstance(answers[0].hits[0], Hit)
    assert answers[0].hits[0].similarity == pytest.approx(1, abs=1e-5)


def test_many_searches_are_answered_as_one_by_one(client: Any, gallery: Gallery, tmp_path: Path) -> None:
    """Images, then embeddings, then items, in several calls where one is too small; errors in their place."""
    path = tmp_path / "a photo.png"
    path.write_bytes(photo(6))
    items = [gallery.items[row % 24] for row in range(300)]
    results = client.search_many(
        images=[photo(5), path, b"no image"],
        embeddings=[Embedding(gallery.model, gallery.embeddings[8])],
        items=[*items, "nobody"],
        top_k=3,
        exact=True,
    )
    wanted = [client.search(image=photo(5), top_k=3), client.search(image=path, top_k=3)]
    for one, result in zip(wanted, results[:2], strict=True):
        assert [hit.item for hit in one.hits] == [hit.item for hit in result.hits]
    assert isinstance(results[2], InvalidArgument)
    assert results[2].reason == "IMAGE_DECODE_FAILED"
    assert [gallery.items[8], *items] == [result.hits[0].item for result in results[3:-1]]
    assert {len(result.hits) for result in results[3:-1]} == {3}
    assert isinstance(results[-1], NotFound)
    assert client.search_many() == []


def test_an_image_that_can_not_be_read_fails_alone(client: Any, gallery: Gallery, tmp_path: Path) -> None:
    """Its error stands in its place, the others are searched for; a single `search` raises."""
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
    gone = tmp_path / "gone.png"
    images = [gone, tmp_path / "1.png", tmp_path, photo(3), *[gone] * 300, tmp_path / "2.png", gone]
    results = client.search_many(images=images, items=[gallery.items[4]], top_k=2, exact=True)
    found = {place: result.hits[0].item for place, result in enumerate(results) if not isinstance(result, Exception)}
    assert found == {1: gallery.items[1], 3: gallery.items[3], 304: gallery.items[2], 306: gallery.items[4]}
    assert {type(results[place]) for place in range(307) if place not in found} == {UnreadableImage}
    assert str(results[0]) == f"INVALID_ARGUMENT: '{gone}' can't be read: No such file or directory"
    assert isinstance(results[0].__cause__, FileNotFoundError)
    assert isinstance(results[2].__cause__, IsADirectoryError)
    with pytest.raises(FileNotFoundError):
        client.search(image=gone)


def test_images_none_of_which_can_be_read_are_no_call(client: Any, tmp_path: Path) -> None:
    """A batch of no query would be refused by the server, and so hide the reasons."""
    results = client.search_many(images=[tmp_path / "a.png", tmp_path / "b.png"])
    assert [str(result).partition("can't be read")[0][-7:] for result in results] == ["a.png' ", "b.png' "]


@pytest.mark.parametrize("include_payload", [True, False])
def test_many_searches_for_many_hits_are_cut_to_what_a_server_takes(
    client: Any, gallery: Gallery, include_payload: bool
) -> None:
    """The top_k of a batch together has a limit, and a lower one with payloads."""
    results = client.search_many(items=[gallery.items[2]] * 60, top_k=1000, include_payload=include_payload)
    assert [len(result.hits) for result in results] == [24] * 60


def test_one_text_is_not_taken_for_many_items(client: Any, gallery: Gallery) -> None:
    """Its letters are no ids: nothing is searched for, and nothing deleted."""
    with pytest.raises(TypeError, match=r"items is the text 'ab'; give a list of ids, \['ab'\] for one"):
        client.search_many(items="ab")
    with pytest.raises(TypeError, match="give a list of ids"):
        client.items.delete_many("ab")


def test_what_is_no_query_is_refused_by_its_kind(client: Any, gallery: Gallery) -> None:
    """A path as text, one image where many are wanted, an embedding without its model, and a matrix of embeddings."""
    with pytest.raises(TypeError, match=r"the image is str; give the bytes of an image file, or its pathlib\.Path"):
        client.search(image="photo.jpg")
    with pytest.raises(TypeError, match="the image is int"):
        client.search_many(images=photo(1))
    with pytest.raises(TypeError, match=r"the embedding is ndarray; give a kinsight_client\.Embedding, which"):
        client.search(embedding=gallery.embeddings[0])
    with pytest.raises(TypeError, match="the embedding is list"):
        client.items.upsert("a", embedding=[0.0, 1.0])
    with pytest.raises(ValueError, match=r"the shape \(2, \d+\); it must be \(D,\)"):
        client.search(embedding=Embedding(gallery.model, gallery.embeddings[:2]))


def test_an_embedding_is_float32_of_unit_length_with_its_model(client: Any, gallery: Gallery) -> None:
    """What is kept today can be searched with tomorrow."""
    embedding = client.embed(photo(2))
    assert (gallery.model, np.float32) == (embedding.model, embedding.values.dtype)
    np.testing.assert_allclose(gallery.embeddings[2], embedding.values, atol=1e-6)


@pytest.mark.parametrize("queries", [{}, {"image": b"x", "item": "y"}])
def test_exactly_one_query_must_be_given(client: Any, queries: dict[str, Any]) -> None:
    """The mistake is found before anything is sent."""
    with pytest.raises(TypeError, match="exactly one"):
        client.search(**queries)


@pytest.mark.parametrize(
    ("arguments", "error", "code", "reason"),
    [
        ({"image": b"text"}, kinsight_client.InvalidArgument, "INVALID_ARGUMENT", "IMAGE_DECODE_FAILED"),
        ({"item": "nobody"}, kinsight_client.NotFound, "NOT_FOUND", "ITEM_NOT_FOUND"),
        ({"item": "a", "index": "b"}, kinsight_client.NotFound, "NOT_FOUND", "INDEX_NOT_FOUND"),
        (
            {"embedding": Embedding("other", np.ones(3, np.float32))},
            kinsight_client.FailedPrecondition,
            "FAILED_PRECONDITION",
            "MODEL_MISMATCH",
        ),
        ({"image": bytes(33 * 2**20)}, kinsight_client.ResourceExhausted, "RESOURCE_EXHAUSTED", ""),
    ],
)
def test_a_failed_call_raises_its_own_class_with_code_and_reason(
    client: Any, arguments: dict[str, Any], error: type[kinsight_client.KinsightError], code: str, reason: str
) -> None:
    """Programs switch on class or reason; people read the message."""
    with pytest.raises(error) as caught:
        client.search(**arguments)
    assert (code, reason) == (caught.value.code, caught.value.reason)
    assert caught.value.message in str(caught.value)


def test_a_message_above_the_limit_is_refused_with_size_limit_and_remedy(client: Any, gallery: Gallery) -> None:
    """The server's gRPC refuses 40 MB unread, in time, and the next call on the same connection is answered."""
    message = (
        r"the request is 40,000,\d{3} bytes, above the limit of 33,554,432 for a message; "
        "send a smaller image, or fewer items in a call"
    )
    for ask in (
        lambda: client.search(image=bytes(40_000_000)),
        lambda: client.items.upsert("large", image=bytes(40_000_000)),
    ):
        with pytest.raises(kinsight_client.ResourceExhausted, match=message):
            ask()  # type: ignore[no-untyped-call]
        assert client.search(item=gallery.items[3], top_k=1).hits[0].item == gallery.items[3]


def test_one_of_many_above_the_limit_keeps_no_other_from_being_sent(client: Any, gallery: Gallery) -> None:
    """Its error stands in its place, as the server would give it to a call of its own."""
    large = bytes(40_000_000)
    refused, found = client.search_many(images=[large], items=[gallery.items[3]], top_k=1)
    assert isinstance(refused, kinsight_client.ResourceExhausted)
    assert refused.message.startswith("the request is 40,000,")
    assert found.hits[0].item == gallery.items[3]
    upserts = [kinsight_client.Upsert("large", image=large), kinsight_client.Upsert("nobody", payload={})]
    results = client.items.upsert_many(upserts)
    assert [type(result.error) for result in results] == [kinsight_client.ResourceExhausted, kinsight_client.NotFound]


def test_the_command_line_shows_it_as_its_one_line(served: Served, tmp_path: Path) -> None:
    """`kinsight search` of a file of 40 MB names the file, and what to do."""
    large = tmp_path / "large.png"
    large.write_bytes(bytes(40_000_000))
    result = CliRunner().invoke(kinsight, ["search", str(large), "--server", served.target])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {large}: RESOURCE_EXHAUSTED: the request is 40,000,")
    assert line.endswith("; send a smaller image, or fewer items in a call")


def test_the_command_line_reads_no_pipe(served: Served, tmp_path: Path) -> None:
    """It would wait for ever where nobody writes into it; a folder is refused alike."""
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(photo(0),))
    writer.start()
    result = CliRunner().invoke(kinsight, ["search", str(pipe), str(tmp_path), "--server", served.target])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error: {path}: can't be read: it is not a file" for path in (pipe, tmp_path)
    ]
    assert pipe.read_bytes() == photo(0)
    writer.join()


def test_a_message_that_the_channel_would_not_send_is_told_alike(served: Served) -> None:
    """A limit of the sender gives the same message; what gRPC says of an answer stays as it is."""
    options = [("grpc.max_send_message_length", 1000), ("grpc.max_receive_message_length", 10)]
    with grpc.insecure_channel(served.target, options=options) as channel:
        stub = SearchServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as sent:
            stub.Search(SearchRequest(image=bytes(2000)), timeout=10)
        with pytest.raises(grpc.RpcError) as received:
            stub.Search(SearchRequest(item="photo"), timeout=10)
    assert "above the limit of 1,000 for a message; send a smaller image" in from_rpc(sent.value).message
    assert from_rpc(received.value).message == received.value.details()


def test_an_error_carries_the_servers_metadata(client: Any, gallery: Gallery) -> None:
    """The ids of both models, without parsing the message."""
    with pytest.raises(kinsight_client.FailedPrecondition) as caught:
        client.search(embedding=Embedding("other", np.ones(3, np.float32)))
    assert {"embedding_model": "other", "index_model": gallery.model} == caught.value.metadata


def test_an_error_crosses_processes(client: Any, gallery: Gallery, tmp_path: Path) -> None:
    """With all that it says, as a pool of them pickles what a call raised; one that could not be broke the pool."""
    with pytest.raises(kinsight_client.FailedPrecondition) as caught:
        client.search(embedding=Embedding("other", np.ones(3, np.float32)))
    (unreadable,) = client.search_many(images=[tmp_path / "gone.png"])
    for error in (caught.value, unreadable):
        known = pickle.loads(pickle.dumps(error))
        assert (type(known), str(known), known.code) == (type(error), str(error), error.code)
        assert (known.reason, known.message, known.metadata) == (error.reason, error.message, error.metadata)
    assert caught.value.metadata["index_model"] == gallery.model
    assert isinstance(known.__cause__, FileNotFoundError)


def test_a_timeout_is_a_deadline_exceeded(served: Served) -> None:
    """Whatever the server does, the call ends in time."""
    late = pytest.raises(kinsight_client.DeadlineExceeded, match="send less in a call, or raise timeout_s")
    with Client(served.target, timeout_s=0.002) as client, late:
        client.search(image=photo(1, side=3000))


@KINDS
def test_a_call_waits_for_a_server_that_starts_late(kind: Any, gallery: Gallery) -> None:
    """UNAVAILABLE is retried until the server is there."""
    port = free_port()
    found: list[str] = []

    def search() -> None:
        with kind(f"127.0.0.1:{port}") as client:
            found.append(client.search(item=gallery.items[2], top_k=1).hits[0].item)

    caller = threading.Thread(target=search)
    caller.start()
    time.sleep(0.5)
    with serving(gallery.store, port=port):
        caller.join(10)
    assert [gallery.items[2]] == found


@pytest.mark.usefixtures("quick_retries")
@KINDS
def test_only_unavailable_is_retried(kind: Any, gallery: Gallery) -> None:
    """A busy server is not asked again behind the caller's back; one that shuts down is, five times."""
    busy = Counting(max_requests=0)
    with serving(gallery.store, admission=busy) as served, kind(served.target) as client:
        with pytest.raises(kinsight_client.ResourceExhausted):
            client.search(item=gallery.items[0])
        assert busy.asked == 1
    draining = Counting()
    draining.drain()
    with (
        serving(gallery.store, admission=draining) as served,
        kind(served.target) as client,
        pytest.raises(kinsight_client.Unavailable) as caught,
    ):
        client.search(item=gallery.items[0])
    assert (caught.value.reason, draining.asked) == ("DRAINING", 5)


@pytest.mark.usefixtures("quick_retries")
def test_what_a_second_time_would_undo_is_not_retried(gallery: Gallery) -> None:
    """A rollback whose answer was lost may have happened; reading again is harmless."""
    draining = Counting()
    draining.drain()
    with serving(gallery.store, admission=draining) as served, Client(served.target) as client:
        for call, asked in ((client.indexes.rollback, 1), (client.operations.delete, 1), (client.indexes.get, 5)):
            draining.asked = 0
            with pytest.raises(kinsight_client.Unavailable):
                call("photos")
            assert draining.asked == asked


@KINDS
@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.search(item="a"),
        lambda client: client.search(item="a", exact=True),
        lambda client: client.search_many(items=["a"]),
        lambda client: client.items.upsert("a", payload={}),
        lambda client: client.items.list(),
        lambda client: client.operations.get("a"),
        lambda client: client.ready(),
    ],
    ids=["search", "exact", "search_many", "upsert", "list", "get", "ready"],
)
def test_a_closed_client_says_so(call: Callable[[Any], Any], kind: Any, served: Served) -> None:
    """By the error that its calls in progress end with, whatever is asked of it."""
    with kind(served.target) as client:
        client.search(item="some class/1.png")
        if kind is Client:
            client.close()
        else:
            client._loop.run_until_complete(client._client.close())
        with pytest.raises(Cancelled, match="the client was closed before the call was answered"):
            [*(call(client) or ())]


@KINDS
def test_ready_says_whether_there_is_something_to_search(kind: Any, served: Served, tmp_path: Path) -> None:
    """True on a serving server, False on one without index, False where nobody listens."""
    from indexer.store import Store

    with kind(served.target) as client:
        assert client.ready() is True
    with serving(Store(tmp_path / "empty")) as empty, kind(empty.target) as client:
        assert client.ready() is False
    with kind(f"127.0.0.1:{free_port()}") as client:
        assert client.ready() is False


@KINDS
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_reached_past_a_proxy(
    kind: Any, host: str, served: Served, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which companies name for the rest of the world: nobody could be reached, and the error named its address."""
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with kind(served.target.replace("127.0.0.1", host)) as client:
        assert client.search(item=gallery.items[3], top_k=1).hits[0].item == gallery.items[3]


@pytest.mark.parametrize(
    "target", ["[::1]:50051", "LocalHost", "127.1.2.3:1", "127.0.0.1.example.org:1", "kinsight:1"]
)
def test_other_machines_are_reached_as_the_environment_says(target: str) -> None:
    """Also one whose name begins as a loopback address does."""
    assert (("grpc.enable_http_proxy", 0) in channel.options_for(target)) == (
        not re.search("example|kinsight", target)
    )


@pytest.mark.usefixtures("quick_retries")
@KINDS
@pytest.mark.parametrize("target", ["127.0.0.1:{port}", "no such host:{port}"], ids=["port", "host"])
def test_nobody_at_the_target_is_unavailable_with_its_address(kind: Any, target: str) -> None:
    """After the retries, and well before the timeout; with what to do."""
    port = free_port()
    remedy = f"{port}.*; start a server there, or name another one as HOST:PORT"
    with kind(target.format(port=port)) as client, pytest.raises(kinsight_client.Unavailable, match=remedy):
        client.search(item="a")


@pytest.mark.parametrize("kind", [Client, kinsight_client.AsyncClient])
@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 1e10])
def test_a_timeout_that_no_call_could_keep_is_refused(kind: Any, timeout_s: float) -> None:
    """Where the client is made: calls told of a busy server, or to raise what is endless."""
    with pytest.raises(ValueError, match=rf"timeout_s is {re.escape(f'{timeout_s:g}')}; it must be above 0"):
        kind("127.0.0.1:1", timeout_s=timeout_s)


@pytest.mark.parametrize("kind", [Client, kinsight_client.AsyncClient])
@pytest.mark.parametrize("target", ["127.0.0.1:70000", "[::1]:65536", "localhost:-1", "127.0.0.1:+116086"])
def test_a_port_that_there_can_not_be_is_refused(kind: Any, target: str) -> None:
    """By its number: another server, at the remainder by 65,536, was asked."""
    told = f"the target is '{target}'; its port must be 1 to 65535"
    with pytest.raises(ValueError, match=re.escape(told)):
        kind(target)
    if kind is Client:
        result = CliRunner().invoke(kinsight, ["search", "item:a", "--server", target])
        assert (result.exit_code, told in result.stderr) == (1, True)


@pytest.mark.parametrize("kind", [Client, kinsight_client.AsyncClient])
@pytest.mark.parametrize("target", ["::1:50051", "fe80::1", "2001:DB8::7:443"])
def test_an_address_whose_port_can_not_be_told_is_refused(kind: Any, target: str) -> None:
    """With how to write it: it was taken for one without a port, and nothing was found there."""
    with pytest.raises(ValueError, match=re.escape(f"the target is '{target}'; write an IPv6 address in brackets")):
        kind(target)


def test_a_client_for_asyncio_is_refused_where_no_loop_runs() -> None:
    """As in a module: it took a loop of its own, and every call failed as attached to a different one."""
    with pytest.raises(RuntimeError, match="no event loop runs that the client could use; make it in a coroutine"):
        kinsight_client.AsyncClient("127.0.0.1:1")


def test_the_longest_timeout_is_kept(served: Served, gallery: Gallery) -> None:
    """By calls and by streams."""
    with Client(served.target, timeout_s=1e9) as client:
        for _ in range(3):
            assert client.search(item=gallery.items[3], top_k=1).hits[0].item == gallery.items[3]
        assert client.ready()


RETURNED = [
    ("search", SearchResult),
    ("search_many", list[SearchResult | KinsightError]),
    ("embed", Embedding),
    ("items.delete_many", list[ItemResult]),
    ("models.train", Operation[TrainResult]),
    ("operations.cancel", type(None)),
]


@pytest.mark.parametrize(("name", "returned"), RETURNED, ids=[name for name, _ in RETURNED])
def test_help_says_what_a_method_returns(name: str, returned: Any) -> None:
    """Its answer, and not the call that is made for it."""
    client = Client("127.0.0.1:1")
    assert inspect.signature(attrgetter(name)(client)).return_annotation == returned
    client.close()


@pytest.mark.parametrize(
    ("items", "several"), [(sync_client.Items, Iterator), (async_client.AsyncItems, AsyncIterator)]
)
def test_help_says_that_pages_are_gone_through(items: Any, several: Any) -> None:
    """One by one, with `for` or `async for`."""
    assert inspect.signature(items.list).return_annotation == several[Item]


BEYOND: list[tuple[str, Callable[[Any], Any]]] = [
    ("top_k is 2147483648; it must be 1 to 1000", lambda client: client.search(item="a", top_k=2**31)),
    ("top_k is -2147483649", lambda client: client.search_many(items=["a"], top_k=-(2**31) - 1)),
    ("nprobe is 2147483648; it must be 1 to the number", lambda client: client.search(item="a", nprobe=2**31)),
    ("epochs is 2147483648", lambda client: client.indexes.build(epochs=2**31)),
    ("version is 9223372036854775808", lambda client: client.indexes.activate(2**63)),
    ("version is 9223372036854775808", lambda client: client.indexes.delete_version(2**63)),
    ("version is 9223372036854775808", lambda client: client.indexes.evaluate(2**63)),
    ("seed is 2147483648", lambda client: client.models.train("/images", seed=2**31)),
    ("budget is 2147483648", lambda client: client.models.suggest("model", "/images", 2**31)),
    ("things is 2147483648", lambda client: client.models.calibrate("model", "/images", {"a": "cat"}, things=2**31)),
]


@KINDS
@pytest.mark.parametrize(("problem", "call"), BEYOND, ids=[problem.split()[0] for problem, _ in BEYOND])
def test_a_number_that_no_message_carries_is_named(problem: str, call: Callable[[Any], Any], kind: Any) -> None:
    """By its argument, with what it must be; nobody is called for it."""
    with kind(f"127.0.0.1:{free_port()}") as client, pytest.raises(ValueError, match=problem):
        call(client)

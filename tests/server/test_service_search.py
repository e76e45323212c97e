"""SearchService over a real server."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from kinsight.v1.search_service_pb2 import (
    BatchSearchRequest,
    EmbedRequest,
    SearchParams,
    SearchRequest,
    SearchResponse,
    StreamSearchRequest,
    StreamSearchResponse,
)
from kinsight.v1.search_service_pb2 import Embedding as EmbeddingMessage

from indexer import filters, pixels
from indexer.live_snapshot import Snapshot
from indexer.store import Store
from indexer.version import activate, open_version, version_dir
from server import app, searching
from server.admission import Admission
from tests.serving import SPEC, Gallery, Served, make_gallery, make_version, photo, reason_of, serving, stub_of


@pytest.fixture
def stub(served: Served) -> Iterator[Any]:
    with grpc.insecure_channel(served.target) as channel:
        yield stub_of(channel)


def _hits(response: SearchResponse) -> list[str]:
    return [hit.item for hit in response.hits]


@pytest.mark.parametrize("seed", [0, 7, 23])
def test_an_indexed_photo_finds_itself_first(seed: int, stub: Any, gallery: Gallery) -> None:
    """By its bytes, by its embedding and by its item, with similarity 1."""
    embedding = EmbeddingMessage(model=gallery.model, values=gallery.embeddings[seed].tolist())
    for request in (
        SearchRequest(image=photo(seed)),
        SearchRequest(embedding=embedding),
        SearchRequest(item=gallery.items[seed]),
    ):
        first = stub.Search(request).hits[0]
        assert first.item == gallery.items[seed]
        assert first.similarity == pytest.approx(1, abs=1e-5)


def test_hits_are_those_of_a_plain_comparison(stub: Any, gallery: Gallery) -> None:
    """The answer is the order of the cosines, with the cosines."""
    query = gallery.embeddings[5]
    cosines = [sum(float(a) * float(b) for a, b in zip(query, row, strict=True)) for row in gallery.embeddings]
    expected = sorted(range(len(cosines)), key=lambda row: -cosines[row])[:8]
    response = stub.Search(SearchRequest(item=gallery.items[5], top_k=8))
    assert [gallery.items[row] for row in expected] == _hits(response)
    np.testing.assert_allclose(
        [cosines[row] for row in expected], [hit.similarity for hit in response.hits], atol=1e-5
    )


def test_an_answer_names_index_version_and_model(stub: Any, gallery: Gallery) -> None:
    """Whoever keeps an answer knows what it came from."""
    response = stub.Search(SearchRequest(item=gallery.items[0]))
    assert ("photos", 1, gallery.model) == (response.index, response.version, response.model)


@pytest.mark.parametrize(("top_k", "expected"), [(None, 10), (1, 1), (24, 24), (1000, 24)])
def test_as_many_hits_as_asked_for_or_as_there_are(
    top_k: int | None, expected: int, stub: Any, gallery: Gallery
) -> None:
    """Ten unless said; more than the index holds gives all of it."""
    response = stub.Search(SearchRequest(item=gallery.items[0], top_k=top_k))
    assert expected == len(set(_hits(response)))


def test_an_embedding_of_any_length_is_scaled(stub: Any, gallery: Gallery) -> None:
    """Only its direction counts, up to the ends of float32."""
    for scale in (1e-20, 1.0, 1e30):
        values = (gallery.embeddings[2] * np.float32(scale)).tolist()
        response = stub.Search(SearchRequest(embedding=EmbeddingMessage(model=gallery.model, values=values)))
        assert gallery.items[2] == response.hits[0].item
        assert response.hits[0].similarity == pytest.approx(1, abs=1e-5)


def test_embed_gives_what_the_encoder_gives(stub: Any, gallery: Gallery) -> None:
    """Unit length, from the same pixels, with the model's id."""
    embedding = stub.Embed(EmbedRequest(image=photo(9))).embedding
    assert gallery.model == embedding.model
    np.testing.assert_allclose(gallery.embeddings[9], embedding.values, atol=1e-6)


def test_exact_and_nprobe_give_the_same_on_a_flat_index(stub: Any, gallery: Gallery) -> None:
    """The parameters reach the index and are accepted by it."""
    answers = [
        _hits(stub.Search(SearchRequest(item=gallery.items[1], params=params)))
        for params in (SearchParams(), SearchParams(exact=True), SearchParams(nprobe=5))
    ]
    assert answers[0] == answers[1] == answers[2]


def test_concurrent_requests_get_each_its_own_answer(served: Served, gallery: Gallery) -> None:
    """Batches of images and of different queries are taken apart again as they were put together."""

    async def one(stub: Any, number: int) -> str:
        seed = number % 24
        request = SearchRequest(image=photo(seed)) if number % 2 else SearchRequest(item=gallery.items[seed])
        request.top_k = 1 + number % 3
        response = await stub.Search(request)
        assert 1 + number % 3 == len(response.hits)
        return str(response.hits[0].item)

    async def body() -> list[str]:
        async with grpc.aio.insecure_channel(served.target) as channel:
            stub = stub_of(channel)
            return await asyncio.gather(*(one(stub, number) for number in range(120)))

    assert [gallery.items[number % 24] for number in range(120)] == asyncio.run(body())


def test_one_unknown_item_does_not_fail_the_batch_that_it_is_in(gallery: Gallery, served: Served) -> None:
    """Its neighbours in the batch are answered."""
    index = served.running.indexes.get("photos")
    group = searching.Group(index, 1, None, False)
    good, bad = searching.search(
        [searching.Query(group, gallery.items[4]), searching.Query(group, "nobody")],
    )
    assert isinstance(good, SearchResponse)
    assert [gallery.items[4]] == _hits(good)
    assert "nobody" in str(bad)


def test_a_batch_answers_each_query_as_a_search_of_its_own(stub: Any, gallery: Gallery) -> None:
    """Images, embeddings and items together, with different options, more than one call of FAISS takes."""
    embedding = EmbeddingMessage(model=gallery.model, values=gallery.embeddings[7].tolist())
    requests = [
        SearchRequest(image=photo(3), top_k=2),
        SearchRequest(embedding=embedding, params=SearchParams(exact=True)),
        *(SearchRequest(item=item, top_k=1 + row % 5) for row, item in enumerate(gallery.items * 4)),
    ]
    results = stub.BatchSearch(BatchSearchRequest(requests=requests)).results
    assert len(requests) == len(results) == 98
    for request, result in zip(requests, results, strict=True):
        alone = stub.Search(request)
        assert result.status.code == 0
        assert _hits(alone) == _hits(result.response)
        assert (alone.index, alone.version, alone.model) == (
            result.response.index,
            result.response.version,
            result.response.model,
        )
        np.testing.assert_allclose(
            [hit.similarity for hit in alone.hits], [hit.similarity for hit in result.response.hits], atol=1e-6
        )


def test_what_is_wrong_with_a_query_of_a_batch_is_said_in_its_place(stub: Any, gallery: Gallery) -> None:
    """The other queries are answered."""
    other_model = EmbeddingMessage(model="another", values=gallery.embeddings[7].tolist())
    requests = [
        SearchRequest(item=gallery.items[1]),
        SearchRequest(image=b"not an image"),
        SearchRequest(item="nobody"),
        SearchRequest(),
        SearchRequest(item=gallery.items[1], top_k=0),
        SearchRequest(embedding=other_model),
        SearchRequest(item=gallery.items[1], index="elsewhere"),
        SearchRequest(image=photo(2)),
    ]
    results = stub.BatchSearch(BatchSearchRequest(requests=requests)).results
    assert [reason_of(result.status)[1] for result in results] == [
        "",
        "IMAGE_DECODE_FAILED",
        "ITEM_NOT_FOUND",
        "QUERY_MISSING",
        "TOP_K_OUT_OF_RANGE",
        "MODEL_MISMATCH",
        "INDEX_NOT_FOUND",
        "",
    ]
    assert [result.HasField("response") for result in results] == [True, *[False] * 6, True]


@pytest.mark.parametrize("count", [0, 257])
def test_a_batch_has_a_most_and_a_least(count: int, stub: Any, gallery: Gallery) -> None:
    """Neither no query nor a queue that others would wait behind."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.BatchSearch(BatchSearchRequest(requests=[SearchRequest(item=gallery.items[0])] * count))
    assert reason_of(caught.value) == ("INVALID_ARGUMENT", "BATCH_SIZE_OUT_OF_RANGE")
    assert f"{count} queries; it must be 1 to 256" in str(caught.value.details())


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([SearchRequest(item="a", top_k=1000)] * 26, "26,000 hits, .* at most 25,600"),
        ([SearchRequest(item="a", include_payload=True)] * 101, "1,010 hits with payloads, .* at most 1,000"),
    ],
)
def test_the_answer_to_a_batch_has_a_most(requests: list[SearchRequest], message: str, stub: Any) -> None:
    """It is one message: 256 queries with 1,000 payloads of 64 KiB each would be 16 GiB of the server's memory."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.BatchSearch(BatchSearchRequest(requests=requests))
    assert reason_of(caught.value) == ("INVALID_ARGUMENT", "BATCH_SIZE_OUT_OF_RANGE")
    assert re.search(message, str(caught.value.details()))


def test_only_what_a_batch_can_have_counts(stub: Any, gallery: Gallery) -> None:
    """A query that is refused for its top_k is refused alone, and as many hits as are allowed are found."""
    requests = [SearchRequest(item=gallery.items[1], top_k=top_k) for top_k in (2**31 - 1, -(2**31), *[1000] * 24)]
    results = stub.BatchSearch(BatchSearchRequest(requests=requests)).results
    assert {reason_of(result.status)[1] for result in results[:2]} == {"TOP_K_OUT_OF_RANGE"}
    assert [len(result.response.hits) for result in results[2:]] == [24] * 24


def test_a_batch_to_a_server_without_an_index_fails_as_a_whole(tmp_path: Path) -> None:
    """UNAVAILABLE, which clients retry, and not 3 errors that they don't."""
    request = BatchSearchRequest(requests=[SearchRequest(item="anything")] * 3)
    with serving(Store(tmp_path)) as empty, grpc.insecure_channel(empty.target) as channel:
        call = stub_of(channel).BatchSearch.future(request)
        caught = call.exception(30)
    assert reason_of(caught) == ("UNAVAILABLE", "NO_INDEX")


def test_an_index_that_is_broken_fails_only_its_queries_of_a_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By a failure that nobody foresaw: each as its Search would, and the log says it once."""
    gallery = make_gallery(tmp_path)
    make_version(gallery.store, "broken", 1, gallery.model, gallery.items, gallery.embeddings)
    requests = [
        SearchRequest(item=gallery.items[1], index=index) for index in ("photos", "broken", "broken", "photos")
    ]
    with serving(gallery.store) as served, grpc.insecure_channel(served.target) as channel:
        served.running.indexes.get("broken").version._items._connection.close()
        with caplog.at_level(logging.ERROR, "server.answers"):
            results = stub_of(channel).BatchSearch(BatchSearchRequest(requests=requests)).results
    assert [reason_of(result.status)[1] for result in results] == ["", "INTERNAL", "INTERNAL", ""]
    assert {len(result.response.hits) for result in (results[0], results[3])} == {10}
    assert [record.message for record in caplog.records] == ["a request failed"]


def test_a_least_similarity_does_not_wait_for_filters(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    """Which may read the payloads of all items first; a search with it is as quick as one without."""
    reads, may_read = threading.Event(), threading.Event()
    matching = Snapshot.matching

    def slow(snapshot: Snapshot, expression: Any) -> Any:
        reads.set()
        assert may_read.wait(20)
        return matching(snapshot, expression)

    monkeypatch.setattr(Snapshot, "matching", slow)
    with grpc.insecure_channel(served.target) as channel:
        stub = stub_of(channel)
        filtered = stub.Search.future(SearchRequest(item=gallery.items[1], filter="item:*"), timeout=30)
        assert reads.wait(20)
        try:
            near = SearchRequest(item=gallery.items[1], min_similarity=0.999)
            assert _hits(stub.Search(near, timeout=10)) == [gallery.items[1]]
        finally:
            may_read.set()
        assert gallery.items[1] in _hits(filtered.result())


def test_filters_are_parsed_beside_the_event_loop(
    gallery: Gallery, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each long one takes milliseconds, in which nobody else would be answered; what is wrong is told alike."""
    parsers = []
    parse = filters.parse

    def parse_noting(text: str) -> filters.Expression:
        parsers.append(asyncio._get_running_loop())
        return parse(text)

    monkeypatch.setattr(filters, "parse", parse_noting)
    conditions = [" OR ".join(f"item = a{number}" for number in range(count)) for count in (100, 200)]
    requests = [SearchRequest(item=gallery.items[0], filter=text) for text in (*conditions, "item =")]
    results = stub.BatchSearch(BatchSearchRequest(requests=requests)).results
    assert [reason_of(one.status)[1] if one.status.code else "" for one in results] == ["", "", "FILTER_SYNTAX"]
    assert parsers == [None] * 3


def test_a_batch_is_answered_by_one_version_while_others_are_swapped_in(tmp_path: Path) -> None:
    """Though it is searched in parts, and the versions change as fast as they can between them."""
    gallery = make_gallery(tmp_path)
    for number in (2, 3):
        make_version(gallery.store, "photos", number, gallery.model, gallery.items, gallery.embeddings, False)
    request = BatchSearchRequest(requests=[SearchRequest(item=gallery.items[row % 24]) for row in range(256)])
    seen = set[int]()
    with serving(gallery.store) as served, grpc.insecure_channel(served.target) as channel:
        stub = stub_of(channel)
        for turn in range(30):
            answer = stub.BatchSearch.future(request)
            activate(gallery.store.index("photos"), 2 + turn % 2)
            served.running.indexes.refresh()
            versions = {result.response.version for result in answer.result(30).results}
            assert len(versions) == 1
            seen |= versions
    assert len(seen) > 1


class Stream:
    """A StreamSearch, message by message."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._messages: SimpleQueue[StreamSearchRequest | None] = SimpleQueue()
        self.call: Any = stub_of(channel).StreamSearch(iter(self._messages.get, None), timeout=60)
        self.call.add_callback(self.end)

    def send(self, *requests: SearchRequest) -> None:
        self._messages.put(StreamSearchRequest(requests=requests))

    def answer(self, *requests: SearchRequest) -> StreamSearchResponse:
        self.send(*requests)
        response: StreamSearchResponse = next(self.call)
        return response

    def end(self) -> None:
        self._messages.put(None)


@pytest.fixture
def stream(served: Served) -> Iterator[Stream]:
    with grpc.insecure_channel(served.target) as channel:
        yield Stream(channel)


def test_each_message_of_a_stream_is_answered_as_a_batch_in_its_turn(
    stub: Any, stream: Stream, gallery: Gallery
) -> None:
    """One query or many, by what they like, sent before the first is answered; until the client has no more."""
    embedding = EmbeddingMessage(model=gallery.model, values=gallery.embeddings[7].tolist())
    messages = [
        [SearchRequest(item=gallery.items[3], top_k=2)],
        [SearchRequest(image=photo(4), top_k=2), SearchRequest(embedding=embedding, params=SearchParams(exact=True))],
        [SearchRequest(item=item, top_k=1 + row % 5) for row, item in enumerate(gallery.items * 10)],
        [SearchRequest(item=gallery.items[5])],
    ]
    for message in messages:
        stream.send(*message)
    stream.end()
    answers = list(stream.call)
    assert len(answers) == 4
    for message, answer in zip(messages, answers, strict=True):
        alone = stub.BatchSearch(BatchSearchRequest(requests=message)).results
        assert [_hits(one.response) for one in answer.results] == [_hits(one.response) for one in alone]
    assert stream.call.code() is grpc.StatusCode.OK


def test_what_is_wrong_with_a_query_does_not_end_its_stream(stream: Stream, gallery: Gallery) -> None:
    """Be it alone in its message or not, and whatever is wrong."""
    good = SearchRequest(item=gallery.items[1], top_k=1)
    for wrong, reason in (
        (SearchRequest(item="nobody"), "ITEM_NOT_FOUND"),
        (SearchRequest(image=b"not an image"), "IMAGE_DECODE_FAILED"),
        (SearchRequest(), "QUERY_MISSING"),
        (SearchRequest(item=gallery.items[1], index="elsewhere"), "INDEX_NOT_FOUND"),
    ):
        (alone,) = stream.answer(wrong).results
        beside, right = stream.answer(wrong, good).results
        assert reason_of(alone.status)[1] == reason_of(beside.status)[1] == reason
        assert alone.status == beside.status
        assert not alone.HasField("response")
        assert _hits(right.response) == [gallery.items[1]]


def test_a_message_that_fails_as_a_whole_ends_its_stream(stream: Stream, gallery: Gallery) -> None:
    """With the error of a BatchSearch, after the answers to those before."""
    stream.answer(SearchRequest(item=gallery.items[1]))
    with pytest.raises(grpc.RpcError) as caught:
        stream.answer()
    assert reason_of(caught.value) == ("INVALID_ARGUMENT", "BATCH_SIZE_OUT_OF_RANGE")


def test_each_message_of_a_stream_is_counted_in(gallery: Gallery) -> None:
    """And an open stream that asks nothing is not: any number of them leave room for requests."""
    quick = SearchRequest(item=gallery.items[1])
    admission = Admission(max_requests=1)
    with serving(gallery.store, admission=admission) as served, grpc.insecure_channel(served.target) as channel:
        idle = [Stream(channel) for _ in range(5)]
        for one in idle:
            assert one.answer(quick).results
        with admission.admit(0), pytest.raises(grpc.RpcError) as caught:
            idle[0].answer(quick)
        assert reason_of(caught.value) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert idle[1].answer(quick).results


def test_a_stream_to_a_server_without_an_index_fails_as_a_whole(tmp_path: Path) -> None:
    """UNAVAILABLE, as a batch."""
    with (
        serving(Store(tmp_path)) as empty,
        grpc.insecure_channel(empty.target) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        Stream(channel).answer(SearchRequest(item="anything"))
    assert reason_of(caught.value) == ("UNAVAILABLE", "NO_INDEX")


def test_a_stream_goes_on_over_a_swap(tmp_path: Path) -> None:
    """Each message is answered by the version that is active when it comes."""
    gallery = make_gallery(tmp_path)
    make_version(gallery.store, "photos", 2, gallery.model, gallery.items, gallery.embeddings, False)
    with serving(gallery.store) as served, grpc.insecure_channel(served.target) as channel:
        stream, versions = Stream(channel), []
        for number in (1, 2, 1):
            activate(gallery.store.index("photos"), number)
            served.running.indexes.refresh()
            versions.append(stream.answer(SearchRequest(item=gallery.items[1])).results[0].response.version)
    assert versions == [1, 2, 1]


def test_streams_end_when_the_server_shuts_down(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where they are idle, and otherwise after the answer that is being made; none is waited for."""
    searches, may_search = threading.Event(), threading.Event()
    search = Snapshot.search

    def slow(snapshot: Snapshot, *args: Any, **options: Any) -> Any:
        searches.set()
        assert may_search.wait(20)
        return search(snapshot, *args, **options)

    quick = SearchRequest(item=gallery.items[1], top_k=1)
    with serving(gallery.store) as served, grpc.insecure_channel(served.target) as channel:
        idle, fresh, busy = (Stream(channel) for _ in range(3))
        idle.answer(quick)
        monkeypatch.setattr(Snapshot, "search", slow)
        busy.send(quick)
        busy.send(quick)
        assert searches.wait(20)
        began = time.monotonic()
        drained = asyncio.run_coroutine_threadsafe(app.drain(served.running), served.loop)
        for one in (idle, fresh):
            assert list(one.call) == []
            assert one.call.code() is grpc.StatusCode.OK
        may_search.set()
        (answer,) = busy.call
        assert _hits(answer.results[0].response) == [gallery.items[1]]
        assert busy.call.code() is grpc.StatusCode.OK
        drained.result(20)
    assert time.monotonic() - began < app.DRAIN_TIMEOUT_S / 2


def test_a_stream_that_its_client_leaves_gives_its_place_back(
    gallery: Gallery, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a message."""
    searches, may_search = threading.Event(), threading.Event()

    def slow(snapshot: Snapshot, *args: Any, **options: Any) -> Any:
        searches.set()
        assert may_search.wait(20)
        raise AssertionError("nobody waits for it")

    monkeypatch.setattr(Snapshot, "search", slow)
    with grpc.insecure_channel(served.target) as channel:
        stream = Stream(channel)
        stream.send(SearchRequest(item=gallery.items[1]))
        assert searches.wait(20)
        admission = served.running.admission
        assert admission._requests == 1
        stream.call.cancel()
        give_up = time.monotonic() + 10
        while admission._requests and time.monotonic() < give_up:
            time.sleep(0.01)
        may_search.set()
        assert (admission._requests, admission._request_bytes, admission._idle_streams) == (0, 0, set())


def test_a_request_whose_deadline_passed_is_not_worked_on(served: Served) -> None:
    """The client hears DEADLINE_EXCEEDED, and the place it took is free again."""
    with grpc.insecure_channel(served.target) as channel:
        stub = stub_of(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Search(SearchRequest(image=photo(1, side=3000)), timeout=0.002)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    give_up = time.monotonic() + 5
    while served.running.admission._requests and time.monotonic() < give_up:
        time.sleep(0.01)
    assert served.running.admission._requests == 0


def test_item_ids_are_those_of_the_version(gallery: Gallery) -> None:
    """The table in memory agrees with the version's own, for ids of any script too."""
    from server.item_ids import ItemIds

    version = open_version(version_dir(gallery.store.index("photos"), 1))
    rows = np.array([3, 0, 23, 3])
    assert version.items(rows) == ItemIds(version).of(rows)


def test_the_server_decodes_with_the_models_own_pixels(stub: Any, gallery: Gallery) -> None:
    """The one preprocessing: a JPEG through the server is the JPEG through `pixels.decode` and the encoder."""
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.open(io.BytesIO(photo(3, side=80))).save(data, "JPEG", quality=80)
    from indexer.encoder import Encoder

    encoder = Encoder.open(gallery.store.model(gallery.model), threads=1)
    (expected,) = encoder.embed(pixels.decode(data.getvalue(), SPEC)[None])
    np.testing.assert_allclose(expected, stub.Embed(EmbedRequest(image=data.getvalue())).embedding.values, atol=1e-6)

"""The streams over which both clients search: when one is opened, used again and given up, and what comes then."""

import asyncio
import gc
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from kinsight.v1.search_service_pb2 import Hit, SearchRequest, SearchResponse
from kinsight.v1.search_service_pb2_grpc import SearchServiceServicer, add_SearchServiceServicer_to_server
from kinsight_client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    NotFound,
    ResourceExhausted,
    SearchResult,
    Unavailable,
)

from indexer.store import Store
from server.admission import Admission
from tests.clients.both import KINDS, Blocking
from tests.serving import Gallery, make_gallery, server_process, serving
from tests.waiting import NO_FLAKE_S, until


class Counting(Admission):
    """An admission that counts streams, and what they ask."""

    def __init__(self, max_requests: int = 256) -> None:
        super().__init__(max_requests=max_requests)
        self.streams = 0
        self.messages = 0

    async def until_drained(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        self.streams += 1
        async for request in super().until_drained(requests):
            self.messages += 1
            yield request


def search_twice(client: Any, gallery: Gallery) -> None:
    """So that a stream is open: the first search is a call."""
    for _ in range(2):
        client.search(item=gallery.items[1])


@contextmanager
def counted(store: Store, kind: Any, **options: float) -> Iterator[tuple[Any, Counting]]:
    """A client of a server that counts its streams."""
    counting = Counting()
    with serving(store, admission=counting) as served, kind(served.target, **options) as client:
        yield client, counting


@KINDS
def test_searches_one_after_the_other_share_a_stream(kind: Any, gallery: Gallery) -> None:
    """Also after one that failed, as that says nothing of the stream; each has the answer to its own question."""
    with counted(gallery.store, kind, timeout_s=600) as (client, counting):
        for item in gallery.items * 2:
            assert client.search(item=item, top_k=1).hits[0].item == item
            with pytest.raises(NotFound, match="nobody"):
                client.search(item="nobody")
    assert (counting.streams, counting.messages) == (1, 4 * len(gallery.items) - 1)  # the very first is a call


@KINDS
def test_what_is_not_quick_is_a_call_of_its_own(kind: Any, gallery: Gallery) -> None:
    """It may take long, and would hold up the stream."""
    with counted(gallery.store, kind) as (client, counting):
        assert client.search(item=gallery.items[2], top_k=1, exact=True).hits[0].item == gallery.items[2]
        assert client.search_many(items=gallery.items[:3], top_k=1)[1].hits[0].item == gallery.items[1]
    assert counting.streams == 0


@KINDS
def test_a_stream_is_used_for_a_tenth_of_the_time_that_a_search_has(kind: Any, gallery: Gallery) -> None:
    """Because its deadline is that of its last search, and a tenth later than that of its first."""
    with counted(gallery.store, kind, timeout_s=5) as (client, counting):
        began = time.monotonic()
        while counting.streams < 3:
            assert client.search(item=gallery.items[1], top_k=1).hits[0].item == gallery.items[1]
            searched_s = time.monotonic() - began
            assert counting.streams <= 1 + searched_s / 0.5
            assert searched_s < NO_FLAKE_S
            time.sleep(0.01)


@KINDS
def test_searches_that_come_seldom_are_calls(kind: Any, gallery: Gallery) -> None:
    """A stream would be open for a tenth of their time, and nobody would use it again."""
    with counted(gallery.store, kind, timeout_s=2) as (client, counting):
        for _ in range(3):
            assert client.search(item=gallery.items[1], top_k=1)
            time.sleep(0.25)
    assert counting.streams == 0


@KINDS
def test_a_silent_server_is_waited_for_as_long_as_a_search_has(kind: Any, gallery: Gallery) -> None:
    """And a tenth of it."""
    with server_process(gallery.store) as (process, target), kind(target, timeout_s=1.5) as client:
        search_twice(client, gallery)
        process.send_signal(signal.SIGSTOP)
        for _ in range(2):  # over a stream, and by a call, as the last one is some time ago
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded, match="send less in a call, or raise timeout_s"):
                client.search(item=gallery.items[1])
            assert 1.4 < time.monotonic() - began < 2.7
        process.send_signal(signal.SIGCONT)
        assert client.search(item=gallery.items[1], top_k=1).hits[0].item == gallery.items[1]


@contextmanager
def drained(store: Store) -> Iterator[str]:
    """The target of a server that ends as it should."""
    with serving(store) as served:
        yield served.target


@contextmanager
def killed(store: Store) -> Iterator[str]:
    """The target of a server that is killed in the end."""
    with server_process(store) as (process, target):
        yield target
        process.kill()
        process.wait(20)


@KINDS
@pytest.mark.parametrize("ends", [drained, killed])
def test_a_server_that_is_started_anew_answers_the_next_search(ends: Any, kind: Any, gallery: Gallery) -> None:
    """Though the stream to the one before is gone; by a call, which is retried until the new one listens."""
    with ExitStack() as stack:
        with ends(gallery.store) as target:
            client = stack.enter_context(kind(target, timeout_s=30))
            search_twice(client, gallery)
        with serving(gallery.store, port=int(target.rpartition(":")[2])):
            for item in gallery.items[:3]:
                assert client.search(item=item, top_k=1).hits[0].item == item


@pytest.mark.usefixtures("quick_retries")
@KINDS
def test_no_server_is_unavailable_after_one_round_of_retries(kind: Any, gallery: Gallery) -> None:
    """The stream is not retried before the call is."""
    with ExitStack() as stack:
        with killed(gallery.store) as target:
            client = stack.enter_context(kind(target, timeout_s=60))
            search_twice(client, gallery)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            client.search(item=gallery.items[1])
        assert time.monotonic() - began < 8


@KINDS
def test_an_error_of_the_whole_message_is_the_search_s(kind: Any, gallery: Gallery) -> None:
    """With its reason; and the next search is answered."""
    admission = Counting(max_requests=1)
    with serving(gallery.store, admission=admission) as served, kind(served.target) as client:
        search_twice(client, gallery)
        with admission.admit(0), pytest.raises(ResourceExhausted) as caught:
            client.search(item=gallery.items[1])
        assert caught.value.reason == "OVERLOADED"
        assert client.search(item=gallery.items[1], top_k=1).hits[0].item == gallery.items[1]


class Older(SearchServiceServicer):
    """A server without StreamSearch, which counts how often it is asked for one."""

    def __init__(self) -> None:
        self.streams = 0

    def StreamSearch(self, requests: object, context: grpc.ServicerContext) -> None:  # noqa: N802 - gRPC's
        """What gRPC answers for a method that is not there."""
        self.streams += 1
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    def Search(self, request: SearchRequest, context: object) -> SearchResponse:  # noqa: N802 - gRPC's
        """The item that was asked for."""
        return SearchResponse(hits=[Hit(item=request.item, similarity=1.0)])


@KINDS
def test_a_server_without_streams_is_called(kind: Any) -> None:
    """It answers by calls all that others answer by streams, and is not asked for one with every search.

    It is asked again where gRPC's asyncio learns that it can't write to what has ended before it learns why.
    """
    server, older = grpc.server(futures.ThreadPoolExecutor(2)), Older()
    add_SearchServiceServicer_to_server(older, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with kind(f"127.0.0.1:{port}") as client:
            assert [client.search(item=item).hits[0].item for item in "abcdefgh"] == [*"abcdefgh"]
    finally:
        server.stop(None).wait()
    assert 1 <= older.streams <= 4


LEFT_OPEN = """
import asyncio, sys
from kinsight_client import AsyncClient, Client

async def search_with_tasks():
    client = AsyncClient(sys.argv[1])
    return [(await client.search(item=sys.argv[2], top_k=1)).hits[0].item for _ in range(3)]

client = Client(sys.argv[1])
print([client.search(item=sys.argv[2], top_k=1).hits[0].item for _ in range(3)], asyncio.run(search_with_tasks()))
"""


def test_a_program_that_never_closes_its_client_ends_all_the_same(tmp_path: Path) -> None:
    """And says nothing."""
    gallery = make_gallery(tmp_path, count=3)
    with serving(gallery.store) as served:
        command = [sys.executable, "-c", LEFT_OPEN, served.target, gallery.items[1]]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert re.findall(r"'(.*?)'", found.stdout) == [gallery.items[1]] * 6


def test_a_client_that_is_dropped_without_being_closed_leaves_nothing(gallery: Gallery) -> None:
    """Neither gRPC's threads nor the stream of a client that nobody has any more, however late its deadline."""
    counting = Counting()
    with serving(gallery.store, admission=counting) as served:
        before = {*threading.enumerate()}
        client = Client(served.target, timeout_s=600)
        search_twice(client, gallery)
        assert (counting.streams, {*threading.enumerate()} <= before) == (1, False)
        del client
        gc.collect()
        until(lambda: {*threading.enumerate()} <= before and not counting._idle_streams)


def test_closing_leaves_no_task_to_the_loop(gallery: Gallery) -> None:
    """Which may be closed right after, without a word."""
    with serving(gallery.store) as served, Blocking(served.target) as client:
        search_twice(client, gallery)
        client._loop.run_until_complete(client._client.close())
        assert asyncio.all_tasks(client._loop) == set()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21])
def test_closing_while_a_stream_is_opened_ends_its_search(turns: int, gallery: Gallery) -> None:
    """Wherever the opening is."""

    async def searched_and_closed(target: str) -> list[Any]:
        client = AsyncClient(target, timeout_s=60)
        await client.search(item=gallery.items[1])
        searches = [asyncio.create_task(client.search(item=gallery.items[1])) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(client.close(), 10)
        return await asyncio.wait_for(asyncio.gather(*searches, return_exceptions=True), 10)

    with serving(gallery.store) as served:
        ended = asyncio.run(searched_and_closed(served.target))
    assert {type(one) for one in ended} <= {Cancelled, SearchResult}


def test_threads_beyond_one_that_is_stuck_have_a_stream_of_their_own(gallery: Gallery) -> None:
    """A stream in use is nobody else's: two answers would be mixed up."""
    with counted(gallery.store, Client, timeout_s=60) as (client, counting):
        search_twice(client, gallery)
        stuck = client._streams._idle.take(60)
        assert client.search(item=gallery.items[1], top_k=1).hits[0].item == gallery.items[1]
        assert counting.streams == 2
        assert stuck is not None
        stuck.end()

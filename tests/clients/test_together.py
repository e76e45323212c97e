"""Searches that threads of one Client, or tasks of one AsyncClient, make at the same time."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinsight_client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Embedding,
    KinsightError,
    SearchResult,
    Unavailable,
    sync_client,
)

from indexer.catalog import CatalogBusy
from server import searching, service_search
from server.admission import Admission, Admitted
from server.searching import Query
from tests.serving import Gallery, Served, make_gallery, make_version, photo, server_process, serving
from tests.waiting import NO_FLAKE_S, until

Asked = Sequence[dict[str, Any]]


class Gate(Admission):
    """An admission that lets each call in when it is told to, and holds up the whole server until then."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self._places = threading.Semaphore(0)

    def admit(self, request_bytes: int) -> Admitted:
        self.calls += 1
        assert self._places.acquire(timeout=60)
        return super().admit(request_bytes)

    def open(self, calls: int = 1000) -> None:
        """Let so many calls in."""
        self._places.release(calls)


class Threads:
    """A Client, each of whose searches is in a thread of its own."""

    def __init__(self, target: str, **options: float) -> None:
        self.client = Client(target, **options)
        self._pool = ThreadPoolExecutor(400)

    def start(self, **query: Any) -> Future[SearchResult]:
        return self._pool.submit(self.client.search, **query)

    def end(self) -> None:
        self.client.close()
        self._pool.shutdown()


class Tasks:
    """An AsyncClient on the event loop of a thread, each of whose searches is a task."""

    def __init__(self, target: str, **options: float) -> None:
        self._loop = asyncio.new_event_loop()
        self._complaints: list[Any] = []
        self._loop.set_exception_handler(lambda _, complaint: self._complaints.append(complaint))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.client = self._on_loop(self._make(target, options)).result(10)

    async def _make(self, target: str, options: dict[str, float]) -> AsyncClient:
        return AsyncClient(target, **options)

    def _on_loop(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def start(self, **query: Any) -> Future[SearchResult]:
        return self._on_loop(self.client.search(**query))

    def end(self) -> None:
        self._on_loop(self.client.close()).result(10)
        try:
            # gRPC's own tasks of calls that were cancelled end in their own time.
            until(lambda: not asyncio.all_tasks(self._loop))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()
        assert self._complaints == []


KINDS = pytest.mark.parametrize("kind", [Threads, Tasks], ids=["threads", "tasks"])


def until_waiting(users: Any, count: int) -> None:
    """Return as soon as so many searches wait in the client."""
    until(lambda: len(users.client._line._waiting) == count)


@contextmanager
def gated(store: Any, kind: Any, **options: float) -> Iterator[tuple[Any, Gate]]:
    """Users of one client of a server behind a gate, which is open in the end."""
    gate = Gate()
    with serving(store, admission=gate) as served:
        users = kind(served.target, **options)
        try:
            yield users, gate
        finally:
            gate.open()
            users.end()


def together(users: Any, gate: Gate, first: dict[str, Any], others: Asked) -> list[Future[SearchResult]]:
    """Start searches, of which the first has come to the gate and all others wait in the client."""
    started = [users.start(**first)]
    until(lambda: gate.calls == 1)
    for number, query in enumerate(others, 1):
        started.append(users.start(**query))
        until_waiting(users, number)
    return started


def ended(started: Sequence[Future[SearchResult]]) -> list[SearchResult | BaseException]:
    """The result or error of each."""
    assert not wait_for(started, NO_FLAKE_S).not_done
    return [one.exception() or one.result() for one in started]


def assert_same(found: SearchResult | BaseException, alone: SearchResult) -> None:
    assert isinstance(found, SearchResult), found
    assert [hit.item for hit in found.hits] == [hit.item for hit in alone.hits]
    similarities = [[hit.similarity for hit in one.hits] for one in (found, alone)]
    np.testing.assert_allclose(similarities[0], similarities[1], atol=1e-6)
    assert (found.index, found.version, found.model) == (alone.index, alone.version, alone.model)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each message for several holds that comes to a server of this process."""
    sizes: list[int] = []
    check = service_search._check_size

    def counted(requests: Any) -> None:
        if len(requests) > 1:
            sizes.append(len(requests))
        check(requests)

    monkeypatch.setattr(service_search, "_check_size", counted)
    return sizes


@KINDS
def test_searches_at_the_same_time_are_one_call_and_each_has_its_own_answer(
    kind: Any, gallery: Gallery, served: Served, batches: list[int]
) -> None:
    """By items and embeddings, with different options: what one after the other finds, in two calls for 81."""
    embeddings = [Embedding(gallery.model, row) for row in gallery.embeddings]
    queries: Asked = [
        *({"item": item, "top_k": 1 + row % 7} for row, item in enumerate(gallery.items)),
        *({"embedding": one, "index": "photos", "nprobe": 1 + row % 2} for row, one in enumerate(embeddings)),
        *({"item": item, "min_similarity": 0.5} for item in gallery.items),
        *({"embedding": one, "target_recall": 0.9, "top_k": 1000} for one in embeddings[:9]),
    ]
    with Client(served.target) as client:
        alone = [client.search(**query) for query in queries]
    with gated(gallery.store, kind) as (users, gate):
        started = together(users, gate, queries[0], queries[1:])
        gate.open()
        for one, result in zip(alone, ended(started), strict=True):
            assert_same(result, one)
        assert (gate.calls, batches) == (2, [80])


@KINDS
def test_under_load_calls_are_far_fewer_than_searches(kind: Any, gallery: Gallery, batches: list[int]) -> None:
    """Eight users who search again and again, on a server that nothing holds up."""
    gate = Gate()
    gate.open(1000)
    with serving(gallery.store, admission=gate) as served:
        users = kind(served.target)
        for _ in range(20):
            started = [users.start(item=item, top_k=1) for item in gallery.items]
            assert [one.hits[0].item for one in ended(started) if isinstance(one, SearchResult)] == gallery.items
        users.end()
    assert gate.calls < 20 * len(gallery.items)
    assert sum(batches) + gate.calls - len(batches) == 20 * len(gallery.items)


@KINDS
def test_one_that_waited_alone_is_a_message_of_its_own(kind: Any, gallery: Gallery) -> None:
    """It waits for no company; and where no stream answers it is a Search, see test_streams.py."""
    with gated(gallery.store, kind) as (users, gate):
        started = together(users, gate, {"item": gallery.items[0]}, [{"item": gallery.items[1], "top_k": 1}])
        gate.open()
        _, second = ended(started)
        assert isinstance(second, SearchResult)
        assert second.hits[0].item == gallery.items[1]
        assert gate.calls == 2


@KINDS
def test_what_is_wrong_with_a_search_is_raised_by_it_alone(kind: Any, gallery: Gallery, served: Served) -> None:
    """The error that it raises by itself, while the others are answered."""
    wrong: Asked = [
        {"item": "nobody"},
        {"item": gallery.items[1], "index": "elsewhere"},
        {"embedding": Embedding("other", gallery.embeddings[0])},
        {"embedding": Embedding(gallery.model, gallery.embeddings[0][:3])},
        {"item": gallery.items[1], "top_k": 0},
        {"item": gallery.items[1], "nprobe": 0},
        {"item": gallery.items[1], "min_similarity": 2.0},
        {"item": gallery.items[1], "probability": True},
        {"item": "nobody"},
    ]
    good: dict[str, Any] = {"item": gallery.items[3], "top_k": 2}
    alone: list[KinsightError] = []
    with Client(served.target) as client:
        right = client.search(**good)
        for query in wrong:
            with pytest.raises(KinsightError) as caught:
                client.search(**query)
            alone.append(caught.value)
    with gated(gallery.store, kind) as (users, gate):
        started = together(users, gate, good, [good, *wrong, good])
        with pytest.raises(TypeError, match="exactly one"):
            users.start(item="a", embedding=Embedding(gallery.model, gallery.embeddings[0])).result(NO_FLAKE_S)
        gate.open()
        first, second, *failed, last = ended(started)
        assert gate.calls == 2
    for result in (first, second, last):
        assert_same(result, right)
    for error, one in zip(failed, alone, strict=True):
        assert isinstance(error, KinsightError)
        assert type(error) is type(one)
        assert (error.code, error.reason, error.message) == (one.code, one.reason, one.message)
        assert error.metadata == one.metadata
    assert failed[0] is not failed[-1]


@KINDS
def test_a_joint_call_is_what_a_server_takes(kind: Any, gallery: Gallery, batches: list[int]) -> None:
    """256 searches and 25,600 hits at most, counted as the server does; what no server takes goes alone."""
    many: Asked = [{"item": gallery.items[row % 24], "top_k": 3} for row in range(300)]
    large: Asked = [{"item": gallery.items[row % 24], "top_k": 1000} for row in range(26)]
    absurd: Asked = [{"item": gallery.items[0], "top_k": top_k} for top_k in (-(2**31), 2**31 - 1)]
    with gated(gallery.store, kind) as (users, gate):
        started = together(users, gate, many[0], [*many[1:], *absurd, *large])
        gate.open()
        results = ended(started)
    assert [type(result) is SearchResult for result in results] == [*[True] * 300, False, False, *[True] * 26]
    assert batches == [256, 44, 25]
    assert gate.calls == 1 + 3 + 2  # and 2^31 hits, and the last of the large ones


@KINDS
@pytest.mark.parametrize(
    "slow",
    [
        {"image": photo(3)},
        {"exact": True},
        {"filter": 'item = "nobody"'},
        {"near_duplicate_threshold": 0.9},
        {"group_by": "item"},
        {"diversity": 0.5},
        {"include_payload": True},
    ],
    ids=lambda slow: next(iter(slow)),
)
def test_slow_searches_are_calls_of_their_own(
    slow: dict[str, Any], kind: Any, gallery: Gallery, batches: list[int]
) -> None:
    """They neither wait for others nor have others wait for them."""
    query = slow if "image" in slow else {"item": gallery.items[2], **slow}
    with gated(gallery.store, kind) as (users, gate):
        first = [users.start(**query) for _ in range(3)]
        quick: dict[str, Any] = {"item": gallery.items[1], "top_k": 1}
        started = [users.start(**quick)]
        until(lambda: bool(users.client._line._busy_until_s))
        started += [users.start(**quick) for _ in range(4)]
        until_waiting(users, 4)
        gate.open()
        ended(first)
        for result in ended(started):
            assert isinstance(result, SearchResult)
            assert result.hits[0].item == gallery.items[1]
        assert (gate.calls, batches) == (3 + 2, [4])


@KINDS
def test_a_broken_index_fails_only_the_searches_in_it(kind: Any, tmp_path: Path) -> None:
    """A failure that nobody foresaw, in a joint call with searches of another index."""
    own = make_gallery(tmp_path)
    make_version(own.store, "broken", 1, own.model, own.items, own.embeddings)
    gate = Gate()
    with serving(own.store, admission=gate) as served:
        served.running.indexes.get("broken").version._items._connection.close()
        users = kind(served.target)
        good: dict[str, Any] = {"item": own.items[3], "index": "photos"}
        started = together(users, gate, good, [good, {"item": own.items[3], "index": "broken"}, good])
        gate.open()
        first, second, failed, last = ended(started)
        users.end()
    assert {type(result) for result in (first, second, last)} == {SearchResult}
    assert isinstance(failed, KinsightError)
    assert failed.reason == "INTERNAL"


@KINDS
def test_what_is_retried_alone_is_retried_of_many(
    kind: Any, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC retries calls that are UNAVAILABLE, but not one answer among many: it is asked for again."""
    asked = set[str]()
    search = searching.search

    def busy_at_first(queries: Sequence[Query]) -> Any:
        items = {str(query.embedding) for query in queries}
        new = items - asked
        asked.update(items)
        return [CatalogBusy("busy")] * len(queries) if new else search(queries)

    monkeypatch.setattr(searching, "search", busy_at_first)
    with gated(gallery.store, kind) as (users, gate):
        started = together(users, gate, {"item": gallery.items[0]}, [{"item": item} for item in gallery.items[1:4]])
        gate.open()
        for item, result in zip(gallery.items, ended(started), strict=False):
            assert isinstance(result, SearchResult), result
            assert result.hits[0].item == item


def test_cancelling_one_task_leaves_the_others(gallery: Gallery, batches: list[int]) -> None:
    """The first one, which is sent alone; one that waits, which is never sent; and one of a joint call."""
    quick: dict[str, Any] = {"item": gallery.items[1], "top_k": 1}
    with gated(gallery.store, Tasks) as (users, gate):
        first, waits, joined, *others = together(users, gate, quick, [quick] * 5)
        waits.cancel()
        until_waiting(users, 4)
        first.cancel()
        until_waiting(users, 0)
        joined.cancel()
        gate.open()
        for result in ended(others):
            assert isinstance(result, SearchResult)
        assert batches == [4]


def test_a_task_that_is_cancelled_is_cancelled(gallery: Gallery) -> None:
    """And does not fail as if the client had been closed: alone at the gate, and while it waits."""
    quick: dict[str, Any] = {"item": gallery.items[1]}

    async def cancelled(client: AsyncClient) -> list[bool]:
        tasks = [asyncio.create_task(client.search(**quick)) for _ in range(2)]
        await asyncio.to_thread(until, lambda: gate.calls == 1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return [task.cancelled() for task in tasks]

    with gated(gallery.store, Tasks) as (users, gate):
        assert users._on_loop(cancelled(users.client)).result(NO_FLAKE_S) == [True, True]


@contextmanager
def interrupting(when: Callable[[], None]) -> Iterator[None]:
    """Press Ctrl-C once `when` has returned; in this thread, which is the main one."""

    def press() -> None:
        when()
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with ThreadPoolExecutor(1) as pool:
            pressed = pool.submit(press)
            with pytest.raises(KeyboardInterrupt):
                yield
            pressed.result()
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_the_thread_that_sends_for_others_lets_another_send(gallery: Gallery, batches: list[int]) -> None:
    """In the middle of the joint call; the others are answered by one more call."""
    quick: dict[str, Any] = {"item": gallery.items[1], "top_k": 1}
    with gated(gallery.store, Threads) as (users, gate):
        started = together(users, gate, quick, [quick] * 4)

        def joint_call_has_come() -> None:
            until_waiting(users, 5)
            gate.open(1)
            until(lambda: gate.calls == 2)

        with interrupting(joint_call_has_come):
            users.client.search(**quick)
        gate.open()
        for result in ended(started):
            assert isinstance(result, SearchResult), result
        assert batches[-1] == 4
        assert users.client.search(**quick).hits[0].item == gallery.items[1]


def test_ctrl_c_in_a_thread_that_waits_takes_it_out(gallery: Gallery, batches: list[int]) -> None:
    """The others are answered, and it is not sent."""
    quick: dict[str, Any] = {"item": gallery.items[1], "top_k": 1}
    with gated(gallery.store, Threads) as (users, gate):
        started = together(users, gate, quick, [quick] * 4)
        with interrupting(lambda: until_waiting(users, 5)):
            users.client.search(**quick)
        gate.open()
        for result in ended(started):
            assert isinstance(result, SearchResult), result
        assert batches == [4]


def test_ctrl_c_in_a_thread_that_was_just_to_send_lets_another(
    gallery: Gallery, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its being woken and its call."""
    sleep, pressed = sync_client._Search.sleep, list[None]()

    def interrupted(search: sync_client._Search) -> bool:
        in_time = sleep(search)
        if search.led and not pressed:
            pressed.append(None)
            raise KeyboardInterrupt
        return in_time

    monkeypatch.setattr(sync_client._Search, "sleep", interrupted)
    quick: dict[str, Any] = {"item": gallery.items[1], "top_k": 1}
    with gated(gallery.store, Threads) as (users, gate):
        started = together(users, gate, quick, [quick] * 4)
        gate.open()
        *others, youngest = ended(started)
        assert isinstance(youngest, KeyboardInterrupt)
        assert {type(result) for result in others} == {SearchResult}
        assert batches == [3]


@pytest.mark.usefixtures("quick_retries")
@KINDS
def test_a_server_that_dies_ends_all_that_wait(kind: Any, gallery: Gallery) -> None:
    """As UNAVAILABLE, each with an error of its own."""
    quick: dict[str, Any] = {"item": gallery.items[1]}
    with server_process(gallery.store) as (process, target):
        users = kind(target, timeout_s=30)
        users.start(**quick).result(NO_FLAKE_S)
        process.send_signal(signal.SIGSTOP)
        started = [users.start(**quick) for _ in range(5)]
        until_waiting(users, 4)
        process.kill()
        errors = ended(started)
        users.end()
    assert {type(error) for error in errors} == {Unavailable}
    assert len({id(error) for error in errors}) == 5


@KINDS
@pytest.mark.parametrize("joint", [False, True])
def test_closing_the_client_ends_all_that_wait(joint: bool, kind: Any, gallery: Gallery) -> None:
    """Like the call in progress, be it one search's own or a joint one; none hangs."""
    quick: dict[str, Any] = {"item": gallery.items[1]}
    with gated(gallery.store, kind) as (users, gate):
        started = together(users, gate, quick, [quick] * 4)
        if joint:
            gate.open(1)
            ended(started[:1])
            started = [*started[1:], users.start(**quick), users.start(**quick)]
            until_waiting(users, 2)
        users.end()
        assert {type(error) for error in ended(started)} == {Cancelled}
        with pytest.raises(Exception, match="closed"):  # as ever
            users.client.search(**quick) if kind is Threads else asyncio.run(users.client.search(**quick))
        users.end = lambda: None


@KINDS
def test_closing_the_client_ends_a_call_of_its_own(kind: Any, gallery: Gallery) -> None:
    """With the words that every other call of a closed client ends with, and not gRPC's."""
    with gated(gallery.store, kind) as (users, gate):
        started = users.start(item=gallery.items[1], exact=True)
        until(lambda: gate.calls == 1)
        users.end()
        (error,) = ended([started])
        users.end = lambda: None
    assert isinstance(error, Cancelled)
    assert error.message == "the client was closed before the call was answered"


def test_closing_leaves_no_task_behind(gallery: Gallery) -> None:
    """Not even of a joint call whose searches were all cancelled, so that the loop may be closed right after."""
    quick: dict[str, Any] = {"item": gallery.items[1]}

    async def sending_after_close(client: AsyncClient) -> int:
        await client.close()
        return len(client._sending)

    with gated(gallery.store, Tasks) as (users, gate):
        first, *others = together(users, gate, quick, [quick] * 3)
        gate.open(1)
        ended([first])
        until(lambda: gate.calls == 2)
        for one in others:
            one.cancel()
        assert users._on_loop(sending_after_close(users.client)).result(NO_FLAKE_S) == 0


@KINDS
def test_the_time_of_a_search_begins_when_it_is_asked_for(kind: Any, gallery: Gallery) -> None:
    """Waiting is part of it; and who came later has time left when an earlier one's is up."""
    quick: dict[str, Any] = {"item": gallery.items[1], "top_k": 1}
    with gated(gallery.store, kind, timeout_s=2) as (users, gate):
        start = time.monotonic()
        early = together(users, gate, quick, [quick] * 2)
        time.sleep(1)
        late = users.start(**quick)
        for error in ended(early):
            assert isinstance(error, DeadlineExceeded)
            assert (error.code, error.reason) == ("DEADLINE_EXCEEDED", "")
            assert "send less in a call, or raise timeout_s" in error.message
        assert 1.9 < time.monotonic() - start < 2.9
        gate.open()
        (result,) = ended([late])
        assert isinstance(result, SearchResult), result


@KINDS
def test_a_joint_call_has_what_is_left_of_the_time(kind: Any, gallery: Gallery) -> None:
    """And not all of it once more; a server that does not answer is waited for no longer than by one search."""
    quick: dict[str, Any] = {"item": gallery.items[1]}
    with gated(gallery.store, kind, timeout_s=2) as (users, gate):
        start = time.monotonic()
        errors = ended(together(users, gate, quick, [quick] * 3))
        assert time.monotonic() - start < 3.5
    assert {type(error) for error in errors} == {DeadlineExceeded}

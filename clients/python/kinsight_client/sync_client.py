"""The client for ordinary, blocking code."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Concatenate, Generic, ParamSpec, Self, TypeVar

import grpc

from kinsight_client import channel, together
from kinsight_client.calls import Call, Pages, Progress, Warn, answering, seconds
from kinsight_client.errors import Unavailable, closed, from_rpc, too_late
from kinsight_client.indexes import IndexCalls
from kinsight_client.items import ItemCalls
from kinsight_client.learning import ModelCalls
from kinsight_client.messages import SearchResult
from kinsight_client.operations import (
    Operation,
    OperationCalls,
    check_operation,
    out_of_time,
    result_of,
    tell_unheard,
)
from kinsight_client.search import SearchCalls
from kinsight_client.streams import NotStreamed, Streams
from kinsight_client.together import Line, Outcome, Waiting

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Service(Generic[C]):
    """Makes the calls of one of a server's services, and waits for the answers."""

    def __init__(self, calls: C, timeout_s: float) -> None:
        self._calls = calls
        self._timeout_s = timeout_s

    def _answer(self, call: Call[T], left_s: float | None = None) -> T:
        try:
            response = call.method(call.request, timeout=self._timeout_s if left_s is None else left_s)
        except grpc.RpcError as error:
            raise from_rpc(error) from error
        except ValueError:  # how gRPC says that the channel is closed
            raise closed() from None
        return call.read(response)


def _answered(make: Callable[Concatenate[C, P], Call[T]]) -> Callable[Concatenate[Service[C], P], T]:
    """The method that makes a call and returns its answer."""

    @answering(make)
    def method(self: Service[C], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._answer(make(self._calls, *args, **kwargs))

    return method


def _gathered(
    make: Callable[Concatenate[C, P], Iterator[Call[list[T]] | list[T]]],
) -> Callable[Concatenate[Service[C], P], list[T]]:
    """The method that makes several calls, one after the other, and returns all answers and what needed no call."""

    @answering(make)
    def method(self: Service[C], /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        results: list[T] = []
        for part in make(self._calls, *args, **kwargs):
            answer = part if isinstance(part, list) else self._answer(part)
            results += answer
        return results

    return method


def _paged(make: Callable[Concatenate[C, P], Pages[T]]) -> Callable[Concatenate[Service[C], P], Iterator[T]]:
    """The method that goes through all pages, each asked for when it is needed."""

    @answering(make, Iterator)
    def method(self: Service[C], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        pages, token = make(self._calls, *args, **kwargs), ""
        while True:
            results, token = self._answer(pages.after(token))
            yield from results
            if not token:
                return

    return method


class _Search(Waiting):
    """A search that waits in a thread of its own.

    Attributes:
        led: the searches that this one's thread is to send a call for, oldest first; empty where another thread is.
        outcome: None until a call has ended.
        is_over: whether its thread waits no longer.
    """

    def __init__(self, call: Call[SearchResult], timeout_s: float) -> None:
        super().__init__(call, timeout_s)
        self.led: Sequence[_Search] = ()
        self.outcome: Outcome | None = None
        self.is_over = False
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def sleep(self) -> bool:
        """Wait to lead or for the outcome; False where its time is up before."""
        return self._asleep.acquire(timeout=min(max(self.left_s, 0), threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """Let it go on."""
        self._asleep.release()


class Searches(Service[SearchCalls]):
    """Searches; those that threads make at the same time are sent together, by one of these threads."""

    def __init__(self, calls: SearchCalls, timeout_s: float) -> None:
        super().__init__(calls, timeout_s)
        self._line: Line[_Search] = Line()
        self._line_lock = threading.Lock()
        self._streams = Streams()

    def _answer_together(self, call: Call[SearchResult]) -> SearchResult:
        if not together.may_join(call.request):
            return self._answer(call)
        search = _Search(call, self._timeout_s)
        try:
            if not self._begin(search) and not search.sleep():
                raise too_late()
            if search.led:
                self._send(search.led)
        finally:
            self._end(search)
        if isinstance(search.outcome, Unavailable):  # said of it alone; gRPC retries a call, and not a part of one
            return self._answer(call, search.left_s)
        assert search.outcome is not None  # noqa: S101  # a call with it has ended
        return together.result_of(search.outcome)

    def _begin(self, search: _Search) -> bool:
        with self._line_lock:
            at_once = self._line.enter(search)
            if at_once:
                search.led = (search,)
        return at_once

    def _send(self, batch: Sequence[_Search]) -> None:
        for search, outcome in zip(batch, self._outcomes(batch), strict=True):
            search.outcome = outcome

    def _outcomes(self, batch: Sequence[_Search]) -> Sequence[Outcome]:
        # All the leader's time, who is the youngest: the others leave when theirs is up.
        leader = batch[-1]
        try:
            try:
                return self._streams.answer(together.message(self._calls, batch), leader.left_s)
            except NotStreamed:
                call = together.joint_call(self._calls, batch)
                response = call.method(call.request, timeout=leader.left_s)
        except grpc.RpcError as error:
            return [error] * len(batch)
        except ValueError:  # how gRPC says that the channel is closed
            return [closed() for _ in batch]
        return call.read(response)

    def _end(self, search: _Search) -> None:
        """Leave the line; whoever led lets those go on that it led, and another lead, also after Ctrl-C."""
        with self._line_lock:
            search.is_over = True
            self._line.leave(search)
            if search.led:
                for one in search.led:
                    if one.outcome is not None:
                        one.wake()
                self._lead([one for one in search.led if one.outcome is None and not one.is_over])
                search.led = ()

    def _lead(self, back: Sequence[_Search]) -> None:
        """Let the youngest of the next call's searches send it; those that are `back` in the line come first."""
        if batch := self._line.next(back):
            batch[-1].led = batch
            batch[-1].wake()


def _answered_together(
    make: Callable[Concatenate[SearchCalls, P], Call[SearchResult]],
) -> Callable[Concatenate[Searches, P], SearchResult]:
    """The method that makes a search, alone or with others, and returns its result."""

    @answering(make)
    def method(self: Searches, /, *args: P.args, **kwargs: P.kwargs) -> SearchResult:
        return self._answer_together(make(self._calls, *args, **kwargs))

    return method


class Items(Service[ItemCalls]):
    """The items of the server's indexes."""

    upsert = _answered(ItemCalls.upsert)
    upsert_many = _gathered(ItemCalls.upsert_many)
    delete = _answered(ItemCalls.delete)
    delete_many = _gathered(ItemCalls.delete_many)
    get = _answered(ItemCalls.get)
    list = _paged(ItemCalls.list)
    import_from = _answered(ItemCalls.import_from)
    export_to = _answered(ItemCalls.export_to)


class Indexes(Service[IndexCalls]):
    """The server's indexes and their versions."""

    list = _paged(IndexCalls.list)
    get = _answered(IndexCalls.get)
    stats = _answered(IndexCalls.stats)
    versions = _paged(IndexCalls.versions)
    build = _answered(IndexCalls.build)
    activate = _answered(IndexCalls.activate)
    rollback = _answered(IndexCalls.rollback)
    delete_version = _answered(IndexCalls.delete_version)
    evaluate = _answered(IndexCalls.evaluate)
    snapshot = _answered(IndexCalls.snapshot)
    restore = _answered(IndexCalls.restore)


class Models(Service[ModelCalls]):
    """The server's models, and learning."""

    list = _paged(ModelCalls.list)
    get = _answered(ModelCalls.get)
    train = _answered(ModelCalls.train)
    finetune = _answered(ModelCalls.finetune)
    suggest = _answered(ModelCalls.suggest)
    calibrate = _answered(ModelCalls.calibrate)


class Operations(Service[OperationCalls]):
    """The server's long work."""

    list = _paged(OperationCalls.list)
    get = _answered(OperationCalls.get)
    cancel = _answered(OperationCalls.cancel)
    delete = _answered(OperationCalls.delete)

    def wait(
        self,
        operation: Operation[R],
        *,
        progress: Progress | None = None,
        warn: Warn | None = None,
        timeout_s: float | None = None,
    ) -> R:
        """Wait until an operation has ended.

        Args:
            operation: as the call that began it, or `get`, returned it.
            progress: called with stage, done and total, twice a second.
            warn: called with each of the operation's warnings, once, as soon as it is known.
            timeout_s: most to wait; None for as long as it takes. The operation goes on all the same.

        Returns:
            Its result.

        Raises:
            KinsightError: it failed or was cancelled, or the wait did; see `kinsight_client.errors`.
            TypeError: the operation is none, such as an id.
        """
        check_operation(operation)
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        heard = set[str]()
        tell_unheard(operation, heard, warn)
        while not operation.is_done:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise out_of_time(operation)
            operation = self._answer(self._calls.wait_briefly(operation.id, self._timeout_s, left_s))
            tell_unheard(operation, heard, warn)
            if progress is not None and operation.stage:
                progress(operation.stage, operation.done, operation.total)
        return result_of(operation)


class Client(Searches):
    """A Kinsight server. Safe to share between threads, whose quick searches are sent together; not across a fork.

    with Client("127.0.0.1:50051") as client:
        client.items.upsert("shoe", image=Path("shoe.jpg"))
        result = client.search(image=Path("another shoe.jpg"))

    Attributes:
        items: to upsert, delete, read, import and export them.
        indexes: to build, measure, activate and roll back their versions.
        models: to learn them, and to ask which images are worth labelling.
        operations: to wait for what takes long.
    """

    def __init__(self, target: str, *, timeout_s: float = 10.0) -> None:
        """Connects at the first call, and again whenever the connection is lost.

        Args:
            target: `host:port` of a server.
            timeout_s: for each call, retries included; above 0, and 1e9 at most.

        Raises:
            ValueError: timeout_s is not, or the target's port can't be one.
        """
        timeout_s = seconds(timeout_s)
        channel.check_target(target)
        self._channel = grpc.insecure_channel(target, options=channel.options_for(target))
        super().__init__(SearchCalls(self._channel), timeout_s)
        self.items = Items(ItemCalls(self._channel), timeout_s)
        self.indexes = Indexes(IndexCalls(self._channel), timeout_s)
        self.models = Models(ModelCalls(self._channel), timeout_s)
        self.operations = Operations(OperationCalls(self._channel), timeout_s)
        self._health: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(channel.HEALTH_CHECK)

    search = _answered_together(SearchCalls.search)
    search_many = _gathered(SearchCalls.search_many)
    embed = _answered(SearchCalls.embed)

    def ready(self) -> bool:
        """Whether a server answers at the target and has an index to search; raises Cancelled once it is closed."""
        try:
            status = self._health(channel.HEALTH_REQUEST, timeout=self._timeout_s)
        except grpc.RpcError:  # not there, or not a server of ours: not ready either way
            return False
        except ValueError:  # as above
            raise closed() from None
        return bool(status == channel.HEALTH_SERVING)

    def close(self) -> None:
        """Close the connection; calls in progress end."""
        self._streams.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

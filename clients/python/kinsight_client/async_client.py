"""The client for asyncio."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

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
from kinsight_client.streams import AsyncStreams, NotStreamed
from kinsight_client.together import Line, Outcome, Waiting

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Service(Generic[C]):
    """Makes the calls of one of a server's services, and awaits the answers."""

    def __init__(self, calls: C, timeout_s: float) -> None:
        self._calls = calls
        self._timeout_s = timeout_s

    async def _answer(self, call: Call[T], left_s: float | None = None) -> T:
        try:
            response = await call.method(call.request, timeout=self._timeout_s if left_s is None else left_s)
        except grpc.RpcError as error:
            raise from_rpc(error) from error
        except grpc.aio.UsageError:  # how gRPC says that the channel is closed
            raise closed() from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise closed() from None  # gRPC's way to end calls in progress, which would pass for the task's own end
        return call.read(response)


def _is_cancelled() -> bool:
    """Whether somebody cancelled the task that runs."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _answered(
    make: Callable[Concatenate[C, P], Call[T]],
) -> Callable[Concatenate[Service[C], P], Coroutine[Any, Any, T]]:
    """The method that makes a call and returns its answer."""

    @answering(make)
    async def method(self: Service[C], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._answer(make(self._calls, *args, **kwargs))

    return method


def _gathered(
    make: Callable[Concatenate[C, P], Iterator[Call[list[T]] | list[T]]],
) -> Callable[Concatenate[Service[C], P], Coroutine[Any, Any, list[T]]]:
    """The method that makes several calls, one after the other, and returns all answers and what needed no call."""

    @answering(make)
    async def method(self: Service[C], /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        results: list[T] = []
        for part in make(self._calls, *args, **kwargs):
            answer = part if isinstance(part, list) else await self._answer(part)
            results += answer
        return results

    return method


def _paged(make: Callable[Concatenate[C, P], Pages[T]]) -> Callable[Concatenate[Service[C], P], AsyncIterator[T]]:
    """The method that goes through all pages, each asked for when it is needed."""

    @answering(make, AsyncIterator)
    async def method(self: Service[C], /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        pages, token = make(self._calls, *args, **kwargs), ""
        while True:
            results, token = await self._answer(pages.after(token))
            for result in results:
                yield result
            if not token:
                return

    return method


class _Search(Waiting):
    """A search that a task waits for; the outcome is never set as an exception, so that nobody has to retrieve it."""

    def __init__(self, call: Call[SearchResult], timeout_s: float) -> None:
        super().__init__(call, timeout_s)
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def end(self, outcome: Outcome) -> None:
        """Give its outcome, if it is still waited for."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class AsyncSearches(Service[SearchCalls]):
    """Searches; those that tasks make at the same time are sent together, by a task of their own."""

    def __init__(self, calls: SearchCalls, timeout_s: float) -> None:
        super().__init__(calls, timeout_s)
        self._line: Line[_Search] = Line()
        self._sending: set[asyncio.Task[None]] = set()
        self._streams = AsyncStreams()

    async def _answer_together(self, call: Call[SearchResult]) -> SearchResult:
        if not together.may_join(call.request):
            return await self._answer(call)
        search = _Search(call, self._timeout_s)
        if self._line.enter(search):
            try:
                (outcome,) = await self._outcomes([search])
            finally:
                self._send_next()
        else:
            outcome = await self._outcome(search)
        if isinstance(outcome, Unavailable):  # said of it alone; gRPC retries a call, and not a part of one
            return await self._answer(call, search.left_s)
        return together.result_of(outcome)

    async def _outcome(self, search: _Search) -> Outcome:
        try:
            async with asyncio.timeout(search.left_s):
                return await search.outcome
        except TimeoutError:
            raise too_late() from None
        finally:
            self._line.leave(search)

    def _send_next(self) -> None:
        if batch := self._line.next():
            task = asyncio.create_task(self._send(batch))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send(self, batch: Sequence[_Search]) -> None:
        try:
            for search, outcome in zip(batch, await self._outcomes(batch), strict=True):
                search.end(outcome)
            await asyncio.sleep(0)  # tasks that are answered and search again at once come along in the next call
        finally:
            self._send_next()

    async def _outcomes(self, batch: Sequence[_Search]) -> Sequence[Outcome]:
        # All the time of the youngest: the others leave when theirs is up.
        youngest = batch[-1]
        try:
            try:
                return await self._streams.answer(together.message(self._calls, batch), youngest.left_s)
            except NotStreamed:
                call = together.joint_call(self._calls, batch)
                response = await call.method(call.request, timeout=youngest.left_s)
        except grpc.RpcError as error:
            return [error] * len(batch)
        except grpc.aio.UsageError:  # how gRPC says that the channel is closed
            return [closed() for _ in batch]
        except asyncio.CancelledError:  # and how it ends calls in progress
            if _is_cancelled():
                raise
            return [closed() for _ in batch]
        return call.read(response)

    async def _all_sent(self) -> None:
        """Return once no task sends any more: nobody else knows of them, where all their searches were cancelled."""
        while self._sending:
            await asyncio.wait(self._sending)


def _answered_together(
    make: Callable[Concatenate[SearchCalls, P], Call[SearchResult]],
) -> Callable[Concatenate[AsyncSearches, P], Coroutine[Any, Any, SearchResult]]:
    """The method that makes a search, alone or with others, and returns its result."""

    @answering(make)
    async def method(self: AsyncSearches, /, *args: P.args, **kwargs: P.kwargs) -> SearchResult:
        return await self._answer_together(make(self._calls, *args, **kwargs))

    return method


class AsyncItems(Service[ItemCalls]):
    """The items of the server's indexes."""

    upsert = _answered(ItemCalls.upsert)
    upsert_many = _gathered(ItemCalls.upsert_many)
    delete = _answered(ItemCalls.delete)
    delete_many = _gathered(ItemCalls.delete_many)
    get = _answered(ItemCalls.get)
    list = _paged(ItemCalls.list)
    import_from = _answered(ItemCalls.import_from)
    export_to = _answered(ItemCalls.export_to)


class AsyncIndexes(Service[IndexCalls]):
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


class AsyncModels(Service[ModelCalls]):
    """The server's models, and learning."""

    list = _paged(ModelCalls.list)
    get = _answered(ModelCalls.get)
    train = _answered(ModelCalls.train)
    finetune = _answered(ModelCalls.finetune)
    suggest = _answered(ModelCalls.suggest)
    calibrate = _answered(ModelCalls.calibrate)


class AsyncOperations(Service[OperationCalls]):
    """The server's long work."""

    list = _paged(OperationCalls.list)
    get = _answered(OperationCalls.get)
    cancel = _answered(OperationCalls.cancel)
    delete = _answered(OperationCalls.delete)

    async def wait(
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
            operation = await self._answer(self._calls.wait_briefly(operation.id, self._timeout_s, left_s))
            tell_unheard(operation, heard, warn)
            if progress is not None and operation.stage:
                progress(operation.stage, operation.done, operation.total)
        return result_of(operation)


class AsyncClient(AsyncSearches):
    """A Kinsight server, on one event loop; every method is that of `Client`, to be awaited.

    Quick searches that its tasks make at the same time are sent together.

    async with AsyncClient("127.0.0.1:50051") as client:
        await client.items.upsert("shoe", image=Path("shoe.jpg"))
        result = await client.search(image=Path("another shoe.jpg"))

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
            RuntimeError: no event loop runs, as outside of a coroutine.
        """
        timeout_s = seconds(timeout_s)
        channel.check_target(target)
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # gRPC takes a loop of its own making then, and no call would run on another
            raise RuntimeError("no event loop runs that the client could use; make it in a coroutine") from None
        self._channel = grpc.aio.insecure_channel(target, options=channel.options_for(target))
        super().__init__(SearchCalls(self._channel), timeout_s)
        self.items = AsyncItems(ItemCalls(self._channel), timeout_s)
        self.indexes = AsyncIndexes(IndexCalls(self._channel), timeout_s)
        self.models = AsyncModels(ModelCalls(self._channel), timeout_s)
        self.operations = AsyncOperations(OperationCalls(self._channel), timeout_s)
        self._health: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(channel.HEALTH_CHECK)

    search = _answered_together(SearchCalls.search)
    search_many = _gathered(SearchCalls.search_many)
    embed = _answered(SearchCalls.embed)

    async def ready(self) -> bool:
        """Whether a server answers at the target and has an index to search; raises Cancelled once it is closed."""
        try:
            status = await self._health(channel.HEALTH_REQUEST, timeout=self._timeout_s)
        except grpc.RpcError:  # not there, or not a server of ours: not ready either way
            return False
        except grpc.aio.UsageError:  # as above
            raise closed() from None
        return bool(status == channel.HEALTH_SERVING)

    async def close(self) -> None:
        """Close the connection; calls in progress end."""
        await self._streams.close()
        await self._channel.close()
        await self._all_sent()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

"""Which requests are let in: a bound on what waits and runs at once, and none while the server shuts down."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, TypeVar

from server.errors import Draining, Overloaded

MAX_REQUESTS = 256  # a search takes well under a millisecond: a longer queue only adds waiting
MAX_BYTES = 512 * 2**20  # of all requests together: 16 of the largest, thousands of usual ones

Request = TypeVar("Request")


class Admission:
    """Counts the requests that are inside; what exceeds a bound is turned away at once, not queued."""

    def __init__(self, *, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> None:
        """Nothing is inside yet.

        Args:
            max_requests: most requests at a time.
            max_bytes: most bytes of those requests together.
        """
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._requests = 0
        self._request_bytes = 0
        self._draining = False
        self._idle_streams: set[asyncio.Task[Any]] = set()

    def drain(self) -> None:
        """Let nobody in any more; who is inside stays."""
        self._draining = True
        for stream in self._idle_streams:
            stream.cancel()

    async def until_drained(self, requests: AsyncIterator[Request]) -> AsyncIterator[Request]:
        """The requests of a stream; they end when the server shuts down, though more might come."""
        stream = asyncio.current_task()
        assert stream is not None  # noqa: S101  # a coroutine runs in one
        while not self._draining:
            self._idle_streams.add(stream)
            try:
                request = await anext(requests)
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                if self._draining:
                    return
                raise
            finally:
                self._idle_streams.discard(stream)
            yield request

    def admit(self, request_bytes: int) -> "Admitted":
        """A place for one request, to be entered with `with`.

        Raises:
            Draining: the server is shutting down.
            Overloaded: a bound is reached.
        """
        if self._draining:
            raise Draining("the server is shutting down; try another one, or this one when it is back")
        if self._requests >= self._max_requests:
            raise Overloaded(
                f"{self._requests} requests are in progress, the most allowed; try again in a moment",
                limit=str(self._max_requests),
            )
        if request_bytes and self._request_bytes + request_bytes > self._max_bytes:
            raise Overloaded(
                f"the requests in progress hold {self._request_bytes:,} bytes and this one {request_bytes:,}, "
                f"more than {self._max_bytes:,}; try again in a moment",
                limit=str(self._max_bytes),
            )
        return Admitted(self, request_bytes)

    def _add(self, requests: int, request_bytes: int) -> None:
        self._requests += requests
        self._request_bytes += request_bytes


class Admitted:
    """One request's place inside."""

    __slots__ = ("_admission", "_request_bytes")

    def __init__(self, admission: Admission, request_bytes: int) -> None:
        self._admission = admission
        self._request_bytes = request_bytes

    def __enter__(self) -> Self:
        self._admission._add(1, self._request_bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._admission._add(-1, -self._request_bytes)

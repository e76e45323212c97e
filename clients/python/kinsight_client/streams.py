"""Streams of searches that are kept open, over which a search costs both sides less than by a call of its own.

Gone   a stream ended before it answered; the searches are as good as not sent
"""

import asyncio
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import grpc

from kinsight_client.calls import Call

# gRPC ends the waiting for a server that is silent by a stream's deadline alone. So a stream is for requests that
# are to end a little earlier: they end late by at most this share of their time, and one stream serves for as long.
_LATE = 0.1
# What ends a stream and says nothing of the searches: the server is gone, or it is one without StreamSearch.
_ENDS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED)


class Gone(Exception):
    """A stream ended before it answered, for a reason that a call may not meet, or may tell."""


class _Open(Protocol):
    until_s: float

    def end(self) -> None: ...


S = TypeVar("S", bound=_Open)
T = TypeVar("T")


class _Idle(Generic[S]):
    """The open streams that nobody uses; threads share them by single operations of a list."""

    def __init__(self) -> None:
        self._streams: list[S] = []

    def take(self, left_s: float) -> S | None:
        """One for a request that has so much time, which nobody else can take meanwhile; None where none is."""
        while self._streams:
            try:
                stream = self._streams.pop()
            except IndexError:  # another thread was quicker
                return None
            if left_s <= stream.until_s - time.monotonic() <= _with_slack(left_s):
                return stream
            stream.end()
        return None

    def give(self, stream: S) -> None:
        """One back that has answered what it was asked."""
        self._streams.append(stream)


def _with_slack(left_s: float) -> float:
    return left_s * (1 + _LATE)


class _Stream:
    """An open stream of a blocking client."""

    def __init__(self, call: Call[Any], left_s: float) -> None:
        self.until_s = time.monotonic() + left_s
        self._requests: SimpleQueue[Any] = SimpleQueue()
        requests: Iterator[Any] = iter(self._requests.get, None)
        self._responses = call.method(requests, timeout=left_s)
        self._responses.add_callback(self.end)  # or gRPC's thread that takes the requests would wait for ever

    def answer(self, request: Any) -> Any:
        """The response to a request; raises StopIteration, or a grpc.RpcError."""
        self._requests.put(request)
        return next(self._responses)

    def end(self) -> None:
        """Ask nothing more."""
        self._requests.put(None)

    def cancel(self) -> None:
        """Wait for nothing more."""
        self._responses.cancel()


class Streams:
    """The streams of a blocking client; safe to share between threads."""

    def __init__(self) -> None:
        """Opens none yet."""
        self._idle: _Idle[_Stream] = _Idle()

    def answer(self, call: Call[T], left_s: float) -> T:
        """The result of a request, sent over a stream that is open, or else a new one.

        Args:
            call: its method is StreamSearch.
            left_s: most to wait, give or take a tenth of it.

        Raises:
            Gone: the stream ended.
            grpc.RpcError: the request failed as a whole.
            ValueError: the channel is closed.
        """
        stream = self._idle.take(left_s) or _Stream(call, _with_slack(left_s))
        try:
            response = stream.answer(call.request)
        except StopIteration:
            raise Gone from None
        except grpc.RpcError as error:
            if error.code() in _ENDS:
                raise Gone from error
            raise
        except BaseException:  # Ctrl-C: what comes yet would be taken for the answer to the next request
            stream.cancel()
            raise
        self._idle.give(stream)
        return call.read(response)


class _AsyncStream:
    """An open stream of a client for asyncio."""

    def __init__(self, call: Call[Any], left_s: float) -> None:
        self.until_s = time.monotonic() + left_s
        self._call = call.method(timeout=left_s)

    async def answer(self, request: Any) -> Any:
        """The response to a request; raises Gone, or a grpc.RpcError."""
        try:
            await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:  # it ended while nobody used it
            raise Gone from error
        response = await self._call.read()
        if response is grpc.aio.EOF:
            raise Gone
        return response

    def end(self) -> None:
        """Ask and wait for nothing more."""
        self._call.cancel()


class AsyncStreams:
    """The streams of a client for asyncio, on its event loop."""

    def __init__(self) -> None:
        """Opens none yet."""
        self._idle: _Idle[_AsyncStream] = _Idle()

    async def answer(self, call: Call[T], left_s: float) -> T:
        """The result of a request, as `Streams.answer`.

        Raises:
            Gone: the stream ended.
            grpc.RpcError: the request failed as a whole.
            grpc.aio.UsageError: the channel is closed.
            asyncio.CancelledError: the task was cancelled, or the channel closed meanwhile.
        """
        stream = self._idle.take(left_s) or _AsyncStream(call, _with_slack(left_s))
        try:
            response = await stream.answer(call.request)
        except Gone:
            raise
        except grpc.RpcError as error:
            if error.code() in _ENDS:
                raise Gone from error
            raise
        except BaseException:  # what comes yet would be taken for the answer to the next request
            stream.end()
            raise
        self._idle.give(stream)
        return call.read(response)

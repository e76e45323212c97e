"""Streams of searches that are kept open, over which a search costs a server less than by a call of its own.

NotStreamed   no stream answered; a call is to be made instead
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import grpc

from kinsight_client.calls import Call

# gRPC ends the waiting for a server that is silent by a stream's deadline alone. So a stream is for requests that
# are to end a little earlier: they end late by at most this share of their time, and one stream serves for as long.
_LATE = 0.1
# What ends a stream, or whatever leads it to the server, and need not meet a call.
_ENDS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
)
_END_TIMEOUT_S = 1.0
_UNKNOWN_S = (
    60.0  # that a server which has no StreamSearch is not asked for one again: a newer one may take its place
)


class NotStreamed(Exception):
    """No stream answered: none is worth its opening, or it ended. A call may be answered, or say why not."""


class _Open(Protocol):
    until_s: float

    def end(self) -> None: ...


S = TypeVar("S", bound=_Open)
T = TypeVar("T")


class _Idle(Generic[S]):
    """The open streams that nobody uses; threads share them by single operations of a list."""

    def __init__(self) -> None:
        self._streams: list[S] = []
        self._asked_at_s = -math.inf
        self._unknown_until_s = -math.inf

    def take(self, left_s: float) -> S | None:
        """One for a request that has so much time, which nobody else can take meanwhile; None for a new one.

        Raises:
            NotStreamed: there is none, and a new one would end before the next request if they come as seldom, or the
                server has no such method.
        """
        now_s, before_s = time.monotonic(), self._asked_at_s
        self._asked_at_s = now_s
        while self._streams:
            try:
                stream = self._streams.pop()
            except IndexError:  # another thread was quicker
                break
            if left_s <= stream.until_s - now_s <= _with_slack(left_s):
                return stream
            stream.end()
        if now_s - before_s > left_s * _LATE or now_s < self._unknown_until_s:
            raise NotStreamed
        return None

    def note_end(self, code: grpc.StatusCode) -> None:
        """Remember that a server does not know streams, where that is what ended one."""
        if code is grpc.StatusCode.UNIMPLEMENTED:
            self._unknown_until_s = time.monotonic() + _UNKNOWN_S

    def give(self, stream: S) -> None:
        """One back that has answered what it was asked."""
        self._streams.append(stream)

    def take_all(self) -> list[S]:
        """All of them."""
        streams, self._streams = self._streams, []
        return streams

    def __del__(self) -> None:
        for stream in self._streams:  # of a client that was never closed: gRPC's threads and tasks keep them alive
            stream.end()


def _with_slack(left_s: float) -> float:
    return left_s * (1 + _LATE)


class _Stream:
    """An open stream of a blocking client."""

    def __init__(self, call: Call[Any], left_s: float) -> None:
        self.until_s = time.monotonic() + left_s
        self._requests: SimpleQueue[Any] = SimpleQueue()
        requests: Iterator[Any] = iter(self._requests.get, None)
        try:
            self._responses = call.method(requests, timeout=left_s)
            self._responses.add_callback(self.end)
        except BaseException:  # Ctrl-C: gRPC's thread that takes the requests would wait for ever
            self.end()
            raise

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
            NotStreamed: no stream answered.
            grpc.RpcError: the request failed as a whole.
            ValueError: the channel is closed.
        """
        stream = self._idle.take(left_s) or _Stream(call, _with_slack(left_s))
        try:
            response = stream.answer(call.request)
        except StopIteration:
            raise NotStreamed from None
        except grpc.RpcError as error:
            self._idle.note_end(error.code())
            if error.code() in _ENDS:
                raise NotStreamed from error
            raise
        except BaseException:  # Ctrl-C: what comes yet would be taken for the answer to the next request
            stream.cancel()
            raise
        self._idle.give(stream)
        return call.read(response)

    def close(self) -> None:
        """End those that nobody uses."""
        for stream in self._idle.take_all():
            stream.end()


class _AsyncStream:
    """An open stream of a client for asyncio."""

    def __init__(self, call: Call[Any], left_s: float) -> None:
        self.until_s = time.monotonic() + left_s
        self._call = call.method(timeout=left_s)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._call.add_done_callback(self._note_end)
        self._is_connected = False

    def _note_end(self, _: object) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    async def answer(self, request: Any) -> Any:
        """The response to a request; raises NotStreamed, or a grpc.RpcError."""
        if not self._is_connected:
            await self._connected()
        try:
            await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:  # it ended while nobody used it
            raise NotStreamed from error
        response = await self._call.read()
        if response is grpc.aio.EOF:
            raise NotStreamed
        return response

    async def _connected(self) -> None:
        """Return once there is a connection to write to, for which gRPC waits for ever where a channel is closed."""
        connected = asyncio.ensure_future(self._call.wait_for_connection())
        try:
            await asyncio.wait((connected, self._ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            connected.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
            if connected.done():
                await connected
        if self._call.done():
            raise NotStreamed
        self._is_connected = True

    async def code(self) -> grpc.StatusCode:
        """What it ended with, after a NotStreamed."""
        code: grpc.StatusCode = await self._call.code()
        return code

    def end(self) -> None:
        """Ask and wait for nothing more."""
        self._call.cancel()

    async def close(self) -> None:
        """Return once it has ended, with all of gRPC's tasks for it."""
        with contextlib.suppress(grpc.RpcError, TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT_S):
                await self._call.done_writing()
                await self._call.code()


class AsyncStreams:
    """The streams of a client for asyncio, on its event loop."""

    def __init__(self) -> None:
        """Opens none yet."""
        self._idle: _Idle[_AsyncStream] = _Idle()

    async def answer(self, call: Call[T], left_s: float) -> T:
        """The result of a request, as `Streams.answer`.

        Raises:
            NotStreamed: no stream answered.
            grpc.RpcError: the request failed as a whole.
            grpc.aio.UsageError: the channel is closed.
            asyncio.CancelledError: the task was cancelled, or the channel closed meanwhile.
        """
        stream = self._idle.take(left_s) or _AsyncStream(call, _with_slack(left_s))
        try:
            response = await stream.answer(call.request)
        except grpc.RpcError as error:
            self._idle.note_end(error.code())
            if error.code() in _ENDS:
                raise NotStreamed from error
            raise
        except NotStreamed:
            self._idle.note_end(await stream.code())
            raise
        except BaseException:  # what comes yet would be taken for the answer to the next request
            stream.end()
            raise
        self._idle.give(stream)
        return call.read(response)

    async def close(self) -> None:
        """End those that nobody uses."""
        await asyncio.gather(*(stream.close() for stream in self._idle.take_all()))

"""Calls as values: the same ones are made by the blocking client and by the one for asyncio."""

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

Channel: TypeAlias = grpc.Channel | grpc.aio.Channel
Progress: TypeAlias = Callable[[str, int, int], None]  # of a stage, so much is done of a total

M = TypeVar("M")
T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call of a server.

    Attributes:
        method: of a gRPC stub.
        request: its message.
        read: makes the typed result of the response.
    """

    method: Callable[..., Any]
    request: Any
    read: Callable[[Any], T]


@dataclass(frozen=True)
class Unsent(Generic[T]):
    """One of many that can't be sent, and the answer that stands in its place."""

    answer: T


@dataclass(frozen=True)
class Pages(Generic[T]):
    """Calls of a method that answers page by page (https://google.aip.dev/158), as many as there are pages.

    Attributes:
        method: of a gRPC stub.
        request: its message, without a page token.
        read: makes the typed results of one response.
    """

    method: Callable[..., Any]
    request: Any
    read: Callable[[Any], Iterable[T]]

    def after(self, token: str) -> Call[tuple[list[T], str]]:
        """The call for the page of a token: its results, and the token of the next page."""
        request = type(self.request)()
        request.CopyFrom(self.request)
        request.page_token = token
        return Call(self.method, request, lambda response: (list(self.read(response)), response.next_page_token))


def call_for(batch: Sequence[M | Unsent[T]], make: Callable[[Sequence[M]], Call[list[T]]]) -> Call[list[T]] | list[T]:
    """The call for what is sent of a batch, whose results have every answer in its place; no call where none is."""
    sent = [one for one in batch if not isinstance(one, Unsent)]
    if not sent:
        return _in_place(batch, [])
    call = make(sent)
    return Call(call.method, call.request, lambda response: _in_place(batch, call.read(response)))


def _in_place(batch: Sequence[M | Unsent[T]], answers: Iterable[T]) -> list[T]:
    rest = iter(answers)
    return [one.answer if isinstance(one, Unsent) else next(rest) for one in batch]


def unique() -> str:
    """A request id that no other request has."""
    return str(uuid.uuid4())

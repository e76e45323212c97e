"""Calls as values: the same ones are made by the blocking client and by the one for asyncio."""

import inspect
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Generic, TypeAlias, TypeVar, get_args, get_origin

import grpc

Channel: TypeAlias = grpc.Channel | grpc.aio.Channel
Progress: TypeAlias = Callable[[str, int, int], None]  # of a stage, so much is done of a total
Warn: TypeAlias = Callable[[str], None]  # of something wrong, in a sentence

M = TypeVar("M")
T = TypeVar("T")

_MAX_TIMEOUT_S = 1e9  # 31 years; not far beyond, gRPC's clock is past its end, and nothing is waited for


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


def answering(make: Callable[..., Any], many: Any = None) -> Callable[[M], M]:
    """`functools.wraps` for a method that returns the answers of the calls that are made: `help` says so, too.

    Args:
        make: makes a call, several, or pages.
        many: what a method that returns the answers one by one is to return of them, such as Iterator.
    """
    signature = inspect.signature(make)
    answer = _answer_of(signature.return_annotation)

    def decorate(method: M) -> M:
        wraps(make)(method)  # type: ignore[arg-type]  # a function, as all that is decorated
        shown = signature.replace(return_annotation=answer if many is None else many[answer])
        method.__signature__ = shown  # type: ignore[attr-defined]
        return method

    return decorate


def _answer_of(made: Any) -> Any:
    """What the first kind of call in an annotation is answered with."""
    while get_origin(made) not in (Call, Pages):
        made = get_args(made)[0]
    return get_args(made)[0]


def seconds(timeout_s: float) -> float:
    """A timeout that gRPC can keep; raises ValueError for others."""
    if not 0 < timeout_s <= _MAX_TIMEOUT_S:
        raise ValueError(f"timeout_s is {timeout_s:g}; it must be above 0, and {_MAX_TIMEOUT_S:g} at most")
    return timeout_s


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

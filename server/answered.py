"""What the methods of all services share: a request is counted in, and what it raises is answered as gRPC does."""

from collections.abc import AsyncIterator, Callable, Coroutine
from functools import wraps
from typing import Any, Protocol, TypeVar

import grpc

from server import answers
from server.admission import Admission

Context = grpc.aio.ServicerContext[Any, Any]


class _Service(Protocol):
    admission: Admission


class _Request(Protocol):
    def ByteSize(self) -> int: ...  # noqa: N802 - protobuf's name


Service = TypeVar("Service", bound=_Service)
Request = TypeVar("Request", bound=_Request)
Response = TypeVar("Response")


def answered(
    method: Callable[[Service, Request], Coroutine[Any, Any, Response]],
) -> Callable[[Service, Request, Context], Coroutine[Any, Any, Response]]:
    """A method as gRPC calls it, of one that turns requests into responses and raises where it can't."""

    @wraps(method)
    async def answer(service: Service, request: Request, context: Context) -> Response:
        try:
            with service.admission.admit(request.ByteSize()):
                return await method(service, request)
        except Exception as error:
            await answers.abort(context, error)

    return answer


def answered_in_turn(
    method: Callable[[Service, Request], Coroutine[Any, Any, Response]],
) -> Callable[[Service, AsyncIterator[Request], Context], AsyncIterator[Response]]:
    """As `answered`, of a stream: each message is a request of its own; the first that can't be answered ends it."""

    @wraps(method)
    async def answer(service: Service, requests: AsyncIterator[Request], context: Context) -> AsyncIterator[Response]:
        try:
            async for request in service.admission.until_drained(requests):
                with service.admission.admit(request.ByteSize()):
                    response = await method(service, request)
                yield response
        except Exception as error:
            await answers.abort(context, error)

    return answer

"""What the methods of all services share: a request is counted in, and what it raises is answered as gRPC does."""

from collections.abc import Callable, Coroutine
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

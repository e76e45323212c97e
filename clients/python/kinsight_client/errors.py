"""What a call can raise.

KinsightError             any failed call; carries the code, the stable reason and the message
├── InvalidArgument       the request is wrong in itself: the image, the embedding, top_k, nprobe
├── NotFound              no such index or item
├── FailedPrecondition    the embedding was made by another model than the index's
├── ResourceExhausted     the server is busy, or the message is too large
├── Unavailable           no server there, or one that starts, stops or has no index yet; retries were made
└── DeadlineExceeded      no answer within timeout_s
"""

from collections.abc import Mapping
from types import MappingProxyType

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


class KinsightError(Exception):
    """A call failed.

    Attributes:
        code: gRPC's name of the status code, for example `INVALID_ARGUMENT`.
        reason: the server's stable reason, for example `IMAGE_DECODE_FAILED`; empty where the call never reached it.
        message: what was wrong and what to do.
        metadata: parts of the message as the server gives them, for example the ids of two models.
    """

    def __init__(
        self, code: str, reason: str, message: str, metadata: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        super().__init__(f"{reason or code}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = metadata


class InvalidArgument(KinsightError):
    """The request is wrong in itself: the image, the embedding, top_k or nprobe."""


class NotFound(KinsightError):
    """The server has no such index, or the index no such item."""


class FailedPrecondition(KinsightError):
    """The embedding was made by another model than the index's."""


class ResourceExhausted(KinsightError):
    """The server has as many requests as it lets in, or the message is larger than it takes."""


class Unavailable(KinsightError):
    """No server answers at the target, or it starts, stops or has no index yet."""


class DeadlineExceeded(KinsightError):
    """No answer came within timeout_s."""


_BY_CODE: Mapping[grpc.StatusCode, type[KinsightError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def from_rpc(error: grpc.RpcError) -> KinsightError:
    """The error of a failed gRPC call, with what the server's google.rpc.ErrorInfo says."""
    code: grpc.StatusCode = error.code()
    info = _error_info(error)
    kind = _BY_CODE.get(code, KinsightError)
    return kind(code.name, info.reason, error.details() or "", MappingProxyType(dict(info.metadata)))


def _error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    # pairs of key and value, which the type stubs do not know
    trailing: dict[str, bytes] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    for detail in status_pb2.Status.FromString(trailing.get(_DETAILS_KEY, b"")).details:
        if detail.Unpack(info):
            break
    return info

"""What a call can raise, and what an item of a batch or an operation can fail with.

KinsightError             any failed call; carries the code, the stable reason and the message
├── InvalidArgument       the request is wrong in itself: the image, the embedding, the filter, a page, a path
│   └── UnreadableImage   of many images, the file of this one can't be read here, on the client's machine
├── NotFound              no such index, item, version or operation
├── AlreadyExists         the file, the directory or the index to make is there already
├── PermissionDenied      the path is in no folder that the server was allowed to use
├── FailedPrecondition    the embedding was made by another model than the index's, or a version is in use
├── Aborted               the index was changed since its etag was read, or is being built by someone else
├── Cancelled             the operation was cancelled, or the client was closed before or during the call
├── DataLoss              a file of the server is damaged; the message names it
├── ResourceExhausted     the server is busy, a disk of it full or failing, or the message is too large
├── Unavailable           no server there, or one that starts, stops or has no index yet; retries were made
└── DeadlineExceeded      no answer within timeout_s
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"
# gRPC's own words, its server's or its client's, with no code or reason of their own to know them by.
_TOO_LATE = ("Deadline Exceeded", "Stream removed (Deadline Exceeded)")
_NO_ANSWER = "no answer within timeout_s: the server is busy, or not there; send less in a call, or raise timeout_s"
_NOBODY = ("failed to connect to all addresses", "errors resolving ", "DNS resolution failed")  # as they begin
_CLOSED = "Channel closed!"
_REQUEST_TOO_LARGE = re.compile(r"(?:SERVER: Received|CLIENT: Sent) message larger than max \((\d+) vs\. (\d+)\)")


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

    def __reduce__(self) -> tuple[Any, ...]:
        """How it is pickled: a pool of processes, whose calls raise it, breaks by what it can't make anew."""
        return type(self), (self.code, self.reason, self.message, dict(self.metadata))


class InvalidArgument(KinsightError):
    """The request is wrong in itself: the image, the embedding, the filter, a page token or a path."""


class UnreadableImage(InvalidArgument):
    """The file of one of many images can't be read on the client's machine; `__cause__` is what the system said."""

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__("INVALID_ARGUMENT", "", f"{path!r} can't be read: {cause.strerror or cause}")
        self._path = path
        self.__cause__ = cause

    def __reduce__(self) -> tuple[Any, ...]:
        """As of every error."""
        return type(self), (self._path, self.__cause__)


class NotFound(KinsightError):
    """The server has no such index, item, version or operation."""


class AlreadyExists(KinsightError):
    """The file, the directory or the index that was to be made is there already."""


class PermissionDenied(KinsightError):
    """The path lies in no folder that the server was allowed to read or write."""


class FailedPrecondition(KinsightError):
    """The embedding was made by another model than the index's, or the version is in use."""


class Aborted(KinsightError):
    """The index was changed since its etag was read, or somebody else is building it."""


class Cancelled(KinsightError):
    """The operation was cancelled, or the client was closed before or during the call."""


class DataLoss(KinsightError):
    """A file of the server is damaged; the message names it."""


class ResourceExhausted(KinsightError):
    """The server has as many requests as it lets in, its disk is full or fails, or the message is too large."""


class Unavailable(KinsightError):
    """No server answers at the target, or it starts, stops or has no index yet."""


class DeadlineExceeded(KinsightError):
    """No answer came within timeout_s."""


_BY_CODE: Mapping[str, type[KinsightError]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "PERMISSION_DENIED": PermissionDenied,
    "FAILED_PRECONDITION": FailedPrecondition,
    "ABORTED": Aborted,
    "CANCELLED": Cancelled,
    "DATA_LOSS": DataLoss,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
}


def from_rpc(error: grpc.RpcError) -> KinsightError:
    """The error of a failed gRPC call, with what the server's google.rpc.ErrorInfo says."""
    code: grpc.StatusCode = error.code()
    if error.details() == _CLOSED:
        return closed()
    # pairs of key and value, which the type stubs do not know
    trailing: dict[str, bytes] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    status = status_pb2.Status.FromString(trailing.get(_DETAILS_KEY, b""))
    return _error(code.name, _with_remedy(error.details() or ""), status)


def from_status(status: status_pb2.Status) -> KinsightError | None:
    """The error of one item of a batch, or of an operation; None where the status is OK."""
    if status.code == code_pb2.OK:
        return None
    return _error(code_pb2.Code.Name(status.code), status.message, status)


def too_late() -> DeadlineExceeded:
    """The error of a search whose time was up before a call with it ended."""
    return DeadlineExceeded("DEADLINE_EXCEEDED", "", _NO_ANSWER)


def too_large(size: int, limit: int) -> ResourceExhausted:
    """The error of one of many that has more bytes than the server takes in a message."""
    return ResourceExhausted("RESOURCE_EXHAUSTED", "", _smaller(size, limit))


def closed() -> Cancelled:
    """The error of a call of a client that was closed before it, or before its answer."""
    return Cancelled("CANCELLED", "", "the client was closed before the call was answered")


def _with_remedy(message: str) -> str:
    """The message, except those of gRPC's own that say nothing of what to do."""
    if message in _TOO_LATE:
        return _NO_ANSWER
    if message.startswith(_NOBODY):
        return f"{message}; start a server there, or name another one as HOST:PORT"
    found = _REQUEST_TOO_LARGE.fullmatch(message)
    if found is None:
        return message
    return _smaller(*map(int, found.groups()))


def _smaller(size: int, limit: int) -> str:
    return (
        f"the request is {size:,} bytes, above the limit of {limit:,} for a message; "
        "send a smaller image, or fewer items in a call"
    )


def _error(code: str, message: str, status: status_pb2.Status) -> KinsightError:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            break
    kind = _BY_CODE.get(code, KinsightError)
    return kind(code, info.reason, message, MappingProxyType(dict(info.metadata)))

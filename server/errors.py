"""Every error that a client can get: one table from exception to gRPC code and stable reason.

    RequestError                  the request can't be answered as it is
    ├── QueryMissing              neither image, embedding nor item
    ├── TopKOutOfRange
    ├── NprobeOutOfRange
    ├── DimensionMismatch         the embedding has another length than the model's
    ├── EmbeddingNotFinite        NaN or infinity
    ├── EmbeddingZero             has no direction
    ├── ModelMismatch             the embedding was made by another model than the index's
    ├── IndexNotFound
    ├── NoIndex                   the server has nothing to search yet
    ├── Overloaded
    └── Draining                  the server is shutting down

The errors of the indexer (undecodable image, unknown item, corrupt version, missing model) are translated by the same
table. Whatever it lacks is INTERNAL: logged with its stack, answered without.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2, message  # type: ignore[import-untyped]
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from indexer.encoder import ProbeMismatch
from indexer.manifest import ManifestError
from indexer.pixels import ImageTooLarge, UndecodableImage
from indexer.store import NotFound
from indexer.version import UnknownItem, VersionError

DOMAIN = "kinsight"
MAX_TEXT_BYTES = 800  # an error travels in HTTP/2 headers, up to four times over; gRPC drops calls above 8 KiB there
RETRY_DELAY_S = 0.5  # long enough for a full queue to empty, short enough that nobody notices

log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request can't be answered; the message says why and what to do.

    Attributes:
        metadata: the parts of the message that a program may want, for ErrorInfo.
    """

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.metadata = metadata


class QueryMissing(RequestError):
    """The request has neither an image, an embedding nor an item to search for."""


class TopKOutOfRange(RequestError):
    """top_k is below 1 or above the most hits of one answer."""


class NprobeOutOfRange(RequestError):
    """Nprobe is below 1 or above the number of lists of the index."""


class DimensionMismatch(RequestError):
    """The embedding has another length than the embeddings of the index."""


class EmbeddingNotFinite(RequestError):
    """The embedding holds NaN or infinity."""


class EmbeddingZero(RequestError):
    """The embedding is all zero, so it has no direction to compare."""


class ModelMismatch(RequestError):
    """The embedding was made by another model; similarities between the two would mean nothing."""


class IndexNotFound(RequestError):
    """The server has no index of that name; the message lists those it has."""


class NoIndex(RequestError):
    """The server has no index to search yet."""


class Overloaded(RequestError):
    """The server has as many requests in progress as it lets in."""


class Draining(RequestError):
    """The server is shutting down and lets no request in."""


@dataclass(frozen=True)
class Answer:
    """How an exception is answered.

    Attributes:
        code: gRPC's status code.
        reason: ErrorInfo's reason; never changes once released.
        field: the request's field at fault, for BadRequest.
        retry: whether the same request may succeed in a moment, for RetryInfo.
    """

    code: grpc.StatusCode
    reason: str
    field: str = ""
    retry: bool = False


_INVALID = grpc.StatusCode.INVALID_ARGUMENT

TABLE: Mapping[type[Exception], Answer] = {
    UndecodableImage: Answer(_INVALID, "IMAGE_DECODE_FAILED", field="image"),
    ImageTooLarge: Answer(_INVALID, "IMAGE_TOO_LARGE", field="image"),
    QueryMissing: Answer(_INVALID, "QUERY_MISSING", field="query"),
    TopKOutOfRange: Answer(_INVALID, "TOP_K_OUT_OF_RANGE", field="top_k"),
    NprobeOutOfRange: Answer(_INVALID, "NPROBE_OUT_OF_RANGE", field="params.nprobe"),
    DimensionMismatch: Answer(_INVALID, "DIMENSION_MISMATCH", field="embedding.values"),
    EmbeddingNotFinite: Answer(_INVALID, "EMBEDDING_NOT_FINITE", field="embedding.values"),
    EmbeddingZero: Answer(_INVALID, "EMBEDDING_ZERO", field="embedding.values"),
    ModelMismatch: Answer(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_MISMATCH"),
    UnknownItem: Answer(grpc.StatusCode.NOT_FOUND, "ITEM_NOT_FOUND"),
    IndexNotFound: Answer(grpc.StatusCode.NOT_FOUND, "INDEX_NOT_FOUND"),
    NoIndex: Answer(grpc.StatusCode.UNAVAILABLE, "NO_INDEX", retry=True),
    Overloaded: Answer(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry=True),
    Draining: Answer(grpc.StatusCode.UNAVAILABLE, "DRAINING", retry=True),
    ManifestError: Answer(grpc.StatusCode.DATA_LOSS, "INDEX_CORRUPT"),
    VersionError: Answer(grpc.StatusCode.DATA_LOSS, "INDEX_CORRUPT"),
    NotFound: Answer(grpc.StatusCode.DATA_LOSS, "MODEL_MISSING"),
    ProbeMismatch: Answer(grpc.StatusCode.DATA_LOSS, "MODEL_PROBE_MISMATCH"),
}

_INTERNAL = Answer(grpc.StatusCode.INTERNAL, "INTERNAL")


def status_of(error: Exception) -> status_pb2.Status:
    """The google.rpc.Status that answers an exception, with ErrorInfo and what else fits its code."""
    answer = _answer(error)
    told = answer is not _INTERNAL
    text = _shortened(str(error)) if told else "the server failed on this request; its log says why"
    metadata = {name: _shortened(value) for name, value in getattr(error, "metadata", {}).items()}
    info = error_details_pb2.ErrorInfo(reason=answer.reason, domain=DOMAIN, metadata=metadata)
    details: list[message.Message] = [info]
    if answer.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=answer.field, description=text)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if answer.code is grpc.StatusCode.FAILED_PRECONDITION:
        unmet = error_details_pb2.PreconditionFailure.Violation(type=answer.reason, subject="model", description=text)
        details.append(error_details_pb2.PreconditionFailure(violations=[unmet]))
    if answer.retry:
        delay = duration_pb2.Duration(nanos=int(RETRY_DELAY_S * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    code = code_pb2.Code.Value(answer.code.name)
    return status_pb2.Status(code=code, message=text, details=[_packed(detail) for detail in details])


def foreseen(error: Exception) -> bool:
    """Whether the table says how to answer it: its message tells all, and a stack would say nothing more."""
    return _answer(error) is not _INTERNAL


async def abort(context: grpc.aio.ServicerContext[object, object], error: Exception) -> NoReturn:
    """End a call with the answer to `error`; one that the table lacks is logged with its stack."""
    if not foreseen(error):
        log.error("a request failed", exc_info=error)
    status = rpc_status.to_status(status_of(error))
    await context.abort(status.code, status.details, status.trailing_metadata)


def _answer(error: Exception) -> Answer:
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind]
    return _INTERNAL


def _shortened(text: str) -> str:
    # The path of a damaged file need not be UTF-8, which a message on the wire must be.
    encoded = text.encode(errors="backslashreplace")
    cut = encoded[:MAX_TEXT_BYTES].decode(errors="ignore")
    return cut if len(encoded) <= MAX_TEXT_BYTES else f"{cut}…"


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed

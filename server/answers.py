"""What a client gets for an error: one table from exception to gRPC code and stable reason.

It has the errors of this room and those of the indexer (undecodable image, unknown item, corrupt version, full disk).
Where the disk itself refuses, the system's error says why. Whatever else it lacks is INTERNAL: logged with its stack,
answered without.
"""

import errno
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2, message  # type: ignore[import-untyped]
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from indexer import records
from indexer.build import NothingToIndex
from indexer.calibration import CalibrationError
from indexer.catalog import CatalogBusy, CatalogCorrupt, CatalogWriteFailed, RequestReused, UnknownContent
from indexer.comparable import TypeMismatch
from indexer.encoder import EncoderError, ProbeMismatch
from indexer.filters import FilterSyntaxError, UnknownField
from indexer.labels import LabelsError
from indexer.manifest import ManifestError
from indexer.operations import NoSuchOperation, OperationRunning
from indexer.pixels import ImageTooLarge, UndecodableImage
from indexer.rebuild import ImagesGone, NoActiveVersion
from indexer.snapshot import DamagedSnapshot, NewerSnapshot, NotASnapshot, NotEmpty, NotThere
from indexer.source import SourceError
from indexer.store import NotFound
from indexer.tables import UnreadableLabels
from indexer.version import UnknownItem, VersionError
from server.errors import (
    BatchSizeOutOfRange,
    BudgetOutOfRange,
    BuildInProgress,
    DefaultRecallOutOfRange,
    DimensionMismatch,
    DiversityOutOfRange,
    Draining,
    EmbeddingNotFinite,
    EmbeddingZero,
    IndexExists,
    IndexNameInvalid,
    IndexNotFound,
    InvalidGroupBy,
    InvalidLabels,
    InvalidLearning,
    InvalidPageToken,
    InvalidPath,
    InvalidRequestId,
    LearningInProgress,
    MinProbabilityOutOfRange,
    MinRecallOutOfRange,
    MinSimilarityOutOfRange,
    ModelMismatch,
    ModelNotCalibrated,
    ModelNotFound,
    NoIndex,
    NothingToRollBack,
    NprobeOutOfRange,
    OperationFailed,
    Overloaded,
    PageSizeOutOfRange,
    ParamsConflict,
    PathExists,
    PathNotAllowed,
    PathNotFound,
    QueryCountOutOfRange,
    QueryMissing,
    RefusedBefore,
    ScoreKindUnknown,
    StaleEtag,
    TargetRecallOutOfRange,
    ThresholdOutOfRange,
    TooManyOperations,
    TopKOutOfRange,
    VersionInUse,
    VersionNotFound,
    WaitForUnknown,
)

DOMAIN = "kinsight"
MAX_TEXT_BYTES = 800  # an error travels in HTTP/2 headers, up to four times over; gRPC drops calls above 8 KiB there
RETRY_DELAY_S = 0.5  # long enough for a full queue to empty, short enough that nobody notices
TELL_EVERY_S = 60.0  # the operator, of one trouble that fails request after request, perhaps on the disk of the log

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """How an exception is answered.

    Attributes:
        code: gRPC's status code.
        reason: ErrorInfo's reason; never changes once released.
        field: the request's field at fault, for BadRequest.
        retry: whether the same request may succeed in a moment, for RetryInfo.
        subject: what is not as the request needs it, for PreconditionFailure.
        operator: whether only who runs the server can help, so that the log says it too.
    """

    code: grpc.StatusCode
    reason: str
    field: str = ""
    retry: bool = False
    subject: str = ""
    operator: bool = False


_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_NOT_FOUND = grpc.StatusCode.NOT_FOUND
_EXISTS = grpc.StatusCode.ALREADY_EXISTS
_UNMET = grpc.StatusCode.FAILED_PRECONDITION
_ABORTED = grpc.StatusCode.ABORTED
_LOST = grpc.StatusCode.DATA_LOSS
_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED

TABLE: Mapping[type[Exception], Answer] = {
    UndecodableImage: Answer(_INVALID, "IMAGE_DECODE_FAILED", field="image"),
    ImageTooLarge: Answer(_INVALID, "IMAGE_TOO_LARGE", field="image"),
    QueryMissing: Answer(_INVALID, "QUERY_MISSING", field="query"),
    TopKOutOfRange: Answer(_INVALID, "TOP_K_OUT_OF_RANGE", field="top_k"),
    NprobeOutOfRange: Answer(_INVALID, "NPROBE_OUT_OF_RANGE", field="params.nprobe"),
    DimensionMismatch: Answer(_INVALID, "DIMENSION_MISMATCH", field="embedding.values"),
    EmbeddingNotFinite: Answer(_INVALID, "EMBEDDING_NOT_FINITE", field="embedding.values"),
    EmbeddingZero: Answer(_INVALID, "EMBEDDING_ZERO", field="embedding.values"),
    ModelMismatch: Answer(_UNMET, "MODEL_MISMATCH", subject="model"),
    ParamsConflict: Answer(_INVALID, "PARAMS_CONFLICT", field="params.target_recall"),
    TargetRecallOutOfRange: Answer(_INVALID, "TARGET_RECALL_OUT_OF_RANGE", field="params.target_recall"),
    MinSimilarityOutOfRange: Answer(_INVALID, "MIN_SIMILARITY_OUT_OF_RANGE", field="min_similarity"),
    ThresholdOutOfRange: Answer(_INVALID, "THRESHOLD_OUT_OF_RANGE", field="near_duplicate_threshold"),
    DiversityOutOfRange: Answer(_INVALID, "DIVERSITY_OUT_OF_RANGE", field="diversity"),
    InvalidGroupBy: Answer(_INVALID, "INVALID_GROUP_BY", field="group_by"),
    MinProbabilityOutOfRange: Answer(_INVALID, "MIN_PROBABILITY_OUT_OF_RANGE", field="min_probability"),
    ScoreKindUnknown: Answer(_INVALID, "SCORE_KIND_UNKNOWN", field="score_kind"),
    ModelNotCalibrated: Answer(_UNMET, "MODEL_NOT_CALIBRATED", subject="model"),
    FilterSyntaxError: Answer(_INVALID, "FILTER_SYNTAX", field="filter"),
    UnknownField: Answer(_INVALID, "FILTER_UNKNOWN_FIELD", field="filter"),
    TypeMismatch: Answer(_INVALID, "FILTER_TYPE_MISMATCH", field="filter"),
    UnknownItem: Answer(_NOT_FOUND, "ITEM_NOT_FOUND"),
    UnknownContent: Answer(_NOT_FOUND, "ITEM_NOT_FOUND"),
    records.ItemNotFound: Answer(_NOT_FOUND, "ITEM_NOT_FOUND"),
    records.InvalidItem: Answer(_INVALID, "INVALID_ITEM", field="item"),
    records.DuplicateItem: Answer(_INVALID, "DUPLICATE_ITEM", field="item"),
    records.InvalidPayload: Answer(_INVALID, "INVALID_PAYLOAD", field="payload"),
    records.PayloadTooLarge: Answer(_INVALID, "PAYLOAD_TOO_LARGE", field="payload"),
    BatchSizeOutOfRange: Answer(_INVALID, "BATCH_SIZE_OUT_OF_RANGE", field="items"),
    WaitForUnknown: Answer(_INVALID, "WAIT_FOR_UNKNOWN", field="wait_for"),
    QueryCountOutOfRange: Answer(_INVALID, "BATCH_SIZE_OUT_OF_RANGE", field="requests"),
    InvalidRequestId: Answer(_INVALID, "INVALID_REQUEST_ID", field="request_id"),
    RequestReused: Answer(_INVALID, "REQUEST_ID_REUSED", field="request_id"),
    RefusedBefore: Answer(_UNMET, "REFUSED_BEFORE", subject="request_id"),
    PageSizeOutOfRange: Answer(_INVALID, "PAGE_SIZE_OUT_OF_RANGE", field="page_size"),
    InvalidPageToken: Answer(_INVALID, "INVALID_PAGE_TOKEN", field="page_token"),
    IndexNotFound: Answer(_NOT_FOUND, "INDEX_NOT_FOUND"),
    IndexNameInvalid: Answer(_INVALID, "INVALID_INDEX_NAME", field="index"),
    IndexExists: Answer(_EXISTS, "INDEX_EXISTS"),
    VersionNotFound: Answer(_NOT_FOUND, "VERSION_NOT_FOUND"),
    VersionInUse: Answer(_UNMET, "VERSION_IN_USE", subject="version"),
    NothingToRollBack: Answer(_UNMET, "NOTHING_TO_ROLL_BACK", subject="index"),
    StaleEtag: Answer(_ABORTED, "STALE_ETAG"),
    BuildInProgress: Answer(_ABORTED, "BUILD_IN_PROGRESS"),
    LearningInProgress: Answer(_ABORTED, "LEARNING_IN_PROGRESS"),
    ModelNotFound: Answer(_NOT_FOUND, "MODEL_NOT_FOUND"),
    DefaultRecallOutOfRange: Answer(_INVALID, "TARGET_RECALL_OUT_OF_RANGE", field="target_recall"),
    MinRecallOutOfRange: Answer(_INVALID, "MIN_RECALL_OUT_OF_RANGE", field="min_recall"),
    InvalidPath: Answer(_INVALID, "INVALID_PATH", field="path"),
    PathNotAllowed: Answer(grpc.StatusCode.PERMISSION_DENIED, "PATH_NOT_ALLOWED"),
    PathNotFound: Answer(_NOT_FOUND, "PATH_NOT_FOUND"),
    PathExists: Answer(_EXISTS, "PATH_EXISTS"),
    SourceError: Answer(_INVALID, "INVALID_COLLECTION", field="path"),
    LabelsError: Answer(_INVALID, "INVALID_LABELS", field="labels"),
    UnreadableLabels: Answer(_INVALID, "INVALID_LABELS", field="labels"),
    InvalidLabels: Answer(_INVALID, "INVALID_LABELS", field="labels"),
    InvalidLearning: Answer(_INVALID, "INVALID_LEARNING"),
    BudgetOutOfRange: Answer(_INVALID, "BUDGET_OUT_OF_RANGE", field="budget"),
    CalibrationError: Answer(_INVALID, "LABELS_NOT_CALIBRATABLE", field="labels"),
    NoActiveVersion: Answer(_UNMET, "NO_ACTIVE_VERSION", subject="index"),
    ImagesGone: Answer(_UNMET, "IMAGES_GONE", subject="index"),
    NothingToIndex: Answer(_UNMET, "NOTHING_TO_INDEX", subject="index"),
    NotEmpty: Answer(_EXISTS, "PATH_EXISTS"),
    NotThere: Answer(_NOT_FOUND, "PATH_NOT_FOUND"),
    NotASnapshot: Answer(_INVALID, "NOT_A_SNAPSHOT", field="directory"),
    NewerSnapshot: Answer(_UNMET, "SNAPSHOT_NEWER", subject="directory"),
    DamagedSnapshot: Answer(_LOST, "SNAPSHOT_CORRUPT"),
    NoSuchOperation: Answer(_NOT_FOUND, "OPERATION_NOT_FOUND"),
    OperationRunning: Answer(_UNMET, "OPERATION_RUNNING", subject="operation"),
    OperationFailed: Answer(grpc.StatusCode.INTERNAL, "OPERATION_FAILED"),
    TooManyOperations: Answer(_EXHAUSTED, "TOO_MANY_OPERATIONS"),
    NoIndex: Answer(grpc.StatusCode.UNAVAILABLE, "NO_INDEX", retry=True),
    Overloaded: Answer(_EXHAUSTED, "OVERLOADED", retry=True),
    Draining: Answer(grpc.StatusCode.UNAVAILABLE, "DRAINING", retry=True),
    CatalogWriteFailed: Answer(_EXHAUSTED, "CATALOG_NOT_WRITABLE", operator=True),
    CatalogBusy: Answer(grpc.StatusCode.UNAVAILABLE, "CATALOG_BUSY", retry=True),
    CatalogCorrupt: Answer(_LOST, "CATALOG_CORRUPT", operator=True),
    ManifestError: Answer(_LOST, "INDEX_CORRUPT"),
    VersionError: Answer(_LOST, "INDEX_CORRUPT"),
    NotFound: Answer(_LOST, "MODEL_MISSING"),
    ProbeMismatch: Answer(_LOST, "MODEL_PROBE_MISMATCH"),
    EncoderError: Answer(_LOST, "MODEL_NOT_USABLE", operator=True),
}

_INTERNAL = Answer(grpc.StatusCode.INTERNAL, "INTERNAL")
_DISK = Answer(_EXHAUSTED, "STORE_NOT_ACCESSIBLE", operator=True)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

# Other processes record their errors by name; the table has those of the indexer, or twins of them.
_BY_NAME = {kind.__name__: answer for kind, answer in TABLE.items()} | {
    # The trainer's, which this room can't import.
    "RecipeError": TABLE[InvalidLearning],
    "StartError": Answer(_UNMET, "MODEL_NOT_LEARNABLE", subject="model"),
    # The system's, which have no class of their own, and what a build says of them.
    **{errno.errorcode[number]: _DISK for number in (*_FULL, *_REFUSED)},
    "WriteFailed": _DISK,
}

_told_at_s: dict[str, float] = {}  # by reason, on time.monotonic()


def status_of(error: Exception) -> status_pb2.Status:
    """The google.rpc.Status that answers an exception, with ErrorInfo and what else fits its code."""
    return _status(_answer(error), _text(error), getattr(error, "metadata", {}))


def status_by_name(types: Sequence[str], text: str) -> status_pb2.Status:
    """The status that answers an exception of another process, by the names of its class and of those above it."""
    known = (_BY_NAME[name] for name in types if name in _BY_NAME)
    return _status(next(known, TABLE[OperationFailed]), _shortened(text), {})


def _status(answer: Answer, text: str, more: Mapping[str, str]) -> status_pb2.Status:
    metadata = {name: _shortened(value) for name, value in more.items()}
    info = error_details_pb2.ErrorInfo(reason=answer.reason, domain=DOMAIN, metadata=metadata)
    details: list[message.Message] = [info]
    if answer.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=answer.field, description=text)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if answer.subject:
        violated = {"type": answer.reason, "subject": answer.subject, "description": text}
        unmet = error_details_pb2.PreconditionFailure.Violation(**violated)
        details.append(error_details_pb2.PreconditionFailure(violations=[unmet]))
    if answer.retry:
        delay = duration_pb2.Duration(nanos=int(RETRY_DELAY_S * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    code = code_pb2.Code.Value(answer.code.name)
    return status_pb2.Status(code=code, message=text, details=[_packed(detail) for detail in details])


def foreseen(error: Exception) -> bool:
    """Whether it is answered as what it is: its message tells all, and a stack would say nothing more."""
    return _answer(error) is not _INTERNAL


async def abort(context: grpc.aio.ServicerContext[object, object], error: Exception) -> NoReturn:
    """End a call with the answer to `error`."""
    tell_operator(error)
    status = rpc_status.to_status(status_of(error))
    await context.abort(status.code, status.details, status.trailing_metadata)


def _answer(error: Exception) -> Answer:
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind]
    # One that the indexer worded anew has the system's as its cause.
    refusal = error.__cause__ if isinstance(error, OSError) and error.errno is None else error
    return _DISK if isinstance(refusal, OSError) and refusal.errno in (*_FULL, *_REFUSED) else _INTERNAL


def _text(error: Exception) -> str:
    answer = _answer(error)
    if answer is _INTERNAL:
        return "the server failed on this request; its log says why"
    if isinstance(error, OSError) and error.errno is not None and answer is _DISK:
        remedy = "free some space" if error.errno in _FULL else "check the disk and its permissions"
        return _shortened(f"{error.filename or 'the store'}: {error.strerror}; {remedy} and try again")
    return _shortened(str(error))


def tell_operator(error: Exception) -> None:
    """Log what only who runs the server can help; an error that nobody foresaw with its stack."""
    answer, now = _answer(error), time.monotonic()
    if answer is _INTERNAL:
        log.error("a request failed", exc_info=error)
    elif answer.operator and now - _told_at_s.get(answer.reason, -TELL_EVERY_S) >= TELL_EVERY_S:
        _told_at_s[answer.reason] = now
        log.error("requests fail: %s: %s", answer.reason, _text(error))


def _shortened(text: str) -> str:
    # The path of a damaged file need not be UTF-8, which a message on the wire must be.
    encoded = text.encode(errors="backslashreplace")
    cut = encoded[:MAX_TEXT_BYTES].decode(errors="ignore")
    return cut if len(encoded) <= MAX_TEXT_BYTES else f"{cut}…"


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed

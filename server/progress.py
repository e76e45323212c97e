"""Records of operations as google.longrunning.Operation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf import duration_pb2  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from google.rpc import code_pb2, status_pb2
from kinsight.v1 import index_service_pb2, item_service_pb2, model_service_pb2
from kinsight.v1.operation_metadata_pb2 import OperationMetadata

from indexer.operations import UNFINISHED, NoSuchOperation, Operation
from indexer.store import Store
from server import answers, descriptions
from server.errors import VersionNotFound
from server.indexes import Indexes
from server.learning import by_field

PREFIX = "operations/"

_STATES = {
    "queued": OperationMetadata.STATE_QUEUED,
    "running": OperationMetadata.STATE_RUNNING,
    "interrupted": OperationMetadata.STATE_INTERRUPTED,
    "done": OperationMetadata.STATE_SUCCEEDED,
    "failed": OperationMetadata.STATE_FAILED,
    "cancelled": OperationMetadata.STATE_CANCELLED,
}
KINDS = {
    "import": OperationMetadata.KIND_IMPORT,
    "export": OperationMetadata.KIND_EXPORT,
    "build": OperationMetadata.KIND_BUILD,
    "rebuild": OperationMetadata.KIND_BUILD,
    "evaluate": OperationMetadata.KIND_EVALUATE,
    "snapshot": OperationMetadata.KIND_SNAPSHOT,
    "restore": OperationMetadata.KIND_RESTORE,
    "train": OperationMetadata.KIND_TRAIN,
    "finetune": OperationMetadata.KIND_FINE_TUNE,
    "suggest": OperationMetadata.KIND_SUGGEST_LABELS,
    "calibrate": OperationMetadata.KIND_CALIBRATE,
}


def identity_of(name: str) -> str:
    """The id in the name of an operation; raises NoSuchOperation."""
    if not name.startswith(PREFIX):
        raise NoSuchOperation(f"{name!r} is not the name of an operation; they are called {PREFIX}ID")
    return name.removeprefix(PREFIX)


def message(indexes: Indexes, store: Store, operation: Operation) -> operations_pb2.Operation:
    """An operation with how far it is, and its response or error once it ended; reads disks.

    Raises:
        NoSuchOperation: its record is not as this release writes it.
    """
    with _of_this_release(operation):
        return _message(indexes, store, operation)


def _message(indexes: Indexes, store: Store, operation: Operation) -> operations_pb2.Operation:
    told = operations_pb2.Operation(name=PREFIX + operation.id, done=operation.state not in UNFINISHED)
    told.metadata.Pack(_metadata(operation))
    if operation.state == "done":
        told.response.Pack(_response(indexes, store, operation))
    elif operation.state == "failed":
        said = by_field(operation.error, operation.arguments)
        told.error.CopyFrom(answers.status_by_name(operation.error_types, said))
    elif operation.state == "cancelled":
        told.error.CopyFrom(status_pb2.Status(code=code_pb2.CANCELLED, message="the operation was cancelled"))
    return told


def is_ours(operation: Operation) -> bool:
    """Whether it is of a kind that this service knows; the kinds of later versions are not."""
    return operation.kind in KINDS


def metadata(operation: Operation) -> OperationMetadata:
    """How far an operation is; raises NoSuchOperation as `message`."""
    with _of_this_release(operation):
        return _metadata(operation)


@contextmanager
def _of_this_release(operation: Operation) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NoSuchOperation(
            f"the record of {PREFIX}{operation.id} is not of this release ({error!r}); remove it"
        ) from error


def _metadata(operation: Operation) -> OperationMetadata:
    eta = None
    if operation.eta_s is not None:
        eta = duration_pb2.Duration()
        eta.FromMilliseconds(int(operation.eta_s * 1000))
    return OperationMetadata(
        kind=KINDS[operation.kind],
        index=operation.index,
        state=_STATES[operation.state],
        stage=operation.stage,
        done=operation.done,
        total=operation.total,
        rate=operation.rate,
        eta=eta,
        start_time=descriptions.timestamp(operation.started),
        update_time=descriptions.timestamp(operation.updated),
        warnings=[by_field(warning, operation.arguments) for warning in operation.warnings],
        end_time=None if operation.state in UNFINISHED else descriptions.timestamp(operation.updated),
    )


def _response(indexes: Indexes, store: Store, operation: Operation) -> Message:
    result = dict(operation.result)
    if "warnings" in result:
        result["warnings"] = [by_field(warning, operation.arguments) for warning in result["warnings"]]
    match operation.kind:
        case "import" | "export":
            return _of_items(operation.kind, result)
        case "snapshot":
            known = _of(result, "directory", "version", "sequence", "bytes")
            return index_service_pb2.SnapshotIndexResponse(**known)
        case "restore":
            return descriptions.index(store, indexes, result["index"])
        case "evaluate":
            return descriptions.evaluation(result["version"], result["recall"], result["comparison"])
        case "build" | "rebuild":
            return _built(store, operation.index, result)
    return _of_learning(store, operation.kind, result)


def _of_items(kind: str, result: Mapping[str, Any]) -> Message:
    if kind == "export":
        return item_service_pb2.ExportItemsResponse(**_of(result, "path", "items", "bytes", "model", "sequence"))
    known = _of(result, "imported", "unchanged", "failed", "failures", "warnings")
    return item_service_pb2.ImportItemsResponse(**known)


def _of_learning(store: Store, kind: str, result: Mapping[str, Any]) -> Message:
    match kind:
        case "train":
            return _trained(store, result)
        case "finetune":
            return _fine_tuned(store, result)
        case "calibrate":
            return _calibrated(result)
    return _suggested(result)


def _trained(store: Store, result: Mapping[str, Any]) -> model_service_pb2.TrainResponse:
    return model_service_pb2.TrainResponse(
        model=descriptions.model_or_id(store, result["model"]),
        failed=len(result["skipped"]),
        warnings=result["warnings"],
        beats_start=result.get("beats_start"),
    )


def _fine_tuned(store: Store, result: Mapping[str, Any]) -> model_service_pb2.FineTuneResponse:
    return model_service_pb2.FineTuneResponse(
        **_of(result, "compared", "unknown_labels", "warnings"),
        model=descriptions.model_or_id(store, result["model"]),
        suspects=[model_service_pb2.Suspect(**suspect) for suspect in result["suspects"]],
        failed=len(result["skipped"]),
        beats_start=result.get("beats_start"),
        beats_supervised=result.get("beats_supervised"),
        supervised=result.get("supervised", {}),
    )


def _suggested(result: Mapping[str, Any]) -> model_service_pb2.SuggestLabelsResponse:
    return model_service_pb2.SuggestLabelsResponse(
        **_of(result, "model", "images", "labelled", "warnings"),
        suggested=[model_service_pb2.SuggestedImage(**one) for one in result["suggested"]],
        failed=len(result["skipped"]),
    )


def _calibrated(result: Mapping[str, Any]) -> model_service_pb2.CalibrateResponse:
    return model_service_pb2.CalibrateResponse(
        **_of(result, "model", "unknown_labels", "warnings"),
        calibration=descriptions.calibration(result),
        failed=len(result["skipped"]),
    )


def _built(store: Store, index: str, result: Mapping[str, Any]) -> index_service_pb2.BuildVersionResponse:
    try:
        built = descriptions.one_version(store, index, result["version"])
    except VersionNotFound:  # deleted since
        built = index_service_pb2.Version(index=index, version=result["version"], model=result["model"])
    return index_service_pb2.BuildVersionResponse(
        version=built,
        evaluation=descriptions.evaluation(result["version"], result["recall"], result["comparison"]),
        reused=result["reused"],
        embedded=result["decoded"],
        failed=len(result["skipped"]),
        warnings=result["warnings"],
    )


def _of(result: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: result[name] for name in names}

"""The calls of google.longrunning.Operations, and what an operation is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from google.longrunning import operations_pb2 as pb
from google.longrunning.operations_pb2_grpc import OperationsStub
from kinsight.v1 import index_service_pb2, item_service_pb2, model_service_pb2
from kinsight.v1.operation_metadata_pb2 import OperationMetadata

from kinsight_client import messages, models, versions
from kinsight_client.calls import Call, Channel, Pages, Warn
from kinsight_client.errors import DeadlineExceeded, KinsightError, from_status

R = TypeVar("R")

PAGE_SIZE = 1000
LOOK_EVERY_S = 0.5  # while waiting: as often as the server's records are written

_PREFIX = "operations/"
_RESULTS: Mapping[type[Any], Callable[[Any], Any]] = {
    item_service_pb2.ImportItemsResponse: messages.import_result,
    item_service_pb2.ExportItemsResponse: messages.export_result,
    index_service_pb2.BuildVersionResponse: versions.build_result,
    index_service_pb2.Evaluation: versions.evaluation_of,
    index_service_pb2.SnapshotIndexResponse: versions.snapshot_result,
    index_service_pb2.Index: versions.index_of,
    model_service_pb2.TrainResponse: models.train_result,
    model_service_pb2.FineTuneResponse: models.fine_tune_result,
    model_service_pb2.SuggestLabelsResponse: models.suggestion_of,
    model_service_pb2.CalibrateResponse: models.calibration_result,
}


@dataclass(frozen=True)
class Operation(Generic[R]):
    """Long work of a server, as it was when it was looked at.

    Attributes:
        id: its id.
        kind: import, export, build, evaluate, snapshot, restore, train, fine_tune, suggest_labels or
            calibrate; of a newer server's, the number in OperationMetadata.
        index: name of the index that it is about; empty for the last four.
        state: queued, running, interrupted (its process was killed; the server resumes it), succeeded, failed or
            cancelled.
        stage: what it is doing, for people.
        done: how much of the stage is done.
        total: how much the stage has to do, in its own unit; 0 where that is not known.
        rate: done a second, since the stage began or was resumed.
        eta_s: until the stage is done; None where that is not known.
        warnings: what was found wrong so far, each a sentence; of learning, what it leaves out.
        started: when it was started.
        updated: when it last told how far it is.
        ended: when it ended; None until then.
        is_done: whether it has ended.
        result: of one that succeeded; None where it is of a kind that only a newer client knows.
        error: why one failed, `Cancelled` where it was cancelled.
    """

    id: str
    kind: str
    index: str
    state: str
    stage: str
    done: int
    total: int
    rate: float
    eta_s: float | None
    warnings: tuple[str, ...]
    started: datetime
    updated: datetime
    ended: datetime | None
    is_done: bool
    result: R | None
    error: KinsightError | None


class OperationCalls:
    """Reads, awaits and ends the long work of a server."""

    def __init__(self, channel: Channel) -> None:
        self._stub = OperationsStub(channel)

    def get(self, id: str) -> Call[Operation[Any]]:  # noqa: A002  as the attribute of an operation
        """How far an operation is.

        Raises:
            KinsightError: see `kinsight_client.errors`.
            TypeError: the id is no text.
        """
        return Call(self._stub.GetOperation, pb.GetOperationRequest(name=_name(id)), operation_of)

    def list(self, *, filter: str = "") -> Pages[Operation[Any]]:  # noqa: A002  the field's word, and the server's
        """Go through the operations that the server knows, oldest first, page by page.

        Args:
            filter: which ones, in the language of `search`: a condition on done, and on the fields of
                OperationMetadata, such as `done = false AND index = "photos"` or `kind = KIND_IMPORT`; empty for all.

        Raises:
            KinsightError: see `kinsight_client.errors`.
        """
        request = pb.ListOperationsRequest(name=_PREFIX.rstrip("/"), filter=filter, page_size=PAGE_SIZE)
        return Pages(self._stub.ListOperations, request, lambda response: map(operation_of, response.operations))

    def wait_briefly(self, id: str, timeout_s: float, left_s: float) -> Call[Operation[Any]]:  # noqa: A002  as above
        """How far an operation is once it has ended, or a moment later.

        Args:
            id: of the operation.
            timeout_s: of a call, half of which the answer's way may take.
            left_s: until nobody waits any longer.
        """
        request = pb.WaitOperationRequest(name=_name(id))
        request.timeout.FromTimedelta(timedelta(seconds=min(LOOK_EVERY_S, timeout_s / 2, left_s)))
        return Call(self._stub.WaitOperation, request, operation_of)

    def cancel(self, id: str) -> Call[None]:  # noqa: A002  as the attribute of an operation
        """Ask an operation to end; `wait` for it to see when and how it did.

        Raises:
            KinsightError: see `kinsight_client.errors`.
            TypeError: the id is no text.
        """
        return Call(self._stub.CancelOperation, pb.CancelOperationRequest(name=_name(id)), lambda _: None)

    def delete(self, id: str) -> Call[None]:  # noqa: A002  as the attribute of an operation
        """Let the server forget an operation that has ended. Not retried.

        Raises:
            KinsightError: see `kinsight_client.errors`.
            TypeError: the id is no text.
        """
        return Call(self._stub.DeleteOperation, pb.DeleteOperationRequest(name=_name(id)), lambda _: None)


def operation_of(message: pb.Operation) -> Operation[Any]:
    """The typed form of a message."""
    metadata = OperationMetadata()
    message.metadata.Unpack(metadata)
    return Operation(
        id=message.name.removeprefix(_PREFIX),
        kind=_word(OperationMetadata.Kind, metadata.kind),
        index=metadata.index,
        state=_word(OperationMetadata.State, metadata.state),
        stage=metadata.stage,
        done=metadata.done,
        total=metadata.total,
        rate=metadata.rate,
        eta_s=metadata.eta.ToTimedelta().total_seconds() if metadata.HasField("eta") else None,
        warnings=tuple(metadata.warnings),
        started=metadata.start_time.ToDatetime(UTC),
        updated=metadata.update_time.ToDatetime(UTC),
        ended=metadata.end_time.ToDatetime(UTC) if metadata.HasField("end_time") else None,
        is_done=message.done,
        result=_response_of(message) if message.HasField("response") else None,
        error=from_status(message.error) if message.HasField("error") else None,
    )


def check_operation(operation: object) -> None:
    """Raise TypeError for what is no operation, such as the id of one."""
    if not isinstance(operation, Operation):
        shown = repr(operation) if isinstance(operation, str) else type(operation).__name__
        raise TypeError(f"the operation is {shown}; give an Operation, as `operations.get` returns one for its id")


def tell_unheard(operation: Operation[Any], heard: set[str], warn: Warn | None) -> None:
    """Tell those of an operation's warnings that were not heard yet, which they are then."""
    for warning in operation.warnings:
        if warn is not None and warning not in heard:
            heard.add(warning)
            warn(warning)


def result_of(operation: Operation[R]) -> R:
    """The result of an operation that is done; raises the error of one that failed, or TypeError."""
    if operation.error is not None:
        raise operation.error
    if operation.result is None:
        raise TypeError(f"operation {operation.id} succeeded; its result is of a newer server than this client")
    return operation.result


def out_of_time(operation: Operation[Any]) -> DeadlineExceeded:
    """What waiting for too long raises."""
    message = f"operation {operation.id} is still {operation.state}, and goes on; wait for it again"
    return DeadlineExceeded("DEADLINE_EXCEEDED", "", message)


def _name(identity: str) -> str:
    if not isinstance(identity, str):
        raise TypeError(f"the id of an operation is {type(identity).__name__}; give the `id` of an Operation, a str")
    return _PREFIX + identity.removeprefix(_PREFIX)  # as errors of the server name operations


def _response_of(message: pb.Operation) -> Any:
    for kind, read in _RESULTS.items():
        response = kind()
        if message.response.Unpack(response):
            return read(response)
    return None


def _word(words: Any, number: int) -> str:
    """`KIND_BUILD` as `build`; of a newer server's word, which has no name here, the number."""
    if number not in words.values():
        return str(number)
    name: str = words.Name(number)
    return name.partition("_")[2].lower()

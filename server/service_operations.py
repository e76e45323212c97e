"""google.longrunning.Operations: what became of the long work that other services started."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import compress, islice
from typing import Any, TypeVar

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2, json_format  # type: ignore[import-untyped]
from kinsight.v1.operation_metadata_pb2 import OperationMetadata

from indexer import comparable, filters, operations
from indexer.catalog import CatalogError
from indexer.operations import UNFINISHED, NoSuchOperation, Operation
from indexer.version import VersionError
from server import answers, progress, reading
from server.admission import Admission
from server.answered import Context, answered
from server.indexes import Indexes
from server.jobs import Jobs
from server.paging import Page, part

R = TypeVar("R")

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2  # at the record of an operation that is waited for
MAX_WAIT_S = 3600.0  # of one call
_CHUNK = 100  # operations that a filter looks at together
# The fields whose values are among these, the first of them never sent: whatever else they are compared with was
# meant for one, such as the words that clients show, and would be found nowhere.
_WORDS: Mapping[filters.Field, Sequence[str]] = {
    ("kind",): OperationMetadata.Kind.keys()[1:],
    ("state",): OperationMetadata.State.keys()[1:],
}


class OperationsService(operations_pb2_grpc.OperationsServicer):
    """The service over the records of a store."""

    def __init__(self, indexes: Indexes, admission: Admission, jobs: Jobs) -> None:
        self._indexes = indexes
        self.admission = admission
        self._jobs = jobs

    @answered
    async def GetOperation(self, request: operations_pb2.GetOperationRequest) -> operations_pb2.Operation:
        """The operation of a name."""
        return await asyncio.to_thread(self._message, await self._find(request.name))

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """The operation of a name once it is done, or as it is when the time is over."""
        try:
            wanted_s = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else MAX_WAIT_S
            give_up = time.monotonic() + min(wanted_s, MAX_WAIT_S)
            while True:
                with self.admission.admit(0):  # at each look: who waits takes no place
                    found = await self._find(request.name)
                    left_s = give_up - time.monotonic()
                    if found.state not in UNFINISHED or left_s <= 0:
                        return await asyncio.to_thread(self._message, found)
                await asyncio.sleep(min(LOOK_EVERY_S, left_s))
        except Exception as error:
            await answers.abort(context, error)

    @answered
    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest
    ) -> operations_pb2.ListOperationsResponse:
        """A page of the operations of the store, oldest first; a filter is one on their metadata, and on `done`."""
        page = Page.asked(request.page_size, request.page_token, request.filter)
        return await asyncio.to_thread(self._list, page, request.filter)

    @answered
    async def CancelOperation(self, request: operations_pb2.CancelOperationRequest) -> empty_pb2.Empty:
        """Ask an operation to end; it is done, with the error CANCELLED, soon after."""
        await self._jobs.cancel((await self._find(request.name)).id)
        return empty_pb2.Empty()

    @answered
    async def DeleteOperation(self, request: operations_pb2.DeleteOperationRequest) -> empty_pb2.Empty:
        """Forget an operation that is done."""
        found = await self._find(request.name)
        await asyncio.to_thread(operations.delete, self._jobs.directory, found.id)
        return empty_pb2.Empty()

    async def _find(self, name: str) -> Operation:
        found = await asyncio.to_thread(operations.find, self._jobs.directory, progress.identity_of(name))
        if not progress.is_ours(found):
            raise NoSuchOperation(f"{name} is a {found.kind}, which is shown by `kinsight operations` alone")
        return found

    def _message(self, operation: Operation) -> operations_pb2.Operation:
        if operation.state == "done":  # what it built, imported or restored is searched by then
            self._indexes.refresh()
        return progress.message(self._indexes, self._jobs.store, operation)

    def _list(self, page: Page, condition: str) -> operations_pb2.ListOperationsResponse:
        known = filter(progress.is_ours, operations.operations_after(self._jobs.directory, page.after))
        # One more than are shown says whether another page follows.
        found = islice(_matching(known, condition) if condition.strip() else known, page.size + 1)
        shown = part([(one.id, one) for one in found], page)
        listed = partial(progress.message, self._indexes, self._jobs.store)
        messages = [told for one in shown.entries if (told := _unless_damaged(listed, one)) is not None]
        return operations_pb2.ListOperationsResponse(operations=messages, next_page_token=shown.token)


def _unless_damaged(told: Callable[[Operation], R], operation: Operation) -> R | None:
    """What is told of an operation; none where its record is of another release, or its index damaged.

    The others of a list are fine.
    """
    try:
        return told(operation)
    except (NoSuchOperation, VersionError, CatalogError) as error:
        log.warning("an operation is left out of the list: %s", error)
        return None


def _matching(known: Iterator[Operation], condition: str) -> Iterator[Operation]:
    """Those that a filter holds for."""
    expression = filters.parse(condition)
    _check_fields(expression)
    for comparison in comparable.comparisons(expression):
        _check_words(comparison)
    described = ((one, fields) for one in known if (fields := _unless_damaged(_fields, one)) is not None)
    while chunk := list(islice(described, _CHUNK)):
        holds = reading.matching(expression, [(one.id, json.dumps(fields)) for one, fields in chunk])
        yield from compress((one for one, _ in chunk), holds)


def _check_fields(expression: filters.Expression) -> None:
    known = {*OperationMetadata.DESCRIPTOR.fields_by_name}
    for field in filters.fields(expression):
        if field[0] not in known:
            there = ", ".join(sorted(known))
            raise filters.UnknownField(f"operations have no field {filters.shown(field)}; fields are: {there}")


def _check_words(comparison: filters.Comparison) -> None:
    words = _WORDS.get(comparison.field, [])
    for value, written in zip(comparison.values, comparison.written, strict=True):
        if words and not any(_is_meant(value, word) for word in words):
            what = comparison.field[0]
            raise comparable.TypeMismatch(
                written.column, f"{written.text} is no {what}; write one of {', '.join(words)}"
            )


def _is_meant(value: filters.Value, word: str) -> bool:
    return word.startswith(value.text) if isinstance(value, filters.Prefix) else value == word


def _fields(operation: Operation) -> dict[str, Any]:
    metadata: dict[str, Any] = json_format.MessageToDict(
        progress.metadata(operation), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # JSON has 64-bit numbers as texts, which no number could be compared with; `done` is the operation's own.
    return metadata | {"total": operation.total, "done": operation.state not in UNFINISHED}

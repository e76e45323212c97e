"""kinsight.v1.ItemService: requests to changes of catalogues and answers to responses, nothing else."""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from google.longrunning import operations_pb2
from kinsight.v1 import item_service_pb2_grpc
from kinsight.v1.item_service_pb2 import (
    BatchDeleteItemsRequest,
    BatchDeleteItemsResponse,
    BatchUpsertItemsRequest,
    BatchUpsertItemsResponse,
    ExportItemsRequest,
    GetItemRequest,
    ImportItemsRequest,
    Item,
    ItemResult,
    ItemUpsert,
    ListItemsRequest,
    ListItemsResponse,
)

from indexer.pixels import PixelsError
from indexer.records import Outcome, Refused, Upsert
from server import answers, reading
from server.admission import Admission
from server.answered import answered
from server.errors import BatchSizeOutOfRange, RefusedBefore, WaitForUnknown
from server.folders import Folders, check_free, check_parquet, check_there
from server.indexes import ActiveIndex, Indexes
from server.jobs import Job, Jobs
from server.paging import Page
from server.preparing import Batch, Prepared
from server.starting import check_request_id, started
from server.workers import Workers
from server.writing import ModelChanged, Write

MAX_BATCH = 1000  # items of one request
MAX_SWAPS = 10  # times that a request is embedded again because another model was activated in between

_REFUSALS = {kind.reason: kind for kind in Refused.__subclasses__()}


class ItemService(item_service_pb2_grpc.ItemServiceServicer):
    """The service over the catalogues of the active indexes."""

    def __init__(
        self, indexes: Indexes, admission: Admission, workers: Workers, jobs: Jobs, folders: Folders
    ) -> None:
        self._indexes = indexes
        self.admission = admission
        self._workers = workers
        self._jobs = jobs
        self._folders = folders

    @answered
    async def BatchUpsertItems(self, request: BatchUpsertItemsRequest) -> BatchUpsertItemsResponse:
        """Answers ItemService.BatchUpsertItems; see the proto."""
        _check_batch(len(request.items), request.request_id)
        _check_wait_for(request.wait_for)
        return BatchUpsertItemsResponse(results=await self._upsert(request))

    @answered
    async def BatchDeleteItems(self, request: BatchDeleteItemsRequest) -> BatchDeleteItemsResponse:
        """Answers ItemService.BatchDeleteItems; see the proto."""
        _check_batch(len(request.items), request.request_id)
        index = self._indexes.get(request.index)
        write = Write(index.name, index.model, request.request_id, deletes=list(request.items))
        outcomes = await self._workers.writing.submit(write)
        return BatchDeleteItemsResponse(results=map(_result, outcomes))

    @answered
    async def GetItem(self, request: GetItemRequest) -> Item:
        """Answers ItemService.GetItem; see the proto."""
        return await self._workers.read(reading.item, self._indexes.get(request.index), request.item)

    @answered
    async def ListItems(self, request: ListItemsRequest) -> ListItemsResponse:
        """Answers ItemService.ListItems; see the proto."""
        index = self._indexes.get(request.index)
        page = Page.asked(request.page_size, request.page_token, index.name, request.filter)
        found = await self._workers.read(reading.page, index, page, request.filter)
        return ListItemsResponse(items=found.entries, next_page_token=found.token)

    @answered
    async def ImportItems(self, request: ImportItemsRequest) -> operations_pb2.Operation:
        """Answers ItemService.ImportItems; see the proto."""

        def job() -> Job:
            path, index = self._folders.readable(request.path), self._indexes.get(request.index)
            words, checks = ["items", "import", index.name, str(path)], [partial(check_there, path)]
            if request.failures_path:
                failures = self._folders.to_write(request.failures_path)
                words += ["--failures", str(failures)]
                checks.append(partial(check_free, failures))
            since = index.catalog.sequence()
            return Job("import", index.name, tuple(words), lambda: _all(checks), since=since)

        return await started(self._jobs, self._indexes, job, request.request_id)

    @answered
    async def ExportItems(self, request: ExportItemsRequest) -> operations_pb2.Operation:
        """Answers ItemService.ExportItems; see the proto."""

        def job() -> Job:
            path, name = self._folders.to_write(request.path), self._indexes.get(request.index).name
            check_parquet(path)
            return Job("export", name, ("items", "export", name, str(path)), partial(check_free, path))

        return await started(self._jobs, self._indexes, job, request.request_id)

    async def _upsert(self, request: BatchUpsertItemsRequest) -> list[ItemResult]:
        # On a thread: of 32 MB it takes longer than twenty searches.
        digest = await self._workers.read(_digest, request.items) if request.request_id else ""
        for _ in range(MAX_SWAPS):
            index = self._indexes.get(request.index)
            prepared = await self._workers.preparing.submit(Batch(index, request.items))
            upserts = await self._embedded(index, prepared)
            taken = [one for one in upserts if isinstance(one, Upsert)]
            write = Write(index.name, index.model, request.request_id, digest, taken)
            try:
                outcomes = await self._workers.writing.submit(write)
            except ModelChanged:
                continue
            return _results(request.items, upserts, outcomes)
        raise ModelChanged

    async def _embedded(self, index: ActiveIndex, prepared: Prepared) -> Prepared:
        """Embed the images among upserts; one that can't be is the reason why in its place."""
        if not any(isinstance(one, Upsert) and one.image is not None for one in prepared):
            return prepared  # a thousand embeddings need no tasks of their own
        return await asyncio.gather(*(self._with_embedding(index, one) for one in prepared))

    async def _with_embedding(self, index: ActiveIndex, upsert: Upsert | Exception) -> Upsert | Exception:
        if isinstance(upsert, Exception) or upsert.image is None:
            return upsert
        try:
            embedding = await self._workers.embed(upsert.image, index.encoder)
        except PixelsError as error:
            return error
        return upsert._replace(embedding=embedding)


def _all(checks: Iterable[Callable[[], None]]) -> None:
    for check in checks:
        check()


def _digest(items: Sequence[ItemUpsert]) -> str:
    """Equal for equal items, whatever becomes of them: what is taken may depend on the model of the moment."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(hashlib.sha256(item.SerializeToString(deterministic=True)).digest())
    return digest.hexdigest()


def _results(items: Sequence[ItemUpsert], upserts: Prepared, outcomes: Sequence[Outcome]) -> list[ItemResult]:
    """What became of each item; of a repeated request, what became of it the first time."""
    known = {outcome.item: outcome for outcome in outcomes}
    results = []
    for item, upsert in zip(items, upserts, strict=True):
        if item.item in known:
            results.append(_result(known[item.item]))
        elif isinstance(upsert, Exception):
            results.append(_failed(item.item, upsert))
        else:  # of another model then, say
            refusal = RefusedBefore(
                "this item was refused when the request came first; send it under a new request_id"
            )
            results.append(_failed(item.item, refusal))
    return results


def _check_batch(count: int, request_id: str) -> None:
    if not 1 <= count <= MAX_BATCH:
        raise BatchSizeOutOfRange(f"the batch holds {count:,} items; it must be 1 to {MAX_BATCH:,}")
    check_request_id(request_id)


def _check_wait_for(wait_for: int) -> None:
    kinds = BatchUpsertItemsRequest.WaitFor
    if wait_for not in kinds.values():
        raise WaitForUnknown(f"wait_for is {wait_for}; it must be one of {', '.join(kinds.keys())}")


def _result(outcome: Outcome) -> ItemResult:
    if outcome.reason:
        return _failed(outcome.item, _REFUSALS[outcome.reason](outcome.message))
    return ItemResult(item=outcome.item, status={}, sequence=outcome.sequence)


def _failed(item: str, error: Exception) -> ItemResult:
    return ItemResult(item=item, status=answers.status_of(error))

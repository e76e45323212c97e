"""kinsight.v1.IndexService: requests to operations and swaps, and answers to responses, nothing else."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial

from google.longrunning import operations_pb2
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from kinsight.v1 import index_service_pb2 as pb
from kinsight.v1 import index_service_pb2_grpc

from indexer import adopt, version
from indexer.catalog import CatalogError
from indexer.locks import turn
from indexer.rebuild import active_number
from server import answers, descriptions, learning
from server.admission import Admission
from server.answered import answered
from server.errors import (
    DefaultRecallOutOfRange,
    IndexExists,
    IndexNameInvalid,
    InvalidLearning,
    MinRecallOutOfRange,
    NothingToRollBack,
    StaleEtag,
    VersionInUse,
    VersionNotFound,
)
from server.folders import Folders, check_free, check_there
from server.indexes import Indexes
from server.jobs import Job, Jobs
from server.paging import Page, part
from server.starting import started


class IndexService(index_service_pb2_grpc.IndexServiceServicer):
    """The service over the versions of a store's indexes."""

    def __init__(self, indexes: Indexes, admission: Admission, jobs: Jobs, folders: Folders) -> None:
        self._store = jobs.store
        self._indexes = indexes
        self.admission = admission
        self._jobs = jobs
        self._folders = folders

    @answered
    async def ListIndexes(self, request: pb.ListIndexesRequest) -> pb.ListIndexesResponse:
        """Answers IndexService.ListIndexes; see the proto."""
        page = Page.asked(request.page_size, request.page_token, "indexes")
        return await asyncio.to_thread(self._list_indexes, page)

    @answered
    async def GetIndex(self, request: pb.GetIndexRequest) -> pb.Index:
        """Answers IndexService.GetIndex; see the proto."""
        return await asyncio.to_thread(self._index, request.index)

    @answered
    async def GetIndexStats(self, request: pb.GetIndexStatsRequest) -> pb.IndexStats:
        """Answers IndexService.GetIndexStats; see the proto."""
        served = self._indexes.get(request.index)
        return await asyncio.to_thread(descriptions.index_stats, self._store, served)

    @answered
    async def BuildVersion(self, request: pb.BuildVersionRequest) -> operations_pb2.Operation:
        """Answers IndexService.BuildVersion; see the proto."""
        return await started(self._jobs, self._indexes, partial(self._build, request), request.request_id)

    @answered
    async def ActivateVersion(self, request: pb.ActivateVersionRequest) -> pb.Index:
        """Answers IndexService.ActivateVersion; see the proto."""
        return await asyncio.to_thread(self._activate, request)

    @answered
    async def RollbackIndex(self, request: pb.RollbackIndexRequest) -> pb.Index:
        """Answers IndexService.RollbackIndex; see the proto."""
        return await asyncio.to_thread(self._roll_back, request)

    @answered
    async def ListVersions(self, request: pb.ListVersionsRequest) -> pb.ListVersionsResponse:
        """Answers IndexService.ListVersions; see the proto."""
        return await asyncio.to_thread(self._list_versions, request)

    @answered
    async def DeleteVersion(self, request: pb.DeleteVersionRequest) -> empty_pb2.Empty:
        """Answers IndexService.DeleteVersion; see the proto."""
        await asyncio.to_thread(self._delete, request)
        return empty_pb2.Empty()

    @answered
    async def EvaluateVersion(self, request: pb.EvaluateVersionRequest) -> operations_pb2.Operation:
        """Answers IndexService.EvaluateVersion; see the proto."""
        return await started(self._jobs, self._indexes, partial(self._evaluate, request))

    @answered
    async def SnapshotIndex(self, request: pb.SnapshotIndexRequest) -> operations_pb2.Operation:
        """Answers IndexService.SnapshotIndex; see the proto."""
        return await started(self._jobs, self._indexes, partial(self._snapshot, request), request.request_id)

    @answered
    async def RestoreIndex(self, request: pb.RestoreIndexRequest) -> operations_pb2.Operation:
        """Answers IndexService.RestoreIndex; see the proto."""
        return await started(self._jobs, self._indexes, partial(self._restore, request), request.request_id)

    def _index(self, name: str) -> pb.Index:
        return descriptions.index(self._store, self._indexes, self._indexes.resolve(name))

    def _list_indexes(self, page: Page) -> pb.ListIndexesResponse:
        shown = part([(name, name) for name in self._indexes.names()], page)
        return pb.ListIndexesResponse(indexes=map(self._listed, shown.entries), next_page_token=shown.token)

    def _listed(self, name: str) -> pb.Index:
        """An index; of one whose pointer or catalogue is damaged the name and that alone, as the others are fine."""
        try:
            return descriptions.index(self._store, self._indexes, name)
        except (version.VersionError, CatalogError) as error:
            return pb.Index(index=name, problem=str(answers.status_of(error).message))

    def _list_versions(self, request: pb.ListVersionsRequest) -> pb.ListVersionsResponse:
        name = self._indexes.resolve(request.index)
        page = Page.asked(request.page_size, request.page_token, name)
        newest_first = reversed(version.list_versions(self._store.index(name)))
        # Numbers that ascend where versions descend, as pages go by ascending keys.
        shown = part([(f"{2**63 - number:019}", number) for number in newest_first], page)
        versions = []
        for number in shown.entries:
            with suppress(VersionNotFound):  # deleted since they were listed
                versions.append(descriptions.one_version(self._store, name, number))
        return pb.ListVersionsResponse(versions=versions, next_page_token=shown.token)

    def _activate(self, request: pb.ActivateVersionRequest) -> pb.Index:
        name = self._indexes.resolve(request.index)
        descriptions.one_version(self._store, name, request.version)
        with self._pointing(name):
            self._check_etag(name, request.etag)
            adopt.activate(self._store, name, request.version)
        self._indexes.serve(name)
        return self._index(name)

    def _roll_back(self, request: pb.RollbackIndexRequest) -> pb.Index:
        name = self._indexes.resolve(request.index)
        with self._pointing(name):
            self._check_etag(name, request.etag)
            if version.previous_version(self._store.index(name)) is None:
                raise NothingToRollBack(f"index {name} has no version that was active before; activate one by number")
            adopt.rollback(self._store, name)
        self._indexes.serve(name)
        return self._index(name)

    def _pointing(self, name: str) -> AbstractContextManager[None]:
        """Compare an etag and move the pointer in one step, for all processes of this server."""
        return turn(self._store.index(name) / ".pointing")

    def _check_etag(self, name: str, etag: str) -> None:
        if not etag:
            return  # not read: activating is what mends a pointer that can't be
        now = self._index(name)
        if etag != now.etag:
            raise StaleEtag(
                f"index {name} has changed since etag {etag!r}: version {now.active_version} is active, "
                f"{now.previous_version or 'none'} was before; read it again and decide anew"
            )

    def _delete(self, request: pb.DeleteVersionRequest) -> None:
        name = self._indexes.resolve(request.index)
        descriptions.one_version(self._store, name, request.version)
        index_dir = self._store.index(name)
        # In this order: while an activation is waited for, builds may go on, and deletions come one after the other.
        with self._pointing(name), self._jobs.unbuilt(name):
            if request.version in version.pointed(index_dir):
                raise VersionInUse(
                    f"version {request.version} of index {name} is active, or what a rollback goes back to; activate "
                    "another one first"
                )
            version.delete_version(index_dir, request.version)

    def _build(self, request: pb.BuildVersionRequest) -> Job:
        name = self._indexes.resolve(request.index)
        words = ["rebuild", name, *self._path("--images", request.images), *self._path("--labels", request.labels)]
        if request.model:
            words += ["--model", learning.model_id(self._store, request.model)]
        if request.learn:
            words += ["--learn"]
        words += self._learning(request)
        if request.HasField("min_recall"):
            if not 0 <= request.min_recall <= 1:
                raise MinRecallOutOfRange(f"min_recall is {request.min_recall:g}; it must be 0 to 1")
            words += ["--min-recall", repr(request.min_recall)]
        if request.HasField("target_recall"):
            if not 0 < request.target_recall <= 1:
                raise DefaultRecallOutOfRange(
                    f"target_recall is {request.target_recall:g}; it must be above 0 and at most 1"
                )
            words += ["--target-recall", repr(request.target_recall)]
        if request.HasField("activate") and not request.activate:
            words += ["--no-activate"]
        return Job("rebuild", name, tuple(words))

    def _learning(self, request: pb.BuildVersionRequest) -> Sequence[str]:
        for name in ("epochs", "learn_memory_bytes"):
            if getattr(request, name) and not (request.learn or request.HasField("fine_tune")):
                raise InvalidLearning(f"{name} is of learn and fine_tune; leave it out, or set one of them")
        words = [*learning.passes(request.epochs), *learning.bounded(request.learn_memory_bytes)]
        if request.HasField("fine_tune"):
            words += learning.named("--method", request.fine_tune.method, learning.LEARNING_METHODS)
            words += learning.doubting(request.fine_tune.keep_doubted)
            words += ["--finetune", str(learning.table_of(request.fine_tune.labels, self._store, self._folders))]
        return words

    def _evaluate(self, request: pb.EvaluateVersionRequest) -> Job:
        name = self._indexes.resolve(request.index)
        words = ["index", "evaluate", name, *self._path("--labels", request.labels)]
        if request.version:
            descriptions.one_version(self._store, name, request.version)
            words += ["--version", str(request.version)]
        else:
            active_number(self._store, name)
        return Job("evaluate", name, tuple(words))

    def _snapshot(self, request: pb.SnapshotIndexRequest) -> Job:
        name = self._indexes.resolve(request.index)
        active_number(self._store, name)
        directory = self._folders.to_write(request.directory)
        return Job("snapshot", name, ("index", "snapshot", name, str(directory)), partial(check_free, directory))

    def _restore(self, request: pb.RestoreIndexRequest) -> Job:
        try:
            index_dir = self._store.index(request.index)
        except ValueError as error:
            raise IndexNameInvalid(str(error)) from error

        def check() -> None:
            if index_dir.exists():
                raise IndexExists(f"index {request.index} is there already; restore under another name")
            check_there(directory)

        directory = self._folders.readable(request.directory)
        words = ("index", "restore", str(directory), "--name", request.index)
        return Job("restore", request.index, words, check)

    def _path(self, option: str, path: str) -> Sequence[str]:
        return [option, str(self._folders.to_read(path))] if path else []

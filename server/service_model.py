"""kinsight.v1.ModelService: requests to operations, and models to messages, nothing else."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.longrunning import operations_pb2
from kinsight.v1 import model_service_pb2 as pb
from kinsight.v1 import model_service_pb2_grpc

from indexer.manifest import ManifestError
from server import answers, descriptions, learning, progress
from server.admission import Admission
from server.errors import BudgetOutOfRange, InvalidPath
from server.folders import Folders
from server.indexes import Indexes
from server.jobs import Job, Jobs
from server.paging import Page, part
from server.service_items import check_request_id

_Context = grpc.aio.ServicerContext[Any, Any]
_Request = TypeVar("_Request", pb.TrainRequest, pb.FineTuneRequest, pb.SuggestLabelsRequest, pb.CalibrateRequest)

log = logging.getLogger(__name__)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """The service over the models of a store."""

    def __init__(self, indexes: Indexes, admission: Admission, jobs: Jobs, folders: Folders) -> None:
        self._store = jobs.store
        self._indexes = indexes
        self._admission = admission
        self._jobs = jobs
        self._folders = folders

    async def ListModels(  # noqa: N802 - gRPC's name
        self, request: pb.ListModelsRequest, context: _Context
    ) -> pb.ListModelsResponse:
        """Answers ModelService.ListModels; see the proto."""
        try:
            with self._admission.admit(0):
                page = Page.asked(request.page_size, request.page_token, "models")
                return await asyncio.to_thread(self._list, page)
        except Exception as error:
            await answers.abort(context, error)

    async def GetModel(self, request: pb.GetModelRequest, context: _Context) -> pb.Model:  # noqa: N802 - gRPC's name
        """Answers ModelService.GetModel; see the proto."""
        try:
            with self._admission.admit(0):
                return await asyncio.to_thread(self._model, request.model)
        except Exception as error:
            await answers.abort(context, error)

    async def Train(  # noqa: N802 - gRPC's name
        self, request: pb.TrainRequest, context: _Context
    ) -> operations_pb2.Operation:
        """Answers ModelService.Train; see the proto."""
        return await self._started(self._train, request, context)

    async def FineTune(  # noqa: N802 - gRPC's name
        self, request: pb.FineTuneRequest, context: _Context
    ) -> operations_pb2.Operation:
        """Answers ModelService.FineTune; see the proto."""
        return await self._started(self._fine_tune, request, context)

    async def SuggestLabels(  # noqa: N802 - gRPC's name
        self, request: pb.SuggestLabelsRequest, context: _Context
    ) -> operations_pb2.Operation:
        """Answers ModelService.SuggestLabels; see the proto."""
        return await self._started(self._suggest, request, context)

    async def Calibrate(  # noqa: N802 - gRPC's name
        self, request: pb.CalibrateRequest, context: _Context
    ) -> operations_pb2.Operation:
        """Answers ModelService.Calibrate; see the proto."""
        return await self._started(self._calibrate, request, context)

    async def _started(
        self, job_of: Callable[[_Request], Job], request: _Request, context: _Context
    ) -> operations_pb2.Operation:
        try:
            with self._admission.admit(0):
                check_request_id(request.request_id)
                job = await asyncio.to_thread(job_of, request)
                operation = await self._jobs.start(job, request.request_id)
                return await asyncio.to_thread(progress.message, self._indexes, self._store, operation)
        except Exception as error:
            await answers.abort(context, error)

    def _list(self, page: Page) -> pb.ListModelsResponse:
        known = []
        for identity in self._store.model_ids():
            try:
                model = descriptions.model(self._store.model(identity))
            except ManifestError as error:
                log.warning("a model is left out of the list: %s", error)
                continue
            known.append((f"{model.create_time.ToJsonString()} {identity}", model))
        shown = part(sorted(known, key=lambda keyed: keyed[0]), page)
        return pb.ListModelsResponse(models=shown.entries, next_page_token=shown.token)

    def _model(self, reference: str) -> pb.Model:
        return descriptions.model(self._store.models / learning.model_id(self._store, reference))

    def _train(self, request: pb.TrainRequest) -> Job:
        if not request.images:
            raise InvalidPath("images is empty; name at least one collection on the server's machine")
        words = ["train", *(str(self._folders.to_read(path)) for path in request.images)]
        if request.model:
            words += ["--from", learning.model_id(self._store, request.model)]
        if request.labels:
            words += ["--labels", str(self._folders.to_read(request.labels))]
        words += [*learning.named("--recipe", request.recipe), *learning.passes(request.epochs), *_seed(request)]
        return Job("train", "", tuple(words))

    def _fine_tune(self, request: pb.FineTuneRequest) -> Job:
        model = learning.model_id(self._store, request.model)
        words = ["finetune", model, str(self._folders.to_read(request.images))]
        words += [*learning.named("--method", request.method), *learning.passes(request.epochs), *_seed(request)]
        table = learning.table_of(request.labels, self._store, self._folders)  # last: it writes
        return Job("finetune", "", (*words, "--labels", str(table)))

    def _suggest(self, request: pb.SuggestLabelsRequest) -> Job:
        if request.budget < 1:
            raise BudgetOutOfRange(f"budget is {request.budget}; it must be 1 to the number of images")
        model = learning.model_id(self._store, request.model)
        words = ["suggest", str(self._folders.to_read(request.images)), "--model", model]
        words += ["--budget", str(request.budget), "--seed", str(request.seed)]
        words += learning.named("--method", request.method)
        if request.HasField("labels"):
            words += ["--labels", str(learning.table_of(request.labels, self._store, self._folders))]
        return Job("suggest", "", tuple(words))

    def _calibrate(self, request: pb.CalibrateRequest) -> Job:
        model = learning.model_id(self._store, request.model)
        words = ["calibrate", model, str(self._folders.to_read(request.images)), *learning.among(request.things)]
        table = learning.table_of(request.labels, self._store, self._folders)  # last: it writes
        return Job("calibrate", "", (*words, "--labels", str(table)))


def _seed(request: pb.TrainRequest | pb.FineTuneRequest) -> list[str]:
    return ["--seed", str(request.seed)] if request.HasField("seed") else []

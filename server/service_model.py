"""kinsight.v1.ModelService: requests to operations, and models to messages, nothing else."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from google.longrunning import operations_pb2
from kinsight.v1 import model_service_pb2 as pb
from kinsight.v1 import model_service_pb2_grpc

from indexer.manifest import ManifestError
from server import descriptions, learning
from server.admission import Admission
from server.answered import answered
from server.errors import BudgetOutOfRange, InvalidPath
from server.folders import Folders
from server.indexes import Indexes
from server.jobs import Job, Jobs
from server.paging import Page, part
from server.starting import started

log = logging.getLogger(__name__)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """The service over the models of a store."""

    def __init__(self, indexes: Indexes, admission: Admission, jobs: Jobs, folders: Folders) -> None:
        self._store = jobs.store
        self._indexes = indexes
        self.admission = admission
        self._jobs = jobs
        self._folders = folders

    @answered
    async def ListModels(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Answers ModelService.ListModels; see the proto."""
        page = Page.asked(request.page_size, request.page_token, "models")
        return await asyncio.to_thread(self._list, page)

    @answered
    async def GetModel(self, request: pb.GetModelRequest) -> pb.Model:
        """Answers ModelService.GetModel; see the proto."""
        return await asyncio.to_thread(self._model, request.model)

    @answered
    async def Train(self, request: pb.TrainRequest) -> operations_pb2.Operation:
        """Answers ModelService.Train; see the proto."""
        return await started(self._jobs, self._indexes, partial(self._train, request), request.request_id)

    @answered
    async def FineTune(self, request: pb.FineTuneRequest) -> operations_pb2.Operation:
        """Answers ModelService.FineTune; see the proto."""
        return await started(self._jobs, self._indexes, partial(self._fine_tune, request), request.request_id)

    @answered
    async def SuggestLabels(self, request: pb.SuggestLabelsRequest) -> operations_pb2.Operation:
        """Answers ModelService.SuggestLabels; see the proto."""
        return await started(self._jobs, self._indexes, partial(self._suggest, request), request.request_id)

    @answered
    async def Calibrate(self, request: pb.CalibrateRequest) -> operations_pb2.Operation:
        """Answers ModelService.Calibrate; see the proto."""
        return await started(self._jobs, self._indexes, partial(self._calibrate, request), request.request_id)

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
        words += learning.named("--recipe", request.recipe, learning.RECIPES)
        words += [*learning.passes(request.epochs), *_seed(request)]
        return Job("train", "", tuple(words))

    def _fine_tune(self, request: pb.FineTuneRequest) -> Job:
        model = learning.model_id(self._store, request.model)
        words = ["finetune", model, str(self._folders.to_read(request.images))]
        words += learning.named("--method", request.method, learning.LEARNING_METHODS)
        words += [*learning.passes(request.epochs), *_seed(request), *learning.doubting(request.keep_doubted)]
        table = learning.table_of(request.labels, self._store, self._folders)  # last: it writes
        return Job("finetune", "", (*words, "--labels", str(table)))

    def _suggest(self, request: pb.SuggestLabelsRequest) -> Job:
        if request.budget < 1:
            raise BudgetOutOfRange(f"budget is {request.budget}; it must be 1 to the number of images")
        model = learning.model_id(self._store, request.model)
        words = ["suggest", str(self._folders.to_read(request.images)), "--model", model]
        words += ["--budget", str(request.budget), *learning.seeded(request.seed)]
        words += learning.named("--method", request.method, learning.CHOOSING_METHODS)
        if request.HasField("labels"):
            words += ["--labels", str(learning.table_of(request.labels, self._store, self._folders))]
        return Job("suggest", "", tuple(words))

    def _calibrate(self, request: pb.CalibrateRequest) -> Job:
        model = learning.model_id(self._store, request.model)
        words = ["calibrate", model, str(self._folders.to_read(request.images)), *learning.among(request.things)]
        table = learning.table_of(request.labels, self._store, self._folders)  # last: it writes
        return Job("calibrate", "", (*words, "--labels", str(table)))


def _seed(request: pb.TrainRequest | pb.FineTuneRequest) -> Sequence[str]:
    return learning.seeded(request.seed) if request.HasField("seed") else []

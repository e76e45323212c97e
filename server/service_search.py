"""kinsight.v1.SearchService: requests to queries and answers to responses, nothing else."""

import asyncio

import grpc
from kinsight.v1 import search_service_pb2_grpc
from kinsight.v1.search_service_pb2 import Embedding, EmbedRequest, EmbedResponse, SearchRequest, SearchResponse

from server import answers, reading
from server.admission import Admission
from server.embeddings import Floats, unit
from server.errors import QueryMissing
from server.indexes import ActiveIndex, Indexes
from server.searching import Query
from server.wanted import group_of
from server.workers import Workers

_Context = grpc.aio.ServicerContext[object, object]


class SearchService(search_service_pb2_grpc.SearchServiceServicer):
    """The service over the active indexes."""

    def __init__(self, indexes: Indexes, admission: Admission, workers: Workers) -> None:
        self._indexes = indexes
        self._admission = admission
        self._workers = workers

    async def Search(self, request: SearchRequest, context: _Context) -> SearchResponse:  # noqa: N802 - gRPC's name
        """Answers SearchService.Search; see the proto."""
        try:
            with self._admission.admit(len(request.image)):
                index = self._indexes.get(request.index)
                group = group_of(request, index)
                batcher = self._workers.batcher_of(group)
                response = await batcher.submit(Query(group, await self._query(request, index)))
                if request.include_payload:
                    return await asyncio.to_thread(reading.with_payloads, index, response)
                return response
        except Exception as error:
            await answers.abort(context, error)

    async def Embed(self, request: EmbedRequest, context: _Context) -> EmbedResponse:  # noqa: N802 - gRPC's name
        """Answers SearchService.Embed; see the proto."""
        try:
            with self._admission.admit(len(request.image)):
                index = self._indexes.get(request.index)
                values = await self._workers.embed(request.image, index.encoder)
                return EmbedResponse(embedding=Embedding(model=index.model, values=values.tolist()))
        except Exception as error:
            await answers.abort(context, error)

    async def _query(self, request: SearchRequest, index: ActiveIndex) -> Floats | str:
        match request.WhichOneof("query"):
            case "embedding":
                return unit(request.embedding, index)
            case "image":
                return await self._workers.embed(request.image, index.encoder)
            case "item":
                return request.item
        raise QueryMissing("the request has no query; set one of image, embedding and item")

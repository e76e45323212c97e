"""kinsight.v1.SearchService: requests to queries and answers to responses, nothing else."""

import asyncio
import math
import os

import grpc
import numpy as np
from kinsight.v1 import search_service_pb2_grpc
from kinsight.v1.search_service_pb2 import Embedding, EmbedRequest, EmbedResponse, SearchRequest, SearchResponse

from indexer.encoder import Encoder
from indexer.pixels import Pixels, PixelSpec
from server import errors, searching
from server.admission import Admission
from server.batching import Batcher
from server.errors import (
    DimensionMismatch,
    EmbeddingNotFinite,
    EmbeddingZero,
    ModelMismatch,
    NprobeOutOfRange,
    QueryMissing,
    TopKOutOfRange,
)
from server.indexes import ActiveIndex, Indexes
from server.searching import Floats, Group, Query

DEFAULT_TOP_K = 10
MAX_TOP_K = 1000
MAX_SEARCH_BATCH = 64  # beyond 16, FAISS shares a batch out over all cores
MAX_EMBED_BATCH = 16  # on a CPU larger batches are no faster an image, and the first of them waits for the last

_Context = grpc.aio.ServicerContext[object, object]


class SearchService(search_service_pb2_grpc.SearchServiceServicer):
    """The service over the active indexes; must be made on the event loop that serves it."""

    def __init__(self, indexes: Indexes, admission: Admission) -> None:
        cores = os.cpu_count() or 1
        self._indexes = indexes
        self._admission = admission
        self._decoding = Batcher[tuple[bytes, PixelSpec], Pixels](
            "decode", searching.decode, workers=cores, max_batch=1
        )
        self._embedding = Batcher[tuple[Encoder, Pixels], Floats](
            "embed", searching.embed, workers=1, max_batch=MAX_EMBED_BATCH
        )
        # One worker each: two would take the interpreter from each other and from the event loop.
        self._searching = Batcher[Query, SearchResponse](
            "search", searching.search, workers=1, max_batch=MAX_SEARCH_BATCH
        )
        # Comparing with every item can take seconds, which the other searches don't wait for.
        self._scanning = Batcher[Query, SearchResponse](
            "scan", searching.search, workers=1, max_batch=MAX_SEARCH_BATCH
        )

    async def Search(self, request: SearchRequest, context: _Context) -> SearchResponse:  # noqa: N802 - gRPC's name
        """Answers SearchService.Search; see the proto."""
        try:
            with self._admission.admit(len(request.image)):
                index = self._indexes.get(request.index)
                group = _group(request, index)
                batcher = self._scanning if group.exact else self._searching
                return await batcher.submit(Query(group, await self._query(request, index)))
        except Exception as error:
            await errors.abort(context, error)

    async def Embed(self, request: EmbedRequest, context: _Context) -> EmbedResponse:  # noqa: N802 - gRPC's name
        """Answers SearchService.Embed; see the proto."""
        try:
            with self._admission.admit(len(request.image)):
                index = self._indexes.get(request.index)
                values = await self._embed(request.image, index.encoder)
                return EmbedResponse(embedding=Embedding(model=index.model, values=values.tolist()))
        except Exception as error:
            await errors.abort(context, error)

    async def close(self) -> None:
        """End the worker threads; call after the last request."""
        await asyncio.gather(
            self._decoding.close(), self._embedding.close(), self._searching.close(), self._scanning.close()
        )

    async def _query(self, request: SearchRequest, index: ActiveIndex) -> Floats | str:
        match request.WhichOneof("query"):
            case "embedding":
                return _unit(request.embedding, index)
            case "image":
                return await self._embed(request.image, index.encoder)
            case "item":
                return request.item
        raise QueryMissing("the request has no query; set one of image, embedding and item")

    async def _embed(self, image: bytes, encoder: Encoder) -> Floats:
        pixels = await self._decoding.submit((image, encoder.pixels))
        return await self._embedding.submit((encoder, pixels))


def _group(request: SearchRequest, index: ActiveIndex) -> Group:
    top_k = request.top_k if request.HasField("top_k") else DEFAULT_TOP_K
    if not 1 <= top_k <= MAX_TOP_K:
        raise TopKOutOfRange(f"top_k is {top_k}; it must be 1 to {MAX_TOP_K}")
    params = request.params
    if not params.HasField("nprobe"):
        return Group(index, top_k, None, params.exact)
    nlist = index.version.manifest.plan["nlist"]  # 0 for a flat index, which scans every row anyway
    if params.nprobe < 1 or (nlist and params.nprobe > nlist):
        allowed = f"1 to {nlist}, the lists of index {index.name}" if nlist else "at least 1"
        raise NprobeOutOfRange(f"nprobe is {params.nprobe}; it must be {allowed}")
    return Group(index, top_k, params.nprobe, params.exact)


def _unit(embedding: Embedding, index: ActiveIndex) -> Floats:
    if embedding.model != index.model:
        raise ModelMismatch(
            f"the embedding was made by model {embedding.model!r}; index {index.name} holds embeddings of model "
            f"{index.model!r}: embed the image again with the index's model",
            embedding_model=embedding.model,
            index_model=index.model,
        )
    # float64, because the squares of large float32 numbers leave float32's range
    values = np.array(embedding.values, np.float64)
    if len(values) != index.version.manifest.dim:
        raise DimensionMismatch(
            f"the embedding has {len(values)} values; those of model {index.model} have {index.version.manifest.dim}"
        )
    length = math.sqrt(values.dot(values))
    if not math.isfinite(length):
        raise EmbeddingNotFinite("the embedding holds NaN or infinity; every value must be a finite number")
    if length == 0:
        raise EmbeddingZero("the embedding is all zero, which has no direction to search in")
    return (values / length).astype(np.float32)

"""kinsight.v1.SearchService: requests to queries and answers to responses, nothing else."""

import asyncio
from collections.abc import Callable, Sequence
from functools import cache

from kinsight.v1 import search_service_pb2_grpc
from kinsight.v1.search_service_pb2 import (
    BatchSearchRequest,
    BatchSearchResponse,
    Embedding,
    EmbedRequest,
    EmbedResponse,
    SearchRequest,
    SearchResponse,
    SearchResult,
    StreamSearchRequest,
    StreamSearchResponse,
)

from server import answers, reading
from server.admission import Admission
from server.answered import answered, answered_in_turn
from server.embeddings import unit
from server.errors import NoIndex, QueryCountOutOfRange, QueryMissing
from server.indexes import ActiveIndex, Indexes
from server.searching import Query
from server.wanted import group_of, most_hits
from server.workers import MAX_SEARCH_BATCH, Workers

# Of one BatchSearch, whose answer is one message: with payloads as many hits as one Search may have.
MAX_QUERIES, MAX_HITS, MAX_PAYLOADS = 256, 25_600, 1_000


class SearchService(search_service_pb2_grpc.SearchServiceServicer):
    """The service over the active indexes."""

    def __init__(self, indexes: Indexes, admission: Admission, workers: Workers) -> None:
        self._indexes = indexes
        self.admission = admission
        self._workers = workers

    @answered
    async def Search(self, request: SearchRequest) -> SearchResponse:
        """Answers SearchService.Search; see the proto."""
        return await self._search(await self._query(request, self._indexes.get), request)

    @answered
    async def BatchSearch(self, request: BatchSearchRequest) -> BatchSearchResponse:
        """Answers SearchService.BatchSearch; see the proto."""
        return BatchSearchResponse(results=await self._results(request.requests))

    @answered_in_turn
    async def StreamSearch(self, request: StreamSearchRequest) -> StreamSearchResponse:
        """Answers each message of SearchService.StreamSearch; see the proto."""
        return StreamSearchResponse(results=await self._results(request.requests))

    @answered
    async def Embed(self, request: EmbedRequest) -> EmbedResponse:
        """Answers SearchService.Embed; see the proto."""
        index = self._indexes.get(request.index)
        values = await self._workers.embed(request.image, index.encoder)
        return EmbedResponse(embedding=Embedding(model=index.model, values=values.tolist()))

    async def _results(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        _check_size(requests)
        index_of = cache(self._indexes.get)  # the same version for all, whatever is swapped in meanwhile
        results: list[SearchResult] = []
        for first in range(0, len(requests), MAX_SEARCH_BATCH):  # the queries of other calls come in between
            results += await self._some_results(requests[first : first + MAX_SEARCH_BATCH], index_of)
        return results

    async def _some_results(
        self, requests: Sequence[SearchRequest], index_of: Callable[[str], ActiveIndex]
    ) -> list[SearchResult]:
        if len(requests) == 1:
            found = [await self._found(requests[0], index_of)]
        else:
            found = await self._all_found(requests, index_of)
        for error in {one for one in found if isinstance(one, Exception)}:  # many may have failed of the same one
            answers.tell_operator(error)
        return [_result(one) for one in found]

    async def _found(
        self, request: SearchRequest, index_of: Callable[[str], ActiveIndex]
    ) -> SearchResponse | BaseException:
        """Of one query, without tasks for it, which would cost as much as a quick search."""
        try:
            return await self._search(await self._query(request, index_of), request)
        except Exception as error:  # belongs to who asked for it
            return error

    async def _all_found(
        self, requests: Sequence[SearchRequest], index_of: Callable[[str], ActiveIndex]
    ) -> list[SearchResponse | BaseException]:
        """All queries before any search: then searches are one batch, and none takes the interpreter meanwhile."""
        queries = await asyncio.gather(
            *(self._query(request, index_of) for request in requests), return_exceptions=True
        )
        searches = (self._search(query, request) for query, request in zip(queries, requests, strict=True))
        return await asyncio.gather(*searches, return_exceptions=True)

    async def _search(self, query: Query | BaseException, request: SearchRequest) -> SearchResponse:
        if isinstance(query, BaseException):
            raise query
        response = await self._workers.batcher_of(query.group).submit(query)
        if request.include_payload:
            return await self._workers.read(reading.with_payloads, query.group.index, response)
        return response

    async def _query(self, request: SearchRequest, index_of: Callable[[str], ActiveIndex]) -> Query:
        index = index_of(request.index)
        if request.filter or request.group_by:  # a long one takes milliseconds to parse, and a batch has 256
            group = await self._workers.read(group_of, request, index)
        else:
            group = group_of(request, index)
        match request.WhichOneof("query"):
            case "embedding":
                return Query(group, unit(request.embedding, index))
            case "image":
                return Query(group, await self._workers.embed(request.image, index.encoder))
            case "item":
                return Query(group, request.item)
        raise QueryMissing("the request has no query; set one of image, embedding and item")


def _check_size(requests: Sequence[SearchRequest]) -> None:
    if not 1 <= len(requests) <= MAX_QUERIES:
        raise QueryCountOutOfRange(f"the batch holds {len(requests):,} queries; it must be 1 to {MAX_QUERIES}")
    for asked, most, what in (
        (requests, MAX_HITS, "hits"),
        ([one for one in requests if one.include_payload], MAX_PAYLOADS, "hits with payloads"),
    ):
        hits = sum(most_hits(request) for request in asked)
        if hits > most:
            raise QueryCountOutOfRange(
                f"the batch asks for {hits:,} {what}, the top_k of its queries together; it must be at most "
                f"{most:,}: send fewer queries in a call, or lower top_k"
            )


def _result(found: SearchResponse | BaseException) -> SearchResult:
    """What became of a query; raises what every query would meet."""
    if isinstance(found, SearchResponse):
        return SearchResult(status={}, response=found)
    if not isinstance(found, Exception) or isinstance(found, NoIndex):
        raise found
    return SearchResult(status=answers.status_of(found))
